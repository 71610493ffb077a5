//! One partition: what this node holds of it and does not own is seen to be with its owners.
//!
//! ```text
//! add up     the rows here, by how many replicas they have: nothing is copied, nothing is kept
//! ask        each owner for the sum of those that it owns and this node does not.
//!            Equal: it holds all of them
//! compare    an owner whose sum differs, page by page: digests of its rows in their order, and
//!            what is not equal then by key, row by row: see `cover`
//! ```
//!
//! Owners are written to meanwhile, and forget what is dead: neither is a fault. Sums are under no
//! floor and tell only whether all is equal; what is more or less than equal is judged row by row.
//!
//! # Invariants
//! 1. Both sides add up the same rows: of the partition those of tenants that the layout names,
//!    that the owner owns and this node does not. A sum, like a digest, is of rows that were
//!    durable at the owner when it was told, under the epoch of the layout: an equal one says of
//!    each row that the owner holds as much. Rows only grow, so it does not matter when.
//! 2. An owner that gave no equal sum, for whatever reason, counts only for rows that it was seen
//!    to hold one by one. It is left out only where it does not answer and the others are enough.
//! 3. Of a partition no more is in memory than a page of its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cover::{Held, is_quorum};
use super::unowned::Unowned;
use super::{Departure, Error};
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::PeerError;
use crate::proto;
use crate::replication::page::Asking;
use crate::replication::sum;
use crate::store::{self, EngineKey, TokenRange};

/// What this node holds of a partition that is not its own.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub keys: u64,
    /// Of keys and rows.
    pub bytes: u64,
    /// Of all of them in their order.
    pub digest: u64,
    /// What they add up to, by the number of their replicas.
    sums: BTreeMap<u8, proto::PageSum>,
}

/// A row of a page, with its engine key and its digest as it is.
struct Row {
    engine_key: Vec<u8>,
    digest: u64,
    held: Held,
}

impl Own {
    fn add(&mut self, engine_key: &[u8], row: &[u8], key: &[u8], factor: u8) {
        self.keys += 1;
        self.bytes += (key.len() + row.len()) as u64;
        self.digest = xxh3_64_with_seed(row, xxh3_64_with_seed(engine_key, self.digest));
        sum::add_row(self.sums.entry(factor).or_default(), engine_key, row);
    }
}

impl Departure {
    /// Adds up what this node holds of a partition that is not its own.
    pub(super) async fn add_up(
        &self,
        layout: &Layout,
        unowned: &Arc<Unowned>,
        partition: u32,
    ) -> Result<Own, Error> {
        let (mut own, mut cursor): (_, Option<Vec<u8>>) = (Own::default(), None);
        let (range, bytes) = (tokens_of(layout, partition), self.settings.page_bytes);
        loop {
            let (store, unowned) = (Arc::clone(&self.store), Arc::clone(unowned));
            let adding = self.work.run(move || {
                let next = store.visit_by_token(range, cursor.as_deref(), bytes, |key, row| {
                    let at = EngineKey::decode(key)?;
                    if let Some(factor) = unowned.factor_of(&at) {
                        own.add(key, row, at.key, factor);
                    }
                    Ok(true)
                })?;
                Ok::<_, store::Error>((own, next))
            });
            (own, cursor) = adding.await.map_err(|_| Error::Stopping)??;
            if cursor.is_none() {
                return Ok(own);
            }
        }
    }

    /// Sees to it that these rows of a partition are with their owners; who holds all of them.
    pub(super) async fn cover_partition(
        &self,
        layout: &Layout,
        unowned: &Arc<Unowned>,
        partition: u32,
        own: &Own,
    ) -> Result<BTreeSet<NodeId>, Error> {
        let owners = |factor: &u8| (*factor, layout.sets(partition, *factor).current);
        let owners: BTreeMap<u8, Vec<NodeId>> = own.sums.keys().map(owners).collect();
        let each: BTreeSet<NodeId> = owners.values().flatten().copied().collect();
        let asked = each.into_iter().map(|owner| async move {
            (owner, self.asking(layout, owner, tokens_of(layout, partition)).sum().await)
        });
        let (mut equal, mut differing, mut are_enough) = (BTreeSet::new(), Vec::new(), true);
        for (owner, told) in join_all(asked).await {
            let mut sum = proto::PageSum::default();
            let its = owners.iter().filter(|(_, owners)| owners.contains(&owner));
            its.for_each(|(factor, _)| sum::add(&mut sum, &own.sums[factor]));
            match told {
                Ok(told) if told.sum == sum || !self.store.keeps("owners_sum_is_equal") => {
                    equal.insert(owner);
                }
                Ok(_) => differing.push(owner),
                Err(error) => are_enough &= is_silent(&error),
            }
        }
        are_enough &= differing.is_empty();
        if are_enough && owners.values().all(|owners| is_quorum(owners, &equal)) {
            self.progress.moved(own.keys, own.bytes);
            equal.retain(|owner| owners.values().all(|owners| owners.contains(owner)));
            return Ok(equal);
        }
        self.cover_rows(layout, unowned, partition, &owners, (&equal, &differing)).await
    }

    /// The same row by row. Some owners were seen to hold all that is theirs, others not to.
    async fn cover_rows(
        &self,
        layout: &Layout,
        unowned: &Arc<Unowned>,
        partition: u32,
        owners: &BTreeMap<u8, Vec<NodeId>>,
        (equal, differing): (&BTreeSet<NodeId>, &[NodeId]),
    ) -> Result<BTreeSet<NodeId>, Error> {
        let mut of_all: Option<BTreeSet<NodeId>> = None;
        let mut cursor = None;
        loop {
            let page = self.page(tokens_of(layout, partition), cursor, unowned, owners).await?;
            let (rows, next) = page;
            if !rows.is_empty() {
                let seen = self.seen(layout, &rows, equal, differing).await;
                let rows: Vec<Held> = rows.into_iter().map(|row| row.held).collect();
                for holders in self.cover_all(layout, &rows, &seen).await {
                    match &mut of_all {
                        Some(of_all) => of_all.retain(|owner| holders.contains(owner)),
                        none => *none = Some(holders),
                    }
                }
            }
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(of_all.unwrap_or_default()),
            }
        }
    }

    /// A page of these rows, in their order, and where to go on.
    async fn page(
        &self,
        range: TokenRange,
        cursor: Option<Vec<u8>>,
        unowned: &Arc<Unowned>,
        owners: &BTreeMap<u8, Vec<NodeId>>,
    ) -> Result<(Vec<Row>, Option<Vec<u8>>), Error> {
        let (store, bytes) = (Arc::clone(&self.store), self.settings.page_bytes);
        let (unowned, owners) = (Arc::clone(unowned), owners.clone());
        let reading = self.work.run(move || {
            let mut rows = Vec::new();
            let next =
                store.visit_by_token(range, cursor.as_deref(), bytes, |engine_key, row| {
                    let at = EngineKey::decode(engine_key)?;
                    let owners = unowned.factor_of(&at).and_then(|factor| owners.get(&factor));
                    if let Some(owners) = owners {
                        let held = Held {
                            tenant: at.tenant,
                            key: Bytes::copy_from_slice(at.key),
                            row: Bytes::copy_from_slice(row),
                            owners: owners.clone(),
                        };
                        let digest = sum::digest_of(Some(row));
                        rows.push(Row { engine_key: engine_key.to_vec(), digest, held });
                    }
                    Ok(true)
                })?;
            Ok::<_, store::Error>((rows, next))
        });
        Ok(reading.await.map_err(|_| Error::Stopping)??)
    }

    /// Who was seen to hold each of some rows, by what those say who do not hold all.
    async fn seen(
        &self,
        layout: &Layout,
        rows: &[Row],
        equal: &BTreeSet<NodeId>,
        differing: &[NodeId],
    ) -> Vec<BTreeSet<NodeId>> {
        let token = |row: Option<&Row>| {
            row.and_then(|row| EngineKey::decode(&row.engine_key).ok()).map_or(0, |at| at.token)
        };
        let range = TokenRange { start: token(rows.first()), end_inclusive: token(rows.last()) };
        let asked = differing.iter().copied().map(|owner| async move {
            (owner, same_rows(&self.asking(layout, owner, range), rows).await)
        });
        let of_row = |row: &Row| {
            let owners = row.held.owners.iter().copied();
            owners.filter(|owner| equal.contains(owner)).collect()
        };
        let mut seen: Vec<BTreeSet<NodeId>> = rows.iter().map(of_row).collect();
        for (owner, same) in join_all(asked).await {
            for index in same {
                seen[index].insert(owner);
            }
        }
        seen
    }

    fn asking<'a>(&'a self, layout: &'a Layout, owner: NodeId, range: TokenRange) -> Asking<'a> {
        Asking {
            peers: &*self.peers,
            layout,
            source: owner,
            range,
            bytes_max: self.settings.page_bytes,
            timeout: self.settings.timeout,
        }
    }
}

/// Those of some rows that an owner holds as they are here. Of what it cannot say now, it is asked
/// again by key.
async fn same_rows(asking: &Asking<'_>, rows: &[Row]) -> BTreeSet<usize> {
    let mut same = BTreeSet::new();
    let mut cursor = Bytes::new();
    loop {
        let kind = proto::PageRequest { digests: true, ..Default::default() };
        let Ok(page) = asking.page(kind, cursor).await else { return same };
        for theirs in &page.keys {
            let at = rows.binary_search_by(|row| row.engine_key[..].cmp(&theirs.engine_key));
            same.extend(at.ok().filter(|at| rows[*at].digest == theirs.digest));
        }
        cursor = page.cursor;
        if cursor.is_empty() {
            return same;
        }
    }
}

fn tokens_of(layout: &Layout, partition: u32) -> TokenRange {
    let (start, end_inclusive) = layout.tokens_of(&(partition..=partition));
    TokenRange { start, end_inclusive }
}

/// Whether it said nothing, rather than that it has no word on what was asked.
fn is_silent(error: &PeerError) -> bool {
    use PeerError::{NoAnswer, Overloaded, Unreachable};
    matches!(error, Unreachable { .. } | NoAnswer { .. } | Overloaded { .. })
}
