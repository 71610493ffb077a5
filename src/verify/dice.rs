//! Chance with a seed, for workloads and schedules.

use crate::store::Random as _;
use crate::store::environment::SeededRandom;

/// Numbers of a seed; the same seed gives the same for ever.
#[derive(Debug)]
pub struct Dice(SeededRandom);

impl Dice {
    /// Dice of `seed` for one `purpose`, independent of those for others.
    pub fn new(seed: u64, purpose: u64) -> Self {
        // The first number of a stream far from those of the other purposes.
        let mixed =
            Self(SeededRandom::new(seed)).next() ^ purpose.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self(SeededRandom::new(mixed))
    }

    /// Any number.
    pub fn next(&self) -> u64 {
        self.0.next_u64().expect("a seeded source never runs dry")
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&self, end: u64) -> u64 {
        // The bias is below 2^-32 for the small ends of a workload.
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// Whether an event of `percent` happens.
    pub fn percent(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    ///
    /// # Panics
    /// There is none.
    pub fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_purposes_do_not_follow_each_other() {
        let draw = |seed, purpose| {
            let dice = Dice::new(seed, purpose);
            [(); 4].map(|()| dice.next())
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
        assert_ne!(draw(7, 1)[1..], draw(7, 2)[..3]);
    }

    #[test]
    fn bounds_hold() {
        let dice = Dice::new(1, 1);
        assert!((0..1000).all(|_| dice.below(3) < 3));
        assert_eq!(dice.below(0), 0);
        assert!(!(0..1000).any(|_| dice.percent(0)));
        assert!((0..1000).all(|_| dice.percent(100)));
    }
}
