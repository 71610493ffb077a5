//! Safe points: the steps of a round among replicas, which `replication` conducts, and the whole of
//! it for a node that is its own cluster.
//!
//! A round among one replica: choose `M`, fence at it, sync, declare it the floor. Nothing has to
//! be compared, for nobody else has written. `M` lies a margin behind the clock so that no write
//! under way is overtaken; that is for comfort: a write that is, is minted anew.
//!
//! A floor does not count before the memtables of its time are tables, and a new floor begins to
//! wait anew. So a round is held only when the floor before it has been of use:
//!
//! 1. A floor that waits stays. If it waits for as long as
//!    [`SafePoints::flush_ms`](super::SafePoints::flush_ms), because next to nothing is written,
//!    what it waits for is flushed: deletes are forgotten on a node that goes idle too.
//! 2. A floor that counts stays for [`SafePoints::interval_ms`](super::SafePoints::interval_ms), so
//!    that compactions meet it.

use std::ops::RangeInclusive;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::Store;
use super::error::{Error, Result};
use crate::causality::clock;
use crate::engine::{self, SyncMode};

/// Since when the floor has been as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct FloorState {
    waits: bool,
    since: Duration,
}

impl FloorState {
    pub fn new(now: Duration) -> Self {
        Self { waits: false, since: now }
    }
}

/// What a replica was at one moment of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Participant {
    /// See [`Store::incarnation`].
    pub incarnation: u64,
    /// Repairs so far that brought the partitions a version at or below their guards.
    pub news: u64,
}

/// What a replica takes no more, and what it vouches for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Nothing new at or below it is taken.
    pub guard: u64,
    /// What is at or below it and not live is dead.
    pub floor: u64,
}

impl Store {
    /// The floor of the partition that a token lies in.
    ///
    /// # Errors
    /// [`Error::Damaged`]: the partition vouches for nothing.
    pub fn floor_at(&self, token: u64) -> Result<u64> {
        let bits = self.engine.options().partition_bits;
        self.floor_of_partition(token.checked_shr(u64::BITS - bits).unwrap_or(0) as u32)
    }

    /// The floor of a partition.
    ///
    /// # Errors
    /// [`Error::Damaged`]: it vouches for nothing; or it does not exist.
    pub fn floor_of_partition(&self, partition: u32) -> Result<u64> {
        let point = self.engine.safe_point(partition)?;
        if point.is_damaged() {
            return Err(Error::Damaged { partition });
        }
        Ok(point.floor)
    }

    /// The guard of a partition; 0 while it is damaged.
    ///
    /// # Errors
    /// It does not exist.
    pub fn guard_of_partition(&self, partition: u32) -> Result<u64> {
        let point = self.engine.safe_point(partition)?;
        Ok(if point.is_damaged() { 0 } else { point.guard })
    }

    /// The least guard and the least floor of some partitions.
    ///
    /// # Errors
    /// [`Error::Damaged`]: one of them vouches for nothing; or it does not exist.
    pub fn least_words(&self, partitions: RangeInclusive<u32>) -> Result<Words> {
        let mut least = Words { guard: u64::MAX, floor: u64::MAX };
        for partition in partitions {
            let point = self.engine.safe_point(partition)?;
            if point.is_damaged() {
                return Err(Error::Damaged { partition });
            }
            least.guard = least.guard.min(point.guard);
            least.floor = least.floor.min(point.floor);
        }
        Ok(least)
    }

    /// Takes part in a safe-point round: from here on this node mints above `time` in these
    /// partitions and takes nothing new at or below it but repairs; durable. Waits for writes that
    /// began before.
    ///
    /// # Errors
    /// [`Error::Damaged`]; `time` is ahead of the clock; I/O.
    pub fn fence(&self, partitions: &[RangeInclusive<u32>], time: u64) -> Result<Participant> {
        self.check_writable()?;
        self.check_all_undamaged(partitions)?;
        match self.keeps("fence") {
            true => self.fence_as_others(partitions, time)?,
            false => self.minter.check_ahead(time)?,
        }
        self.participant(partitions)
    }

    /// Fences partitions at the guard of the replicas whose rows this node has taken over: as
    /// [`Store::fence`], but outside of any round, so also where data was lost. There the fence is
    /// in force when the data is back.
    ///
    /// # Errors
    /// `time` is ahead of the clock; I/O.
    pub fn fence_as_others(&self, partitions: &[RangeInclusive<u32>], time: u64) -> Result<()> {
        self.check_writable()?;
        self.minter.check_ahead(time)?;
        self.raise_clock_to(time)?;
        Ok(self.engine.fence_ranges(partitions, time)?)
    }

    /// Makes durable all that was acknowledged or shown, in modes in which it need not be.
    ///
    /// # Errors
    /// I/O.
    pub fn sync_acknowledged(&self) -> Result<()> {
        match self.engine.options().sync_mode {
            SyncMode::Always => Ok(()),
            SyncMode::Interval | SyncMode::Os => Ok(self.engine.sync()?),
        }
    }

    /// Makes durable all that was compared in a round.
    ///
    /// # Errors
    /// [`Error::Damaged`]; I/O.
    pub fn hold(&self, partitions: &[RangeInclusive<u32>]) -> Result<Participant> {
        self.check_writable()?;
        // Before the sync: a repair that is counted later is not known to be durable.
        let participant = self.participant(partitions)?;
        self.engine.sync()?;
        self.check_all_undamaged(partitions)?;
        Ok(participant)
    }

    /// Ends a safe-point round that was proven: what is at or below `time` and not live in these
    /// partitions is dead. Durable, with all that was compared. `false`: this node is not any more
    /// what it was when it was last asked, and the round proved nothing for it.
    ///
    /// # Errors
    /// [`Error::Damaged`]; the partitions were not fenced at `time`; I/O.
    pub fn install_floor(
        &self,
        partitions: &[RangeInclusive<u32>],
        time: u64,
        was: Participant,
    ) -> Result<bool> {
        self.check_writable()?;
        self.check_all_undamaged(partitions)?;
        if self.incarnation() != was.incarnation {
            return Ok(false);
        }
        if !self.keeps("fence") {
            self.engine.fence_ranges(partitions, time)?;
        }
        self.engine.set_floor_unless_news(partitions, time, Some(was.news)).map_err(Into::into)
    }

    /// Names this life of the node: another one after every start and every loss of data.
    pub fn incarnation(&self) -> u64 {
        let generation = self.identity().generation.to_le_bytes();
        let actor = self.actor().to_u64().to_le_bytes();
        xxh3_64(&[generation, actor].concat())
    }

    /// Whether a rule holds: always, except in a test that removed it.
    pub(crate) fn keeps(&self, rule: &'static str) -> bool {
        self.engine.keeps(rule)
    }

    fn participant(&self, partitions: &[RangeInclusive<u32>]) -> Result<Participant> {
        let incarnation = self.incarnation();
        Ok(Participant { incarnation, news: self.engine.news(partitions)? })
    }

    /// Refuses if one of these partitions has lost data.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn check_all_undamaged(&self, partitions: &[RangeInclusive<u32>]) -> Result<()> {
        let mut each = partitions.iter().flat_map(Clone::clone);
        each.try_for_each(|partition| self.floor_of_partition(partition).map(|_| ()))
    }

    /// What a floor waits for is flushed if it waits for longer than
    /// [`SafePoints::flush_ms`](super::SafePoints::flush_ms), because next to nothing is written.
    /// To be called every now and then where replicas move the safe points.
    ///
    /// # Errors
    /// A table, the log or the manifest could not be written or synced.
    pub fn settle_floors(&self) -> Result<()> {
        self.check_writable()?;
        let mut state = self.floor_state.lock();
        let now = self.environment.monotonic.elapsed();
        let waits = self.engine.floor_waits();
        if state.waits != waits {
            *state = FloorState { waits, since: now };
        }
        let waited = now.saturating_sub(state.since);
        if waits && waited >= Duration::from_millis(self.safe_points.flush_ms) {
            self.engine.flush()?;
            *state = FloorState { waits: self.engine.floor_waits(), since: now };
        }
        Ok(())
    }

    /// Moves guard and floor of all partitions up to shortly before now, so that compaction may
    /// forget what was deleted or has expired by then; or leaves them where they are for a while,
    /// as the module page says. Returns the floor. To be called every second or so.
    ///
    /// Only for a node that is its own cluster: among replicas a floor has to be proven.
    ///
    /// # Errors
    /// A table, the log or the manifest could not be written or synced.
    pub fn advance_safe_points(&self) -> Result<u64> {
        self.check_writable()?;
        // Held to the end: one round at a time.
        let mut state = self.floor_state.lock();
        if self.engine.safe_points().iter().any(engine::SafePoint::is_damaged) {
            // Nobody else has what was lost: what there is counts.
            self.engine.set_damaged(0..=self.engine.partitions() - 1, &[])?;
        }
        let now = self.environment.monotonic.elapsed();
        let lasts =
            |state: &FloorState, ms| now.saturating_sub(state.since) < Duration::from_millis(ms);
        let current = self.engine.safe_point(0)?.floor;
        let waits = self.engine.floor_waits();
        if state.waits != waits {
            *state = FloorState { waits, since: now };
        }
        if waits {
            if lasts(&state, self.safe_points.flush_ms) {
                return Ok(current);
            }
            self.engine.flush()?;
            *state = FloorState { waits: false, since: now };
        }
        let floor = clock::time_of_ms(self.steady_ms().saturating_sub(self.safe_points.margin_ms));
        let is_new = current > 0 && lasts(&state, self.safe_points.interval_ms);
        if is_new || floor <= current {
            return Ok(current);
        }
        // First the clock: what is minted from here on is above the guard.
        self.raise_clock_to(floor)?;
        let all = 0..=self.engine.partitions() - 1;
        self.engine.fence(all.clone(), floor)?;
        self.engine.set_floor(all, floor)?;
        *state = FloorState { waits: self.engine.floor_waits(), since: now };
        Ok(floor)
    }
}
