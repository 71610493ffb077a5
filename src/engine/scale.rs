//! Parts of amounts.

/// `numerator / denominator` of `whole`, rounded down; at most `u64::MAX`. A denominator of 0
/// counts as 1.
pub fn scale(whole: u64, numerator: u64, denominator: u64) -> u64 {
    let scaled = u128::from(whole) * u128::from(numerator) / u128::from(denominator.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn parts_are_rounded_down_and_never_overflow() {
        assert_eq!((scale(10, 2, 3), scale(10, 0, 3), scale(10, 2, 0)), (6, 0, 20));
        assert_eq!(scale(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(scale(u64::MAX, 2, 1), u64::MAX);
    }
}
