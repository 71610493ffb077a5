//! The world as the store sees it: files, time and chance, all handed in.
//!
//! Nothing else in `store` asks the system for any of them, so a simulation that hands in its own
//! decides everything that happens. The real ones are here too: [`SystemClock`],
//! [`SystemRandom`]; and those of tests: [`ManualClock`], [`SeededRandom`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::engine::vfs::Vfs;
use crate::engine::vfs::os::OsVfs;

use super::error::{Error, Result};

/// The time of day. It may jump, backwards too.
pub trait WallClock: fmt::Debug + Send + Sync + 'static {
    /// Milliseconds since 1970-01-01 UTC.
    fn now_ms(&self) -> u64;
}

/// Time that never goes backwards, to measure waits with.
pub trait MonotonicClock: fmt::Debug + Send + Sync + 'static {
    /// Time since some fixed moment of this process.
    fn elapsed(&self) -> Duration;
}

/// Random bytes. Identities are minted of them: two sources that give the same bytes make two
/// nodes, or two lives of one node, take each other for one.
pub trait Random: fmt::Debug + Send + Sync + 'static {
    /// Fills all of `bytes`.
    fn fill(&self, bytes: &mut [u8]) -> Result<()>;

    /// Any number, each as likely as the others.
    fn next_u64(&self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// Its monotonic side starts at zero now.
    #[expect(clippy::new_without_default, reason = "a default should not read a clock")]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl WallClock for SystemClock {
    fn now_ms(&self) -> u64 {
        // A clock before 1970 is one that was never set; 0 then keeps every order right, because
        // the hybrid clock never goes below what it has promised.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl MonotonicClock for SystemClock {
    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The operating system's random bytes, fit for secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        getrandom::fill(bytes).map_err(|error| Error::NoRandomness { why: error.to_string() })
    }
}

/// Clocks that stand still until they are told. Clones are the same clocks.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    times: Arc<ManualTimes>,
}

#[derive(Debug, Default)]
struct ManualTimes {
    // Relaxed is enough for both: nothing else is published through them.
    wall_ms: AtomicU64,
    elapsed_ms: AtomicU64,
}

impl ManualClock {
    /// Shows `now_ms` of the day; nothing has elapsed.
    pub fn new(now_ms: u64) -> Self {
        let clock = Self::default();
        clock.set_ms(now_ms);
        clock
    }

    /// Sets the time of day, backwards if need be. The monotonic side does not move.
    pub fn set_ms(&self, now_ms: u64) {
        self.times.wall_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Lets `ms` milliseconds pass on both.
    pub fn advance_ms(&self, ms: u64) {
        self.times.wall_ms.fetch_add(ms, Ordering::Relaxed);
        self.times.elapsed_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl WallClock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.times.wall_ms.load(Ordering::Relaxed)
    }
}

impl MonotonicClock for ManualClock {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.times.elapsed_ms.load(Ordering::Relaxed))
    }
}

/// The same sequence for the same seed. A restart in a simulation must bring a new seed, or the
/// node mints the identity of its former life again.
#[derive(Debug)]
pub struct SeededRandom {
    state: AtomicU64,
}

impl SeededRandom {
    /// Every seed, zero too, gives a good sequence.
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }

    /// `SplitMix64` (Steele, Lea, Flood 2014): one atomic addition, then a mix of the sum.
    fn step(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.step().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// What a store is run with. Clones share everything.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Where its files are.
    pub vfs: Arc<dyn Vfs>,
    /// The time of day.
    pub clock: Arc<dyn WallClock>,
    /// For waits and ages within this process.
    pub monotonic: Arc<dyn MonotonicClock>,
    /// Where identities come from.
    pub random: Arc<dyn Random>,
}

impl Environment {
    /// The real world.
    pub fn system() -> Self {
        let clock = Arc::new(SystemClock::new());
        Self {
            vfs: Arc::new(OsVfs),
            clock: Arc::clone(&clock) as Arc<dyn WallClock>,
            monotonic: clock,
            random: Arc::new(SystemRandom),
        }
    }

    /// A world under control: these files, this clock, and the chance of `seed`.
    pub fn simulated(vfs: Arc<dyn Vfs>, clock: &ManualClock, seed: u64) -> Self {
        Self {
            vfs,
            clock: Arc::new(clock.clone()),
            monotonic: Arc::new(clock.clone()),
            random: Arc::new(SeededRandom::new(seed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_system_knows_the_year_and_gives_no_number_twice() {
        let environment = Environment::system();
        let year_2025_ms = 1_735_689_600_000;
        assert!(environment.clock.now_ms() > year_2025_ms, "in milliseconds, not seconds");
        let before = environment.monotonic.elapsed();
        assert!(environment.monotonic.elapsed() >= before);
        let numbers: BTreeSet<u64> =
            (0..1000).map(|_| environment.random.next_u64().unwrap()).collect();
        assert_eq!(numbers.len(), 1000);
    }

    /// A failing seed is a regression test only as long as the sequence stays what it was; the
    /// constants are the published ones of `SplitMix64` for the seed 1234567.
    #[test]
    fn a_seed_means_the_same_for_ever() {
        let random = SeededRandom::new(1_234_567);
        let drawn = [(); 3].map(|()| random.next_u64().unwrap());
        let published =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(drawn, published);
        let mut bytes = [0; 11];
        SeededRandom::new(1_234_567).fill(&mut bytes).unwrap();
        assert_eq!(bytes[..8], published[0].to_le_bytes());
        assert_eq!(bytes[8..], published[1].to_le_bytes()[..3]);
    }

    #[test]
    fn setting_the_day_back_does_not_make_time_run_backwards() {
        let clock = ManualClock::new(1000);
        let environment = Environment::simulated(Arc::new(OsVfs), &clock, 1);
        clock.advance_ms(500);
        clock.set_ms(10);
        assert_eq!(environment.clock.now_ms(), 10);
        assert_eq!(environment.monotonic.elapsed(), Duration::from_millis(500));
    }
}
