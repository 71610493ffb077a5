//! Cursors against models.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::engine::error::Error;
use crate::engine::key::key_prefix;
use crate::engine::merge::{MergeError, MergeOperator};
use crate::engine::ranges::KeyRanges;
use crate::engine::record::Kind;
use crate::engine::sstable::test_table;
use crate::engine::version::TableRef;

type Row = (Kind, Vec<u8>);
type Source = BTreeMap<Vec<u8>, Row>;

/// A cursor over a map, which can be told to fail at a key.
struct MapCursor {
    entries: Vec<(Vec<u8>, Row)>,
    at: usize,
    fails_at: Option<Vec<u8>>,
}

impl MapCursor {
    fn new(source: &Source) -> Self {
        let entries: Vec<_> = source.clone().into_iter().collect();
        Self { at: entries.len(), entries, fails_at: None }
    }

    fn go(&mut self, at: usize) -> Result<()> {
        self.at = at;
        match (self.entries.get(at), &self.fails_at) {
            (Some((key, _)), Some(fails_at)) if key == fails_at => {
                self.at = self.entries.len();
                Err(Error::Closed)
            }
            _ => Ok(()),
        }
    }
}

impl Cursor for MapCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        self.go(0)
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.go(self.entries.partition_point(|(own, _)| own.as_slice() < key))
    }

    fn next(&mut self) -> Result<()> {
        self.go(self.at + 1)
    }

    fn valid(&self) -> bool {
        self.at < self.entries.len()
    }

    fn key(&self) -> &[u8] {
        &self.entries[self.at].0
    }

    fn record(&self) -> Record<'_> {
        let (kind, row) = &self.entries[self.at].1;
        Record { kind: *kind, row }
    }

    fn prefix(&self) -> u64 {
        key_prefix(self.key())
    }
}

/// Rows are bit sets, their join is the union: a lattice with one byte a state. An empty row is
/// not a state.
struct Union;

impl MergeOperator for Union {
    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError> {
        assert!(out.is_empty());
        match (a, b) {
            (&[a], &[b]) => out.push(a | b),
            _ => return Err(MergeError("not one byte".into())),
        }
        Ok(())
    }
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(0_u8..2, 0..11)
}

fn source() -> impl Strategy<Value = Source> {
    let kind = prop_oneof![Just(Kind::Delta), Just(Kind::Full)];
    let row = any::<u8>().prop_map(|byte| vec![byte]);
    proptest::collection::btree_map(key(), (kind, row), 0..20)
}

/// Key by key, the records of all sources, newest first.
fn groups(sources: &[Source]) -> BTreeMap<Vec<u8>, Vec<(usize, Row)>> {
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    for (at, source) in sources.iter().enumerate() {
        for (key, row) in source {
            groups.entry(key.clone()).or_default().push((at, row.clone()));
        }
    }
    groups
}

proptest! {
    /// From the start or from any key, the merge yields each key once, with all its records,
    /// newest first.
    #[test]
    fn merge_equals_its_model(
        sources in proptest::collection::vec(source(), 0..9),
        from in proptest::option::of(key()),
    ) {
        let cursors = sources.iter().map(MapCursor::new).collect();
        let mut merging: MergingCursor<MapCursor> = MergingCursor::new(cursors);
        prop_assert!(!merging.valid());
        match &from {
            Some(key) => merging.seek(key).unwrap(),
            None => merging.seek_to_first().unwrap(),
        }
        for (key, group) in groups(&sources).range(from.unwrap_or_default()..) {
            prop_assert!(merging.valid());
            prop_assert_eq!(merging.key(), key);
            prop_assert_eq!(merging.prefix(), key_prefix(key));
            let records = merging.records().map(|record| (record.kind, record.row.to_vec()));
            let found: Vec<_> = merging.group().iter().copied().zip(records).collect();
            prop_assert_eq!(&found, group);
            merging.next_group().unwrap();
        }
        prop_assert!(!merging.valid());
    }

    /// A level of several tables reads as one sorted map, from any key, without what was excised.
    #[test]
    fn level_equals_its_model(
        source in source().prop_filter("tables are not empty", |source| !source.is_empty()),
        per_table in 1_usize..6,
        probes in proptest::collection::vec(key(), 10),
        ranges in proptest::collection::vec((key(), proptest::option::of(key())), 0..3),
        verify: bool,
    ) {
        let excised = KeyRanges::of(ranges);
        let all: Vec<_> = source.clone().into_iter().collect();
        let tables: Arc<[TableRef]> = all
            .chunks(per_table)
            .map(|part| test_table(part.iter().map(|(key, (kind, row))| (&**key, *kind, &**row))))
            .map(|table| TableRef::of_table(table, excised.clone()))
            .collect();
        let mut level = LevelCursor::new(tables, verify);
        prop_assert!(!level.valid());
        level.seek_to_first().unwrap();
        for from in std::iter::once(None).chain(probes.iter().map(Some)) {
            if let Some(from) = from {
                level.seek(from).unwrap();
            }
            let visible = source.range(from.cloned().unwrap_or_default()..);
            for (key, (kind, row)) in visible.filter(|(key, _)| !excised.contains(key)) {
                prop_assert!(level.valid());
                prop_assert_eq!(level.key(), key);
                prop_assert_eq!(level.prefix(), key_prefix(key));
                prop_assert_eq!(level.record(), Record { kind: *kind, row });
                level.next().unwrap();
            }
            prop_assert!(!level.valid());
        }
    }

    /// The fold is the union of all records down to the first Full, and Full if there is one.
    #[test]
    fn join_stops_at_the_first_full(rows in proptest::collection::vec(
        (prop_oneof![3 => Just(Kind::Delta), 1 => Just(Kind::Full)], any::<u8>()), 0..6),
    ) {
        let mut records: Vec<(Kind, [u8; 1])> = rows.iter().map(|(k, r)| (*k, [*r])).collect();
        let full = records.iter().position(|(kind, _)| *kind == Kind::Full);
        if let Some(full) = full {
            // What a Full claims: it contains everything older.
            let older = records[full..].iter().fold(0, |all, (_, [row])| all | row);
            records[full].1 = [older];
        }
        let visible = &records[..full.map_or(records.len(), |full| full + 1)];
        let expected = visible.iter().fold(0, |all, (_, [row])| all | row);

        let mut buffers = JoinBuffers::default();
        let as_records = records.iter().map(|(kind, row)| Record { kind: *kind, row });
        let joined = join_group(&Union, as_records, &mut buffers).unwrap();
        match joined {
            None => prop_assert!(records.is_empty()),
            Some(joined) => {
                let kind = if full.is_some() { Kind::Full } else { Kind::Delta };
                prop_assert_eq!(joined.as_record(), Record { kind, row: &[expected] });
                // One record, or a Full on top, is not touched.
                let copied = matches!(joined.row, JoinedRow::Merged(_));
                prop_assert_eq!(copied, visible.len() > 1);
            }
        }
    }
}

/// A source that fails ends the walk with its error, and the cursor can be positioned anew.
#[test]
fn merge_reports_a_failing_source() {
    let row = |byte| (Kind::Delta, vec![byte]);
    let first = Source::from([(b"a".to_vec(), row(1)), (b"c".to_vec(), row(2))]);
    let second = Source::from([(b"a".to_vec(), row(3)), (b"b".to_vec(), row(4))]);
    let mut cursors = vec![MapCursor::new(&first), MapCursor::new(&second)];
    cursors[1].fails_at = Some(b"b".to_vec());
    let mut merging = MergingCursor::new(cursors);
    merging.seek_to_first().unwrap();
    assert_eq!(merging.group(), [0, 1]);
    assert!(matches!(merging.next_group(), Err(Error::Closed)));
    assert!(!merging.valid());
    assert!(merging.seek(b"b").is_err() && !merging.valid());
    merging.seek(b"c").unwrap();
    assert_eq!((merging.key(), merging.group()), (&b"c"[..], &[0][..]));
}

/// A row that the operator cannot read is an error, not a wrong join.
#[test]
fn join_reports_unreadable_rows() {
    let records = [b"x".as_slice(), b""].map(|row| Record { kind: Kind::Delta, row });
    assert!(join_group(&Union, records, &mut JoinBuffers::default()).is_err());
}

/// A Full that lacks an older write is caught where it hides it.
#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "does not contain")]
fn a_lying_full_is_caught() {
    let records = [(Kind::Full, &[1_u8][..]), (Kind::Delta, &[2])];
    let records = records.map(|(kind, row)| Record { kind, row });
    let _ = join_group(&Union, records, &mut JoinBuffers::default());
}
