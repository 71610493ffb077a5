//! What lies on a node's disk, read as a new process would, on a copy; and how it rots.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pairdb::causality::Payload;
use pairdb::causality::codec;
use pairdb::cluster::fence::Fence;
use pairdb::cluster::layout::{Answer, Command, LayoutCatalog, Proposer};
use pairdb::engine::vfs::Vfs as _;
use pairdb::engine::vfs::mem::MemVfs;
use pairdb::ops::config::Config;
use pairdb::store::environment::ManualClock;
use pairdb::store::{EngineKey, Environment, Error, Store, StoreOptions, TokenRange};
use pairdb::verify::dice::Dice;
use pairdb::verify::history::Version;

/// Proposes nothing: the dead change no layout.
#[derive(Debug)]
struct Nobody;

impl Proposer for Nobody {
    fn propose(&self, _command: Command) -> pairdb::store::Result<Answer> {
        Err(Error::Closed)
    }
}

/// A row as it was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The live versions, with their dots.
    pub versions: Vec<Version>,
    /// Of all the row holds; 0: of nothing.
    pub digest: u64,
    /// Where it lies in the ring.
    pub token: u64,
}

/// Rows by tenant and key.
pub type Rows = BTreeMap<(String, String), Found>;

/// A machine's disk, and how it is read.
#[derive(Clone, Copy)]
pub struct Disk<'m> {
    pub files: &'m MemVfs,
    pub config: &'m Config,
    pub partition_bits: u32,
    pub now_ms: u64,
}

/// Places that are tried until one is found where a flipped bit does harm that can be mended.
const ROT_ATTEMPTS: usize = 20;

impl Disk<'_> {
    /// Everything the disk holds; `None`: some of it cannot be read.
    pub fn rows(self) -> Option<Rows> {
        let store = self.open().expect("whatever a crash leaves can be opened");
        let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
        let (mut rows, mut cursor) = (Rows::new(), None);
        loop {
            let page = whole_of(store.rows_by_token(whole, cursor, 1 << 20))?;
            for (key, _) in &page.rows {
                rows.extend([found(&store, key)?]);
            }
            cursor = page.cursor;
            if cursor.is_none() {
                return Some(rows);
            }
        }
    }

    /// Whether every table is whole, and nothing is missing that others have to give back.
    pub fn is_whole(self) -> bool {
        let store = self.open().expect("whatever a crash leaves can be opened");
        let report = store.scrub().expect("it can be noted");
        report.damaged.is_empty() && !store.has_damage()
    }

    /// Flips a bit of a block of a table. Where, if there is one.
    pub fn rot(self, dice: &Dice) -> Option<String> {
        let dir = self.config.node.data_dir.join("engine");
        let names = self.files.list(&dir).unwrap_or_default();
        let mut tables: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
        tables.retain(|path| path.extension().is_some_and(|extension| extension == "sst"));
        tables.sort();
        for _ in 0..ROT_ATTEMPTS.min(ROT_ATTEMPTS * tables.len()) {
            let table = dice.pick(&tables);
            let (place, bit) = (dice.next(), 1 << dice.below(8));
            let tried = self.files.crash_clone_kill();
            flip(&tried, table, place, bit);
            // One that cannot be opened any more does not heal: it is replaced.
            let Ok(store) = (Disk { files: &tried, ..self }).open() else { continue };
            if !store.scrub().expect("it can be noted").damaged.is_empty() {
                let at = flip(self.files, table, place, bit);
                return Some(format!("bit {bit} of byte {at} of {}", table.display()));
            }
        }
        None
    }

    fn open(self) -> pairdb::store::Result<Store> {
        let Self { files, config, partition_bits, now_ms } = self;
        let mut options = StoreOptions {
            engine: config.engine_options().expect("they ran"),
            ..StoreOptions::default()
        };
        options.engine.compaction_threads = 0;
        options.engine.partition_bits = partition_bits;
        let copy = Arc::new(files.crash_clone_kill());
        let clock = ManualClock::new(now_ms);
        let environment = Environment::simulated(Arc::clone(&copy) as _, &clock, now_ms);
        let fence = Fence::open(copy, &config.node.data_dir).expect("the document can be read");
        let tenants = LayoutCatalog::new(&fence.document(), Arc::new(Nobody), Arc::new(clock));
        options.catalog = Some(Arc::new(tenants));
        Store::open_in(&config.node.data_dir, options, environment)
    }
}

/// Flips a bit of the byte that `place` falls on. The byte's number.
fn flip(files: &MemVfs, path: &Path, place: u64, bit: u8) -> u64 {
    let file = files.open(path).expect("it is there");
    let at = place % file.len().expect("it has a length").max(1);
    let mut byte = [0];
    file.read_at(at, &mut byte).expect("it can be read");
    file.write_at(at, &[byte[0] ^ bit]).expect("it can be written");
    file.sync_data().expect("no loss of power makes it whole");
    at
}

/// What was read; `None`: a part of it is lost.
fn whole_of<T>(read: pairdb::store::Result<T>) -> Option<T> {
    match read {
        Err(Error::Corruption { .. } | Error::Damaged { .. }) => None,
        read => Some(read.expect("it can be read")),
    }
}

fn found(store: &Store, engine_key: &[u8]) -> Option<((String, String), Found)> {
    let key = EngineKey::decode(engine_key).expect("the store wrote it");
    let tenant = store.tenant_by_id(key.tenant).expect("it has a row");
    let raw = whole_of(store.raw_row(key.tenant, key.key))?;
    let digest = whole_of(store.digest(&raw))?;
    let row = raw.row.expect("it is there");
    let row = codec::decode(&row).expect("the store wrote it");
    let version = |(dot, version): &(_, pairdb::causality::Version<'_>)| match version.payload() {
        Payload::Value { value, .. } => Some(Version {
            value: String::from_utf8_lossy(value).into_owned(),
            hlc: version.time(),
            dot: Some(format!("{dot:?}")),
        }),
        Payload::Tombstone | Payload::Stripped => None,
    };
    let versions = row.live().iter().filter_map(version).collect();
    let place = (tenant.name.clone(), String::from_utf8_lossy(key.key).into_owned());
    Some((place, Found { versions, digest, token: key.token }))
}
