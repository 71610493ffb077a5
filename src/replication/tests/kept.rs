//! Rule D1, as in `departures`, beside a block that cannot be read and is kept: there is no other
//! copy of its rows.

use std::sync::Arc;

use super::super::*;
use super::cluster::*;
use super::departures::{cleared, drawn, run_departures};
use crate::cluster::layout::{Document, Layout};
use crate::engine::vfs::fault::{Effect, Fault};

/// Tenants of one replica, all of whose rows the first node holds alone, and one block of its table
/// that cannot be read: the first one of its keys, in the first partition. Beside it others of
/// three replicas, if there is a `mixed` lot of them.
async fn with_a_rotten_block(seed: u64, mixed: bool) -> Cluster {
    let mut options = options();
    options.engine.block_bytes = 256;
    let cluster = Cluster::with_options(4, &[0], seed, &options);
    cluster.commit(of_one_replica(&cluster, 2, &[0], mixed), &[0, 1, 2, 3]);
    for n in 0..ROWS {
        for tenant in ["default", "lww"] {
            let written = cluster.write(0, tenant, Level::All, put(&format!("k{n}"), "v"));
            written.await.expect("itself");
        }
    }
    // Whoever opens the table that is made now finds it so.
    cluster.nodes[0].faults.inject(Fault {
        path_contains: ".sst".to_owned(),
        times: u64::MAX,
        effect: Effect::Unreadable(40),
        ..Fault::default()
    });
    let store = &cluster.nodes[0].store;
    store.flush().expect("flushed");
    assert!(!store.scrub().expect("read").damaged.is_empty());
    assert!(store.is_unreadable_in(0) && !(1..4).any(|at| store.is_unreadable_in(at)));
    cluster
}

const ROWS: usize = 200;

/// All tenants have one replica; where they are `mixed`, all but one have three.
fn of_one_replica(cluster: &Cluster, epoch: u64, owners: &[usize], mixed: bool) -> Arc<Layout> {
    let layout = drawn(cluster).layout(epoch, owners, None);
    let mut document = Document::clone(layout.document());
    for tenant in document.tenants.values_mut() {
        tenant.replication_factor = if mixed && tenant.name != "lww" { 3 } else { 1 };
    }
    Arc::new(Layout::new(Arc::new(document)))
}

/// Owners, the first node among them, by whom it keeps the first partition or not, and not all.
fn owners_by_whom(cluster: &Cluster, keeps: bool) -> Vec<usize> {
    let owners = [&[0, 1][..], &[0, 2], &[0, 3], &[0, 1, 2], &[0, 1, 3], &[0, 2, 3], &[0, 1, 2, 3]];
    let fits = owners.into_iter().find(|owners| {
        let layout = of_one_replica(cluster, 3, owners, false);
        let own = (0..4).map(|at| layout.sets(at, 1).current == [id(0)]).collect::<Vec<_>>();
        own[0] == keeps && own.contains(&!keeps)
    });
    fits.expect("the placement of some is such").to_vec()
}

/// A block of which there is no other copy is kept, and is in the way of no row of another
/// partition: what is not the node's any more goes, and safe points do not wait for it for ever.
#[tokio::test(start_paused = true)]
async fn a_block_that_is_kept_holds_up_no_rows_of_other_partitions() {
    for mixed in [false, true] {
        let cluster = with_a_rotten_block(81, mixed).await;
        let owners = owners_by_whom(&cluster, true);
        let layout = of_one_replica(&cluster, 3, &owners, mixed);
        cluster.commit(Arc::clone(&layout), &[0, 1, 2, 3]);
        run_departures(&cluster, 20).await;
        let told = cluster.nodes[0].departure.progress.figures().waits_for;
        assert_eq!(cleared(&cluster, 0), Some(3), "mixed: {mixed}: {told}");
        let store = &cluster.nodes[0].store;
        let (mut unreadable, mut gone) = (0, 0);
        for (n, name) in (0..ROWS).flat_map(|n| ["default", "lww"].map(|name| (n, name))) {
            let tenant = store.tenant(name).expect("there");
            let key = format!("k{n}");
            let partition = layout.partition_of(tenant.token(key.as_bytes()));
            let owners = layout.sets_of(partition, &tenant).current;
            for node in &cluster.nodes {
                match node.store.raw_row(tenant.id, key.as_bytes()) {
                    Ok(raw) if owners.contains(&node.id) => {
                        assert!(raw.row.is_some() || node.id != id(0), "{name} {key}");
                    }
                    Ok(raw) => assert!(raw.row.is_none(), "{name} {key} at {}", node.id),
                    Err(error) => {
                        assert_eq!((node.id, partition, error.reason()), (id(0), 0, "CORRUPTION"));
                        unreadable += 1;
                    }
                }
            }
            if !owners.contains(&id(0)) {
                gone += 1;
                let row = cluster.read(0, name, Level::All, &key, None).await.expect("all are up");
                assert_eq!(values(&row), ["v"], "{name} {key}");
            }
        }
        assert!(unreadable > 0 && gone > 0);
        assert!(store.is_unreadable_in(0), "the block is kept");
    }
}

/// A row that nobody can read, of a partition that is not the node's any more, is not said to be
/// with its owners. It is told what is waited for.
#[tokio::test(start_paused = true)]
async fn rows_that_cannot_be_read_are_waited_for_by_name() {
    let cluster = with_a_rotten_block(82, false).await;
    let owners = owners_by_whom(&cluster, false);
    cluster.commit(of_one_replica(&cluster, 3, &owners, false), &[0, 1, 2, 3]);
    let departure = &cluster.nodes[0].departure;
    let look = async {
        tokio::time::sleep(15 * SECOND).await;
        departure.progress.figures()
    };
    let (figures, ()) = tokio::join!(look, run_departures(&cluster, 20));
    assert!(figures.waits_for.contains("let rows of others go"), "{figures:?}");
    assert!(figures.to_text().starts_with("handing over|"), "{figures:?}");
    assert_eq!(cleared(&cluster, 0), None);
}
