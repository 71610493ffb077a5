//! What may come in, and how much of it.
//!
//! One value holds every limit of the store; each check names the limit it found broken. Limits
//! are for what clients send: what replicas send each other was accepted once and is never refused
//! for its size. What a node may be configured to is bounded too ([`Limits::validated`]), by what
//! the formats can hold and by what one request may cost in memory.

use super::error::{Error, Result};

/// No key is longer, whatever is configured: in bytes.
pub const KEY_BYTES_CEILING: usize = 4096;
/// No value is longer, whatever is configured: in bytes.
pub const VALUE_BYTES_CEILING: usize = 10 << 20;
/// No row is larger, whatever is configured: half of what the engine takes, so that the join of
/// two full rows from two replicas still fits. In bytes. The join of more is kept and read like any
/// other row, but it is too large to be sent to a replica until a write has covered what it can.
pub const ROW_BYTES_CEILING: usize = 16 << 20;
/// No time to live is longer: 100 years, in milliseconds. Keeps every expiry inside 48 bits.
pub const TTL_MS_CEILING: u64 = 100 * 365 * 86_400_000;
/// Content types are stored behind a length of one byte.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 64;
/// Room that a row takes beside its largest value: clock, tokens, content type. In bytes.
const ROW_OVERHEAD_BYTES: usize = 64 << 10;

/// The limits of one store. Change fields of [`Limits::default`]; the store takes it only through
/// [`Limits::validated`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest key, in bytes; at most 4096.
    pub key_bytes_max: usize,
    /// Longest value, in bytes; at most 10 MiB.
    pub value_bytes_max: usize,
    /// Most live versions of a row that a client's write may leave behind.
    pub siblings_max: usize,
    /// From this many on, replies carry a warning.
    pub siblings_warn: usize,
    /// Largest row that a client's write may leave behind, in bytes.
    pub row_bytes_max: usize,
    /// Most items of a batch.
    pub batch_items_max: usize,
    /// Keys, values and contexts of a batch together, in bytes.
    pub batch_bytes_max: usize,
    /// Longest context that a client may hand back, in bytes.
    pub context_bytes_max: usize,
    /// Longest content type, in bytes; at most 255.
    pub content_type_bytes_max: usize,
    /// Longest idempotency key, in bytes; at most 64.
    pub idempotency_key_bytes_max: usize,
    /// Longest time to live, in milliseconds; at most 100 years.
    pub ttl_ms_max: u64,
    /// How far the clocks of clients and nodes may be apart, in milliseconds: by so much an
    /// idempotency key may be born ahead of this node's clock, and what has expired is kept longer.
    pub clock_skew_ms_max: u64,
    /// How long an idempotency key is remembered, in milliseconds.
    pub token_window_ms: u64,
    /// Most rows of a page of a scan.
    pub scan_rows_max: usize,
    /// A page ends after the row that reaches this many bytes.
    pub scan_bytes_max: usize,
    /// Percentage of the disk in use from which there is a warning.
    pub disk_warn_percent: u64,
    /// Percentage of the disk in use from which large values are refused.
    pub disk_large_percent: u64,
    /// Percentage of the disk in use from which all values are refused, and only deletes taken.
    pub disk_full_percent: u64,
    /// A longer value is large, in bytes.
    pub large_value_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes_max: KEY_BYTES_CEILING,
            value_bytes_max: 1 << 20,
            siblings_max: 32,
            siblings_warn: 8,
            row_bytes_max: 4 << 20,
            batch_items_max: 1000,
            batch_bytes_max: 16 << 20,
            context_bytes_max: 64 << 10,
            content_type_bytes_max: CONTENT_TYPE_BYTES_MAX,
            idempotency_key_bytes_max: IDEMPOTENCY_KEY_BYTES_MAX,
            ttl_ms_max: TTL_MS_CEILING,
            clock_skew_ms_max: 2000,
            token_window_ms: 86_400_000,
            scan_rows_max: 1000,
            scan_bytes_max: 4 << 20,
            disk_warn_percent: 80,
            disk_large_percent: 90,
            disk_full_percent: 95,
            large_value_bytes: 64 << 10,
        }
    }
}

fn bytes(len: usize) -> u64 {
    len as u64
}

/// A limit that is not what it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// The field.
    pub what: &'static str,
    /// Its value.
    pub found: u64,
    /// What it must be at least.
    pub least: u64,
    /// And at most.
    pub most: u64,
}

impl Limits {
    /// The limits themselves if they make sense together; else what is wrong, by field name.
    pub fn validated(self) -> Result<Self> {
        match self.out_of_range() {
            None => Ok(self),
            Some(OutOfRange { what, found, least, most }) => {
                let why = format!("it is {found}, it must be {least} to {most}");
                Err(Error::InvalidArgument { what, why })
            }
        }
    }

    /// The first limit that makes no sense, or not beside the others.
    pub fn out_of_range(&self) -> Option<OutOfRange> {
        let ranges = [
            ("key_bytes_max", bytes(self.key_bytes_max), 1, bytes(KEY_BYTES_CEILING)),
            ("value_bytes_max", bytes(self.value_bytes_max), 1, bytes(VALUE_BYTES_CEILING)),
            ("siblings_max", bytes(self.siblings_max), 1, 100),
            ("siblings_warn", bytes(self.siblings_warn), 1, bytes(self.siblings_max)),
            (
                "row_bytes_max",
                bytes(self.row_bytes_max),
                bytes(self.value_bytes_max.saturating_add(ROW_OVERHEAD_BYTES)),
                bytes(ROW_BYTES_CEILING),
            ),
            ("batch_items_max", bytes(self.batch_items_max), 1, 10_000),
            // A batch of one must take whatever a single write may be.
            (
                "batch_bytes_max",
                bytes(self.batch_bytes_max),
                bytes(self.value_bytes_max)
                    .saturating_add(bytes(self.key_bytes_max))
                    .saturating_add(bytes(self.context_bytes_max)),
                256 << 20,
            ),
            ("context_bytes_max", bytes(self.context_bytes_max), 1024, 1 << 20),
            (
                "content_type_bytes_max",
                bytes(self.content_type_bytes_max),
                0,
                bytes(CONTENT_TYPE_BYTES_MAX),
            ),
            (
                "idempotency_key_bytes_max",
                bytes(self.idempotency_key_bytes_max),
                1,
                bytes(IDEMPOTENCY_KEY_BYTES_MAX),
            ),
            ("ttl_ms_max", self.ttl_ms_max, 1, TTL_MS_CEILING),
            ("clock_skew_ms_max", self.clock_skew_ms_max, 1, 60_000),
            ("token_window_ms", self.token_window_ms, 60_000, 30 * 86_400_000),
            ("scan_rows_max", bytes(self.scan_rows_max), 1, 10_000),
            ("scan_bytes_max", bytes(self.scan_bytes_max), 1, 64 << 20),
            ("disk_full_percent", self.disk_full_percent, 1, 100),
            ("disk_large_percent", self.disk_large_percent, 1, self.disk_full_percent),
            ("disk_warn_percent", self.disk_warn_percent, 1, self.disk_large_percent),
        ];
        let all = ranges.into_iter();
        let mut broken = all.filter(|(_, found, least, most)| found < least || found > most);
        broken.next().map(|(what, found, least, most)| OutOfRange { what, found, least, most })
    }

    /// A key has 1 byte to `key_bytes_max`.
    pub fn check_key(&self, key: &[u8]) -> Result<()> {
        check_key(key, self.key_bytes_max)
    }

    /// A value has at most `value_bytes_max`; it may be empty.
    pub fn check_value(&self, value: &[u8]) -> Result<()> {
        over(value.len(), self.value_bytes_max)
            .map_or(Ok(()), |(found, limit)| Err(Error::ValueTooLong { found, limit }))
    }

    /// A content type has at most `content_type_bytes_max`; it may be empty.
    pub fn check_content_type(&self, content_type: &str) -> Result<()> {
        over(content_type.len(), self.content_type_bytes_max)
            .map_or(Ok(()), |(found, limit)| Err(Error::ContentTypeTooLong { found, limit }))
    }

    /// An idempotency key has 1 byte to `idempotency_key_bytes_max`.
    pub fn check_idempotency_key(&self, key: &[u8]) -> Result<()> {
        let (found, limit) = (bytes(key.len()), bytes(self.idempotency_key_bytes_max));
        if found == 0 || found > limit {
            return Err(Error::InvalidIdempotencyKey { found, limit });
        }
        Ok(())
    }

    /// A context has at most `context_bytes_max`; looked at before it is decoded.
    pub fn check_context(&self, context: &[u8]) -> Result<()> {
        over(context.len(), self.context_bytes_max).map_or(Ok(()), |(found, limit)| {
            Err(Error::InvalidContext {
                why: format!("it has {found} bytes, the limit is {limit}"),
            })
        })
    }

    /// A time to live is 1 ms to `ttl_ms_max`.
    pub fn check_ttl(&self, ttl_ms: u64) -> Result<()> {
        check_ttl(ttl_ms, self.ttl_ms_max)
    }

    /// A client's write may leave at most `siblings_max` live versions.
    pub fn check_siblings(&self, siblings: usize) -> Result<()> {
        over(siblings, self.siblings_max)
            .map_or(Ok(()), |(found, limit)| Err(Error::TooManySiblings { found, limit }))
    }

    /// Whether a reply about a row of so many live versions carries a warning.
    pub fn warns_of_siblings(&self, siblings: usize) -> bool {
        siblings >= self.siblings_warn
    }

    /// A client's write may leave a row of at most `row_bytes_max`.
    pub fn check_row(&self, row_bytes: usize) -> Result<()> {
        over(row_bytes, self.row_bytes_max)
            .map_or(Ok(()), |(found, limit)| Err(Error::RowTooLarge { found, limit }))
    }

    /// A batch has at most `batch_items_max` items and `batch_bytes_max` bytes.
    pub fn check_batch(&self, items: usize, batch_bytes: usize) -> Result<()> {
        if let Some((found, limit)) = over(items, self.batch_items_max) {
            return Err(Error::BatchTooLarge { what: "items", found, limit });
        }
        if let Some((found, limit)) = over(batch_bytes, self.batch_bytes_max) {
            return Err(Error::BatchTooLarge { what: "bytes", found, limit });
        }
        Ok(())
    }

    /// An idempotency key born `age_ms` ago must still be remembered everywhere: at most
    /// `token_window_ms` less `clock_skew_ms_max`.
    pub fn check_token_age(&self, age_ms: u64) -> Result<()> {
        let limit_ms = self.token_window_ms.saturating_sub(self.clock_skew_ms_max);
        if age_ms > limit_ms {
            return Err(Error::TokenExpired { age_ms, limit_ms });
        }
        Ok(())
    }

    /// Rows of a page when a client asks for `asked`; 0 leaves it to the store. Pages may be
    /// shorter than asked for, so a large wish is cut and not refused.
    pub fn scan_rows(&self, asked: usize) -> usize {
        if asked == 0 { self.scan_rows_max } else { asked.min(self.scan_rows_max) }
    }

    /// Bytes of a page when a client asks for `asked`; as [`Limits::scan_rows`].
    pub fn scan_bytes(&self, asked: usize) -> usize {
        if asked == 0 { self.scan_bytes_max } else { asked.min(self.scan_bytes_max) }
    }
}

/// The key of a row that a replica holds or sends: it was accepted once, perhaps under another
/// limit, and is refused only if no limit allows it.
pub(super) fn check_held_key(key: &[u8]) -> Result<()> {
    check_key(key, KEY_BYTES_CEILING)
}

fn check_key(key: &[u8], bytes_max: usize) -> Result<()> {
    if key.is_empty() {
        return Err(Error::EmptyKey);
    }
    over(key.len(), bytes_max)
        .map_or(Ok(()), |(found, limit)| Err(Error::KeyTooLong { found, limit }))
}

/// A time to live is 1 ms to `limit`.
pub(super) fn check_ttl(found: u64, limit: u64) -> Result<()> {
    if found == 0 || found > limit {
        return Err(Error::InvalidTtl { found, limit });
    }
    Ok(())
}

fn over(found: usize, limit: usize) -> Option<(u64, u64)> {
    (found > limit).then_some((bytes(found), bytes(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every check lets the limit itself pass and refuses one more, by its own name.
    #[test]
    fn a_limit_is_the_last_value_that_passes() {
        let limits = Limits::default().validated().unwrap();
        type Check = fn(&Limits, usize) -> Result<()>;
        let cases: [(Check, usize, &str); 9] = [
            (|l, n| l.check_key(&vec![0; n]), 4096, "KEY_TOO_LONG"),
            (|l, n| l.check_value(&vec![0; n]), 1 << 20, "VALUE_TOO_LONG"),
            (|l, n| l.check_content_type(&"x".repeat(n)), 255, "CONTENT_TYPE_TOO_LONG"),
            (|l, n| l.check_idempotency_key(&vec![0; n]), 64, "INVALID_IDEMPOTENCY_KEY"),
            (|l, n| l.check_context(&vec![0; n]), 64 << 10, "INVALID_CONTEXT"),
            (|l, n| l.check_siblings(n), 32, "TOO_MANY_SIBLINGS"),
            (|l, n| l.check_row(n), 4 << 20, "ROW_TOO_LARGE"),
            (|l, n| l.check_batch(n, 0), 1000, "BATCH_TOO_LARGE"),
            (|l, n| l.check_batch(1, n), 16 << 20, "BATCH_TOO_LARGE"),
        ];
        for (check, limit, reason) in cases {
            check(&limits, limit).unwrap_or_else(|error| panic!("{reason}: {error}"));
            let error = check(&limits, limit + 1).unwrap_err();
            assert_eq!(error.reason(), reason);
            assert!(error.to_string().contains(&limit.to_string()), "{error}");
        }
        limits.check_ttl(TTL_MS_CEILING).unwrap();
        assert_eq!(limits.check_ttl(TTL_MS_CEILING + 1).unwrap_err().reason(), "INVALID_TTL");
    }

    /// Nothing is a key, an idempotency key or a time to live; an empty value is a value.
    #[test]
    fn nothing_is_refused_where_something_is_meant() {
        let limits = Limits::default();
        assert!(matches!(limits.check_key(b""), Err(Error::EmptyKey)));
        let error = limits.check_idempotency_key(b"").unwrap_err();
        assert!(matches!(error, Error::InvalidIdempotencyKey { found: 0, limit: 64 }));
        assert!(matches!(limits.check_ttl(0), Err(Error::InvalidTtl { found: 0, .. })));
        limits.check_value(b"").unwrap();
        limits.check_content_type("").unwrap();
    }

    /// A retry must be refused while every replica still remembers the key, clocks differing.
    #[test]
    fn a_token_expires_for_its_sender_before_a_replica_forgets_it() {
        let limits = Limits::default();
        limits.check_token_age(86_400_000 - 2000).unwrap();
        let error = limits.check_token_age(86_400_000 - 1999).unwrap_err();
        assert_eq!(error.reason(), "TOKEN_EXPIRED");
    }

    #[test]
    fn a_page_is_cut_to_its_limit_and_zero_means_the_limit() {
        let limits = Limits::default();
        assert_eq!([0, 7, 5000].map(|asked| limits.scan_rows(asked)), [1000, 7, 1000]);
        assert_eq!([0, 7, 5 << 20].map(|asked| limits.scan_bytes(asked)), [4 << 20, 7, 4 << 20]);
    }

    /// A configuration that would refuse its own largest value later is refused at the start.
    #[test]
    fn limits_that_contradict_each_other_are_refused_by_name() {
        let broken = [
            (Limits { key_bytes_max: 4097, ..Limits::default() }, "key_bytes_max"),
            (Limits { key_bytes_max: 0, ..Limits::default() }, "key_bytes_max"),
            (Limits { value_bytes_max: (10 << 20) + 1, ..Limits::default() }, "value_bytes_max"),
            (Limits { value_bytes_max: usize::MAX, ..Limits::default() }, "value_bytes_max"),
            (Limits { value_bytes_max: 4 << 20, ..Limits::default() }, "row_bytes_max"),
            (Limits { siblings_warn: 33, ..Limits::default() }, "siblings_warn"),
            (Limits { batch_bytes_max: 1 << 20, ..Limits::default() }, "batch_bytes_max"),
            (Limits { token_window_ms: 1000, ..Limits::default() }, "token_window_ms"),
            (Limits { disk_full_percent: 101, ..Limits::default() }, "disk_full_percent"),
            (Limits { disk_warn_percent: 91, ..Limits::default() }, "disk_warn_percent"),
        ];
        for (limits, field) in broken {
            let error = limits.validated().unwrap_err();
            assert!(
                matches!(error, Error::InvalidArgument { what, .. } if what == field),
                "{error}"
            );
        }
        let large = Limits {
            value_bytes_max: VALUE_BYTES_CEILING,
            row_bytes_max: 12 << 20,
            ..Limits::default()
        };
        large.validated().unwrap();
    }
}
