//! Writes of rows that this node does not hold: a replica coordinates them.
//!
//! 1. One hop: who gets a forwarded write coordinates it or refuses it.
//! 2. It goes to a second replica only if the first has certainly done nothing: it could not be
//!    reached, or takes no writes at all. A replica whose disk has failed must not fail the writes
//!    that the others can take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::write::{WriteDone, WriteOptions, refused};
use super::{Coordinator, count, leaves};
use crate::cluster::NodeId;
use crate::cluster::peer::{Class, PeerError, Reply, Request};
use crate::proto;
use crate::replication::convert;
use crate::replication::error::{Error, Result};
use crate::replication::reason::TAKES_NO_WRITES;
use crate::store::{Mutation, Outcome, Tenant, Written};

impl Coordinator {
    /// Has writes coordinated by replicas.
    pub(super) fn forward(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        mutations: Vec<Mutation>,
        options: WriteOptions,
        done: WriteDone,
    ) {
        count(&self.counters.forwarded, mutations.len());
        let (this, tenant) = (Arc::clone(self), Arc::clone(tenant));
        tokio::spawn(async move {
            let layout = this.layout();
            let mut by_members: BTreeMap<Vec<NodeId>, Vec<usize>> = BTreeMap::new();
            for (place, mutation) in mutations.iter().enumerate() {
                let mut members = this.sets(&layout, &tenant, &mutation.key).1.members();
                members.retain(|node| *node != this.node && !leaves(&layout, *node));
                by_members.entry(members).or_default().push(place);
            }
            let epoch = layout.epoch();
            // What became of a way that ends without a word is not known.
            let lost = Error::Lost { why: "forwarding it ended without an answer".to_owned() };
            let mut results = refused(mutations.len(), &lost);
            let mut mutations: Vec<Option<Mutation>> = mutations.into_iter().map(Some).collect();
            let mut ways = JoinSet::new();
            for (members, places) in by_members {
                let group = places.iter().filter_map(|place| mutations[*place].take()).collect();
                let (this, tenant) = (Arc::clone(&this), Arc::clone(&tenant));
                ways.spawn(async move {
                    (places, this.forward_group(&tenant, group, members, epoch, options).await)
                });
            }
            while let Some(way) = ways.join_next().await {
                let Ok((places, outcomes)) = way else { continue };
                for (place, outcome) in places.into_iter().zip(outcomes) {
                    results[place] = outcome;
                }
            }
            done(results);
        });
    }

    /// Tries the replicas one after the other, with the writes of which nothing was done.
    async fn forward_group(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        group: Vec<Mutation>,
        members: Vec<NodeId>,
        epoch: u64,
        options: WriteOptions,
    ) -> Vec<Result<Written>> {
        let mut members: Vec<NodeId> =
            members.into_iter().filter(|node| self.is_up(*node)).collect();
        members.sort_by_key(|node| self.scores.cost(node));
        let mut why = "none is up".to_owned();
        let mut results: Vec<Option<Result<Written>>> = vec![None; group.len()];
        let mut left: Vec<usize> = (0..group.len()).collect();
        for node in members {
            let request = proto::BatchWriteRequest {
                tenant: tenant.name.clone(),
                mutations: left.iter().map(|at| convert::forwarded(&group[*at])).collect(),
                consistency: options.level.to_proto(),
            };
            let forward = proto::ForwardWrite { request: Some(request) };
            let began = Instant::now();
            let timeout = options.deadline.saturating_duration_since(began);
            let request = Request::ForwardWrite(forward);
            let reply = self.peers.call(node, Class::Foreground, epoch, request, timeout).await;
            let said = match reply {
                Ok(Reply::ForwardWrite(reply)) => outcomes(reply, left.len()),
                Ok(_) => {
                    let why = "a reply to something else".to_owned();
                    refused(left.len(), &Error::Lost { why })
                }
                Err(PeerError::NoAnswer { why }) => {
                    count(&self.counters.unknown, left.len());
                    refused(left.len(), &Error::Lost { why })
                }
                Err(PeerError::StaleLayout { .. } | PeerError::NotAReplica) => {
                    // Placed anew: this node may even be a replica by then.
                    if self.wait_for_layout(epoch, Some(node), options.deadline).await {
                        count(&self.counters.restarts, left.len());
                        let again = left.iter().map(|at| group[*at].clone()).collect();
                        Box::pin(self.write(&tenant.name, again, options)).await
                    } else {
                        refused(left.len(), &Error::LayoutUnknown)
                    }
                }
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            };
            for (at, result) in left.iter().zip(said) {
                results[*at] = Some(result);
            }
            left = to_another(&left, &group, &results);
            if left.is_empty() {
                break;
            }
        }
        let none = || Err(Error::NotForwarded { why: why.clone() });
        results.into_iter().map(|result| result.unwrap_or_else(none)).collect()
    }
}

/// Which of the writes that a replica was asked for go to another one: those that it refused for
/// what it is, but for those behind which it has done another write of the same key. They would
/// come after that one.
fn to_another(
    asked: &[usize],
    group: &[Mutation],
    results: &[Option<Result<Written>>],
) -> Vec<usize> {
    let mut done: BTreeSet<&[u8]> = BTreeSet::new();
    let mut left = Vec::new();
    for at in asked.iter().rev() {
        let key = &group[*at].key[..];
        match &results[*at] {
            Some(Err(error)) if is_of_the_node(error) => {
                if !done.contains(key) {
                    left.push(*at);
                }
            }
            Some(Err(error)) if error.outcome() == Outcome::NotApplied => {}
            _ => {
                done.insert(key);
            }
        }
    }
    left.reverse();
    left
}

/// Whether a write was refused for what the replica is, not for what the write is.
fn is_of_the_node(error: &Error) -> bool {
    let is_node = |failure: &proto::Failure| TAKES_NO_WRITES.contains(&failure.reason.as_str());
    error.outcome() == Outcome::NotApplied
        && matches!(error, Error::Forwarded(failure) if is_node(failure))
}

/// What the coordinating replica said of each write.
fn outcomes(reply: proto::ForwardWriteReply, items: usize) -> Vec<Result<Written>> {
    use proto::batch_write_result::Result as Item;
    let results = reply.response.unwrap_or_default().results;
    if results.len() != items {
        let why = format!("{} outcomes for {items} writes", results.len());
        return refused(items, &Error::Lost { why });
    }
    let outcome = |result: proto::BatchWriteResult| match result.result {
        Some(Item::Written(written)) => Ok(written.into()),
        Some(Item::Failure(failure)) => Err(Error::Forwarded(Box::new(failure))),
        None => Err(Error::Lost { why: "no outcome".to_owned() }),
    };
    results.into_iter().map(outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A replica with a full disk refuses a put and takes the delete behind it: the put must not be
    /// done somewhere else, after the delete.
    #[test]
    fn no_write_overtakes_a_later_one_of_its_key() {
        let put = |key: &str| Mutation { key: key.into(), ..Mutation::default() };
        let group = ["a", "b", "a", "b", "c"].map(put);
        let failed = |reason: &str, outcome: proto::Outcome| {
            let (reason, outcome) = (reason.to_owned(), outcome.into());
            let failure = proto::Failure { reason, outcome, ..proto::Failure::default() };
            Some(Err(Error::Forwarded(Box::new(failure))))
        };
        let full = || failed("DISK_FULL", proto::Outcome::NotApplied);
        let unknown = || failed("DISK_FULL", proto::Outcome::Unknown);
        let bad = || failed("VALUE_TOO_LONG", proto::Outcome::NotApplied);
        let left =
            |results: [Option<Result<Written>>; 5]| to_another(&[0, 1, 2, 3, 4], &group, &results);
        assert_eq!(left([full(), full(), full(), full(), full()]), [0, 1, 2, 3, 4]);
        assert_eq!(left([full(), full(), unknown(), bad(), full()]), [1, 4]);
        assert_eq!(left([bad(), full(), full(), unknown(), bad()]), [2]);
    }
}
