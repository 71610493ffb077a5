//! Directories that were put together from a checkpoint: without the group's files.

use crate::engine::vfs::Vfs;
use crate::store::document::{read_file, replace_file};

use super::*;

const DIR: &str = "/";

/// A new directory with the layout document of `disk`, as a checkpoint has it.
fn checkpoint(disk: &MemVfs) -> MemVfs {
    let (path, copy) = (Path::new("/LAYOUT"), MemVfs::new());
    let layout = read_file(disk, path, 1 << 20).unwrap().expect("a document");
    replace_file(&copy, path, &layout).unwrap();
    copy
}

/// Whether the group of node 1 began again on `vfs`.
fn begins_again(vfs: Arc<dyn Vfs>, seed: u64) -> store::Result<bool> {
    let environment = Environment::simulated(vfs, &ManualClock::new(NOW_MS), seed);
    let fence = Arc::new(Fence::open(Arc::clone(&environment.vfs), Path::new(DIR))?);
    begin_again(&environment, Path::new(DIR), id(1), &fence)
}

/// A leader, and what was there before; and the same after another start.
async fn goes_on(disk: &MemVfs, tenants: std::ops::RangeInclusive<u128>) -> Arc<Document> {
    let mut cluster = Cluster::new();
    cluster.start(1, disk.clone(), ConsensusOptions::default()).await;
    let new = *tenants.end();
    let answer = cluster.group(1).propose(create(new), within(20)).await;
    assert!(is_created(&answer), "{answer:?}");
    let document = cluster.nodes[&1].fence.document();
    assert!(tenants.clone().all(|n| has(&document, n)), "{document:?}");
    let _disk = cluster.crash(1).await;
    document
}

#[tokio::test(start_paused = true)]
async fn a_cluster_of_one_that_comes_from_a_checkpoint_has_a_leader_and_is_told_from_the_old() {
    let mut cluster = Cluster::formed(1).await;
    assert!(is_created(&cluster.group(1).propose(create(1), within(5)).await));
    let old = cluster.nodes[&1].fence.document();
    let disk = cluster.crash(1).await;
    assert!(!begins_again(Arc::new(disk.clone()), 5).unwrap(), "it has all its files");
    let restored = checkpoint(&disk);
    assert!(begins_again(Arc::new(restored.clone()), 6).unwrap());
    let document = goes_on(&restored, 1..=2).await;
    assert_ne!(document.formation, old.formation);
    assert_eq!(document.cluster_id, old.cluster_id);
    assert!(!begins_again(Arc::new(restored.clone()), 7).unwrap(), "once is enough");
    assert_eq!(goes_on(&restored, 1..=3).await.formation, document.formation);
    let fence = Fence::open(Arc::new(disk), Path::new(DIR)).unwrap();
    assert_eq!(fence.adopt(&document).unwrap_err().reason(), "WRONG_CLUSTER");
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_file_call_while_it_begins_again_leaves_one_that_does() {
    let mut cluster = Cluster::formed(1).await;
    assert!(is_created(&cluster.group(1).propose(create(1), within(5)).await));
    let disk = cluster.crash(1).await;
    for failing in 1.. {
        let restored = checkpoint(&disk);
        let faults = FaultVfs::new(Arc::new(restored.clone()));
        faults.fail_call(failing, std::io::ErrorKind::Other);
        let _failed = begins_again(Arc::new(faults.clone()), failing).is_err();
        let left = restored.crash_clone(failing);
        begins_again(Arc::new(left.clone()), 1000 + failing).expect("nothing is damaged");
        let _document = goes_on(&left, 1..=2).await;
        if faults.calls() < failing {
            assert!(failing > 15, "{failing}");
            break;
        }
    }
}

/// What it had promised to the others is gone with its log: it must not vote, and says so.
#[tokio::test(start_paused = true)]
async fn a_node_of_several_does_not_come_back_from_a_checkpoint() {
    let mut cluster = Cluster::formed(3).await;
    let restored = checkpoint(&cluster.crash(1).await);
    assert!(!begins_again(Arc::new(restored.clone()), 5).unwrap());
    let environment = Environment::simulated(Arc::new(restored), &ManualClock::new(NOW_MS), 6);
    let fence = Arc::new(Fence::open(Arc::clone(&environment.vfs), Path::new(DIR)).unwrap());
    let (pace, peers) = (ConsensusOptions::default(), cluster.net.peers(id(1)));
    let started =
        Consensus::start(pace, &environment, Path::new(DIR), id(1), peers, fence, true).await;
    let error = started.map(drop).unwrap_err().to_string();
    assert!(error.contains("does not come back from a checkpoint"), "{error}");
}
