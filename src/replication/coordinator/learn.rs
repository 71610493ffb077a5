//! What a coordinator must know before it makes a write, and its own copy may lack.
//!
//! | write | what it would do otherwise | what is asked for |
//! |---|---|---|
//! | with an idempotency key, where the last write wins | be made twice: those rows name no version by its token (`causality` says why), and the second would be later than what replaced the first | rows: digests tell nothing of tokens whose versions are gone |
//! | a delete without a context, at QUORUM or ALL, where siblings are kept | leave what was acknowledged elsewhere | digests; rows of those that differ |
//! | such a delete with an idempotency key | the same; and made twice cover what was written since | rows |
//!
//! 1. A quorum is asked, of both sets while the layout changes: what was acknowledged at QUORUM is
//!    known to one of them.
//! 2. What was learnt is in this node's own row before the write is begun, under the layout that it
//!    was asked under; where it cannot be, the write is not made.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::read::{KeyRead, Others, ReadOptions};
use super::write::WriteOptions;
use super::{Coordinator, Layout};
use crate::replication::error::{Error, Result};
use crate::replication::level::Level;
use crate::store::{self, Mode, Mutation, RawRow, Tenant, TenantId};

/// A row as another replica holds it.
type Known = (TenantId, Vec<u8>, Vec<u8>);

/// Whether a write covers whatever this node knows of the key.
fn covers_all(tenant: &Tenant, mutation: &Mutation, level: Level) -> bool {
    let is_blind_delete = mutation.value.is_none() && mutation.context.is_none();
    is_blind_delete && tenant.mode == Mode::Siblings && level != Level::One
}

/// What replicas must be asked for before a write is made, if anything.
pub(super) fn to_learn(tenant: &Tenant, mutation: &Mutation, level: Level) -> Option<Others> {
    let has_token = mutation.idempotency_key.is_some();
    let is_once = has_token && tenant.mode == Mode::LastWriteWins;
    match is_once || covers_all(tenant, mutation, level) {
        true if has_token => Some(Others::Rows),
        true => Some(Others::Digests),
        false => None,
    }
}

impl Coordinator {
    /// Asks a quorum for what the writes of a batch must know, and takes it over. Says which writes
    /// failed by that. To be made under this `layout`.
    pub(super) async fn learn_first(
        &self,
        layout: &Layout,
        tenant: &Tenant,
        batch: &[Mutation],
        options: WriteOptions,
    ) -> BTreeMap<usize, Error> {
        let mut failed = BTreeMap::new();
        let mut asks: [(Others, Vec<usize>); 2] =
            [(Others::Digests, Vec::new()), (Others::Rows, Vec::new())];
        // Who coordinates asks; for a forwarded write it is asked there.
        let is_coordinated = |key: &[u8]| {
            !self.is_leaving(layout) && self.sets(layout, tenant, key).1.contains(self.node)
        };
        for (place, mutation) in batch.iter().enumerate() {
            let Some(others) = to_learn(tenant, mutation, options.level) else { continue };
            if let Err(error) = self.store.limits().check_key(&mutation.key) {
                failed.insert(place, error.into());
            } else if is_coordinated(&mutation.key) {
                let ask = asks.iter_mut().find(|ask| ask.0 == others);
                ask.expect("both kinds are there").1.push(place);
            }
        }
        let mut known = Vec::new();
        let [digests, rows] = asks.map(|(others, places)| async move {
            let read =
                |place: &usize| KeyRead { key: batch[*place].key.clone(), min_context: None };
            let reads = places.iter().map(read).collect();
            let options = ReadOptions { level: Level::Quorum, deadline: options.deadline };
            let rows = self.read_raw(tenant, reads, options, others).await;
            places.into_iter().zip(rows).collect::<Vec<_>>()
        });
        let (digests, rows) = tokio::join!(digests, rows);
        for (place, row) in digests.into_iter().chain(rows) {
            let mutation = &batch[place];
            match row.and_then(|raw| self.missing_here(tenant, mutation, options.level, raw)) {
                Ok(Some(row)) => known.push((place, (tenant.id, mutation.key.clone(), row))),
                Ok(None) => {}
                Err(error) => {
                    failed.insert(place, error.not_applied());
                }
            }
        }
        failed.extend(self.take_over(layout, known, options.deadline).await);
        failed
    }

    /// The row as a quorum knows it, if this node lacks what it must know of it.
    fn missing_here(
        &self,
        tenant: &Tenant,
        mutation: &Mutation,
        level: Level,
        learnt: RawRow,
    ) -> Result<Option<Vec<u8>>> {
        let knows = |raw: &RawRow| match &mutation.idempotency_key {
            Some(token) => self.store.knows_token(tenant, &mutation.key, raw, token),
            None => Ok(false),
        };
        let (is_known, is_all) = (knows(&learnt)?, covers_all(tenant, mutation, level));
        // The write is logged behind whatever it finds: nobody is told before that is durable.
        let own = self.store.peek_raw_rows(&[(tenant.id, &mutation.key)]).found.pop();
        let is_missing = match own.unwrap_or(Err(store::Error::Closed)) {
            Ok(own) => {
                // Under one floor: what only the higher one forgets is dead.
                let own = RawRow { floor: learnt.floor, ..own };
                let differs =
                    || Ok::<_, Error>(self.store.digest(&own)? != self.store.digest(&learnt)?);
                (is_known && !knows(&own)?) || (is_all && differs()?)
            }
            // Who cannot read its own row takes what the others have.
            Err(_) => is_known || is_all,
        };
        Ok(learnt.row.filter(|_| is_missing))
    }

    /// Takes over rows that this node must know before it makes writes. Says which it did not take:
    /// their writes must not be made.
    async fn take_over(
        &self,
        layout: &Layout,
        known: Vec<(usize, Known)>,
        deadline: Instant,
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
        let Ok(results) = timeout_at(deadline, results).await else {
            let late = Error::ReadTimeout { answers: 0, needed: 1 };
            return places.into_iter().map(|place| (place, late.clone())).collect();
        };
        let results: Vec<store::Result<()>> = results.unwrap_or_default();
        let lost = || Err(store::Error::Closed);
        let results = results.into_iter().chain(std::iter::repeat_with(lost));
        let refused = places.into_iter().zip(results);
        refused
            .filter_map(|(place, result)| Some((place, Error::from(result.err()?).not_applied())))
            .collect()
    }
}
