//! Why a node did not do with a row what it was asked to, in the words of `Failure.reason`: those
//! that another node acts on. They never change: nodes of another version compare them.

/// The rows before it had filled the reply: it is to be asked for again.
pub const REPLY_TOO_LARGE: &str = "REPLY_TOO_LARGE";
/// The node is no replica of the row under the layout of the request.
pub const NOT_A_REPLICA: &str = "NOT_A_REPLICA";
/// The row may have been deleted and forgotten there. What
/// [`store::Error::BelowSafePoint`](crate::store::Error::BelowSafePoint) gives as its reason.
pub const BELOW_SAFE_POINT: &str = "BELOW_SAFE_POINT";
/// The node has lost data of the partition and gives no word on its rows. What
/// [`store::Error::Damaged`](crate::store::Error::Damaged) gives as its reason.
pub const DAMAGED: &str = "DAMAGED";
/// The node takes no writes, whichever: another replica may. What the store gives as its reasons.
pub const TAKES_NO_WRITES: [&str; 4] = ["READ_ONLY", "DISK_FULL", "CLOCK_UNSAFE", "CLOSED"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    #[test]
    fn the_reasons_of_a_node_that_takes_no_writes_are_the_store_s() {
        use store::Error as E;
        let path = std::path::PathBuf::from("d");
        let all = [
            E::ReadOnly { cause: String::new() },
            E::DiskFull { path, available: 1, reserve: 2 },
            E::ClockUnsafe { skew_ms: 2, limit_ms: 1 },
            E::Closed,
        ];
        assert_eq!(all.each_ref().map(E::reason), TAKES_NO_WRITES);
        assert!(all.iter().all(|error| error.outcome() == store::Outcome::NotApplied));
    }

    /// The store says it, others read it.
    #[test]
    fn what_a_row_is_refused_for_has_the_reason_that_is_looked_for() {
        assert_eq!(store::Error::BelowSafePoint.reason(), BELOW_SAFE_POINT);
        assert_eq!(store::Error::Damaged { partition: 7 }.reason(), DAMAGED);
    }
}
