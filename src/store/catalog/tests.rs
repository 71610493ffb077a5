//! What a catalog promises across restarts, crashes and failing disks.

use std::io::ErrorKind;
use std::sync::Arc;

use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{Call, Effect, Fault, FaultVfs, Operation};
use crate::engine::vfs::mem::MemVfs;
use crate::store::environment::ManualClock;
use crate::store::tenant::{Mode, Retention};

use super::*;

fn dir() -> &'static Path {
    Path::new("/data")
}

fn environment(vfs: impl Vfs) -> Environment {
    Environment::simulated(Arc::new(vfs), &ManualClock::new(1_700_000_000_000), 1)
}

/// A file system with an empty data directory whose name is durable.
fn empty() -> MemVfs {
    let vfs = MemVfs::new();
    vfs.create_dir_all(dir()).unwrap();
    vfs.sync_dir(Path::new("/")).unwrap();
    vfs
}

fn ids(catalog: &LocalCatalog) -> Vec<(String, u32)> {
    catalog.list().iter().map(|tenant| (tenant.name.clone(), tenant.id.0)).collect()
}

fn ttl_change(ttl_ms: u64) -> TenantChange {
    TenantChange { default_ttl_ms: Some(Some(ttl_ms)), ..TenantChange::default() }
}

#[test]
fn a_store_has_a_default_tenant_from_its_first_start() {
    let vfs = empty();
    let catalog = LocalCatalog::open_or_create(&environment(vfs.clone()), dir()).unwrap();
    let tenant = catalog.get(DEFAULT_TENANT).unwrap();
    assert_eq!((tenant.id, tenant.mode, catalog.version()), (TenantId(1), Mode::Siblings, 1));
    let again = LocalCatalog::open_or_create(&environment(vfs), dir()).unwrap();
    assert_eq!((again.version(), ids(&again)), (1, vec![("default".to_owned(), 1)]));
}

#[test]
fn everything_about_a_tenant_outlives_a_restart() {
    let vfs = empty();
    let catalog = LocalCatalog::open_or_create(&environment(vfs.clone()), dir()).unwrap();
    let spec = TenantSpec {
        mode: Mode::LastWriteWins,
        partition_delimiter: Some(vec![0, 0xff, b':']),
        default_ttl_ms: Some(5),
        max_ttl_ms: Some(10),
        replication_factor: 5,
        retention: Retention { age_ms_max: Some(1), keys_max: Some(2), bytes_max: Some(u64::MAX) },
        ..TenantSpec::new("logs")
    };
    let created = catalog.create(spec).unwrap();
    let altered = catalog.alter("logs", ttl_change(7)).unwrap();
    assert_eq!(*altered, Tenant { default_ttl_ms: Some(7), ..(*created).clone() });
    assert_eq!(created.created_at_ms, 1_700_000_000_000);

    let reopened = LocalCatalog::open(&environment(vfs), dir()).unwrap();
    assert_eq!(reopened.get("logs").unwrap(), altered);
    assert_eq!(reopened.by_id(created.id).unwrap(), altered);
    assert_eq!((reopened.version(), catalog.version()), (3, 3));
}

#[test]
fn a_refused_change_changes_nothing() {
    let vfs = empty();
    let catalog = LocalCatalog::open_or_create(&environment(vfs), dir()).unwrap();
    let reason = |result: Result<Arc<Tenant>>| result.unwrap_err().reason();
    assert_eq!(reason(catalog.create(TenantSpec::new("default"))), "TENANT_EXISTS");
    assert_eq!(reason(catalog.create(TenantSpec::new("No"))), "INVALID_TENANT_NAME");
    assert_eq!(reason(catalog.alter("default", ttl_change(0))), "INVALID_TTL");
    assert_eq!(reason(catalog.alter("nobody", ttl_change(1))), "UNKNOWN_TENANT");
    assert_eq!(reason(catalog.get("nobody")), "UNKNOWN_TENANT");
    assert_eq!(reason(catalog.get("No")), "INVALID_TENANT_NAME");
    assert_eq!(reason(catalog.by_id(TenantId(2))), "UNKNOWN_TENANT_ID");
    assert_eq!(catalog.version(), 1);
    assert_eq!(catalog.create(TenantSpec::new("next")).unwrap().id, TenantId(2));
}

/// A catalog begun anew beside old rows would hand their ids, and so the rows, to new tenants.
#[test]
fn a_lost_catalog_is_not_replaced_by_an_empty_one() {
    let error = LocalCatalog::open(&environment(empty()), dir()).unwrap_err();
    assert!(matches!(&error, Error::Corruption { file, .. } if file.ends_with(NAME)), "{error}");
}

/// A catalog that is whole but contradicts itself was not written by this program.
#[test]
fn a_document_that_contradicts_itself_is_refused() {
    let vfs = empty();
    let environment = environment(vfs.clone());
    let tenant = |id: u32, name: &str| Tenant {
        name: name.to_owned(),
        ..Tenant::create(TenantId(id), 0, TenantSpec::new("t")).unwrap()
    };
    let broken = [
        (0, 3, vec![tenant(1, "a")]),
        (1, 1, vec![tenant(1, "a")]),
        (1, 3, vec![tenant(1, "a"), tenant(1, "b")]),
        (1, 3, vec![tenant(1, "a"), tenant(2, "a")]),
        (1, 3, vec![tenant(1, "A")]),
    ];
    for (version, next_id, tenants) in broken {
        let document = Document::new(dir(), NAME, FORMAT);
        document.replace(&vfs, &Contents { version, next_id, tenants }).unwrap();
        let error = LocalCatalog::open_or_create(&environment, dir()).unwrap_err();
        assert!(matches!(&error, Error::Corruption { file, .. } if file.ends_with(NAME)));
    }
}

#[test]
fn a_flipped_bit_is_refused_by_name_and_not_repaired() {
    let vfs = empty();
    LocalCatalog::open_or_create(&environment(vfs.clone()), dir()).unwrap();
    let faults = FaultVfs::new(Arc::new(vfs));
    faults.inject(Fault {
        operation: Some(Operation::ReadAt),
        effect: Effect::FlipBit(200, 3),
        ..Fault::default()
    });
    let error = LocalCatalog::open_or_create(&environment(faults), dir()).unwrap_err();
    assert!(error.to_string().starts_with("/data/TENANTS is corrupt at byte 0"), "{error}");
}

/// The changes of the stories below: after each, what an acknowledgement promised.
fn change(catalog: &LocalCatalog, step: usize) -> Result<Arc<Tenant>> {
    match step {
        0 => catalog.create(TenantSpec::new("one")),
        1 => catalog.alter("one", ttl_change(1)),
        2 => catalog.create(TenantSpec::new("two")),
        _ => catalog.alter("default", ttl_change(2)),
    }
}
const STEPS: usize = 4;

/// Power lost or process killed before every call: what was acknowledged is there, what was under
/// way is there wholly or not at all, and ids stay who they were.
#[test]
fn a_crash_at_any_call_leaves_the_acknowledged_catalog_or_the_next_one() {
    let below = empty();
    let faults = FaultVfs::new(Arc::new(below.clone()));
    // The version acknowledged so far; 0 is "not opened yet".
    let acknowledged = Arc::new(Mutex::new(0_u64));
    let crashes = Arc::new(Mutex::new(Vec::new()));
    faults.on_call({
        let (acknowledged, crashes) = (Arc::clone(&acknowledged), Arc::clone(&crashes));
        move |_, call: &Call| {
            if call.operation.changes_disk() {
                let clones = (0..12).map(|seed| below.crash_clone(seed));
                let clones: Vec<_> = clones.chain([below.crash_clone_kill()]).collect();
                crashes.lock().push((*acknowledged.lock(), call.clone(), clones));
            }
        }
    });
    let catalog = LocalCatalog::open_or_create(&environment(faults), dir()).unwrap();
    *acknowledged.lock() = catalog.version();
    let mut history = vec![Vec::new(), catalog.list()];
    for step in 0..STEPS {
        change(&catalog, step).unwrap();
        *acknowledged.lock() = catalog.version();
        history.push(catalog.list());
    }

    let crashes = std::mem::take(&mut *crashes.lock());
    assert!(crashes.len() >= 5 * (STEPS + 1), "create, write, sync, rename, sync of each change");
    let mut seen = [false; 2];
    for (acknowledged, call, clones) in crashes {
        for vfs in clones {
            let environment = environment(vfs);
            let open =
                if acknowledged == 0 { LocalCatalog::open_or_create } else { LocalCatalog::open };
            let recovered = open(&environment, dir()).unwrap_or_else(|e| panic!("{call:?}: {e}"));
            let version = recovered.version();
            let next = version == acknowledged + 1;
            assert!(version == acknowledged || next, "{version} at {call:?}");
            seen[usize::from(next)] = true;
            assert_eq!(recovered.list(), history[version as usize], "{call:?}");
            let fresh = recovered.create(TenantSpec::new("fresh")).unwrap();
            assert_eq!(fresh.id.0 as usize, history[version as usize].len() + 1, "{call:?}");
        }
    }
    assert_eq!(seen, [true; 2], "crashes were early and late");
}

/// A failing disk: "not applied" is true and the catalog goes on; "unknown" is followed by no
/// other change, which could give the same id to a second tenant.
#[test]
fn an_error_at_any_call_says_truly_what_became_of_the_change() {
    let mut outcomes = Vec::new();
    for failing in 1.. {
        let below = empty();
        LocalCatalog::open_or_create(&environment(below.clone()), dir()).unwrap();
        let faults = FaultVfs::new(Arc::new(below.clone()));
        let catalog = LocalCatalog::open(&environment(faults.clone()), dir()).unwrap();
        let calls = faults.calls();
        faults.fail_call(calls + failing, ErrorKind::Other);
        let Err(error) = catalog.create(TenantSpec::new("one")) else {
            break;
        };
        assert_eq!(ids(&catalog), [("default".to_owned(), 1)], "nobody sees a failed change");
        let retried = catalog.create(TenantSpec::new("two"));
        if error.outcome() == Outcome::NotApplied {
            assert_eq!(retried.unwrap().id, TenantId(2));
            let reopened =
                LocalCatalog::open(&environment(below.crash_clone_kill()), dir()).unwrap();
            assert_eq!(ids(&reopened), [("default".to_owned(), 1), ("two".to_owned(), 2)]);
        } else {
            assert_eq!(retried.unwrap_err().reason(), "READ_ONLY");
        }
        outcomes.push(error.outcome());
    }
    let expected = [Outcome::NotApplied, Outcome::Unknown].map(|outcome| {
        let of_it = outcomes.iter().filter(|found| **found == outcome);
        of_it.count()
    });
    assert_eq!(expected, [4, 2], "look, create, write, sync; rename, sync of the directory");
}
