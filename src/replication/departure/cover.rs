//! Rows are given to their owners, until of each a quorum of owners holds as much or more.
//!
//! ```text
//! each owner    digests of the rows that it was not seen to hold, as they are: with the
//!               idempotency keys that were used
//!   other       the row is pushed; durable there when it is answered
//!   refused as below the safe point: its row is read, and joined with ours under both floors;
//!               if that says more than its own, it gets the join as a repair
//! ```
//!
//! # Invariants
//! 1. An owner counts for a row if, under the epoch of the layout, it held durably a row at or
//!    above ours. Nobody's word about another counts.
//! 2. Owners are those of a Stable document.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::cluster::NodeId;
use crate::cluster::layout::{Layout, rules};
use crate::cluster::peer::{Class, PeerError, Peers, Reply, Request};
use crate::proto;
use crate::replication::Fence;
use crate::replication::messages::{MESSAGE_ROWS_MAX, messages};
use crate::replication::progress::Rate;
use crate::replication::reason::BELOW_SAFE_POINT;
use crate::replication::sum;
use crate::store::{self, RawRow, Store, TenantId};

/// A row and who owns it.
#[derive(Clone, Debug)]
pub struct Held {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its key.
    pub key: Bytes,
    /// Its state.
    pub row: Bytes,
    /// Its owners.
    pub owners: Vec<NodeId>,
}

impl Held {
    /// Its size.
    pub fn bytes(&self) -> u64 {
        (self.key.len() + self.row.len()) as u64
    }

    fn key(&self) -> proto::RowKey {
        proto::RowKey { tenant_id: self.tenant.0, key: self.key.clone() }
    }

    fn state(&self) -> proto::RowState {
        proto::RowState { tenant_id: self.tenant.0, key: self.key.clone(), row: self.row.clone() }
    }
}

/// Of some row fewer owners than a quorum hold it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.words())]
pub struct Uncovered {
    /// Who did not take something, and why.
    pub by: BTreeMap<NodeId, String>,
}

impl Uncovered {
    fn words(&self) -> String {
        let each: Vec<String> =
            self.by.iter().map(|(node, why)| format!("{node}: {why}")).collect();
        each.join("; ")
    }
}

/// Whether enough owners of a row hold it.
pub(super) fn is_quorum(owners: &[NodeId], holders: &BTreeSet<NodeId>) -> bool {
    let count = owners.iter().filter(|owner| holders.contains(owner)).count();
    !owners.is_empty() && count >= rules::quorum(owners.len())
}

/// Gives rows to owners.
pub struct Cover<'c> {
    /// This node's rows.
    pub store: &'c Arc<Store>,
    /// The owners.
    pub peers: &'c Arc<dyn Peers>,
    /// Where a later layout is learnt.
    pub fence: &'c Arc<dyn Fence>,
    /// Who owns.
    pub layout: &'c Layout,
    /// How fast.
    pub rate: &'c Rate,
    /// For a request.
    pub timeout: Duration,
}

impl Cover<'_> {
    /// Who holds each row; a quorum of its owners at least. Who was `seen` to hold a row, by its
    /// own word under the same epoch, is not asked again.
    ///
    /// # Errors
    /// [`Uncovered`]. Some rows may have been pushed.
    pub async fn cover(
        &self,
        rows: &[Held],
        seen: &[BTreeSet<NodeId>],
    ) -> Result<Vec<BTreeSet<NodeId>>, Uncovered> {
        let mut by_owner: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (index, (row, seen)) in rows.iter().zip(seen).enumerate() {
            for owner in row.owners.iter().filter(|owner| !seen.contains(owner)) {
                by_owner.entry(*owner).or_default().push(index);
            }
        }
        let asked = by_owner.iter().map(|(owner, indexes)| async move {
            let mut held = BTreeSet::new();
            let result = self.give(*owner, rows, indexes, &mut held).await;
            (*owner, held, result)
        });
        let mut holders = seen.to_vec();
        let mut by = BTreeMap::new();
        for (owner, held, result) in join_all(asked).await {
            for index in held {
                holders[index].insert(owner);
            }
            match result {
                Ok(()) => {}
                Err(PeerError::StaleLayout { epoch }) => {
                    // What it cannot learn now it learns from the next node that says so.
                    let _ = self.fence.learn(owner, epoch, self.timeout).await;
                    by.insert(owner, format!("the layout has gone on to epoch {epoch}"));
                }
                Err(error) => {
                    by.insert(owner, error.to_string());
                }
            }
        }
        let is_covered = |(row, holders): (&Held, &_)| is_quorum(&row.owners, holders);
        if rows.iter().zip(&holders).all(is_covered) { Ok(holders) } else { Err(Uncovered { by }) }
    }

    /// Gives rows to one owner; `held` are those it holds then.
    async fn give(
        &self,
        owner: NodeId,
        rows: &[Held],
        indexes: &[usize],
        held: &mut BTreeSet<usize>,
    ) -> Result<(), PeerError> {
        let mut refusal = None;
        for some in indexes.chunks(MESSAGE_ROWS_MAX) {
            let missing = self.differing(owner, rows, some).await?;
            held.extend(some.iter().filter(|index| !missing.contains(index)));
            for now in messages(&missing, |index| rows[*index].row.len()) {
                self.rate.take(now.iter().map(|index| rows[*index].bytes()).sum()).await;
                for (index, failure) in now.iter().zip(self.push(owner, rows, now).await?) {
                    match failure {
                        None => {
                            held.insert(*index);
                        }
                        Some(failure) if failure.reason == BELOW_SAFE_POINT => {
                            match self.repair(owner, &rows[*index]).await? {
                                None => drop(held.insert(*index)),
                                Some(why) => refusal = Some(why),
                            }
                        }
                        Some(failure) => refusal = Some(failure.message),
                    }
                }
            }
        }
        match refusal {
            None => Ok(()),
            Some(message) => Err(PeerError::Refused { reason: "REFUSED".to_owned(), message }),
        }
    }

    /// Those of some rows that an owner does not hold as they are here.
    async fn differing(
        &self,
        owner: NodeId,
        rows: &[Held],
        some: &[usize],
    ) -> Result<Vec<usize>, PeerError> {
        let keys: Vec<_> = some.iter().map(|index| rows[*index].key()).collect();
        let answers = self.read(owner, keys, true).await?;
        let is_equal = |row: &Held, answer: &proto::RowAnswer| {
            // It may have forgotten what may be forgotten below its floor.
            let is_forgotten = || {
                let own = self.store.digest_under(&row.row, answer.floor);
                answer.digest == 0 && own.is_ok_and(|own| own == 0)
            };
            let is_same = answer.digest == sum::digest_of(Some(&row.row));
            answer.failure.is_none() && (is_same || is_forgotten())
        };
        let pairs = some.iter().zip(&answers);
        Ok(pairs
            .filter(|(index, answer)| !is_equal(&rows[**index], answer))
            .map(|(index, _)| *index)
            .collect())
    }

    /// Brings an owner's row to what it and ours say together, by the floors of both. Its guard
    /// takes no late write, and stays where a round was voided; what replicas find out by comparing
    /// is judged by the floor alone. `None`: it holds as much as ours. Else why not.
    async fn repair(&self, owner: NodeId, row: &Held) -> Result<Option<String>, PeerError> {
        let answers = self.read(owner, vec![row.key()], false).await?;
        let answer = answers.into_iter().next().ok_or_else(PeerError::unexpected)?;
        if let Some(failure) = answer.failure {
            return Ok(Some(failure.message));
        }
        let theirs = RawRow { row: answer.row.map(|row| row.to_vec()), floor: answer.floor };
        let joined = match self.join(row, theirs.clone()) {
            Ok(Some(joined)) => joined,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(error.to_string())),
        };
        let state = Some(proto::RowState { row: joined.into(), ..row.state() });
        let rows = vec![proto::JudgedRow { state, floor: theirs.floor }];
        let request = Request::RepairRows(proto::RepairRows { rows });
        let results = self.ask(owner, request).await?.row_results(1)?;
        Ok(results.into_iter().find_map(|result| result.failure).map(|failure| failure.message))
    }

    /// Our row and an owner's together; `None` if the owner's says as much, by the greater floor:
    /// it may have forgotten what is dead below its own, and hold other bytes or none.
    fn join(&self, row: &Held, theirs: RawRow) -> store::Result<Option<Vec<u8>>> {
        let token = self.store.tenant_by_id(row.tenant)?.token(&row.key);
        // A damaged partition vouches for nothing.
        let floor = self.store.floor_at(token).unwrap_or(0);
        let own = RawRow { row: Some(row.row.to_vec()), floor };
        let joined = self.store.join_raw(own, theirs.clone())?;
        let says_all = self.store.says_all_of(theirs.row.as_deref(), &joined)?;
        Ok(joined.row.filter(|_| !says_all))
    }

    async fn read(
        &self,
        owner: NodeId,
        keys: Vec<proto::RowKey>,
        digest_only: bool,
    ) -> Result<Vec<proto::RowAnswer>, PeerError> {
        let asked = keys.len();
        let as_they_are = true;
        let request = proto::ReadRows { keys, digest_only, as_they_are, ..Default::default() };
        self.ask(owner, Request::ReadRows(request)).await?.row_answers(asked)
    }

    async fn push(
        &self,
        owner: NodeId,
        rows: &[Held],
        some: &[usize],
    ) -> Result<Vec<Option<proto::Failure>>, PeerError> {
        let rows = some.iter().map(|index| rows[*index].state()).collect();
        let cause = proto::RowsCause::Unowned.into();
        let request = Request::WriteRows(proto::WriteRows { rows, cause });
        let results = self.ask(owner, request).await?.row_results(some.len())?;
        Ok(results.into_iter().map(|result| result.failure).collect())
    }

    async fn ask(&self, owner: NodeId, request: Request) -> Result<Reply, PeerError> {
        let epoch = self.layout.epoch();
        self.peers.call(owner, Class::Background, epoch, request, self.timeout).await
    }
}
