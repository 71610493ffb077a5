//! Pages of rows in the order of the engine's keys.
//!
//! | asked for | order | cost of a page |
//! |---|---|---|
//! | a partition key, or a prefix that ends its partition key | by key | the rows shown |
//! | all else | by token, then by key | every row passed, other tenants' too, up to a bound |
//!
//! A scan is no snapshot: each row is whole, and a row that was there from the first page to the
//! last is shown once. Rows without a value are passed over. A page is given when all of it is
//! durable, as for a read of a key: it may wait for a sync of the log.
//!
//! What is asked for is a [`RowFilter`]: it goes to every replica that takes part. Where a scan has
//! come to is an engine key, and the same on every node: so a cursor is good on any of them.
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

use std::sync::Arc;
use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::error::Result;
use super::key::{EngineKey, KeyRange, partition_key};
use super::row::{ReadRow, View};
use super::tenant::{Tenant, TenantId};
use super::visit::{OnDamage, PageBounds};
use super::{Store, cursor};

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

/// Which rows of a tenant are asked for, wherever a scan of them has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFilter {
    /// Whose rows.
    pub tenant: Arc<Tenant>,
    /// Only keys of this partition key.
    pub partition_key: Option<Vec<u8>>,
    /// Only keys that begin so.
    pub prefix: Vec<u8>,
    /// Only keys at or above.
    pub start: Vec<u8>,
    /// Only keys below; empty for no end.
    pub end: Vec<u8>,
}

/// A scan and where it has come to.
#[derive(Clone, Debug)]
pub struct ScanPlan {
    /// Which rows.
    pub filter: Arc<RowFilter>,
    /// What is left to read.
    pub range: KeyRange,
    /// Keys the checksum of its cursors.
    seed: u64,
}

impl Store {
    /// A scan from its beginning, or from where its cursor says.
    ///
    /// # Errors
    /// `Error::UnknownTenant`, `Error::InvalidCursor`.
    pub fn plan_scan(&self, tenant: &str, request: &ScanRequest) -> Result<ScanPlan> {
        let filter = RowFilter::of(self.catalog.get(tenant)?, request);
        let seed = self.cursor_seed(filter.scope());
        let mut range = filter.range();
        if let Some(cursor) = &request.cursor {
            range.start = range.start.max(cursor::decode(cursor, seed)?.to_vec());
        }
        Ok(ScanPlan { filter: Arc::new(filter), range, seed })
    }

    /// A page of a tenant's rows that have a value, as this store holds them.
    ///
    /// # Errors
    /// `Error::UnknownTenant`, `Error::InvalidCursor`, or a source that cannot be read.
    pub fn scan(&self, tenant: &str, request: &ScanRequest) -> Result<ScanPage> {
        let plan = self.plan_scan(tenant, request)?;
        let bounds = PageBounds { rows: request.limit, bytes: request.bytes_max };
        let (now_ms, keys_only) = (self.now_ms(), request.keys_only);
        let mut rows = Vec::new();
        let next =
            self.visit_rows(&plan.filter, &plan.range, bounds, OnDamage::Show, |place, found| {
                let context_key = self.context_key(&place.encode());
                let view = View { context_key, now_ms, keys_only };
                let row = view.show(Some(found.row))?;
                let bytes = place.key.len() + row.value_bytes();
                let is_shown = row.found();
                if is_shown {
                    rows.push((place.key.to_vec(), row));
                }
                Ok(is_shown.then_some(bytes))
            })?;
        Ok(ScanPage { rows, cursor: next.map(|next| plan.cursor(&next)) })
    }

    /// A page of stored rows of all tenants, for streams between replicas.
    ///
    /// # Errors
    /// `Error::InvalidCursor`, or a source that cannot be read.
    pub fn rows_by_token(
        &self,
        range: TokenRange,
        cursor: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> Result<RowPage> {
        RowPage::of(|copy| self.visit_by_token(range, cursor.as_deref(), bytes_max, copy))
    }

    /// Visits the rows of a page of [`Store::rows_by_token`] where they lie, with their engine
    /// keys; returns its cursor. A page also ends behind the row of which `visit` says `false`.
    /// What was visited is durable when this returns, not before: if it fails nobody may be told
    /// of it.
    ///
    /// # Errors
    /// What `visit` fails with; `Error::InvalidCursor`, or a source that cannot be read.
    pub fn visit_by_token(
        &self,
        range: TokenRange,
        cursor: Option<&[u8]>,
        bytes_max: usize,
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool>,
    ) -> Result<Option<Vec<u8>>> {
        let mut scope = b"rows".to_vec();
        scope.extend_from_slice(&range.start.to_le_bytes());
        scope.extend_from_slice(&range.end_inclusive.to_le_bytes());
        let seed = self.cursor_seed(xxh3_64(&scope));
        let mut within = KeyRange::of_tokens(range.start, range.end_inclusive);
        if let Some(cursor) = cursor {
            within.start = within.start.max(cursor::decode(cursor, seed)?.to_vec());
        }
        let next = self.visit_within(&within, bytes_max, visit)?;
        Ok(next.map(|next| cursor::encode(&next, seed)))
    }

    /// A page of stored rows between two engine keys. Its cursor is the engine key to go on from,
    /// as it is: for use within this node.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub fn rows_within(&self, range: &KeyRange, bytes_max: usize) -> Result<RowPage> {
        RowPage::of(|copy| self.visit_within(range, bytes_max, copy))
    }

    /// As [`Store::visit_by_token`], between two engine keys, as [`Store::rows_within`].
    ///
    /// # Errors
    /// What `visit` fails with, or a source that cannot be read.
    pub fn visit_within(
        &self,
        range: &KeyRange,
        bytes_max: usize,
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool>,
    ) -> Result<Option<Vec<u8>>> {
        if range.is_empty() {
            return Ok(None);
        }
        self.watch(self.visit_page(range, self.limits.scan_bytes(bytes_max), visit))
    }

    fn visit_page(
        &self,
        range: &KeyRange,
        bytes_max: usize,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool>,
    ) -> Result<Option<Vec<u8>>> {
        let mut scan = self.engine.scan(&range.start, range.end.as_deref())?;
        let (mut bytes, mut next) = (0, None);
        while let Some((key, row)) = scan.next()? {
            bytes += key.len() + row.len();
            if !visit(key, row)? || bytes >= bytes_max {
                next = Some(after(key));
                break;
            }
        }
        self.engine.wait_scanned(&scan)?;
        Ok(next)
    }

    /// Keys the checksum of cursors of a request.
    fn cursor_seed(&self, scope: u64) -> u64 {
        xxh3_64_with_seed(&scope.to_le_bytes(), self.cluster_hash.load(Ordering::Acquire))
    }
}

/// See [`Store::visit_by_token`].
type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<bool> + 'v;

impl RowPage {
    /// Copies of the rows that are visited.
    fn of(visit: impl FnOnce(&mut Visit<'_>) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let mut rows = Vec::new();
        let cursor = visit(&mut |key, row| {
            rows.push((key.to_vec(), row.to_vec()));
            Ok(true)
        })?;
        Ok(Self { rows, cursor })
    }
}

impl RowFilter {
    fn of(tenant: Arc<Tenant>, request: &ScanRequest) -> Self {
        // A prefix that reaches past the delimiter has only one partition key.
        let within = partition_key(&request.prefix, tenant.delimiter());
        let ends_within = within.len() < request.prefix.len();
        let partition_key =
            request.partition_key.clone().or_else(|| ends_within.then(|| within.to_vec()));
        Self {
            tenant,
            partition_key,
            prefix: request.prefix.clone(),
            start: request.start.clone(),
            end: request.end.clone(),
        }
    }

    /// Where such rows can be.
    pub fn range(&self) -> KeyRange {
        let tenant = self.tenant.id;
        let Some(partition) = &self.partition_key else {
            return KeyRange::of_tokens(0, u64::MAX);
        };
        let all = KeyRange::of_partition_key(tenant, partition);
        let token = super::key::token_of(tenant, partition);
        let place = |key: &[u8]| EngineKey { token, tenant, key }.encode();
        let bounds = KeyRange {
            start: place(&self.start),
            end: (!self.end.is_empty()).then(|| place(&self.end)),
        };
        all.intersect(KeyRange::of_prefix(token, tenant, &self.prefix)).intersect(bounds)
    }

    /// Whether a row is one of them.
    pub fn matches(&self, place: &EngineKey<'_>) -> bool {
        let in_partition = || {
            self.partition_key
                .as_deref()
                .is_none_or(|asked| partition_key(place.key, self.tenant.delimiter()) == asked)
        };
        place.tenant == self.tenant.id
            && place.key.starts_with(&self.prefix)
            && place.key >= &self.start[..]
            && (self.end.is_empty() || place.key < &self.end[..])
            && in_partition()
    }

    /// A hash of what must stay the same from page to page.
    fn scope(&self) -> u64 {
        let mut scope = b"scan".to_vec();
        scope.extend_from_slice(&self.tenant.id.0.to_le_bytes());
        scope.push(u8::from(self.partition_key.is_some()));
        let partition = self.partition_key.as_deref().unwrap_or_default();
        for part in [partition, &self.prefix, &self.start, &self.end] {
            scope.extend_from_slice(&(part.len() as u64).to_le_bytes());
            scope.extend_from_slice(part);
        }
        xxh3_64(&scope)
    }
}

impl ScanPlan {
    /// The cursor of a page behind which the scan goes on at `next`.
    pub fn cursor(&self, next: &[u8]) -> Vec<u8> {
        cursor::encode(next, self.seed)
    }

    /// The cursor of a page that ends with this key.
    pub fn cursor_behind(&self, key: &[u8]) -> Vec<u8> {
        self.cursor(&after(&self.filter.tenant.engine_key(key)))
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
