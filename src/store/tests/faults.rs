//! A disk that fails, at any call: what the store tells its clients is true.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use super::*;
use crate::engine::vfs::fault::{Effect, Fault, FaultVfs};

const TENANTS: [&str; 2] = ["default", "lww"];
const KEYS: usize = 24;

/// What may be found of each key after what was told of it; `None` is "nothing".
type Told = BTreeMap<(&'static str, String), Vec<Option<String>>>;

fn options() -> StoreOptions {
    let mut options = StoreOptions::default();
    options.engine.compaction_threads = 0;
    options.engine.partition_bits = 2;
    options.engine.log_segment_bytes = 8 << 10;
    options.engine.memtable_bytes = 4 << 10;
    options.engine.disk_reserve_bytes = 0;
    options.safe_points = SafePoints { interval_ms: 0, flush_ms: 0, ..SafePoints::default() };
    options
}

fn open(vfs: Arc<dyn Vfs>, clock: &ManualClock, seed: u64) -> Result<Store> {
    let environment = Environment::simulated(vfs, clock, seed);
    Store::open_in(Path::new(DIR), options(), environment)
}

/// A store with both tenants, stopped.
fn stopped(clock: &ManualClock) -> MemVfs {
    let vfs = MemVfs::new();
    let store = open(Arc::new(vfs.clone()), clock, 1).unwrap();
    store
        .create_tenant(TenantSpec { mode: Mode::LastWriteWins, ..TenantSpec::new("lww") })
        .unwrap();
    store.close().unwrap();
    drop(store);
    vfs.crash_clone_kill()
}

fn tell(
    told: &mut Told,
    at: (&'static str, String),
    wrote: Option<String>,
    result: Result<Written>,
) {
    let may_be = told.entry(at).or_insert_with(|| vec![None]);
    match result.map_err(|error| error.outcome()) {
        Ok(_) => *may_be = vec![wrote],
        Err(Outcome::NotApplied) => {}
        Err(Outcome::Unknown) => may_be.push(wrote),
    }
}

/// Writes, deletes and upkeep. A client goes on after an error, as clients do.
fn story(store: &Store, clock: &ManualClock, told: &mut Told) {
    for n in 0..KEYS {
        for tenant in TENANTS {
            let (key, value) = (format!("key{n}"), format!("{n} {}", "v".repeat(300)));
            let result = store.write(tenant, put(&key, &value));
            tell(told, (tenant, key), Some(value), result);
            if n % 3 == 2 {
                let key = format!("key{}", n - 1);
                let result = store.write(tenant, delete(&key));
                tell(told, (tenant, key), None, result);
            }
        }
        // Upkeep may fail; it must not change what was told.
        clock.advance_ms(20_000);
        let _ = store.step();
        if n % 8 == 7 {
            let _ = store.advance_safe_points();
            let _ = store.compact();
        }
    }
}

fn check(disk: &MemVfs, clock: &ManualClock, told: &Told, when: &str) {
    let store = open(Arc::new(disk.clone()), clock, 99).unwrap_or_else(|error| {
        panic!("{when}: the store does not open any more: {error}");
    });
    for ((tenant, key), may_be) in told {
        let found = values(&store.read(tenant, key.as_bytes()).unwrap()).pop();
        assert!(may_be.contains(&found), "{when}: {tenant} {key} is {found:?}, not {may_be:?}");
    }
}

/// Success: it is there after a restart. Not applied: it never appears. Unknown: either. Whatever
/// call fails, once or from then on, and whether or not the power goes with it.
#[test]
fn an_error_at_any_call_says_truly_what_became_of_the_write() {
    let start = ManualClock::new(T0_MS);
    let base = stopped(&start);
    let (mut failed, mut unknown) = (0, 0);
    let effects = [
        (Effect::Fail(ErrorKind::Other), 1),
        (Effect::Fail(ErrorKind::Other), u64::MAX),
        (Effect::Fail(ErrorKind::StorageFull), 2),
        (Effect::ShortWrite(10, ErrorKind::Other), 1),
    ];
    for (variant, (effect, times)) in effects.into_iter().enumerate() {
        // Each variant at every third call, so that each call fails in one way or another.
        for failing in (variant as u64 % 3..).step_by(3) {
            let below = base.crash_clone_kill();
            let faults = FaultVfs::new(Arc::new(below.clone()));
            faults.inject(Fault { skip: failing, times, effect, ..Fault::default() });
            let (clock, mut told) = (ManualClock::new(T0_MS + 60_000), Told::new());
            if let Ok(store) = open(Arc::new(faults.clone()), &clock, 2) {
                story(&store, &clock, &mut told);
                drop(store);
            }
            let when = format!("{effect:?} at call {failing}");
            check(&below.crash_clone_kill(), &clock, &told, &when);
            check(&below.crash_clone(failing), &clock, &told, &format!("{when}, power lost"));
            if faults.calls() <= failing {
                break;
            }
            failed += 1;
            unknown += told.values().filter(|may_be| may_be.len() > 1).count();
        }
    }
    assert!(failed > 300, "{failed} calls of the story failed");
    assert!(unknown > 10, "{unknown} outcomes were unknown: the story is too tame");
}
