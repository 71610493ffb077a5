//! Reads that this node answers by itself, on the caller's task. The caller tells of them when
//! they are durable: see [`settled`](crate::replication::settled).
//!
//! 1. It is the whole cluster, or the level is ONE and it is a current replica that has lost
//!    nothing.
//! 2. Of those at ONE a small share is read again at QUORUM, with nobody waiting: so replicas that
//!    nobody compares otherwise are compared where they are read.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::read::{KeyRead, Others, ReadOptions};
use super::{Coordinator, Layout, count};
use crate::replication::error::{Error, Result};
use crate::replication::level::Level;
use crate::store::{Early, ReadRow};

/// One of so many reads at ONE is checked.
const CHECK_ONE_OF: u64 = 100;
/// Checks under way at most; beyond, none is begun.
pub(super) const CHECKS_MAX: usize = 32;
/// How long a check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

impl Coordinator {
    /// Reads a key right here, if that is all the level asks for: this node is the whole cluster,
    /// or a replica at ONE. `None`: it takes others, see [`Coordinator::read`].
    pub fn read_here(
        self: &Arc<Self>,
        tenant: &str,
        read: &KeyRead,
        level: Level,
    ) -> Option<Early<Result<ReadRow>>> {
        let layout = self.layout();
        let is_solo = self.is_solo(&layout);
        if !self.is_enough(&layout, is_solo, tenant, std::slice::from_ref(read), level) {
            return None;
        }
        let _pass = self.fence.enter(layout.epoch()).ok()?;
        let row = self.store.peek(tenant, &read.key);
        if !is_solo {
            // Where the own copy cannot be read another one may do.
            row.found.as_ref().ok()?;
            self.check_sometimes(tenant, &read.key);
        }
        Some(row.map(|row| row.map_err(Error::from)))
    }

    /// As [`Coordinator::read_here`], for all of these keys or none of them: looked up under one
    /// layout.
    pub fn read_batch_here(
        self: &Arc<Self>,
        tenant: &str,
        reads: &[KeyRead],
        level: Level,
    ) -> Option<Early<Vec<Result<ReadRow>>>> {
        let layout = self.layout();
        let is_solo = self.is_solo(&layout);
        if !self.is_enough(&layout, is_solo, tenant, reads, level) {
            return None;
        }
        let _pass = self.fence.enter(layout.epoch()).ok()?;
        let keys: Vec<&[u8]> = reads.iter().map(|read| &read.key[..]).collect();
        let rows = self.store.peek_batch(tenant, &keys);
        if !is_solo {
            rows.found.iter().all(Result::is_ok).then_some(())?;
            reads.iter().for_each(|read| self.check_sometimes(tenant, &read.key));
        }
        Some(rows.map(|rows| rows.into_iter().map(|row| row.map_err(Error::from)).collect()))
    }

    /// Whether this node's own word on these keys is all that is asked for.
    fn is_enough(
        &self,
        layout: &Layout,
        is_solo: bool,
        tenant: &str,
        reads: &[KeyRead],
        level: Level,
    ) -> bool {
        if reads.iter().any(|read| read.min_context.is_some()) {
            return false;
        }
        if is_solo {
            return true;
        }
        if level != Level::One {
            return false;
        }
        let Ok(tenant) = self.store.tenant(tenant) else { return false };
        reads.iter().all(|read| {
            let (_, sets) = self.sets(layout, &tenant, &read.key);
            sets.current.contains(&self.node)
                && self.store.check_undamaged(&tenant, &read.key).is_ok()
        })
    }

    /// Reads one key of a hundred again at QUORUM, which repairs whoever is behind.
    fn check_sometimes(self: &Arc<Self>, tenant: &str, key: &[u8]) {
        let turn = self.reads_at_one.fetch_add(1, Ordering::Relaxed);
        // Not every hundredth in turn: a client that reads a hundred keys over and over would have
        // the same one checked for ever.
        let is_chosen =
            xxhash_rust::xxh3::xxh3_64(&turn.to_le_bytes()).is_multiple_of(CHECK_ONE_OF);
        if !is_chosen || self.checks.available_permits() == 0 {
            return;
        }
        let Ok(tenant) = self.store.tenant(tenant) else { return };
        let (this, key) = (Arc::clone(self), key.to_vec());
        tokio::spawn(async move {
            let Ok(_place) = this.checks.try_acquire() else { return };
            count(&this.counters.checks, 1);
            let deadline = Instant::now() + CHECK_TIMEOUT;
            let options = ReadOptions { level: Level::Quorum, deadline };
            // Nobody waits for it: what cannot be checked now is checked another time.
            let reads = vec![KeyRead { key, min_context: None }];
            let _ = this.read_raw(&tenant, reads, options, Others::Digests).await;
        });
    }
}
