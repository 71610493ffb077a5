//! Mints times and keeps the identity's durable lease ahead of them.
//!
//! # Invariants
//! 1. A lease is used only after it is durable.
//! 2. One thread extends at a time. Half a lease before its end the first writer that notices
//!    extends it while the others mint on; only at its very end they wait.
//! 3. A clock that would have to run more than [`AHEAD_MS_MAX`] ahead of the wall clock mints
//!    nothing: something has taught it a time that cannot be. A wall clock that has itself just
//!    made such a step does not count ([`SteadyClock`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::environment::{Environment, WallClock};
use super::error::{Error, Result};
use super::identity::Lease;
use super::steady::SteadyClock;
use crate::causality::clock::{self, HybridClock, LeaseExhausted};

/// How far the clock may run ahead of the wall clock, in milliseconds. Each unclean start may add
/// the length of a lease, so a node that crashes in a loop needs room.
pub const AHEAD_MS_MAX: u64 = 3_600_000;

/// The node's clock over its lease.
#[derive(Debug)]
pub(super) struct Minter {
    clock: HybridClock,
    wall: Arc<dyn WallClock>,
    steady: SteadyClock,
    lease: Arc<Lease>,
    /// Held while a lease is made durable.
    extending: Mutex<()>,
    /// The last time at the last [`Minter::follow`].
    followed: AtomicU64,
}

impl Minter {
    /// A clock above everything the lease may have allowed, with the lease extended.
    pub fn open(lease: Arc<Lease>, environment: &Environment) -> Result<Self> {
        let (wall, steady) = (Arc::clone(&environment.clock), SteadyClock::new(environment));
        let now_ms = steady.now_ms();
        let clock = HybridClock::new(lease.bound(), now_ms);
        let followed = AtomicU64::new(clock.last());
        let minter = Self { clock, wall, steady, lease, extending: Mutex::new(()), followed };
        if let Some(wanted) = minter.clock.lease_wanted(now_ms) {
            minter.extend(wanted)?;
        }
        Ok(minter)
    }

    /// A new time above `above` and all times before.
    ///
    /// # Errors
    /// [`Error::ClockUnsafe`], or the lease cannot be made durable.
    pub fn mint(&self, above: u64) -> Result<u64> {
        self.mint_by(|now_ms| self.clock.next(now_ms, above))
    }

    /// [`Minter::mint`] for a last-write-wins version, with an idempotency key or without.
    ///
    /// # Errors
    /// As [`Minter::mint`].
    pub fn mint_lww(&self, above: u64, has_token: bool) -> Result<u64> {
        self.mint_by(|now_ms| self.clock.next_lww(now_ms, above, has_token))
    }

    fn mint_by(&self, next: impl Fn(u64) -> Result<u64, LeaseExhausted>) -> Result<u64> {
        let now_ms = self.wall.now_ms();
        let time = self.leased(|| next(now_ms))?;
        if let Some(wanted) = self.clock.lease_wanted(now_ms)
            && let Some(_one) = self.extending.try_lock()
        {
            self.extend_locked(wanted)?;
        }
        Ok(time)
    }

    /// Mints above `time` from here on.
    ///
    /// # Errors
    /// As [`Minter::mint`].
    pub fn raise_to(&self, time: u64) -> Result<()> {
        self.leased(|| self.clock.raise_to(time))
    }

    /// Milliseconds since 1970 by a clock that is not carried away by a step of the wall clock.
    pub fn steady_ms(&self) -> u64 {
        self.steady.now_ms()
    }

    /// Refuses a time that this clock could not follow. Of another node's row: what this node makes
    /// of it is checked again.
    ///
    /// # Errors
    /// [`Error::ClockUnsafe`].
    pub fn check_ahead(&self, time: u64) -> Result<()> {
        check_ahead(time, self.wall.now_ms())
    }

    /// Whether times are minted, as far as can be told without minting one.
    ///
    /// # Errors
    /// As [`Minter::mint`].
    pub fn check(&self) -> Result<()> {
        self.lease.check()?;
        check_ahead(self.clock.last(), self.steady.now_ms())
    }

    /// The latest time that may be honest: of a row that this node would take, or its own.
    pub fn latest(&self) -> u64 {
        let beyond_ms = self.wall.now_ms().saturating_add(AHEAD_MS_MAX + 1);
        (clock::time_of_ms(beyond_ms) - 1).max(self.clock.last())
    }

    /// Takes note of a time seen in another node's row. One that this clock cannot follow, for the
    /// lease above it would be refused, is passed by: no row keeps a node from writing.
    pub fn observe(&self, time: u64) {
        let follows = || check_ahead(clock::lease_above(time), self.steady.now_ms()).is_ok();
        if time > self.clock.last() && (time < self.clock.lease() || follows()) {
            self.clock.observe(time);
        }
    }

    /// Extends the lease as minting would, if a time was minted or seen since the last call. To be
    /// called now and then: the bound by which others tell whether the node was put back to an
    /// earlier state goes with what it has taken from others too.
    ///
    /// # Errors
    /// The lease cannot be made durable.
    pub fn follow(&self) -> Result<()> {
        let last = self.clock.last();
        if self.followed.swap(last, Ordering::Relaxed) == last {
            return Ok(());
        }
        let now_ms = self.steady.now_ms();
        match self.clock.lease_wanted(now_ms) {
            Some(wanted) if check_ahead(wanted, now_ms).is_ok() => self.extend(wanted),
            _ => Ok(()),
        }
    }

    /// The last time minted or seen.
    pub fn last(&self) -> u64 {
        self.clock.last()
    }

    /// Tries until the lease is long enough.
    fn leased<T>(&self, attempt: impl Fn() -> Result<T, LeaseExhausted>) -> Result<T> {
        loop {
            let wanted = match attempt() {
                Ok(done) => return Ok(done),
                Err(LeaseExhausted { wanted, .. }) => wanted,
            };
            check_ahead(wanted, self.steady.now_ms())?;
            self.extend(wanted)?;
        }
    }

    fn extend(&self, wanted: u64) -> Result<()> {
        let _one = self.extending.lock();
        self.extend_locked(wanted)
    }

    fn extend_locked(&self, wanted: u64) -> Result<()> {
        // Whoever held the lock before may have done it.
        if self.clock.lease() < wanted {
            self.lease.extend(wanted)?;
            self.clock.extend(wanted);
        }
        Ok(())
    }
}

fn check_ahead(time: u64, now_ms: u64) -> Result<()> {
    let skew_ms = clock::ms_of_time(time).saturating_sub(now_ms);
    if skew_ms > AHEAD_MS_MAX {
        return Err(Error::ClockUnsafe { skew_ms, limit_ms: AHEAD_MS_MAX });
    }
    Ok(())
}
