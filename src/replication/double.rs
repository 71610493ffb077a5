//! Stands in for `cluster::layout::Layout` until it is there.
use crate::cluster::NodeId;
use std::sync::Arc;
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sets {
    pub current: Vec<NodeId>,
    pub next: Option<Vec<NodeId>>,
}
impl Sets {
    pub fn contains(&self, node: NodeId) -> bool {
        self.each().any(|set| set.contains(&node))
    }
    pub fn each(&self) -> impl Iterator<Item = &[NodeId]> {
        [Some(&self.current), self.next.as_ref()].into_iter().flatten().map(Vec::as_slice)
    }
    pub fn members(&self) -> Vec<NodeId> {
        let mut all = self.current.clone();
        for n in self.next.iter().flatten() {
            if !all.contains(n) {
                all.push(*n);
            }
        }
        all
    }
}
#[derive(Debug)]
pub struct Layout {
    pub document: Arc<crate::cluster::layout::Document>,
}
impl Layout {
    pub fn new(document: Arc<crate::cluster::layout::Document>) -> Self {
        Self { document }
    }
    pub fn epoch(&self) -> u64 {
        self.document.epoch
    }
    pub fn partition_of(&self, token: u64) -> u32 {
        if self.document.partition_bits == 0 {
            0
        } else {
            (token >> (64 - self.document.partition_bits)) as u32
        }
    }
    pub fn sets(&self, partition: u32, rf: u8) -> Sets {
        let pick = |o: &crate::cluster::layout::Owners| {
            let ids: Vec<NodeId> = o.keys().copied().collect();
            (0..ids.len().min(rf as usize))
                .map(|i| ids[(partition as usize + i) % ids.len()])
                .collect()
        };
        Sets {
            current: pick(&self.document.owners),
            next: self.document.next_owners.as_ref().map(pick),
        }
    }
}
