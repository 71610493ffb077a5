//! A merge operator for embedders: the newest write of a key wins.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | time, times 2, + 1 for a tombstone; big endian. The caller's own ascending clock |
//! | n | the value |
//!
//! Of two states the one with the greater bytes wins, that is the greater time, then a tombstone
//! over a value, then the greater value; so the join does not depend on order.

use super::merge::{MergeError, MergeOperator};

const HEADER_BYTES: usize = 8;

/// See the module page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Newest;

impl Newest {
    /// The state of a key that was set to `value` at `time`.
    ///
    /// # Panics
    /// If the time is 2^63 or later.
    pub fn value(time: u64, value: &[u8]) -> Vec<u8> {
        Self::encode(time, 0, value)
    }

    /// The state of a key that was deleted at `time`.
    ///
    /// # Panics
    /// If the time is 2^63 or later.
    pub fn tombstone(time: u64) -> Vec<u8> {
        Self::encode(time, 1, &[])
    }

    fn encode(time: u64, tombstone: u64, value: &[u8]) -> Vec<u8> {
        assert!(time < 1 << 63, "a time has 63 bits");
        let mut row = Vec::with_capacity(HEADER_BYTES + value.len());
        row.extend_from_slice(&(time << 1 | tombstone).to_be_bytes());
        row.extend_from_slice(value);
        row
    }

    /// The value in a state, `None` for a tombstone.
    ///
    /// # Errors
    /// The bytes are no state of this operator.
    pub fn decode(row: &[u8]) -> Result<Option<&[u8]>, MergeError> {
        let (_, tombstone, value) = Self::parts(row)?;
        Ok((!tombstone).then_some(value))
    }

    fn parts(row: &[u8]) -> Result<(u64, bool, &[u8]), MergeError> {
        let (header, value) = row
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or_else(|| MergeError(format!("{} bytes, at least 8 expected", row.len())))?;
        let header = u64::from_be_bytes(*header);
        let (time, tombstone) = (header >> 1, header & 1 == 1);
        if tombstone && !value.is_empty() {
            return Err(MergeError("a tombstone with a value".into()));
        }
        Ok((time, tombstone, value))
    }
}

impl MergeOperator for Newest {
    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError> {
        Self::parts(a)?;
        Self::parts(b)?;
        out.extend_from_slice(a.max(b));
        Ok(())
    }

    fn live_time_min(&self, row: &[u8]) -> Result<u64, MergeError> {
        Ok(Self::parts(row)?.0)
    }

    fn time_max(&self, row: &[u8]) -> Result<u64, MergeError> {
        self.live_time_min(row)
    }

    fn strip(
        &self,
        incoming: &[u8],
        local: Option<&[u8]>,
        guard: u64,
        _floor: u64,
        out: &mut Vec<u8>,
    ) -> Result<bool, MergeError> {
        let (time, ..) = Self::parts(incoming)?;
        let known = match local {
            Some(local) => Self::parts(local)?.0 >= time,
            None => false,
        };
        out.extend_from_slice(incoming);
        Ok(time > guard || known)
    }

    fn may_purge(&self, row: &[u8], floor: u64) -> Result<bool, MergeError> {
        let (time, tombstone, _) = Self::parts(row)?;
        Ok(tombstone && time <= floor)
    }

    fn winning_time(&self, row: &[u8]) -> Option<u64> {
        Self::parts(row).ok().map(|(time, ..)| time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            (0..4u64, "[ab]{0,2}").prop_map(|(time, value)| Newest::value(time, value.as_bytes())),
            (0..4u64).prop_map(Newest::tombstone),
        ]
    }

    fn join(a: &[u8], b: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Newest.join(a, b, &mut out).expect("both are states");
        out
    }

    proptest! {
        #[test]
        fn join_is_a_semilattice(a in state(), b in state(), c in state()) {
            prop_assert_eq!(join(&a, &b), join(&b, &a));
            prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
            prop_assert_eq!(join(&a, &a), a);
        }

        #[test]
        fn foreign_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _ = Newest.live_time_min(&bytes);
            let _ = Newest::decode(&bytes);
        }
    }
}
