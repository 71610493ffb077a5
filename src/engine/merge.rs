//! What the engine asks of whoever knows what a row is.

/// A row encoding that the operator could not read.
///
/// The engine treats it as corruption of the source it read the bytes from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row state cannot be decoded: {0}")]
pub struct MergeError(pub String);

/// The join-semilattice of row states, over their encodings.
///
/// # Laws
/// `join` is commutative, associative and idempotent up to [`MergeOperator`]-equality of the
/// results: encodings are canonical, so equal states have equal bytes. The engine joins in any
/// order, twice, and after a crash again; everything it does leans on this.
///
/// Times are the operator's own `u64` clock (the hybrid logical clock of the store), comparable
/// with the *guard* and *floor* of a safe point. An operator without clocks has only to join: what
/// the other calls answer by default lets nothing be refused or purged.
pub trait MergeOperator: Send + Sync + 'static {
    /// Appends the join of two states to `out`, which the caller hands over empty.
    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError>;

    /// Whether `row` holds everything that `older` does, so that a record which says so may hide
    /// it: their join is `row`. An operator whose writers let states forget something says here
    /// what. Asked by debug builds alone, wherever a record hides another.
    fn contains(&self, row: &[u8], older: &[u8]) -> Result<bool, MergeError> {
        let mut joined = Vec::with_capacity(row.len());
        self.join(row, older, &mut joined)?;
        Ok(joined == row)
    }

    /// The time of the oldest live version of `row`, `u64::MAX` if none is live.
    ///
    /// A state whose oldest live version is at or below the guard of its partition takes the slow
    /// path: it is read, stripped or refused.
    fn live_time_min(&self, row: &[u8]) -> Result<u64, MergeError> {
        let _ = row;
        Ok(u64::MAX)
    }

    /// The greatest time in `row`: versions, clock entries, tokens and expiries. A row can be
    /// purged only when it is at or below the floor; `u64::MAX` means never.
    fn time_max(&self, row: &[u8]) -> Result<u64, MergeError> {
        let _ = row;
        Ok(u64::MAX)
    }

    /// `incoming` without the live versions at or below `guard` that `local` does not hold live
    /// and has not seen; its clock entries stay, because those versions are dead. Returns `false`
    /// if the message has to be refused instead: a version it brings anew would be dropped, or
    /// only `guard` and not yet `floor` covers one.
    fn strip(
        &self,
        incoming: &[u8],
        local: Option<&[u8]>,
        guard: u64,
        floor: u64,
        out: &mut Vec<u8>,
    ) -> Result<bool, MergeError> {
        let _ = (local, guard, floor);
        out.extend_from_slice(incoming);
        Ok(true)
    }

    /// Whether a row whose every source is at hand may be forgotten below `floor`: all its live
    /// versions are tombstones or have expired by the floor, and every time in it is at or below
    /// the floor (and idempotency windows are over).
    fn may_purge(&self, row: &[u8], floor: u64) -> Result<bool, MergeError> {
        let _ = (row, floor);
        Ok(false)
    }

    /// The greatest time in `row` if one comparison of times decides which of two states wins
    /// (last-write-wins rows); `None` where states must really be joined.
    ///
    /// Lets a read stop early: [`Engine::get_newest_with`](super::Engine::get_newest_with). Such a
    /// read yields a value, not a state: it never becomes a Full, fills the cache or feeds a hash.
    fn winning_time(&self, row: &[u8]) -> Option<u64> {
        let _ = row;
        None
    }
}
