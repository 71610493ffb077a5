//! Pages of rows of a range of tokens, for another node that merges them, or gives away what it
//! holds of them: the rows, or their digests, or what they add up to.
//!
//! 1. A page is of undamaged partitions. It was read under the epoch of the request: the fence was
//!    durable before, and no later one after. The fence is not held meanwhile: others would wait
//!    for the disk.
//! 2. A page has the rows that the two nodes compare, and no others ([`Compared`]): what is left
//!    here of rows that this node does not own it gives to nobody but their owners, and what the
//!    asker will not own nobody would wait for it to give back. So under a Stable layout no rows
//!    are told, only what says whether they are there.
//! 3. To add rows up, or to take their digests, they are not copied. A sum that is known
//!    ([`sum`]) is told at once, of the whole range.
//! 4. Whatever is told of is durable here: it is counted as held.
//! 5. Rows are packed only where that makes them shorter. What is unpacked has a bound that is
//!    known before anything is allocated.
//! 6. Rows travel as one field of bytes. They are encoded, packed, unpacked and decoded on threads
//!    that all others go before: those that serve clients pass on what may be a mebibyte.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message as _;

use super::fence::{Fence, enter};
use super::replica::refused_by_store;
use super::sum;
use super::tree::Trees;
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{Class, PeerError, Peers, Reply, Request};
use crate::proto;
use crate::store::tenant::Tenant;
use crate::store::{self, EngineKey, Store, TenantId, TokenRange, Words};

/// Bytes of a page where the request names none.
const PAGE_BYTES: usize = 512 << 10;
/// Bytes of a page at most, before its last row.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes of rows by which it is judged whether a page can be packed.
const SAMPLE_BYTES: usize = 16 << 10;
/// Unpacked no page is larger: its rows, the last of which may be one of the largest, their keys.
const UNPACKED_BYTES_MAX: usize = 64 << 20;

/// Which rows of a source another node compares with its own: under a Joint layout those that it
/// merges from it (T3), under a Stable one those that it is to give it (D1).
pub(super) struct Compared<'l> {
    layout: &'l Layout,
    source: NodeId,
    node: NodeId,
    /// What was found of each partition and tenant: rows come by token.
    known: BTreeMap<(u32, TenantId), bool>,
}

impl<'l> Compared<'l> {
    /// Those that `node` compares with `source`.
    pub(super) fn new(layout: &'l Layout, source: NodeId, node: NodeId) -> Self {
        Self { layout, source, node, known: BTreeMap::new() }
    }

    /// Whether a tenant's row at a token is one of them.
    pub(super) fn has(&mut self, tenant: TenantId, token: u64) -> bool {
        let Self { layout, source, node, known } = self;
        let partition = layout.partition_of(token);
        let is_compared = || match layout.document().is_joint() {
            true => layout.is_merged(partition, tenant, *source, *node),
            false => layout.is_given(partition, tenant, *source, *node),
        };
        *known.entry((partition, tenant)).or_insert_with(is_compared)
    }

    /// The partition whose tokens a range is, and of which numbers of replicas all rows in it are
    /// compared. `None`: the range is something else, or of rows with as many replicas some are
    /// compared and some are not, or the store and the layout know tenants otherwise.
    pub(super) fn whole_factors(
        &mut self,
        store: &Store,
        range: TokenRange,
    ) -> Option<(u32, BTreeSet<u8>)> {
        let layout = self.layout;
        let partition = layout.partition_of(range.start);
        let is_whole = layout.document().partition_bits == store.partition_bits()
            && layout.tokens_of(&(partition..=partition)) == (range.start, range.end_inclusive);
        let tenants = store.tenants();
        let named = &layout.document().tenants;
        let is_known = |id: &TenantId| tenants.iter().any(|tenant| tenant.id == *id);
        if !is_whole || !named.keys().all(is_known) {
            return None;
        }
        let mut factors: BTreeMap<u8, bool> = BTreeMap::new();
        for tenant in tenants {
            let factor = tenant.replication_factor;
            let is_other = |named: &Tenant| named.replication_factor != factor;
            if named.get(&tenant.id).is_some_and(is_other) {
                return None;
            }
            let has = self.has(tenant.id, range.start);
            if *factors.entry(factor).or_insert(has) != has {
                return None;
            }
        }
        factors.retain(|_, has| *has);
        Some((partition, factors.into_keys().collect()))
    }

    /// Whether the row of an engine key is.
    pub(super) fn has_key(&mut self, engine_key: &[u8]) -> bool {
        EngineKey::decode(engine_key).is_ok_and(|at| self.has(at.tenant, at.token))
    }
}

/// Answers a request for a page of what is compared.
pub(super) fn answer(
    store: &Store,
    trees: &Trees,
    fence: &dyn Fence,
    compared: &mut Compared<'_>,
    request: &proto::PageRequest,
) -> Result<Reply, PeerError> {
    let layout = compared.layout;
    let range = TokenRange { start: request.token_start, end_inclusive: request.token_end };
    let cursor = (!request.cursor.is_empty()).then_some(&request.cursor[..]);
    let bytes_max = match request.bytes_max as usize {
        0 => PAGE_BYTES,
        asked => asked.min(PAGE_BYTES_MAX),
    };
    // The words first: the rows that are read after them say no less.
    let within = layout.partition_of(range.start)..=layout.partition_of(range.end_inclusive);
    drop(enter(fence, layout.epoch())?);
    let words = store.least_words(within.clone()).map_err(refused_by_store)?;
    let mut reply = proto::PageReply::default();
    // The row that reaches the bound goes beyond it.
    let mut rows = Rows { bytes: bytes_max + bytes_max / 16, ..Rows::default() };
    let is_told = layout.document().is_joint() || request.sum || request.digests;
    if request.sum && cursor.is_none() {
        reply.sum = sum::kept(trees, store, compared, range).map_err(refused_by_store)?;
    }
    if reply.sum.is_none() {
        let cursor = store.visit_by_token(range, cursor, bytes_max, |engine_key, row| {
            if is_told && compared.has_key(engine_key) {
                tell(&mut reply, &mut rows, request, engine_key, row)?;
            }
            Ok(true)
        });
        reply.cursor = cursor.map_err(refused_by_store)?.unwrap_or_default().into();
    }
    // It may have waited for the disk, so the epoch was free to rise.
    drop(enter(fence, layout.epoch())?);
    // A source that has lost data would be counted for what it does not know. Nothing is discarded
    // before the loss is marked.
    store.check_all_undamaged(&[within]).map_err(refused_by_store)?;
    if request.sum || !request.digests {
        // Of no rows too.
        reply.sum.get_or_insert_default();
    }
    set_rows(&mut reply, rows.taken());
    Ok(Reply::Page(proto::PageReply { guard: words.guard, floor: words.floor, ..reply }))
}

/// Puts a row into a reply, as was asked for.
fn tell(
    reply: &mut proto::PageReply,
    rows: &mut Rows,
    request: &proto::PageRequest,
    engine_key: &[u8],
    row: &[u8],
) -> store::Result<()> {
    if request.digests && !request.sum {
        let digest = sum::digest_of(Some(row));
        let engine_key = Bytes::copy_from_slice(engine_key);
        reply.keys.push(proto::KeyDigest { engine_key, digest });
        return Ok(());
    }
    sum::add_row(reply.sum.get_or_insert_default(), engine_key, row);
    if !request.sum {
        let EngineKey { tenant, key, .. } = EngineKey::decode(engine_key)?;
        rows.add(tenant, key, row);
    }
    Ok(())
}

/// Rows that are gathered, in one buffer: a page has a thousand of them.
#[derive(Default)]
struct Rows {
    /// Bytes that they will be, or little more.
    bytes: usize,
    buffer: BytesMut,
    /// Tenant, bytes of the key, bytes of the row.
    rows: Vec<(TenantId, usize, usize)>,
}

impl Rows {
    fn add(&mut self, tenant: TenantId, key: &[u8], row: &[u8]) {
        if self.rows.is_empty() {
            self.buffer.reserve(self.bytes);
        }
        self.buffer.extend_from_slice(key);
        self.buffer.extend_from_slice(row);
        self.rows.push((tenant, key.len(), row.len()));
    }

    fn taken(self) -> Vec<proto::RowState> {
        let mut rest = self.buffer.freeze();
        let row = |(tenant, key, row): (TenantId, usize, usize)| proto::RowState {
            tenant_id: tenant.0,
            key: rest.split_to(key),
            row: rest.split_to(row),
        };
        self.rows.into_iter().map(row).collect()
    }
}

/// What a source said of its rows.
#[derive(Clone, Copy, Default)]
pub(super) struct Told {
    pub sum: proto::PageSum,
    /// As of its last page.
    pub words: Words,
}

impl Told {
    /// Adds what a page of them says.
    pub(super) fn add(&mut self, page: &proto::PageReply) -> Result<(), PeerError> {
        sum::add(&mut self.sum, &page.sum.ok_or_else(PeerError::unexpected)?);
        self.words = Words { guard: page.guard, floor: page.floor };
        Ok(())
    }
}

/// Asks a source for pages.
pub(super) struct Asking<'a> {
    pub peers: &'a dyn Peers,
    pub layout: &'a Layout,
    pub source: NodeId,
    pub range: TokenRange,
    pub bytes_max: usize,
    pub timeout: Duration,
}

impl Asking<'_> {
    /// The page at a cursor, of the kind that `kind` names.
    pub(super) async fn page(
        &self,
        kind: proto::PageRequest,
        cursor: Bytes,
    ) -> Result<proto::PageReply, PeerError> {
        let TokenRange { start: token_start, end_inclusive: token_end } = self.range;
        let bytes_max = u32::try_from(self.bytes_max).unwrap_or(u32::MAX);
        let request = proto::PageRequest { token_start, token_end, cursor, bytes_max, ..kind };
        let (epoch, request) = (self.layout.epoch(), Request::Page(request));
        let call = self.peers.call(self.source, Class::Background, epoch, request, self.timeout);
        match call.await? {
            Reply::Page(page) => Ok(page),
            _ => Err(PeerError::unexpected()),
        }
    }

    /// What the rows add up to.
    pub(super) async fn sum(&self) -> Result<Told, PeerError> {
        let mut told = Told::default();
        let mut cursor = Bytes::new();
        loop {
            let kind = proto::PageRequest { sum: true, ..Default::default() };
            let page = self.page(kind, cursor).await?;
            told.add(&page)?;
            cursor = page.cursor;
            if cursor.is_empty() {
                return Ok(told);
            }
        }
    }
}

/// Puts rows into a page, packed if that is shorter.
pub(super) fn set_rows(page: &mut proto::PageReply, rows: Vec<proto::RowState>) {
    let raw = proto::PageRows { rows }.encode_to_vec();
    // Most pages are as their first rows are: what nothing shortens is not packed to find out.
    let is_worth_it = raw.get(..SAMPLE_BYTES).is_none_or(|sample| packed(sample).is_some());
    (page.rows, page.unpacked_bytes) = match is_worth_it.then(|| packed(&raw)).flatten() {
        // A page has its bound, and one row beyond it.
        Some(packed) => (packed.into(), raw.len() as u32),
        None => (raw.into(), 0),
    };
}

/// Bytes as a block, if it is shorter.
fn packed(raw: &[u8]) -> Option<Vec<u8>> {
    let packed = lz4_flex::block::compress(raw);
    (packed.len() + packed.len() / 8 < raw.len()).then_some(packed)
}

/// The rows of a page.
///
/// # Errors
/// They cannot be read.
pub(super) fn rows_of(page: &proto::PageReply) -> Result<Vec<proto::RowState>, String> {
    let raw = match page.unpacked_bytes as usize {
        0 => page.rows.clone(),
        size if size > UNPACKED_BYTES_MAX => {
            return Err(format!("a page of {size} bytes: the limit is {UNPACKED_BYTES_MAX}"));
        }
        size => {
            let mut raw = vec![0; size];
            let found = lz4_flex::block::decompress_into(&page.rows, &mut raw);
            raw.truncate(found.map_err(|error| error.to_string())?);
            raw.into()
        }
    };
    // Rows share the one buffer.
    let rows = proto::PageRows::decode(raw).map_err(|error| error.to_string())?;
    Ok(rows.rows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(rows: &[&[u8]]) -> proto::PageReply {
        let mut gathered = Rows::default();
        rows.iter().for_each(|row| gathered.add(TenantId(1), b"k", row));
        let mut page = proto::PageReply::default();
        set_rows(&mut page, gathered.taken());
        page
    }

    #[test]
    fn rows_are_packed_only_where_that_makes_them_shorter() {
        let same = [7_u8; 4000];
        let mut mixed = [0_u8; 4000];
        let mut state = 1_u64;
        for byte in &mut mixed {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        for (rows, is_packed) in [(&same, true), (&mixed, false)] {
            let rows = [rows, rows.split_at(9).0];
            let sent = page(&rows);
            assert_eq!((sent.unpacked_bytes > 0, sent.rows.len() < 4000), (is_packed, is_packed));
            let read = rows_of(&sent).expect("readable");
            assert!(read.iter().all(|row| (row.tenant_id, &row.key[..]) == (1, b"k")));
            assert_eq!(read.iter().map(|row| &row.row[..]).collect::<Vec<_>>(), rows);
        }
        assert_eq!(rows_of(&page(&[])), Ok(Vec::new()));
    }

    /// It comes from another node: a length that is a lie must not take the memory.
    #[test]
    fn a_packed_page_that_claims_too_much_is_refused() {
        let rows = Bytes::from_static(&[0; 20]);
        let page = proto::PageReply { rows, unpacked_bytes: u32::MAX, ..Default::default() };
        assert!(rows_of(&page).expect_err("too large").contains("limit"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn garbage_is_refused_or_harmless(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            unpacked_bytes in 0..10_000_u32,
            at in any::<usize>(),
            to in 0..255_u8,
        ) {
            let rows = Bytes::from(bytes);
            let _ = rows_of(&proto::PageReply { rows, unpacked_bytes, ..Default::default() });
            let sent = page(&[&[7; 4000]]);
            let mut packed = sent.rows.to_vec();
            let at = at % packed.len();
            packed[at] = to;
            let _ = rows_of(&proto::PageReply { rows: packed.into(), ..sent });
        }
    }
}
