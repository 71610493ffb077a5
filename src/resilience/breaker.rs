//! A circuit breaker: calls to something that fails or crawls fail at once, until a few got
//! through.
//!
//! ```text
//!           too many failures             the timeout is over
//!   Closed ------------------> Open ---------------------------> HalfOpen
//!     ^                          ^                                  |  |
//!     |                          +------- a probe failed -----------+  |
//!     +-------------------------------- all probes succeeded ----------+
//! ```
//!
//! 1. Closed, everything passes, and outcomes are counted over a sliding window. A call that took
//!    long counts as failed, whatever came of it.
//! 2. It opens only at a failure, and only when the window holds enough calls to judge by.
//! 3. Open, nothing passes; half-open, so many probes at once and no more. One that is given up
//!    makes room for another.
//! 4. An outcome counts only in the state its call began in: what was asked before it opened says
//!    nothing about the thing afterwards.
//! 5. While it is closed a call takes no lock: two readings of the clock and one atomic update.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Invalid;

/// Parts of the window; the oldest is forgotten as a whole.
const SLOTS: usize = 8;
/// Bits of a slot's word: 24 for the slot's number, 20 each for calls and failures.
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// The outcomes in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls that ended.
    pub calls: u64,
    /// Those that failed or were slow.
    pub failures: u64,
}

/// Whether to open, asked at each failure.
pub type ReadyToTrip = Arc<dyn Fn(Counts) -> bool + Send + Sync>;

/// When it opens and closes.
#[derive(Clone)]
pub struct Settings {
    /// Over how long outcomes are counted.
    pub interval: Duration,
    /// How long it stays open.
    pub timeout: Duration,
    /// Probes at once while it is half-open; so many must succeed.
    pub max_requests: u32,
    /// A call that takes longer counts as failed.
    pub slow_after: Duration,
    /// Whether to open.
    pub ready_to_trip: ReadyToTrip,
}

impl Settings {
    /// Opens when at least `calls_min` calls ended within `interval` and the share of failures is
    /// `failure_ratio` or more.
    pub fn by_ratio(calls_min: u64, failure_ratio: f64) -> ReadyToTrip {
        Arc::new(move |counts| {
            let share = counts.failures as f64 / counts.calls.max(1) as f64;
            counts.calls >= calls_min && share >= failure_ratio
        })
    }

    fn validate(&self) -> Result<(), Invalid> {
        let some = |time: Duration| !time.is_zero();
        Invalid::unless(self.interval >= Duration::from_millis(8), "interval", "is below 8 ms")?;
        Invalid::unless(some(self.timeout), "timeout", "is zero")?;
        Invalid::unless(self.max_requests > 0, "max_requests", "is zero: it would never close")?;
        Invalid::unless(some(self.slow_after), "slow_after", "is zero: every call would be slow")
    }
}

impl Default for Settings {
    /// Half of at least 20 calls in 10 s fail or take longer than 2 s; open for 1 s, 3 probes.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            max_requests: 3,
            slow_after: Duration::from_secs(2),
            ready_to_trip: Self::by_ratio(20, 0.5),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .field("max_requests", &self.max_requests)
            .field("slow_after", &self.slow_after)
            .finish_non_exhaustive()
    }
}

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// A few probes.
    HalfOpen,
}

/// It is open: nothing was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open")]
pub struct Rejected;

/// What a breaker has counted since it was made.
// Relaxed throughout: figures that guard nothing.
#[derive(Debug, Default)]
pub struct Totals {
    /// Times it opened.
    pub opened: AtomicU64,
    /// Calls that were not let through.
    pub rejected: AtomicU64,
    /// Calls that failed.
    pub failed: AtomicU64,
    /// Calls that were slow.
    pub slow: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub struct Breaker {
    // Constant after creation.
    name: String,
    settings: Settings,
    born: Instant,
    slot_nanos: u64,
    // Release with each change of state, under the lock; Acquire at the begin and end of a call.
    // Even while closed; grows with every change.
    era: AtomicU64,
    // Relaxed: each slot carries its own number, nothing else hangs on it.
    slots: [AtomicU64; SLOTS],
    totals: Totals,
    // Held at a failure and while it is not closed.
    slow: Mutex<NotClosed>,
}

#[derive(Debug)]
struct NotClosed {
    state: State,
    until: Instant,
    probing: u32,
    succeeded: u32,
}

impl Breaker {
    /// A closed breaker; `name` stands in the log.
    ///
    /// # Errors
    /// The setting that cannot be used.
    pub fn new(name: impl Into<String>, settings: Settings) -> Result<Self, Invalid> {
        settings.validate()?;
        let born = Instant::now();
        let slot_nanos = settings.interval.as_nanos() / SLOTS as u128;
        Ok(Self {
            name: name.into(),
            slot_nanos: u64::try_from(slot_nanos).unwrap_or(u64::MAX),
            settings,
            born,
            era: AtomicU64::new(0),
            slots: Default::default(),
            totals: Totals::default(),
            slow: Mutex::new(NotClosed {
                state: State::Closed,
                until: born,
                probing: 0,
                succeeded: 0,
            }),
        })
    }

    /// Lets a call through. What comes of it is told to the permit; dropped without a word, the
    /// call does not count.
    ///
    /// # Errors
    /// It is open, or enough probes are under way.
    pub fn enter(&self) -> Result<Permit<'_>, Rejected> {
        let era = self.era.load(Ordering::Acquire);
        let began = Instant::now();
        let era = if era.is_multiple_of(2) { era } else { self.probe(began)? };
        Ok(Permit { breaker: self, era, began, told: false })
    }

    /// What passes now.
    pub fn state(&self) -> State {
        self.slow.lock().state
    }

    /// What was counted since it was made.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The outcomes in the window.
    pub fn counts(&self) -> Counts {
        let now = self.slot_number(Instant::now());
        let recent = self.slots.iter().map(|slot| unpack(slot.load(Ordering::Relaxed)));
        recent.filter(|(number, _)| is_recent(*number, now)).fold(
            Counts::default(),
            |sum, (_, counts)| Counts {
                calls: sum.calls + counts.calls,
                failures: sum.failures + counts.failures,
            },
        )
    }

    /// Begins a probe, if it is time for one.
    fn probe(&self, now: Instant) -> Result<u64, Rejected> {
        let mut slow = self.slow.lock();
        if slow.state == State::Open && now >= slow.until {
            self.change(&mut slow, State::HalfOpen);
        }
        let passes = match slow.state {
            // It closed since the caller looked.
            State::Closed => true,
            State::Open => false,
            State::HalfOpen => {
                let free = slow.probing + slow.succeeded < self.settings.max_requests;
                slow.probing += u32::from(free);
                free
            }
        };
        if !passes {
            self.totals.rejected.fetch_add(1, Ordering::Relaxed);
            return Err(Rejected);
        }
        Ok(self.era.load(Ordering::Acquire))
    }

    fn change(&self, slow: &mut NotClosed, state: State) {
        let era = self.era.load(Ordering::Acquire);
        // The parity of the era says whether it is closed.
        let step = if era.is_multiple_of(2) == (state == State::Closed) { 2 } else { 1 };
        slow.state = state;
        (slow.probing, slow.succeeded) = (0, 0);
        match state {
            State::Closed => {
                self.slots.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
                tracing::info!(breaker = self.name, "closed again");
            }
            State::Open => {
                slow.until = Instant::now() + self.settings.timeout;
                self.totals.opened.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(breaker = self.name, "open: calls fail at once");
            }
            State::HalfOpen => tracing::info!(breaker = self.name, "half-open: probing"),
        }
        self.era.store(era + step, Ordering::Release);
    }

    fn slot_number(&self, now: Instant) -> u64 {
        let age = u64::try_from((now - self.born).as_nanos()).unwrap_or(u64::MAX);
        // 0 is an empty slot.
        age / self.slot_nanos + 1
    }

    fn record(&self, now: Instant, failed: bool) {
        let number = self.slot_number(now);
        let slot = &self.slots[number as usize % SLOTS];
        let add = |word: u64| {
            let (old, counts) = unpack(word);
            let counts = if old == number & 0xff_ffff { counts } else { Counts::default() };
            Some(pack(number, counts, failed))
        };
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// A call of `era` has ended.
    fn ended(&self, era: u64, began: Instant, failed: bool) {
        let now = Instant::now();
        let slow = now - began > self.settings.slow_after;
        if failed {
            self.totals.failed.fetch_add(1, Ordering::Relaxed);
        } else if slow {
            self.totals.slow.fetch_add(1, Ordering::Relaxed);
        }
        let failed = failed || slow;
        if self.era.load(Ordering::Acquire) != era {
            return;
        }
        if era.is_multiple_of(2) {
            self.record(now, failed);
            if !failed || !(self.settings.ready_to_trip)(self.counts()) {
                return;
            }
        }
        let mut slow = self.slow.lock();
        // Another call may have changed it meanwhile.
        if self.era.load(Ordering::Acquire) != era {
            return;
        }
        if failed {
            self.change(&mut slow, State::Open);
            return;
        }
        slow.probing -= 1;
        slow.succeeded += 1;
        if slow.succeeded >= self.settings.max_requests {
            self.change(&mut slow, State::Closed);
        }
    }

    /// A call of `era` was given up.
    fn abandoned(&self, era: u64) {
        if era.is_multiple_of(2) {
            return;
        }
        let mut slow = self.slow.lock();
        if self.era.load(Ordering::Acquire) == era {
            slow.probing -= 1;
        }
    }
}

fn unpack(word: u64) -> (u64, Counts) {
    let calls = (word >> COUNT_BITS) & COUNT_MASK;
    (word >> (2 * COUNT_BITS), Counts { calls, failures: word & COUNT_MASK })
}

fn pack(number: u64, counts: Counts, failed: bool) -> u64 {
    let Counts { mut calls, mut failures } = counts;
    if calls == COUNT_MASK {
        // The share is what counts.
        (calls, failures) = (calls / 2, failures / 2);
    }
    let failures = failures + u64::from(failed);
    (number & 0xff_ffff) << (2 * COUNT_BITS) | (calls + 1) << COUNT_BITS | failures
}

/// Whether the slot of 24 bits is in the window that ends with `now`.
fn is_recent(number: u64, now: u64) -> bool {
    number != 0 && (now.wrapping_sub(number) & 0xff_ffff) < SLOTS as u64
}

/// A call that was let through.
#[derive(Debug)]
#[must_use = "what came of the call must be told"]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    era: u64,
    began: Instant,
    told: bool,
}

impl Permit<'_> {
    /// The call came back as it should.
    pub fn succeeded(self) {
        self.tell(false);
    }

    /// It did not.
    pub fn failed(self) {
        self.tell(true);
    }

    fn tell(mut self, failed: bool) {
        self.told = true;
        self.breaker.ended(self.era, self.began, failed);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.breaker.abandoned(self.era);
        }
    }
}

#[cfg(test)]
mod tests;
