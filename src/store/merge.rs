//! What the engine has to know of rows: how they join, how old they are, when they may go.
//!
//! All of it is decided from the bytes of the rows; the mode of the tenant stands in them.

use super::write::DEAD_TOKENS_MAX;
use crate::causality::codec::{self, DecodeError};
use crate::causality::floor::{self, Admission};
use crate::causality::forget;
use crate::engine::{MergeError, MergeOperator};

/// Joins rows for the engine.
#[derive(Clone, Copy, Debug)]
pub struct RowOperator {
    /// How long a token is kept, in milliseconds.
    pub token_window_ms: u64,
}

fn unreadable(error: DecodeError) -> MergeError {
    MergeError(error.to_string())
}

impl MergeOperator for RowOperator {
    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError> {
        codec::join_bytes(a, b, out).map_err(unreadable)
    }

    fn contains(&self, row: &[u8], older: &[u8]) -> Result<bool, MergeError> {
        let (row, older) = (codec::decode(row), codec::decode(older));
        let (row, older) = (row.map_err(unreadable)?, older.map_err(unreadable)?);
        forget::contains(&row, &older, DEAD_TOKENS_MAX)
            .map_err(|mismatch| unreadable(mismatch.into()))
    }

    fn live_time_min(&self, row: &[u8]) -> Result<u64, MergeError> {
        codec::live_time_min(row).map_err(unreadable)
    }

    fn time_max(&self, row: &[u8]) -> Result<u64, MergeError> {
        codec::time_max(row).map_err(unreadable)
    }

    fn strip(
        &self,
        incoming: &[u8],
        local: Option<&[u8]>,
        guard: u64,
        floor: u64,
        out: &mut Vec<u8>,
    ) -> Result<bool, MergeError> {
        let row = codec::decode(incoming).map_err(unreadable)?;
        let local = local.map(codec::decode).transpose().map_err(unreadable)?;
        match floor::admit(&row, local.as_ref(), guard, floor) {
            Admission::Whole => out.extend_from_slice(incoming),
            Admission::Stripped(stripped) => codec::encode(&stripped, out),
            Admission::Refused => return Ok(false),
        }
        Ok(true)
    }

    fn may_purge(&self, row: &[u8], floor: u64) -> Result<bool, MergeError> {
        // Nearly every row holds a value for ever: one look at its flags is enough.
        let flags = codec::flags(row).map_err(unreadable)?;
        if flags & (codec::ALL_DEAD | codec::HAS_EXPIRY) == 0 {
            return Ok(false);
        }
        let row = codec::decode(row).map_err(unreadable)?;
        Ok(floor::may_purge(&row, floor, self.token_window_ms))
    }

    fn winning_time(&self, row: &[u8]) -> Option<u64> {
        codec::lww_time(row).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causality::clock::time_of_ms;
    use crate::causality::{Actor, Payload, Version};

    const OPERATOR: RowOperator = RowOperator { token_window_ms: 1000 };

    fn row(payload: Payload<'_>, expires_at_ms: u64, time: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let version = Version::new(payload, expires_at_ms, time);
        codec::encode_lww_version(Actor::new(1), &version, &mut out);
        out
    }

    fn value(expires_at_ms: u64, time: u64) -> Vec<u8> {
        row(Payload::Value { value: b"v", content_type: "" }, expires_at_ms, time)
    }

    #[test]
    fn a_value_stays_and_a_tombstone_goes_below_the_floor() {
        let tombstone = row(Payload::Tombstone, 0, 7);
        assert!(OPERATOR.may_purge(&tombstone, 7).unwrap());
        assert!(!OPERATOR.may_purge(&tombstone, 6).unwrap());
        assert!(!OPERATOR.may_purge(&value(0, 7), u64::MAX).unwrap());
        let expiring = value(50, 7);
        assert!(!OPERATOR.may_purge(&expiring, time_of_ms(49)).unwrap());
        assert!(OPERATOR.may_purge(&expiring, time_of_ms(50)).unwrap());
        assert_eq!(OPERATOR.time_max(&expiring).unwrap(), time_of_ms(50));
    }

    /// The engine asks for the greatest time to find tables worth compacting: a row it calls old
    /// must not be kept back by an expiry it did not count.
    #[test]
    fn a_purge_needs_the_floor_at_time_max() {
        for state in [row(Payload::Tombstone, 0, 7), value(50, 7), value(50, time_of_ms(90))] {
            let greatest = OPERATOR.time_max(&state).unwrap();
            assert!(OPERATOR.may_purge(&state, greatest).unwrap());
            assert!(!OPERATOR.may_purge(&state, greatest - 1).unwrap());
        }
    }

    #[test]
    fn an_old_message_is_refused_where_it_is_unknown() {
        let mut out = Vec::new();
        assert!(!OPERATOR.strip(&value(0, 5), None, 10, 10, &mut out).unwrap());
        assert!(OPERATOR.strip(&value(0, 5), Some(&value(0, 6)), 10, 10, &mut out).unwrap());
        assert_eq!(out, value(0, 5));
    }

    #[test]
    fn garbage_is_an_error_and_no_state() {
        let mut out = Vec::new();
        assert!(OPERATOR.join(b"", &value(0, 1), &mut out).is_err());
        assert!(OPERATOR.live_time_min(b"").is_err() && OPERATOR.may_purge(b"", 0).is_err());
        assert_eq!(OPERATOR.winning_time(b"\x01"), None);
    }
}
