//! Disks that fail under a member of the group.

use crate::cluster::layout::Change;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{Effect, Fault, Operation};

use super::*;

/// A group whose member `away` is so far behind that only a snapshot helps: its disk, who leads,
/// and the version of the document.
async fn far_behind(options: ConsensusOptions) -> (Cluster, u128, MemVfs, u128, u64) {
    const PROPOSALS: u64 = 14;
    let mut cluster = Cluster::formed_with(3, options).await;
    let leader = cluster.leader(1).await;
    let away = (1..=3).find(|n| *n != leader).unwrap();
    let old = cluster.crash(away).await;
    for n in 0..PROPOSALS {
        let answer = cluster.group(leader).propose(create(1000 + u128::from(n)), within(20)).await;
        assert!(is_created(&answer), "{answer:?}");
    }
    (cluster, away, old, leader, 1 + PROPOSALS)
}

/// A snapshot takes the place of a log that is cut behind it, and openraft cuts without waiting for
/// the snapshot. The machine dies at every third file call in turn: it must never be without both.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_file_call_while_a_snapshot_is_installed_leaves_a_node_that_starts() {
    let options = ConsensusOptions { snapshot_entries: 8, ..ConsensusOptions::default() };
    for last in (1..).step_by(3) {
        let (mut cluster, away, disk, leader, version) = far_behind(options).await;
        let faults = FaultVfs::new(Arc::new(disk.clone()));
        faults.inject(Fault { skip: last - 1, times: u64::MAX, ..Fault::default() });
        let mut left = disk.crash_clone(last);
        if cluster.try_start(away, &disk, Arc::new(faults.clone()), options).await {
            let mut watch = cluster.nodes[&away].fence.watch();
            let learned = watch.wait_for(|layout| layout.version() >= version);
            let _cut_short = tokio::time::timeout(Duration::from_secs(3), learned).await.is_err();
            left = cluster.crash(away).await;
        }
        assert!(
            cluster.try_start(away, &left, Arc::new(left.clone()), options).await,
            "after call {last} the node does not start"
        );
        let answer = cluster.group(leader).propose(create(7), within(20)).await;
        assert!(is_created(&answer), "call {last}: {answer:?}");
        assert!(has(&cluster.learned(away, version + 1).await, 7), "call {last}");
        assert!(Vfs::exists(&left, Path::new("/raft/SNAPSHOT")).unwrap(), "it took no snapshot");
        if faults.calls() < last {
            assert!(last > 10, "{last}");
            break;
        }
    }
}

/// A full disk ends the group on its leader: nobody may go on to be told that it leads, and whoever
/// looks after the node must learn of it.
#[tokio::test(start_paused = true)]
async fn a_member_that_cannot_write_says_so_and_leads_no_more() {
    for file in ["LOG", "SNAPSHOT", "LAYOUT"] {
        let options = ConsensusOptions { snapshot_entries: 4, ..ConsensusOptions::default() };
        let disk = MemVfs::new();
        let faults = FaultVfs::new(Arc::new(disk.clone()));
        let mut cluster = Cluster::new();
        assert!(cluster.try_start(1, &disk, Arc::new(faults.clone()), options).await);
        let group = cluster.group(1);
        group.form((id(99), id(98)), 4, &members([1]), NOW_MS, within(3)).await.unwrap();
        assert!(group.status().is_leader);
        let quick = Duration::from_secs(5);
        assert!(tokio::time::timeout(quick, group.ended()).await.is_err(), "it runs");
        let effect = Effect::Fail(std::io::ErrorKind::StorageFull);
        let path_contains = file.to_owned();
        let operation = Some(Operation::WriteAt);
        faults.inject(Fault { operation, path_contains, effect, ..Fault::default() });
        for n in 0..8 {
            let _some_fail = group.propose(create(n), within(3)).await.is_err();
        }
        let why = tokio::time::timeout(quick, group.ended()).await.expect(file);
        assert!(why.contains(file), "{why}");
        let status = group.status();
        assert_eq!((status.leader, status.is_leader), (None, false), "{file}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_is_shut_down_has_not_ended_by_itself() {
    let cluster = Cluster::formed(1).await;
    cluster.group(1).shutdown().await;
    let ended = tokio::time::timeout(Duration::from_secs(60), cluster.group(1).ended()).await;
    assert!(ended.is_err(), "{ended:?}");
}

/// Whoever has a cluster has had a log, with votes in it: without one it could vote twice.
#[tokio::test(start_paused = true)]
async fn a_log_that_is_missing_while_the_node_has_a_cluster_is_corruption() {
    let mut cluster = Cluster::formed(3).await;
    let (member, alone) = (cluster.crash(2).await, MemVfs::new());
    answered_until(u64::MAX, &alone, ConsensusOptions::default()).await;
    let starts = async |n: u128, disk: &MemVfs, has_cluster: bool| {
        let clock = ManualClock::new(NOW_MS);
        let environment = Environment::simulated(Arc::new(disk.clone()), &clock, 1);
        let dir = Path::new("/");
        let fence = Arc::new(Fence::open(Arc::clone(&environment.vfs), dir).unwrap());
        let (pace, peers) = (ConsensusOptions::default(), cluster.net.peers(id(n)));
        Consensus::start(pace, &environment, dir, id(n), peers, fence, has_cluster).await.is_ok()
    };
    Vfs::remove(&member, Path::new("/raft/LOG")).unwrap();
    assert!(!starts(2, &member, true).await);
    Vfs::remove(&alone, Path::new("/raft/LOG")).unwrap();
    let restored = alone.crash_clone_kill();
    assert!(starts(1, &restored, true).await, "nobody else asks for its votes");
    // Its cluster was about to be formed.
    Vfs::remove(&alone, Path::new("/LAYOUT")).unwrap();
    assert!(!starts(1, &alone, true).await);
    assert!(starts(1, &alone, false).await, "it has no cluster yet");
}

/// A log that was cut further than the snapshot reaches has lost what stood between.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_missing_behind_a_log_that_was_cut_is_corruption() {
    let options = ConsensusOptions { snapshot_entries: 4, ..ConsensusOptions::default() };
    let disk = MemVfs::new();
    answered_until(u64::MAX, &disk, options).await;
    Vfs::remove(&disk, Path::new("/raft/SNAPSHOT")).unwrap();
    let mut cluster = Cluster::new();
    assert!(!cluster.try_start(1, &disk, Arc::new(disk.clone()), options).await);
}

/// A change of voters is under way when a voter dies beside the one that is taken out: neither half
/// can commit. It is finished when the voter returns, though nothing else happens then.
#[tokio::test(start_paused = true)]
async fn a_change_of_voters_is_finished_however_long_it_could_not_be() {
    let mut cluster = Cluster::formed(4).await;
    let leader = cluster.leader(1).await;
    let all = |status: &GroupStatus| status.voters.len() + status.learners.len() == 4;
    let before = cluster.wait(leader, |status| all(status) && status.voters.len() == 3).await;
    let mut others = before.voters.iter().map(|voter| voter.0).filter(|voter| *voter != leader);
    let (dead, away) = (others.next().unwrap(), others.next().unwrap());
    let _disk = cluster.crash(dead).await;
    let change = Change { removes: [id(dead)].into(), ..Change::default() };
    let mut watch = cluster.nodes[&leader].fence.watch();
    let answer =
        cluster.group(leader).propose(Command::Change { epoch: 1, change }, within(5)).await;
    assert_eq!(answer, Ok(Answer::Done { epoch: 2 }));
    watch.wait_for(|layout| layout.epoch() == 2).await.unwrap();
    let disk = cluster.crash(away).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let configs = |cluster: &Cluster| {
        let metrics = cluster.group(leader).raft.metrics().borrow().clone();
        metrics.membership_config.membership().get_joint_config().clone()
    };
    assert_eq!(configs(&cluster).len(), 2, "it is half done");
    let due = |cluster: &Cluster| {
        let group = &cluster.nodes[&leader];
        group.consensus.votes_due(&group.fence.document())
    };
    let fourth = (1..=4).map(id).find(|n| !before.voters.contains(n)).unwrap();
    let (to_begin, to_end) = ([fourth].into(), [id(dead)].into());
    assert_eq!(due(&cluster), VotesDue { to_begin, to_end }, "and says so");
    cluster.start(away, disk, ConsensusOptions::default()).await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    let after = configs(&cluster);
    let voters: BTreeSet<NodeId> = (1..=4).filter(|n| *n != dead).map(id).collect();
    assert_eq!((after, due(&cluster)), (vec![voters], VotesDue::default()));
    assert_eq!(cluster.leader(leader).await, leader, "no election has helped");
}
