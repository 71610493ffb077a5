//! How close the engine is to making writers wait, and the wait itself.
//!
//! Pressure is the worst of three fractions: sealed memtables of those that may wait, tables at
//! level 0 between the trigger and the stop, and disk space ([`super::space`]). The layer above
//! delays requests as pressure rises from a half to one; at one a write waits here for the next
//! install, at most `stall_timeout_ms`, and then fails without having written anything. A write
//! that must not wait ([`OnStall::Refuse`]) fails at once.
//!
//! Before it comes to that, writers that may wait are slowed: each write waits a millisecond when
//! part of a memtable is filled and the one before it is no table yet, or when level 0 is halfway
//! to where they would have to stop. Then flush and compaction have the processor and the disk,
//! memory stays near what one memtable takes, and nobody waits long at once (docs/decisions/0067).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::error::{Error, Result};
use super::options::Options;
use super::super_version::SuperVersion;
use super::{Engine, Shared};

/// Writers fill one part of so many of a memtable at full speed while another one waits for its
/// flush.
const LEAD_PARTS: usize = 8;
/// What a write waits when writers are further ahead.
const SLOWED: Duration = Duration::from_millis(1);

/// What a write does when there is no room before a flush or a compaction has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStall {
    /// It waits for them, `stall_timeout_ms` at most.
    Wait,
    /// It fails at once with [`Error::Stalled`].
    Refuse,
}

impl Engine {
    /// 0: idle; 1: writes wait or are refused.
    pub fn pressure(&self) -> f64 {
        self.shared.pressure()
    }

    /// Why writes are refused whatever the load, if they are: a failure or the want of space.
    pub fn refusal(&self) -> Option<Error> {
        let full = self.shared.is_out_of_space();
        let poisoned = self.poisoned().map(|cause| Error::Poisoned { cause });
        poisoned.or_else(|| full.then(|| self.shared.disk_full_error()))
    }

    /// The failure since which writes are refused, if there was one.
    pub fn poisoned(&self) -> Option<String> {
        self.shared.poisoned_by()
    }
}

impl Shared {
    pub(super) fn poisoned_by(&self) -> Option<String> {
        self.poisoned.get().cloned().or_else(|| self.log.poisoned())
    }

    fn pressure(&self) -> f64 {
        if self.is_out_of_space() || self.poisoned.get().is_some() {
            return 1.0;
        }
        let view = self.super_version.load();
        let sealed = view.sealed() as f64 / self.options.sealed_memtables_max as f64;
        // The last sealed memtable counts as far as the active one is filled; else pressure would
        // jump from two thirds to one.
        let filled = view.active.list_bytes() as f64 / self.options.memtable_bytes as f64;
        let memory = sealed - (1.0 - filled.min(1.0)) / self.options.sealed_memtables_max as f64;
        let trigger = self.options.level0_tables_trigger as f64;
        let stop = self.options.level0_tables_stop as f64;
        let level0 = (view.version.level0_waiting() as f64 - trigger) / (stop - trigger);
        memory.max(level0).clamp(0.0, 1.0)
    }

    /// Seals the active memtable if it is full; waits while there is no room for a write. Looks at
    /// the disk before what comes from here on could have filled it ([`super::space`]).
    #[inline]
    pub(super) fn make_room(&self, on_stall: OnStall) -> Result<()> {
        let view = self.super_version.load();
        let filled = view.active.list_bytes();
        let full = filled >= self.fill_max.load(Ordering::Relaxed);
        let behind = view.version.level0_waiting() >= self.options.level0_tables_stop;
        let refused = self.disk_full.load(Ordering::Relaxed) || self.poisoned.get().is_some();
        if full || behind || refused || self.closed.load(Ordering::Relaxed) {
            drop(view);
            return self.make_room_slowly(on_stall);
        }
        let is_ahead = filled >= self.options.memtable_bytes / LEAD_PARTS && !view.queue.is_empty();
        if on_stall == OnStall::Wait && (is_ahead || self.is_level0_high(&view)) {
            drop(view);
            self.slow_down();
        }
        Ok(())
    }

    /// Whether level 0 is halfway from where it is compacted to where writers stop.
    #[inline]
    fn is_level0_high(&self, view: &SuperVersion) -> bool {
        let Options { level0_tables_trigger: trigger, level0_tables_stop: stop, .. } = self.options;
        view.version.level0_waiting() >= trigger.midpoint(stop)
    }

    /// Lets flush and compaction catch up a little. Without threads nothing would while it waits.
    #[cold]
    fn slow_down(&self) {
        if self.options.compaction_threads > 0 {
            self.counters.slowed.add(1);
            self.background.pause(SLOWED);
        }
    }

    #[cold]
    fn make_room_slowly(&self, on_stall: OnStall) -> Result<()> {
        let limit_ms = self.options.stall_timeout_ms;
        let mut since: Option<u64> = None;
        loop {
            self.check_unpoisoned()?;
            if self.closed.load(Ordering::Relaxed) {
                return Err(Error::Closed);
            }
            if self.look_at_disk() {
                return Err(self.disk_full_error());
            }
            let installs = self.background.installs();
            self.seal_if_full();
            let view = self.super_version.load();
            if view.active.list_bytes() < self.options.memtable_bytes
                && view.version.level0_waiting() < self.options.level0_tables_stop
            {
                return Ok(());
            }
            drop(view);
            if on_stall == OnStall::Refuse {
                return Err(Error::Stalled { waited_ms: 0 });
            }
            let start_ms = *since.get_or_insert_with(|| {
                self.counters.stalls.add(1);
                self.clock.now_ms()
            });
            let waited_ms = self.clock.now_ms().saturating_sub(start_ms);
            let left = Duration::from_millis(limit_ms.saturating_sub(waited_ms));
            let installed = !left.is_zero() && self.wait_for_room(installs, left)?;
            let now_ms = self.clock.now_ms().saturating_sub(start_ms);
            self.counters.stall_ms.add(now_ms - waited_ms);
            if !installed {
                return Err(Error::Stalled { waited_ms: now_ms });
            }
        }
    }

    /// Waits for the next install, or, without threads, does the work itself.
    fn wait_for_room(&self, installs: u64, limit: Duration) -> Result<bool> {
        if self.options.compaction_threads == 0 {
            return Ok(self.flush_first()? || self.compact_once()?);
        }
        self.background.wake_flush();
        self.background.wake_compaction(self.options.compaction_threads);
        Ok(self.background.wait_for_install(installs, limit))
    }
}
