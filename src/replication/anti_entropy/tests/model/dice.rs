//! Chance with a seed.

use crate::store::Random as _;
use crate::store::environment::SeededRandom;

pub struct Dice(SeededRandom);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(SeededRandom::new(seed))
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&self, end: u64) -> u64 {
        let drawn = self.0.next_u64().expect("a seeded source never runs dry");
        drawn.checked_rem(end).unwrap_or(0)
    }

    pub fn percent(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
