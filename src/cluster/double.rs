//! Stands in for the document's methods until the layout branch is merged.

use super::NodeId;
use super::layout::{Answer, Command, Document, MemberState, Owner, Owners};

impl Document {
    /// No cluster.
    pub fn empty() -> Self {
        Self {
            cluster_id: NodeId(0),
            epoch: 0,
            version: 0,
            partition_bits: 0,
            members: Default::default(),
            owners: Default::default(),
            next_owners: None,
            fenced: Default::default(),
            synced: Default::default(),
            tenants: Default::default(),
            tenant_id_next: 1,
        }
    }

    /// Applies.
    pub fn apply(&mut self, command: &Command) -> Answer {
        let refused = |reason: &str| Answer::Refused { reason: reason.into(), message: "".into() };
        match command {
            Command::Form { cluster_id, partition_bits, members, .. } => {
                if self.epoch > 0 {
                    return if self.cluster_id == *cluster_id {
                        Answer::Done { epoch: self.epoch }
                    } else {
                        refused("WRONG_CLUSTER")
                    };
                }
                self.cluster_id = *cluster_id;
                self.partition_bits = *partition_bits;
                self.members = members.clone();
                self.owners = owners(self);
                self.epoch = 1;
            }
            Command::Join { epoch, members } => {
                if *epoch != self.epoch {
                    return refused("STALE_LAYOUT");
                }
                self.members.extend(members.clone());
                self.epoch += 1;
            }
            Command::Fenced { node, .. } => {
                self.fenced.insert(*node);
            }
            _ => return refused("UNSUPPORTED"),
        }
        self.version += 1;
        Answer::Done { epoch: self.epoch }
    }
}

fn owners(document: &Document) -> Owners {
    let normal = document.members.iter().filter(|(_, member)| member.state == MemberState::Normal);
    normal
        .map(|(id, member)| (*id, Owner { zone: member.zone.clone(), weight: member.weight }))
        .collect()
}
