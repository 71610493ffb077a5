//! Rows cut into messages for the background.
//!
//! A message is closed when it has its fill of rows or of bytes, so the last row of one may reach
//! beyond: no row is too large for a message of its own. The foreground's rule is the lane's.

/// A message is closed when it has this many rows or keys.
pub(super) const MESSAGE_ROWS_MAX: usize = 512;
/// A message is closed when it has this many bytes of rows.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The rows that go in one message each; none is empty.
pub(super) fn messages<T>(rows: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rows = rows;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |row: &&T| {
            let fits = sum < MESSAGE_BYTES_MAX;
            sum += bytes(row);
            fits
        };
        let items = rows.iter().take(MESSAGE_ROWS_MAX).take_while(fits).count();
        let (message, rest) = rows.split_at(items);
        rows = rest;
        (!message.is_empty()).then_some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message over its bounds would be refused by the receiver, and the work could never end.
    #[test]
    fn rows_are_cut_into_messages_within_their_bounds() {
        let rows: Vec<usize> = [MESSAGE_BYTES_MAX - 1, 1, 1, 3 * MESSAGE_BYTES_MAX, 0, 5]
            .into_iter()
            .chain(std::iter::repeat_n(1, 2 * MESSAGE_ROWS_MAX))
            .collect();
        let sizes: Vec<usize> = messages(&rows, |bytes| *bytes).map(<[_]>::len).collect();
        assert_eq!(sizes, [2, 2, MESSAGE_ROWS_MAX, MESSAGE_ROWS_MAX, 2]);
        assert_eq!(messages(&[], |bytes| *bytes).count(), 0);
    }
}
