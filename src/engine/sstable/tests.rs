//! The table as a whole: built in memory, read back, damaged.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::block::Block;
use super::format::{FOOTER_BYTES, FORMAT_VERSION, Footer};
use super::*;
use crate::engine::checksum::of_placed as checksum;
use crate::engine::error::{Error, Result};
use crate::engine::iter::Cursor;
use crate::engine::options::{Compression, JOINED_BYTES_MAX, KEY_BYTES_MAX, ROW_BYTES_MAX};
use crate::engine::record::Kind;
use crate::engine::vfs::{FETCHED, File, Mapping};

const NUMBER: u64 = 7;

type Model = BTreeMap<Vec<u8>, (Kind, Vec<u8>)>;

/// A file in memory that can be told to fail.
#[derive(Debug, Default)]
struct MemFile {
    bytes: Mutex<Vec<u8>>,
    synced: Mutex<bool>,
    fails: bool,
    writeback: Mutex<Writeback>,
    /// Writes fail behind the caller's back.
    loses_writes: bool,
}

impl File for MemFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.fails {
            return Err(io::Error::other("told to fail"));
        }
        let mut own = self.bytes.lock().unwrap();
        assert_eq!(offset, own.len() as u64, "tables are written front to back");
        own.extend_from_slice(bytes);
        *self.synced.lock().unwrap() = false;
        Ok(())
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        unreachable!("a builder does not read")
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        unreachable!("a builder does not preallocate")
    }

    fn sync_data(&self) -> io::Result<()> {
        *self.synced.lock().unwrap() = true;
        Ok(())
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.writeback.lock().unwrap().on_its_way.push((offset, len));
    }

    fn wait_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut writeback = self.writeback.lock().unwrap();
        let bytes = writeback.on_its_way.iter().map(|(_, len)| len).sum();
        writeback.bytes_max = writeback.bytes_max.max(bytes);
        writeback.on_its_way.retain(|one| *one != (offset, len));
        if self.loses_writes { Err(io::Error::other("told to lose it")) } else { Ok(()) }
    }
}

/// What was written to a file and not waited for.
#[derive(Debug, Default)]
struct Writeback {
    on_its_way: Vec<(u64, u64)>,
    bytes_max: u64,
}

fn builder(file: &Arc<MemFile>, options: TableOptions) -> TableBuilder {
    TableBuilder::new(file.clone(), PathBuf::from("7.sst"), NUMBER, options)
}

fn info(key: &[u8]) -> RowInfo {
    let time = 1_000 + key.len() as u64;
    RowInfo { live_time_min: time, time_max: time + 1 }
}

fn build(model: &Model, options: TableOptions) -> (Vec<u8>, Properties) {
    let file = Arc::new(MemFile::default());
    let mut builder = builder(&file, options);
    for (key, (kind, row)) in model {
        builder.add(key, *kind, row, info(key)).unwrap();
    }
    let properties = builder.finish().unwrap();
    assert!(*file.synced.lock().unwrap());
    (file.bytes.lock().unwrap().clone(), properties)
}

/// A small table in memory, for tests of other modules.
pub(crate) fn test_table<'a>(
    records: impl IntoIterator<Item = (&'a [u8], Kind, &'a [u8])>,
) -> Arc<Table> {
    let records = records.into_iter().map(|(key, kind, row)| (key.to_vec(), (kind, row.to_vec())));
    open(&build(&records.collect(), SMALL).0).unwrap()
}

fn open(bytes: &[u8]) -> Result<Arc<Table>> {
    open_as(bytes, NUMBER, false)
}

fn open_as(bytes: &[u8], number: u64, verify_every_read: bool) -> Result<Arc<Table>> {
    let map = Mapping::Memory(bytes.into());
    Table::from_mapping(map, Path::new("7.sst"), number, verify_every_read).map(Arc::new)
}

fn get(table: &Table, key: &[u8]) -> Result<Option<(Kind, Vec<u8>)>> {
    if !table.may_contain(&KeyHash::new(key)) {
        return Ok(None);
    }
    let found = table.find(key, key.len().is_multiple_of(2))?;
    Ok(found.map(|found| (found.kind, found.row.to_vec())))
}

fn read_all(table: &Arc<Table>) -> Result<Model> {
    let mut model = Model::new();
    let mut iter = table.iter();
    iter.seek_to_first()?;
    while iter.valid() {
        let record = iter.record();
        assert!(model.last_key_value().is_none_or(|(last, _)| last.as_slice() < iter.key()));
        model.insert(iter.key().to_vec(), (record.kind, record.row.to_vec()));
        iter.next()?;
    }
    Ok(model)
}

/// Keys that share prefixes, end early, and differ only in trailing zeros.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let short = proptest::collection::vec(0_u8..3, 0..14);
    let token = any::<[u8; 12]>().prop_map(|bytes| bytes.to_vec());
    prop_oneof![3 => short, 1 => token]
}

fn model() -> impl Strategy<Value = Model> {
    let kind = prop_oneof![Just(Kind::Delta), Just(Kind::Full)];
    let row = proptest::collection::vec(0_u8..4, 0..60);
    proptest::collection::btree_map(key(), (kind, row), 1..120)
}

fn options() -> impl Strategy<Value = TableOptions> {
    let compression = prop_oneof![Just(Compression::None), Just(Compression::Lz4)];
    (64_usize..2_000, 0_u32..16, compression).prop_map(
        |(block_bytes, filter_bits_per_key, compression)| TableOptions {
            block_bytes,
            filter_bits_per_key,
            compression,
        },
    )
}

/// Filter, index and properties, which opening checks, are fetched at once: page by page each fault
/// would wait for the disk. Data blocks are not.
#[test]
fn opening_fetches_what_it_checks() {
    let records = (0..500_u16).map(|n| (n.to_be_bytes().to_vec(), (Kind::Full, vec![7; 40])));
    let (bytes, _) = build(&records.collect(), SMALL);
    let from = Footer::decode(&bytes, NUMBER).unwrap().filter.offset as usize;
    FETCHED.take();
    open(&bytes).unwrap();
    let fetched: Vec<_> = FETCHED.take().iter().map(|it| (it.start, it.end)).collect();
    assert_eq!(fetched, [(from, bytes.len())]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A table answers what the map it was built from answers: gets, scans, seeks, properties,
    /// whatever the options.
    #[test]
    fn table_equals_its_model(
        model in model(),
        options in options(),
        probes in proptest::collection::vec(key(), 30),
        verify: bool,
    ) {
        let (bytes, built) = build(&model, options);
        let table = open_as(&bytes, NUMBER, verify).unwrap();
        prop_assert_eq!(&built, table.properties());
        prop_assert_eq!(built.entries, model.len() as u64);
        let deltas = model.values().filter(|(kind, _)| *kind == Kind::Delta).count();
        prop_assert_eq!(built.deltas, deltas as u64);
        prop_assert_eq!(Some(&*built.smallest), model.keys().next().map(Vec::as_slice));
        prop_assert_eq!(Some(&*built.largest), model.keys().last().map(Vec::as_slice));
        let times = model.keys().map(|key| info(key));
        prop_assert_eq!(Some(built.live_time_min), times.clone().map(|t| t.live_time_min).min());
        prop_assert_eq!(Some(built.time_max), times.map(|t| t.time_max).max());

        for key in model.keys().chain(&probes) {
            prop_assert_eq!(get(&table, key).unwrap(), model.get(key).cloned());
        }
        prop_assert_eq!(&read_all(&table).unwrap(), &model);
        let mut iter = table.iter_verified();
        for key in model.keys().chain(&probes) {
            iter.seek(key).unwrap();
            let mut expected = model.range::<Vec<u8>, _>(key..);
            for _ in 0..3 {
                let expected = expected.next();
                prop_assert_eq!(iter.valid(), expected.is_some());
                if let Some((key, (kind, row))) = expected {
                    prop_assert_eq!(iter.key(), key);
                    prop_assert_eq!(iter.prefix(), crate::engine::key::key_prefix(key));
                    prop_assert_eq!((iter.record().kind, iter.record().row), (*kind, &**row));
                    iter.next().unwrap();
                }
            }
        }
        table.verify_all(&mut |bad, _| panic!("{bad}"));
    }

    /// Random bytes are refused by name, even with the constants of the footer in place.
    #[test]
    fn random_bytes_are_corruption(mut bytes: Vec<u8>, with_magic: bool) {
        if with_magic {
            bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
            bytes.extend_from_slice(&(!FORMAT_VERSION).to_le_bytes());
            bytes.extend_from_slice(b"PairSST\n");
        }
        prop_assert!(matches!(open(&bytes), Err(Error::Corruption(_))));
    }

    /// A block of random bytes, or one damaged where a checksum does not look, is an error or
    /// answers something; it never panics.
    #[test]
    fn garbage_blocks_do_not_panic(
        mut bytes: Vec<u8>,
        count in 0_u8..9,
        key: Vec<u8>,
        plausible: bool,
    ) {
        if plausible && bytes.len() > 8 {
            bytes[..8].copy_from_slice(&[count, 0, 0, 0, 0, 0, 0, 0]);
        }
        if let Ok(block) = Block::parse(&bytes) {
            let _ = (block.check(bytes.len()), block.find(&key), block.lower_bound(&key));
            for at in 0..=block.len().min(20) {
                let _ = block.entry(at);
            }
        }
    }

    /// Bytes that rot after their first check may give a wrong answer, but never a panic.
    #[test]
    fn rot_after_the_first_touch_does_not_panic(
        model in model(),
        options in options(),
        rot in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (mut bytes, _) = build(&model, options);
        let data_end = Footer::decode(&bytes, NUMBER).unwrap().filter.offset as usize;
        for (at, to) in rot {
            bytes[at.index(data_end)] = to;
        }
        let table = open(&bytes).unwrap();
        table.trust_all();
        for key in model.keys() {
            let _ = get(&table, key);
        }
        let mut iter = table.iter();
        let mut steps = 0;
        let _ = iter.seek_to_first();
        while iter.valid() && steps < 1_000 {
            let _ = iter.record();
            let _ = iter.next();
            steps += 1;
        }
    }
}

fn small_model() -> Model {
    let entry = |i: u32| {
        let key =
            format!("{:08}/{}", i.wrapping_mul(2_654_435_761) % 1_000, "k".repeat(i as usize % 5));
        let kind = if i.is_multiple_of(3) { Kind::Full } else { Kind::Delta };
        (key.into_bytes(), (kind, format!("row {i} ").repeat(i as usize % 4).into_bytes()))
    };
    (0..40).map(entry).collect()
}

const SMALL: TableOptions =
    TableOptions { block_bytes: 160, filter_bits_per_key: 10, compression: Compression::None };

/// One flipped bit anywhere: every answer is right or is `Corruption`, and something notices it: in
/// a filter, of which nobody is in need, whoever looks for it.
#[test]
fn every_flipped_bit_is_noticed() {
    for compression in [Compression::None, Compression::Lz4] {
        let model = small_model();
        let (bytes, _) = build(&model, TableOptions { compression, ..SMALL });
        let Footer { filter, index, .. } = Footer::decode(&bytes, NUMBER).unwrap();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            let table = match open(&bytes) {
                Ok(table) => table,
                Err(Error::Corruption(_)) => continue,
                Err(other) => panic!("byte {at}: {other}"),
            };
            let mut noticed = 0;
            for (key, record) in &model {
                match get(&table, key) {
                    Ok(found) => assert_eq!(found.as_ref(), Some(record), "byte {at}"),
                    Err(Error::Corruption(_)) => noticed += 1,
                    Err(other) => panic!("byte {at}: {other}"),
                }
            }
            let is_filter = (filter.offset..index.offset).contains(&(at as u64));
            if is_filter {
                assert!(read_all(&table).unwrap() == model, "byte {at}");
                table.verify_all(&mut |bad, _| {
                    assert_eq!(bad.offset, filter.offset);
                    noticed += 1;
                });
                assert_eq!(noticed, 1, "byte {at}");
                continue;
            }
            assert!(noticed > 0, "byte {at} is not covered");
            assert!(matches!(read_all(&table), Err(Error::Corruption(_))), "byte {at}");
        }
    }
}

/// A file cut short anywhere is refused at open.
#[test]
fn truncated_tables_are_corruption() {
    let (bytes, _) = build(&small_model(), SMALL);
    for len in 0..bytes.len() {
        assert!(matches!(open(&bytes[..len]), Err(Error::Corruption(_))), "{len} bytes");
    }
}

/// A sound block in the wrong place, or a sound file under the wrong number, is damage: checksums
/// hold file number and offset.
#[test]
fn misplaced_bytes_are_corruption() {
    let rows = |i: u8| (vec![i; 8], (Kind::Full, vec![i; 100]));
    let model: Model = (0..30).map(rows).collect();
    let (mut bytes, built) = build(&model, SMALL);
    assert!(matches!(open_as(&bytes, NUMBER + 1, false), Err(Error::Corruption(_))));

    // All blocks are equally long, so that each can stand in another's place.
    let data_end = Footer::decode(&bytes, NUMBER).unwrap().filter.offset as usize;
    let len = data_end / built.blocks as usize;
    assert_eq!((built.blocks, data_end % len), (15, 0));
    let (first, second) = bytes[..2 * len].split_at_mut(len);
    first.swap_with_slice(second);
    let table = open(&bytes).unwrap();
    assert!(matches!(get(&table, &[0; 8]), Err(Error::Corruption(_))));
    assert_eq!(get(&table, &[29; 8]).unwrap(), model.get(&[29; 8][..]).cloned());
}

/// The scrub names each damaged block with the keys that were in it, and the rest stays readable.
#[test]
fn verify_all_names_the_damaged_blocks() {
    let model = small_model();
    let (mut bytes, built) = build(&model, SMALL);
    assert!(built.blocks > 4);
    let mut offsets = Vec::new();
    for at in [0, bytes.len() / 4] {
        bytes[at] ^= 0x40;
    }
    let table = open(&bytes).unwrap();
    // Even blocks that passed for sound are looked at again.
    table.trust_all();
    let mut damaged = Vec::new();
    table.verify_all(&mut |bad, (start, end)| {
        offsets.push(bad.offset);
        damaged.push((start.map(<[u8]>::to_vec), end.map(<[u8]>::to_vec)));
    });
    assert_eq!(damaged.len(), 2);
    assert!(offsets[0] == 0 && offsets[1] > 0 && offsets[1] <= bytes.len() as u64 / 4);
    assert_eq!(damaged[0].0, Bound::Included(built.smallest.to_vec()));

    let table = open(&bytes).unwrap();
    for (key, record) in &model {
        let lost = damaged.iter().any(|range| std::ops::RangeBounds::contains(range, key));
        match get(&table, key) {
            Ok(found) => assert!(!lost && found.as_ref() == Some(record)),
            Err(error) => assert!(lost, "{error}"),
        }
    }
}

/// Asked to check every read, or for compaction, a table believes no earlier check.
#[test]
fn verify_every_read_sees_late_rot() {
    let model = small_model();
    let (mut bytes, built) = build(&model, SMALL);
    let row = bytes.windows(4).position(|bytes| bytes == b"row ").unwrap();
    bytes[row] ^= 1;
    let key = built.smallest.clone();
    let open = |verify| {
        let table = open_as(&bytes, NUMBER, verify).unwrap();
        table.trust_all();
        table
    };
    assert!(get(&open(false), &key).is_ok());
    assert!(matches!(get(&open(true), &key), Err(Error::Corruption(_))));
    let mut iter = open(false).iter();
    assert!(iter.seek_to_first().is_ok());
    let mut iter = open(false).iter_verified();
    assert!(matches!(iter.seek_to_first(), Err(Error::Corruption(_))));
    assert!(!iter.valid());
}

/// A later format is told from damage.
#[test]
fn newer_formats_are_refused_by_name() {
    let (mut bytes, _) = build(&small_model(), SMALL);
    let at = bytes.len() - 16;
    bytes[at..at + 4].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    bytes[at + 4..at + 8].copy_from_slice(&(!(FORMAT_VERSION + 1)).to_le_bytes());
    match open(&bytes) {
        Err(Error::FormatTooNew { found, supported, .. }) => {
            assert_eq!((found, supported), (FORMAT_VERSION + 1, FORMAT_VERSION));
        }
        other => panic!("{other:?}"),
    }
}

/// A footer with a right checksum and wrong contents is refused too.
#[test]
fn sealed_nonsense_in_the_footer_is_corruption() {
    let (bytes, _) = build(&small_model(), SMALL);
    let at = bytes.len() - FOOTER_BYTES;
    for field in (0..64).step_by(8) {
        for value in [0, 1, 1 << 20, u64::MAX - 7, u64::MAX] {
            let mut bytes = bytes.clone();
            bytes[at + field..at + field + 8].copy_from_slice(&u64::to_le_bytes(value));
            let crc = checksum(NUMBER, at as u64, &bytes[at..at + 68]);
            bytes[at + 68..at + 72].copy_from_slice(&crc.to_le_bytes());
            assert!(matches!(open(&bytes), Err(Error::Corruption(_))), "field {field}: {value}");
        }
    }
}

/// The largest key and the largest row fit, alone and together.
#[test]
fn largest_keys_and_rows_fit() {
    let key = vec![b'k'; KEY_BYTES_MAX];
    let mut longest = Model::new();
    longest.insert(b"a".to_vec(), (Kind::Delta, b"small".to_vec()));
    longest.insert(key.clone(), (Kind::Full, vec![1; ROW_BYTES_MAX]));
    longest.insert(b"l".to_vec(), (Kind::Delta, Vec::new()));
    for compression in [Compression::None, Compression::Lz4] {
        let (bytes, _) = build(&longest, TableOptions { compression, ..TableOptions::default() });
        let table = open(&bytes).unwrap();
        for (key, record) in &longest {
            assert!(get(&table, key).unwrap().as_ref() == Some(record));
        }
        assert!(read_all(&table).unwrap() == longest);
    }

    let file = Arc::new(MemFile::default());
    let mut builder = builder(&file, SMALL);
    let too_long = [(KEY_BYTES_MAX + 1, 0), (0, JOINED_BYTES_MAX + 1)];
    for (key, row) in too_long {
        let added = builder.add(&vec![0; key], Kind::Full, &vec![0; row], info(b""));
        assert!(matches!(added, Err(Error::OutOfBounds { .. })));
    }
}

/// A builder refuses keys out of order and an empty table, and reports a failed write.
#[test]
fn builder_errors() {
    let file = Arc::new(MemFile::default());
    let mut first = builder(&file, SMALL);
    first.add(b"b", Kind::Full, b"", info(b"")).unwrap();
    for key in [b"b", b"a"] {
        assert!(matches!(first.add(key, Kind::Full, b"", info(b"")), Err(Error::Corruption(_))));
    }
    let empty = builder(&file, SMALL).finish();
    assert!(matches!(empty, Err(Error::OutOfBounds { found: 0, .. })));

    let file = Arc::new(MemFile { fails: true, ..MemFile::default() });
    let mut failing = builder(&file, SMALL);
    failing.add(b"a", Kind::Full, b"", info(b"")).unwrap();
    assert!(matches!(failing.finish(), Err(Error::Io { operation: "write", .. })));
}

/// `bytes_so_far` is what compaction cuts by: it grows and ends near the truth.
#[test]
fn bytes_so_far_estimates_the_file() {
    let file = Arc::new(MemFile::default());
    let mut builder = builder(&file, TableOptions::default());
    let mut before = 0;
    for i in 0..5_000_u64 {
        builder.add(&i.to_be_bytes(), Kind::Full, &[7; 100], info(b"")).unwrap();
        if i % 100 == 0 {
            assert!(builder.bytes_so_far() > before, "entry {i}");
            before = builder.bytes_so_far();
        }
    }
    assert_eq!(builder.entries(), 5_000);
    let estimate = builder.bytes_so_far();
    builder.finish().unwrap();
    let truth = file.len().unwrap();
    assert!(estimate.abs_diff(truth) < truth / 50, "{estimate} of {truth}");
}

/// The format is frozen: today's builder writes the checked-in file byte by byte, and today's
/// reader reads it. A format change gets a new version and a new file beside this one.
#[test]
fn golden_table_v2() {
    let golden = include_bytes!("../../../tests/golden/sstable-v2.sst");
    let model = small_model();
    let (bytes, _) = build(&model, SMALL);
    assert!(bytes == golden, "the bytes of a table have changed");
    assert_eq!(read_all(&open(golden).unwrap()).unwrap(), model);
}

/// A sync of the log that meets a whole table in the disk's queue waits for all of it.
#[test]
fn a_table_has_two_writes_at_most_on_their_way_to_the_disk() {
    let add_all = |file: &Arc<MemFile>| {
        let mut builder = builder(file, TableOptions::default());
        for number in 0..9_000_u32 {
            let key = format!("key-{number:06}");
            builder.add(key.as_bytes(), Kind::Full, &[7; 1_000], info(key.as_bytes()))?;
        }
        builder.finish()
    };
    let file = Arc::new(MemFile::default());
    add_all(&file).unwrap();
    let written = file.len().unwrap();
    assert!(written > 8 << 20, "{written}");
    let bytes_max = file.writeback.lock().unwrap().bytes_max;
    assert!((1 << 20..5 << 19).contains(&bytes_max), "{bytes_max}");

    // The sync at the end need not repeat what the wait has said.
    let file = Arc::new(MemFile { loses_writes: true, ..MemFile::default() });
    assert!(matches!(add_all(&file), Err(Error::Io { .. })));
}
