//! Pages of rows in the order of the engine's keys.
//!
//! | asked for | order | cost of a page |
//! |---|---|---|
//! | a partition key, or a prefix that ends its partition key | by key | the rows shown |
//! | all else | by token, then by key | every row passed, other tenants' too, up to a bound |
//!
//! A scan is no snapshot: each row is whole, and a row that was there from the first page to the
//! last is shown once. Rows without a value are passed over.
//!
//! A cursor is where the next page starts. It is bound to the request by a checksum and names no
//! other tenant's key. A page may be shorter than asked for, even empty, and still have a cursor;
//! only a page without one is the last.
//!
//! | bytes of a cursor | what |
//! |---|---|
//! | 1 | format, 1 |
//! | 8 | checksum of the rest, keyed by cluster and request, little endian |
//! | rest | the first engine key of the next page, or bytes between two keys |

use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Store;
use super::error::{Error, Result};
use super::key::{EngineKey, KeyRange, partition_key};
use super::row::{ReadRow, View};
use super::tenant::{Tenant, TenantId};

const CURSOR_FORMAT: u8 = 1;
const CURSOR_HEADER_BYTES: usize = 9;
/// Rows that a page passes at most, so that a call has a bound where few rows match.
const ROWS_PASSED_MAX: usize = 50_000;

/// Which rows, and how many at once. Empty bounds are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanRequest {
    /// Only keys of this partition key.
    pub partition_key: Option<Vec<u8>>,
    /// Only keys that begin so.
    pub prefix: Vec<u8>,
    /// Only keys at or above.
    pub start: Vec<u8>,
    /// Only keys below.
    pub end: Vec<u8>,
    /// Rows of the page; 0 leaves it to the store.
    pub limit: usize,
    /// Leaves the bytes of the values out.
    pub keys_only: bool,
    /// Where the page before ended.
    pub cursor: Option<Vec<u8>>,
    /// The page ends with the row that reaches this many bytes; 0 leaves it to the store.
    pub bytes_max: usize,
}

/// Rows, and where to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// Keys with what a read of them finds.
    pub rows: Vec<(Vec<u8>, ReadRow)>,
    /// For the next page; `None` after the last.
    pub cursor: Option<Vec<u8>>,
}

/// A range of tokens, both ends in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRange {
    /// The first token.
    pub start: u64,
    /// The last token.
    pub end_inclusive: u64,
}

/// Stored rows as replicas exchange them, and where to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowPage {
    /// Engine keys with row states, tombstones too.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// For the next page; `None` after the last.
    pub cursor: Option<Vec<u8>>,
}

/// What a page is collected under.
struct Plan<'t> {
    tenant: &'t Tenant,
    request: ScanRequest,
    /// The only partition key whose rows are shown.
    partition: Option<Vec<u8>>,
    range: KeyRange,
}

impl Store {
    /// A page of a tenant's rows that have a value.
    ///
    /// # Errors
    /// [`Error::UnknownTenant`], [`Error::InvalidCursor`], or a source that cannot be read.
    pub fn scan(&self, tenant: &str, request: ScanRequest) -> Result<ScanPage> {
        let tenant = self.catalog.get(tenant)?;
        let plan = Plan::of(&tenant, request);
        let seed = self.cursor_seed(plan.scope());
        let from = match &plan.request.cursor {
            Some(cursor) => resume(cursor, seed)?.to_vec(),
            None => Vec::new(),
        };
        let page = self.page(&plan, from);
        let (rows, next) = self.watch(page)?;
        Ok(ScanPage { rows, cursor: next.map(|next| cursor_of(&next, seed)) })
    }

    /// A page of stored rows of all tenants, for streams between replicas.
    ///
    /// # Errors
    /// [`Error::InvalidCursor`], or a source that cannot be read.
    pub fn rows_by_token(
        &self,
        range: TokenRange,
        cursor: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> Result<RowPage> {
        let mut scope = b"rows".to_vec();
        scope.extend_from_slice(&range.start.to_le_bytes());
        scope.extend_from_slice(&range.end_inclusive.to_le_bytes());
        let seed = self.cursor_seed(xxh3_64(&scope));
        let mut within = KeyRange::of_tokens(range.start, range.end_inclusive);
        if let Some(cursor) = &cursor {
            within.start = within.start.max(resume(cursor, seed)?.to_vec());
        }
        let page = self.watch(self.row_page(within, self.limits.scan_bytes(bytes_max)))?;
        let cursor = page.cursor.map(|next| cursor_of(&next, seed));
        Ok(RowPage { cursor, ..page })
    }

    /// A page of stored rows between two engine keys. Its cursor is the engine key to go on from,
    /// as it is: for use within this node.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub fn rows_within(&self, range: KeyRange, bytes_max: usize) -> Result<RowPage> {
        self.watch(self.row_page(range, self.limits.scan_bytes(bytes_max)))
    }

    /// The cursor is still the plain key here.
    fn row_page(&self, range: KeyRange, bytes_max: usize) -> Result<RowPage> {
        let mut page = RowPage::default();
        if range.is_empty() {
            return Ok(page);
        }
        let mut scan = self.engine.scan(&range.start, range.end.as_deref())?;
        let mut bytes = 0;
        while let Some((key, row)) = scan.next()? {
            bytes += key.len() + row.len();
            page.rows.push((key.to_vec(), row.to_vec()));
            if bytes >= bytes_max {
                page.cursor = Some(after(key));
                break;
            }
        }
        Ok(page)
    }

    /// The rows of a page, and where the next one starts.
    #[expect(clippy::type_complexity, reason = "the two halves of a page, named by the caller")]
    fn page(
        &self,
        plan: &Plan<'_>,
        from: Vec<u8>,
    ) -> Result<(Vec<(Vec<u8>, ReadRow)>, Option<Vec<u8>>)> {
        let start = plan.range.start.clone().max(from);
        let range = KeyRange { start, end: plan.range.end.clone() };
        let mut rows = Vec::new();
        if range.is_empty() {
            return Ok((rows, None));
        }
        let (rows_max, bytes_max) = (
            self.limits.scan_rows(plan.request.limit),
            self.limits.scan_bytes(plan.request.bytes_max),
        );
        let (now_ms, keys_only) = (self.now_ms(), plan.request.keys_only);
        let mut scan = self.engine.scan(&range.start, range.end.as_deref())?;
        let (mut bytes, mut passed) = (0, 0);
        while let Some((engine_key, row)) = scan.next()? {
            let place = EngineKey::decode(engine_key)?;
            passed += 1;
            if plan.shows(&place) {
                let view = View { context_key: self.context_key(engine_key), now_ms, keys_only };
                let row = view.show(Some(row))?;
                if row.found() {
                    bytes += place.key.len() + row.value_bytes();
                    rows.push((place.key.to_vec(), row));
                }
            }
            if rows.len() >= rows_max || bytes >= bytes_max || passed >= ROWS_PASSED_MAX {
                return Ok((rows, next_start(plan.tenant.id, &place, engine_key)));
            }
        }
        Ok((rows, None))
    }

    /// Keys the checksum of cursors of a request.
    fn cursor_seed(&self, scope: u64) -> u64 {
        xxh3_64_with_seed(&scope.to_le_bytes(), self.cluster_hash.load(Ordering::Acquire))
    }
}

impl<'t> Plan<'t> {
    fn of(tenant: &'t Tenant, request: ScanRequest) -> Self {
        let delimiter = tenant.delimiter();
        // A prefix that reaches past the delimiter has only one partition key.
        let within = partition_key(&request.prefix, delimiter);
        let ends_within = within.len() < request.prefix.len();
        let partition =
            request.partition_key.clone().or_else(|| ends_within.then(|| within.to_vec()));
        let range = match &partition {
            Some(partition) => {
                let all = KeyRange::of_partition_key(tenant.id, partition);
                let token = super::key::token_of(tenant.id, partition);
                let place = |key: &[u8]| EngineKey { token, tenant: tenant.id, key }.encode();
                let bounds = KeyRange {
                    start: place(&request.start),
                    end: (!request.end.is_empty()).then(|| place(&request.end)),
                };
                all.intersect(KeyRange::of_prefix(token, tenant.id, &request.prefix))
                    .intersect(bounds)
            }
            None => KeyRange::of_tokens(0, u64::MAX),
        };
        Self { tenant, request, partition, range }
    }

    fn shows(&self, place: &EngineKey<'_>) -> bool {
        let request = &self.request;
        let in_partition = self
            .partition
            .as_deref()
            .is_none_or(|partition| partition_key(place.key, self.tenant.delimiter()) == partition);
        place.tenant == self.tenant.id
            && in_partition
            && place.key.starts_with(&request.prefix)
            && place.key >= &request.start[..]
            && (request.end.is_empty() || place.key < &request.end[..])
    }

    /// A hash of what must stay the same from page to page.
    fn scope(&self) -> u64 {
        let mut scope = b"scan".to_vec();
        scope.extend_from_slice(&self.tenant.id.0.to_le_bytes());
        scope.push(u8::from(self.request.partition_key.is_some()));
        let partition = self.request.partition_key.as_deref().unwrap_or_default();
        for part in [partition, &self.request.prefix, &self.request.start, &self.request.end] {
            scope.extend_from_slice(&(part.len() as u64).to_le_bytes());
            scope.extend_from_slice(part);
        }
        xxh3_64(&scope)
    }
}

/// The smallest key above `engine_key`.
fn after(engine_key: &[u8]) -> Vec<u8> {
    [engine_key, &[0]].concat()
}

/// Where the scan of a tenant goes on behind a row, without naming another tenant's key. `None`:
/// there is nothing behind it.
pub(super) fn next_start(
    tenant: TenantId,
    place: &EngineKey<'_>,
    engine_key: &[u8],
) -> Option<Vec<u8>> {
    match place.tenant.cmp(&tenant) {
        std::cmp::Ordering::Equal => Some(after(engine_key)),
        std::cmp::Ordering::Less => {
            Some(EngineKey { token: place.token, tenant, key: b"" }.encode())
        }
        std::cmp::Ordering::Greater => {
            place.token.checked_add(1).map(|token| token.to_be_bytes().to_vec())
        }
    }
}

fn cursor_of(next: &[u8], seed: u64) -> Vec<u8> {
    let mut cursor = Vec::with_capacity(CURSOR_HEADER_BYTES + next.len());
    cursor.push(CURSOR_FORMAT);
    cursor.extend_from_slice(&xxh3_64_with_seed(next, seed).to_le_bytes());
    cursor.extend_from_slice(next);
    cursor
}

/// Where the page that this cursor asks for starts.
fn resume(cursor: &[u8], seed: u64) -> Result<&[u8]> {
    let invalid = |why: &str| Error::InvalidCursor { why: why.to_owned() };
    let header: &[u8; CURSOR_HEADER_BYTES] =
        cursor.first_chunk().ok_or_else(|| invalid("it is cut short"))?;
    if header[0] != CURSOR_FORMAT {
        return Err(invalid("it is of another format"));
    }
    let next = &cursor[CURSOR_HEADER_BYTES..];
    if header[1..] != xxh3_64_with_seed(next, seed).to_le_bytes() {
        return Err(invalid("it was altered, or belongs to another scan"));
    }
    Ok(next)
}
