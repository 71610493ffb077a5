//! YCSB's core workloads: records of 1,000 bytes, keys asked for by a Zipf law of 0.99.
//!
//! As in YCSB the popular keys are scattered over the key space, D reads what was inserted last,
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
    drive(threads, records / threads, |thread, i| bench.get(zipf.scattered(random(2, thread, i))))?;
    let inserted = AtomicU64::new(records);
    let missed = AtomicU64::new(0);
    let insert = || bench.put(inserted.fetch_add(1, Ordering::Relaxed));
    let live = || inserted.load(Ordering::Relaxed);
    let writes = which != Ycsb::C;
    let rows: Option<&dyn Fn() -> u64> = if writes { Some(&live) } else { None };
    let mut outcome = bench.measure(workload.name, (threads, count), rows, |thread, i| {
        let chance = below(random(5, thread, i), 100);
        let draw = random(6, thread, i);
        match which {
            Ycsb::A if chance < 50 => bench.put(zipf.scattered(draw)),
            Ycsb::B if chance < 5 => bench.put(zipf.scattered(draw)),
            Ycsb::D | Ycsb::E if chance < 5 => insert(),
            Ycsb::D => {
                let newest = inserted.load(Ordering::Relaxed) - 1;
                let index = newest.saturating_sub(zipf.rank(draw));
                let mut found = false;
                bench.store.get(&key(index), &mut |value| found = value.is_some())?;
                // Numbered by another thread, and not inserted yet.
                missed.fetch_add(u64::from(!found), Ordering::Relaxed);
                Ok(0)
            }
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
    let missed = missed.into_inner();
    if missed > count / 100 {
        return Err(format!("{missed} reads of inserted records found nothing").into());
    }
    if missed > 0 {
        outcome.note = format!("{missed} reads came before the insert they were to find");
    }
    Ok(outcome)
}
