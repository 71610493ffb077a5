//! Keys, values and the order in which they are asked for: the same at every run and for every
//! engine.
//!
//! | key of 16 bytes | used by |
//! |---|---|
//! | 8 bytes of a bijection of i, then i, both big endian | everything else |
//! | i, then 8 zero bytes | fillseq |
//!
//! The first kind comes in random order, every key once, spread as tokens are.
//!
//! Values compress to about a half: each run of 100 bytes is 50 random bytes, twice.

/// Bytes of every key.
pub const KEY_BYTES: usize = 16;

/// A key.
pub type Key = [u8; KEY_BYTES];

/// SplitMix64's output function: a bijection of 64-bit numbers.
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number below `n`, evenly from `random`.
pub fn below(random: u64, n: u64) -> u64 {
    ((u128::from(random) * u128::from(n)) >> 64) as u64
}

/// The i-th key, in an order that is random to the engine.
pub fn key(i: u64) -> Key {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&mix(i).to_be_bytes());
    key[8..].copy_from_slice(&i.to_be_bytes());
    key
}

/// The i-th key in key order.
pub fn sequential_key(i: u64) -> Key {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&i.to_be_bytes());
    key
}

/// A key that is never written, a neighbour of the i-th key: within the range of the same tables.
pub fn missing_key(i: u64) -> Key {
    let mut key = key(i);
    key[8] = 0xFF;
    key
}

/// Values, cut from one pool.
pub struct Values {
    pool: Vec<u8>,
    bytes: usize,
}

impl Values {
    /// Values of `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        let mut pool = Vec::new();
        let mut seed = 0;
        while pool.len() < (64 << 10) + bytes {
            let mut half = Vec::with_capacity(56);
            while half.len() < 50 {
                seed += 1;
                half.extend_from_slice(&mix(seed).to_le_bytes());
            }
            pool.extend_from_slice(&half[..50]);
            pool.extend_from_slice(&half[..50]);
        }
        Self { pool, bytes }
    }

    /// Bytes of one value.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The value of the i-th key.
    pub fn of(&self, i: u64) -> &[u8] {
        let from = (mix(!i) & 0xFFFF) as usize;
        &self.pool[from..from + self.bytes]
    }
}

/// Ranks below `n` by a Zipf law, by the method of Gray et al. that YCSB uses.
#[derive(Clone)]
pub struct Zipf {
    n: u64,
    theta: f64,
    alpha: f64,
    zeta_n: f64,
    eta: f64,
}

impl Zipf {
    /// YCSB's skew.
    pub const THETA: f64 = 0.99;

    /// Sums the law once, which takes time in proportion to `n`.
    pub fn new(n: u64) -> Self {
        let theta = Self::THETA;
        let zeta = |n: u64| (1..=n).map(|i| (i as f64).powf(-theta)).sum::<f64>();
        let zeta_n = zeta(n);
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - theta)) / (1.0 - zeta(2) / zeta_n);
        Self { n, theta, alpha: 1.0 / (1.0 - theta), zeta_n, eta }
    }

    /// A rank; 0 is the most frequent.
    pub fn rank(&self, random: u64) -> u64 {
        let u = (random >> 11) as f64 / (1u64 << 53) as f64;
        let uz = u * self.zeta_n;
        if uz < 1.0 {
            return 0;
        }
        if uz < 1.0 + 0.5f64.powf(self.theta) {
            return 1;
        }
        let rank = self.n as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.n - 1)
    }

    /// An index: the ranks, scattered over all keys.
    pub fn scattered(&self, random: u64) -> u64 {
        below(mix(self.rank(random)), self.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_rank_is_as_frequent_as_the_law_says() {
        let (n, draws) = (1_000, 200_000);
        let zipf = Zipf::new(n);
        let zeros = (0..draws).filter(|&i| zipf.rank(mix(i)) == 0).count();
        let expected = draws as f64 / (1..=n).map(|i| (i as f64).powf(-Zipf::THETA)).sum::<f64>();
        assert!((zeros as f64 / expected - 1.0).abs() < 0.03, "{zeros} of {expected:.0}");
        assert!((0..draws).all(|i| zipf.scattered(mix(i)) < n));
    }

    #[test]
    fn missing_keys_are_never_written() {
        let written: std::collections::HashSet<Key> = (0..10_000).map(key).collect();
        assert!((0..10_000).all(|i| !written.contains(&missing_key(i))));
    }
}
