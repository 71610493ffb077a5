//! The time of day without its jumps ahead.
//!
//! What this node makes durable by its clock, the lease of the minter and the floors of the safe
//! points, cannot be taken back: one look at a clock that is a year ahead for a second, and nothing
//! is minted for a year, and what expires within it is forgotten. So the time of day is held
//! against time that cannot jump, and a step ahead counts only after it has stood for a while.
//!
//! Steps back are believed at once: nothing goes back with them. It does not help a process that
//! is started while the clock is wrong, for nothing tells how long it was stopped.
//!
//! # Invariant
//! Between two looks it goes no further ahead than [`STEP_MS_MAX`] beyond the time that passed,
//! unless the clock has shown the same step for [`CONFIRM_MS`].

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::environment::{Environment, MonotonicClock, WallClock};

/// A longer step ahead is doubted, in milliseconds.
pub(super) const STEP_MS_MAX: u64 = 300_000;
/// A step that stood for so long is believed, in milliseconds: a machine that was asleep, a clock
/// that was set right.
pub(super) const CONFIRM_MS: u64 = 300_000;

/// See the module page.
#[derive(Debug)]
pub(super) struct SteadyClock {
    wall: Arc<dyn WallClock>,
    monotonic: Arc<dyn MonotonicClock>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// The last time of day that was believed, and when.
    wall_ms: u64,
    at: Duration,
    /// A step that is doubted: by how much, and since when.
    step: Option<(u64, Duration)>,
}

impl SteadyClock {
    /// Believes what the clock shows now.
    pub fn new(environment: &Environment) -> Self {
        let (wall, monotonic) =
            (Arc::clone(&environment.clock), Arc::clone(&environment.monotonic));
        let seen = Seen { wall_ms: wall.now_ms(), at: monotonic.elapsed(), step: None };
        Self { wall, monotonic, seen: Mutex::new(seen) }
    }

    /// Milliseconds since 1970: what the clock shows, or what it would show without a step that is
    /// doubted.
    pub fn now_ms(&self) -> u64 {
        let mut seen = self.seen.lock();
        let (wall_ms, now) = (self.wall.now_ms(), self.monotonic.elapsed());
        let passed_ms = now.saturating_sub(seen.at).as_millis();
        let expected_ms = seen.wall_ms.saturating_add(u64::try_from(passed_ms).unwrap_or(u64::MAX));
        let step_ms = wall_ms.saturating_sub(expected_ms);
        if step_ms > STEP_MS_MAX {
            let (_, since) = match seen.step {
                Some((first_ms, since)) if first_ms.abs_diff(step_ms) <= STEP_MS_MAX => {
                    (first_ms, since)
                }
                _ => *seen.step.insert((step_ms, now)),
            };
            if now.saturating_sub(since) < Duration::from_millis(CONFIRM_MS) {
                return expected_ms;
            }
        }
        *seen = Seen { wall_ms, at: now, step: None };
        wall_ms
    }
}

#[cfg(test)]
mod tests {
    use super::super::environment::ManualClock;
    use super::*;
    use crate::engine::vfs::mem::MemVfs;

    const YEAR_MS: u64 = 365 * 86_400_000;

    fn steady(clock: &ManualClock) -> SteadyClock {
        SteadyClock::new(&Environment::simulated(Arc::new(MemVfs::new()), clock, 1))
    }

    #[test]
    fn a_step_ahead_counts_only_once_it_has_stood() {
        let clock = ManualClock::new(1_000);
        let steady = steady(&clock);
        clock.advance_ms(YEAR_MS);
        assert_eq!(steady.now_ms(), 1_000 + YEAR_MS, "time that really passed");
        let before = steady.now_ms();
        clock.set_ms(before + YEAR_MS);
        assert_eq!(steady.now_ms(), before);
        clock.advance_ms(CONFIRM_MS - 1);
        assert_eq!(steady.now_ms(), before + CONFIRM_MS - 1, "it goes on beside the step");
        clock.advance_ms(1);
        assert_eq!(steady.now_ms(), before + YEAR_MS + CONFIRM_MS);
    }

    #[test]
    fn a_step_that_is_taken_back_leaves_nothing() {
        let clock = ManualClock::new(YEAR_MS);
        let steady = steady(&clock);
        for _ in 0..3 {
            clock.set_ms(2 * YEAR_MS);
            assert_eq!(steady.now_ms(), YEAR_MS);
            clock.set_ms(YEAR_MS);
            clock.advance_ms(CONFIRM_MS / 2);
            clock.set_ms(YEAR_MS);
            assert_eq!(steady.now_ms(), YEAR_MS, "set back, and no step is remembered");
        }
    }

    #[test]
    fn another_step_begins_to_be_doubted_anew() {
        let clock = ManualClock::new(1_000);
        let steady = steady(&clock);
        clock.set_ms(YEAR_MS);
        steady.now_ms();
        clock.advance_ms(CONFIRM_MS - 1);
        clock.set_ms(3 * YEAR_MS);
        assert_eq!(steady.now_ms(), CONFIRM_MS + 999);
        clock.advance_ms(1);
        assert_eq!(steady.now_ms(), CONFIRM_MS + 1_000);
    }

    #[test]
    fn small_steps_and_steps_back_are_believed() {
        let clock = ManualClock::new(YEAR_MS);
        let steady = steady(&clock);
        clock.set_ms(YEAR_MS + STEP_MS_MAX);
        assert_eq!(steady.now_ms(), YEAR_MS + STEP_MS_MAX);
        clock.set_ms(5);
        assert_eq!(steady.now_ms(), 5);
    }
}
