//! YCSB's core workloads: records of 1,000 bytes, keys asked for by a Zipf law of 0.99.
//!
//! As in YCSB the popular keys are scattered over the key space, D reads the newest acknowledged,
//! and E walks 1 to 100 keys. F's read-modify-write is one atomic call of PairDB and two calls of
//! the others.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::child::{Bench, random};
use crate::data::{Zipf, below, key};
use crate::measure::drive;
use crate::outcome::Outcome;
use crate::store::Result;
use crate::workload::{Workload, Ycsb};

/// Runs one of them.
pub fn run(bench: &Bench<'_>, workload: &Workload, which: Ycsb, count: u64) -> Result<Outcome> {
    let records = bench.task.scale.records;
    let zipf = Zipf::new(records);
    let threads = workload.threads;
    let get = |thread, i| bench.get(zipf.scattered(random(2, thread, i)));
    drive((threads, records / threads), None, get)?;
    let inserts = Inserts::new(records, threads);
    let live = || inserts.numbered.load(Ordering::SeqCst);
    let writes = which != Ycsb::C;
    let rows: Option<&dyn Fn() -> u64> = if writes { Some(&live) } else { None };
    let outcome = bench.measure(workload.name, (threads, count), rows, |thread, i| {
        let chance = below(random(5, thread, i), 100);
        let draw = random(6, thread, i);
        match which {
            Ycsb::A if chance < 50 => bench.put(zipf.scattered(draw)),
            Ycsb::B if chance < 5 => bench.put(zipf.scattered(draw)),
            Ycsb::D | Ycsb::E if chance < 5 => inserts.insert(thread, |index| bench.put(index)),
            Ycsb::D => bench.get(inserts.newest().saturating_sub(zipf.rank(draw))),
            Ycsb::E => {
                let length = 1 + below(random(7, thread, i), 100) as usize;
                bench.scan(&key(zipf.scattered(draw)), length)?;
                Ok(0)
            }
            Ycsb::F if chance < 50 => {
                let index = zipf.scattered(draw);
                bench.store.read_modify_write(&key(index), bench.values.of(index))?;
                Ok(bench.row_bytes())
            }
            Ycsb::A | Ycsb::B | Ycsb::C | Ycsb::F => bench.get(zipf.scattered(draw)),
        }
    })?;
    Ok(outcome)
}

/// Numbers of new records, and which of them are there already.
struct Inserts {
    /// Records below have a number.
    numbered: AtomicU64,
    /// Per thread: at most the number it is inserting, or [`NOTHING`].
    under_way: Vec<AtomicU64>,
}

const NOTHING: u64 = u64::MAX;

impl Inserts {
    fn new(records: u64, threads: u64) -> Self {
        let under_way = (0..threads).map(|_| AtomicU64::new(NOTHING)).collect();
        Self { numbered: AtomicU64::new(records), under_way }
    }

    fn insert(&self, thread: u64, put: impl FnOnce(u64) -> Result<u64>) -> Result<u64> {
        let under_way = &self.under_way[thread as usize];
        // Before the number is taken: who sees it taken sees this too.
        under_way.store(self.numbered.load(Ordering::SeqCst), Ordering::SeqCst);
        let bytes = put(self.numbered.fetch_add(1, Ordering::SeqCst))?;
        under_way.store(NOTHING, Ordering::SeqCst);
        Ok(bytes)
    }

    /// The newest record below which all are there, itself included.
    fn newest(&self) -> u64 {
        let numbered = self.numbered.load(Ordering::SeqCst);
        let under_way = self.under_way.iter().map(|at| at.load(Ordering::SeqCst));
        under_way.fold(numbered, u64::min) - 1
    }
}
