//! Whether a write with an idempotency key was made before, in tenants where the last write wins.
//!
//! Their rows name no version by its token (`causality` says why), so a coordinator that does not
//! know of the first attempt would make the write a second time, later than what replaced it. So
//! it asks first.
//!
//! 1. A quorum is asked for whole rows: digests tell nothing of tokens whose versions are gone.
//! 2. What makes a write a duplicate is in this node's own row before the write is begun; where it
//!    cannot be, the write is not made.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::read::{KeyRead, Others, ReadOptions};
use super::write::WriteOptions;
use super::{Coordinator, Layout};
use crate::replication::error::Error;
use crate::replication::level::Level;
use crate::store::{self, Mutation, RawRow, Tenant, TenantId};

/// A row as another replica holds it.
type Known = (TenantId, Vec<u8>, Vec<u8>);

impl Coordinator {
    /// Asks a quorum which of the idempotency keys of a last-write-wins batch it knows, and takes
    /// their rows over. Says which writes failed by that.
    pub(super) async fn learn_tokens(
        &self,
        tenant: &Tenant,
        batch: &[Mutation],
        options: WriteOptions,
    ) -> BTreeMap<usize, Error> {
        let tokened = |mutation: &&Mutation| mutation.idempotency_key.is_some();
        let (mut places, mut reads) = (Vec::new(), Vec::new());
        let mut failed = BTreeMap::new();
        let layout = self.layout();
        for (place, mutation) in batch.iter().enumerate().filter(|(_, one)| tokened(one)) {
            let (_, sets) = self.sets(&layout, tenant, &mutation.key);
            // Who coordinates asks; a forwarded write is asked for there.
            if !sets.contains(self.node) {
                continue;
            }
            match self.store.limits().check_key(&mutation.key) {
                Ok(()) => {
                    places.push(place);
                    reads.push(KeyRead { key: mutation.key.clone(), min_context: None });
                }
                Err(error) => {
                    failed.insert(place, error.into());
                }
            }
        }
        let options = ReadOptions { level: Level::Quorum, deadline: options.deadline };
        let rows = self.read_raw(tenant, reads, options, Others::Rows).await;
        let mut known = Vec::new();
        for (place, row) in places.into_iter().zip(rows) {
            let (key, token) = (&batch[place].key, batch[place].idempotency_key.as_deref());
            let knows =
                |raw: &RawRow| self.store.knows_token(tenant, key, raw, token.unwrap_or_default());
            match row.and_then(|raw| Ok(knows(&raw)?.then_some(raw.row).flatten())) {
                Ok(Some(row)) => known.push((place, (tenant.id, key.clone(), row))),
                Ok(None) => {}
                Err(error) => {
                    failed.insert(place, error.not_applied());
                }
            }
        }
        failed.extend(self.take_over(&layout, known).await);
        failed
    }

    /// Takes rows over that make a write of this node the duplicate that it is. Says which it did
    /// not take: their writes must not be made.
    async fn take_over(
        &self,
        layout: &Layout,
        known: Vec<(usize, Known)>,
    ) -> BTreeMap<usize, Error> {
        if known.is_empty() {
            return BTreeMap::new();
        }
        let (places, rows): (Vec<usize>, Vec<_>) = known.into_iter().unzip();
        let (done, results) = oneshot::channel();
        let Ok(pass) = self.fence.enter(layout.epoch()) else {
            return places.into_iter().map(|place| (place, Error::LayoutUnknown)).collect();
        };
        let told = Box::new(move |results| {
            // Gone: the node is stopping.
            let _ = done.send(results);
        });
        self.store.submit_rows(&rows, told);
        drop(pass);
        let results: Vec<store::Result<()>> = results.await.unwrap_or_default();
        let lost = || Err(store::Error::Closed);
        let results = results.into_iter().chain(std::iter::repeat_with(lost));
        let refused = places.into_iter().zip(results);
        refused
            .filter_map(|(place, result)| Some((place, Error::from(result.err()?).not_applied())))
            .collect()
    }
}
