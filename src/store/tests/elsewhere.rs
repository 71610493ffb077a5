//! A store whose tenants a cluster keeps.

use super::*;

fn environment(vfs: &MemVfs) -> Environment {
    Environment::simulated(Arc::new(vfs.clone()), &ManualClock::new(T0_MS), 7)
}

/// A catalog beside the store's directory stands for the cluster's.
fn cluster_catalog(vfs: &MemVfs) -> Arc<dyn TenantCatalog> {
    let dir = Path::new("/cluster");
    vfs.create_dir_all(dir).unwrap();
    let catalog = LocalCatalog::open_or_create(&environment(vfs), dir).unwrap();
    Arc::new(catalog)
}

fn open(vfs: &MemVfs, catalog: Option<Arc<dyn TenantCatalog>>) -> Result<Store> {
    let mut options = StoreOptions { catalog, ..StoreOptions::default() };
    options.engine.compaction_threads = 0;
    Store::open_in(Path::new(DIR), options, environment(vfs))
}

#[test]
fn a_store_with_tenants_from_elsewhere_keeps_none_of_its_own() {
    let vfs = MemVfs::new();
    let catalog = cluster_catalog(&vfs);
    let store = open(&vfs, Some(Arc::clone(&catalog))).unwrap();
    let created = catalog.create(TenantSpec::new("everywhere")).unwrap();
    assert_eq!(store.tenant("everywhere").unwrap(), created);
    store.write("everywhere", put("k", "v")).unwrap();
    store.close().unwrap();
    drop(store);
    assert!(!vfs.exists(Path::new("/node/TENANTS")).unwrap());
    let again = open(&vfs, Some(catalog)).unwrap();
    assert_eq!(values(&again.read("everywhere", b"k").unwrap()), ["v"]);
}

/// Tenant 2 of this directory and tenant 2 of the cluster would share their rows.
#[test]
fn a_directory_with_tenants_of_its_own_joins_no_cluster() {
    let vfs = MemVfs::new();
    let store = open(&vfs, None).unwrap();
    store.close().unwrap();
    drop(store);
    let error = open(&vfs, Some(cluster_catalog(&vfs))).unwrap_err();
    assert!(error.to_string().contains("/node has tenants of its own"), "{error}");
    open(&vfs, None).unwrap();
}
