//! Replicas that have lost data: they vouch for nothing until they have it back.

use super::*;
use bytes::Bytes;

use crate::engine::vfs::Vfs;
use crate::replication::departure::cover::{Cover, Held};
use crate::replication::progress::Rate;
use crate::store::EngineKey;

const OTHERS: [u128; 2] = [1, 2];

/// A damaged partition gives no hash, no keys, no rows; its node takes part in no round. Nothing
/// looks equal because nothing is there.
#[tokio::test(start_paused = true)]
async fn a_damaged_partition_answers_nothing_and_blocks_the_round() {
    let trio = Trio::new();
    trio.write(0, "default", delete("k"), &[1, 2]);
    trio.store(2).mark_damaged(ALL, &OTHERS).expect("marked");
    let summary = trio.compare(0, 2).await.expect("compared");
    assert_eq!((summary.rows, summary.left), (0, 4), "no partition was compared");
    let summary = trio.compare(2, 0).await.expect("compared");
    assert_eq!((summary.rows, summary.left), (0, 4));
    let ask = |request| {
        let handler = trio.net.handlers.lock()[&id(2)].clone();
        let limit = Duration::from_secs(1);
        async move { handler.handle(id(0), Class::Background, 1, request, limit).await }
    };
    let leaves = proto::LeafRequest { replicas: 3, ..Default::default() };
    let refused = ask(Request::Leaves(leaves)).await.expect_err("it has no word");
    assert!(refused.to_string().contains("DAMAGED"), "{refused}");
    let page = proto::PageRequest { token_end: u64::MAX, ..Default::default() };
    let refused = ask(Request::Page(page)).await.expect_err("it has no word");
    assert!(refused.to_string().contains("DAMAGED"), "{refused}");
    assert_eq!(trio.round().await, 1);
    assert_eq!(trio.store(0).floor_of_partition(0).expect("sound"), 0);
    let time = trio.now();
    assert!(trio.store(2).fence(&[ALL], time).is_err());
}

/// It gets back what it lost, drops what it should not have, and vouches again: after an exchange
/// with each of the others, not before.
#[tokio::test(start_paused = true)]
async fn a_damaged_replica_gets_its_rows_back_from_both_others() {
    for tenant in TENANTS {
        let mut trio = Trio::new();
        let old = trio.write_at(0, tenant, put("dead", "x"));
        trio.deliver(&old, 1).expect("taken");
        trio.deliver(&old, 2).expect("taken");
        let before = trio.nodes[2].vfs.crash_clone(1);
        trio.write(0, tenant, delete("dead"), &[1, 2]);
        for key in 0..20 {
            trio.write(key % 3, tenant, put(&format!("k{key}"), "v"), &[0, 1, 2]);
        }
        assert_eq!(trio.round().await, 0);
        trio.forget();
        // Its disk is set back to before the delete.
        trio.stop(2);
        trio.nodes[2].vfs = before;
        trio.start(2);
        let born = trio.store(2).identity().actor;
        trio.store(2).mark_damaged(ALL, &OTHERS).expect("marked");
        assert_ne!(trio.store(2).identity().actor, born);
        trio.net.down.lock().insert(id(1));
        trio.anti_entropy(2).exchange_damaged().await;
        assert_eq!(trio.store(2).damaged().len(), 4, "one has not been exchanged with");
        assert!(trio.store(2).damaged().iter().all(|(_, peers)| peers[..] == [2]));
        trio.net.down.lock().remove(&id(1));
        trio.anti_entropy(2).exchange_damaged().await;
        assert_eq!(trio.store(2).damaged(), []);
        for key in 0..20 {
            assert_eq!(trio.all_values(tenant, &format!("k{key}")), [["v"]; 3]);
        }
        assert_eq!(trio.all_values(tenant, "dead"), [[""; 0]; 3]);
        assert_eq!(trio.round().await, 0);
    }
}

/// Flips a bit in the first block of a stopped node's tables: of all, or of the newest.
fn rot(trio: &Trio, at: usize, which: Which) {
    let (vfs, dir) = (&trio.nodes[at].vfs, Path::new("/node/engine"));
    let mut names = vfs.list(dir).expect("lists");
    names.retain(|name| name.extension().is_some_and(|end| end == "sst"));
    names.sort_unstable();
    if which == Which::Newest {
        names.drain(..names.len() - 1);
    }
    assert!(!names.is_empty());
    for name in names {
        let file = vfs.open(&dir.join(name)).expect("opens");
        let mut byte = [0];
        file.read_at(40, &mut byte).expect("reads");
        file.write_at(40, &[byte[0] ^ 4]).expect("writes");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    Newest,
}

impl Trio {
    /// Its disk rots while it is stopped.
    fn restart_rotten(&mut self, at: usize, which: Which) {
        self.store(at).close().expect("closed");
        self.stop(at);
        rot(self, at, which);
        self.start(at);
    }
}

/// A bit flips on one of three disks. Nobody who reads at QUORUM is told, from whichever node; the
/// replica notices, asks the others, and is whole: equal rows, and safe points move again.
#[tokio::test(start_paused = true)]
async fn a_flipped_bit_in_a_table_is_mended_by_the_others_without_help() {
    let mut trio = Trio::new();
    for tenant in TENANTS {
        for n in 0..120 {
            trio.write(n % 3, tenant, put(&format!("k{n}"), "v"), &[0, 1, 2]);
        }
    }
    trio.litter();
    for at in 0..3 {
        trio.store(at).compact().expect("compacted");
    }
    trio.restart_rotten(2, Which::All);
    let born = trio.store(2).identity().actor;
    let lost = |trio: &Trio, key: &str| trio.store(2).read("default", key.as_bytes()).is_err();
    let unread = (0..120).filter(|n| lost(&trio, &format!("k{n}"))).count();
    assert!((1..120).contains(&unread), "{unread} rows cannot be read");
    assert!(trio.round().await > 0, "what cannot be read cannot be compared");

    for (n, tenant) in (0..120).flat_map(|n| TENANTS.map(|tenant| (n, tenant))) {
        for at in 0..3 {
            let read = trio.quorum(at, tenant, &format!("k{n}")).await;
            assert_eq!(read.expect("the others have it"), [b"v"]);
        }
    }
    trio.anti_entropy(2).heal().await;
    assert_eq!((trio.store(2).unreadable(), trio.store(2).damaged()), (vec![], vec![]));
    assert_ne!(trio.store(2).identity().actor, born);
    let counters = &trio.anti_entropy(2).counters;
    assert!(counters.mended.load(Ordering::Relaxed) > 0);
    for (n, tenant) in (0..120).flat_map(|n| TENANTS.map(|tenant| (n, tenant))) {
        assert_eq!(trio.all_values(tenant, &format!("k{n}")), [["v"]; 3]);
    }
    for (at, with) in [(0, 1), (0, 2), (1, 2)] {
        let summary = trio.compare(at, with).await.expect("compared");
        assert_eq!((summary.rows, summary.left), (0, 0));
    }
    assert_eq!(trio.round().await, 0);
    assert!(!trio.has_damage_after_restart());
}

impl Trio {
    /// What was mended stays mended.
    fn has_damage_after_restart(&mut self) -> bool {
        self.restart(2);
        self.store(2).has_damage()
    }
}

impl Trio {
    /// The third has lost the delete of a value that it still has below it; the others have
    /// forgotten both.
    async fn lose_a_delete(&mut self, tenant: &str, key: &str) {
        self.write(0, tenant, put(key, "x"), &[1, 2]);
        self.store(2).compact().expect("at the bottom");
        self.write(0, tenant, delete(key), &[1, 2]);
        self.store(2).flush().expect("above it");
        assert_eq!(self.round().await, 0);
        for at in 0..2 {
            self.store(at).flush().expect("flushed");
            self.store(at).compact().expect("forgotten");
        }
        self.restart_rotten(2, Which::Newest);
    }
}

/// The lost block held a delete, the value is still there below it, and the others have forgotten
/// both. As long as one of them is away a quorum is refused, not shown the value; then it is dead.
#[tokio::test(start_paused = true)]
async fn what_a_lost_block_hid_is_shown_to_nobody_and_dies_again() {
    for tenant in TENANTS {
        let mut trio = Trio::new();
        trio.lose_a_delete(tenant, "k").await;
        assert!(trio.store(2).read(tenant, b"k").is_err());
        trio.net.down.lock().insert(id(1));
        trio.anti_entropy(2).heal().await;
        assert_eq!(trio.store(2).unreadable(), []);
        let tenant_id = trio.store(2).tenant(tenant).expect("there").id;
        let hidden = trio.store(2).damaged_row(tenant_id, b"k").expect("readable");
        assert!(trio.store(2).raw_row(tenant_id, b"k").is_err(), "{hidden:?}");
        let refused = trio.quorum(0, tenant, "k").await.expect_err("one of three has a word");
        assert!(refused.to_string().contains("DAMAGED"), "{refused}");
        trio.net.down.lock().remove(&id(1));
        trio.anti_entropy(2).exchange_damaged().await;
        assert_eq!(trio.store(2).damaged(), []);
        assert_eq!(trio.all_values(tenant, "k"), [[""; 0]; 3]);
        assert_eq!(trio.quorum(2, tenant, "k").await.expect("all are up").len(), 0);
    }
}

/// A tenant gets a third replica, and the node that is to be it has merged its rows and loses some:
/// it does not say that there are none. It has them back when the tenant has its replicas, whatever
/// it exchanges with the others until then.
async fn replica_to_be_loses_rows(has_another_tenant: bool) {
    let mut trio = Trio::new();
    for n in 0..120 {
        trio.write(n % 3, "default", put(&format!("k{n}"), "v"), &[0, 1, 2]);
    }
    let has_replicas = |trio: &Trio, factor| {
        let change = TenantChange { replication_factor: Some(factor), ..TenantChange::default() };
        let alter = |at| trio.store(at).alter_tenant("default", change.clone()).expect("altered");
        (0..3).for_each(|at| drop(alter(at)));
    };
    has_replicas(&trio, 2);
    let [growing, other] = TENANTS.map(|name| trio.store(0).tenant(name).expect("there").id);
    let with_another = |document: &mut Document| {
        let tenant = Tenant { id: other, ..document.tenants[&growing].clone() };
        document.tenants.extend(has_another_tenant.then_some((other, tenant)));
    };
    let joint = document(2, |document| {
        with_another(document);
        document.tenants.entry(growing).and_modify(|tenant| tenant.replication_factor = 2);
        document.next_factors = [(growing, 3)].into();
        document.next_owners = Some(document.owners.clone());
    });
    let at = (0..3).find(|at| !joint.sets(0, 2).contains(id(*at))).expect("two of three own it");
    trio.store(at).compact().expect("compacted");
    trio.restart_rotten(at, Which::All);
    trio.adopt(&joint, &[0, 1, 2]);
    let read = |n: usize| trio.store(at).read("default", format!("k{n}").as_bytes());
    assert!((0..120).filter(|n| read(*n).is_err()).count() > 0, "nothing is lost");
    trio.anti_entropy(at).heal().await;
    assert_eq!(trio.store(at).unreadable(), []);
    trio.anti_entropy(at).exchange_damaged().await;
    let held = (0..120).map(|n| trio.store(at).raw_row(growing, format!("k{n}").as_bytes()));
    let (words, refused): (Vec<_>, Vec<_>) = held.partition(Result::is_ok);
    assert!(words.into_iter().all(|row| row.expect("a word").row.is_some()), "some are lost");
    assert!(!refused.is_empty());

    has_replicas(&trio, 3);
    trio.adopt(&document(3, with_another), &[0, 1, 2]);
    trio.anti_entropy(at).exchange_damaged().await;
    assert_eq!(trio.store(at).damaged(), []);
    for n in 0..120 {
        assert_eq!(trio.all_values("default", &format!("k{n}")), [["v"]; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_to_be_that_has_lost_rows_does_not_vouch_for_what_is_left() {
    replica_to_be_loses_rows(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_to_be_is_not_mended_by_rows_of_another_tenant() {
    replica_to_be_loses_rows(true).await;
}

/// Where a tenant has one replica there is nobody to ask: the block stays, its keys fail by name,
/// other keys are served, and the node says that it keeps a block.
#[tokio::test(start_paused = true)]
async fn a_block_of_which_there_is_no_other_copy_stays_and_fails_by_name() {
    let mut trio = Trio::new();
    for n in 0..120 {
        trio.write(2, "default", put(&format!("k{n}"), "v"), &[]);
    }
    trio.store(2).compact().expect("compacted");
    trio.restart_rotten(2, Which::All);
    let alone = document(2, |document| {
        document.tenants.values_mut().for_each(|tenant| tenant.replication_factor = 1);
        document.owners.retain(|node, _| *node == id(2));
    });
    trio.adopt(&alone, &[2]);
    trio.anti_entropy(2).heal().await;
    let read = |n: usize| trio.store(2).read("default", format!("k{n}").as_bytes());
    let errors: Vec<store::Error> = (0..120).filter_map(|n| read(n).err()).collect();
    assert!((1..120).contains(&errors.len()), "{} rows cannot be read", errors.len());
    assert!(errors.iter().all(|error| error.reason() == "CORRUPTION"), "{errors:?}");
    trio.anti_entropy(2).heal().await;
    assert!(!trio.store(2).unreadable().is_empty());
    assert_eq!(trio.store(2).damaged(), []);
    assert!(trio.anti_entropy(2).counters.kept.load(Ordering::Relaxed) > 0);
    assert!((0..120).filter_map(|n| read(n).err()).count() == errors.len());
}

/// Who was to give back what was lost is gone for good: those who have its rows now are asked.
#[tokio::test(start_paused = true)]
async fn a_giver_that_is_no_replica_any_more_is_not_waited_for() {
    let trio = Trio::new();
    trio.write(0, "default", put("k", "v"), &[1]);
    trio.store(2).mark_damaged(ALL, &[1, 9]).expect("marked");
    trio.net.down.lock().insert(id(1));
    trio.anti_entropy(2).exchange_damaged().await;
    let left = trio.store(2).damaged();
    assert!(left.iter().all(|(_, peers)| peers[..] == [2]) && left.len() == 4, "{left:?}");
    trio.net.down.lock().remove(&id(1));
    trio.anti_entropy(2).exchange_damaged().await;
    assert_eq!(trio.store(2).damaged(), []);
    assert_eq!(trio.values(2, "default", "k"), ["v"]);
}

/// What is read everywhere of a value that was deleted and forgotten, and of one that was not, when
/// the log of one of three was damaged in the middle, its operator had it started all the same, and
/// all were compared.
async fn after_an_accepted_log(removed: &[&'static str]) -> [Vec<Vec<String>>; 2] {
    let mut trio = Trio::with(|_| {}, removed);
    trio.write(0, "default", put("deleted", "x"), &[1, 2]);
    trio.store(2).flush().expect("in a table");
    for n in 0..20 {
        trio.write(n % 2, "default", put(&format!("k{n}"), "v"), &[0, 1, 2]);
    }
    trio.write(0, "default", delete("deleted"), &[1, 2]);
    assert_eq!(trio.round().await, 0);
    for at in 0..2 {
        trio.store(at).flush().expect("flushed");
        trio.store(at).compact().expect("forgotten");
    }
    trio.write(0, "default", put("later", "v"), &[1, 2]);
    trio.stop(2);
    let (vfs, dir) = (&trio.nodes[2].vfs, Path::new("/node/engine"));
    let mut logs = vfs.list(dir).expect("lists");
    logs.retain(|name| name.extension().is_some_and(|end| end == "log"));
    logs.sort_unstable();
    let file = vfs.open(&dir.join(&logs[0])).expect("opens");
    let mut byte = [0];
    file.read_at(400, &mut byte).expect("reads");
    file.write_at(400, &[byte[0] ^ 4]).expect("writes");
    trio.accepts_log_corruption = true;
    trio.start(2);
    assert!(trio.store(2).read("default", b"k9").expect("readable").siblings.is_empty());
    // The mark is in the manifest.
    trio.restart(2);
    trio.anti_entropy(2).exchange_damaged().await;
    assert_eq!(trio.store(2).damaged(), []);
    for (at, with) in [(0, 2), (1, 2), (0, 1)] {
        trio.compare(at, with).await.expect("compared");
    }
    ["deleted", "k9"].map(|key| trio.all_values("default", key))
}

/// The floors of a node whose log was damaged would vouch for what it has forgotten: what was
/// deleted would come back everywhere. It vouches for nothing until it has asked the others.
#[tokio::test(start_paused = true)]
async fn a_damaged_log_that_is_accepted_brings_nothing_back() {
    let [deleted, kept] = after_an_accepted_log(&[]).await;
    assert_eq!((deleted, kept), (vec![vec![]; 3], vec![vec!["v".to_owned()]; 3]));
    let [deleted, _] = after_an_accepted_log(&["damaged_state"]).await;
    assert_eq!(deleted, [["x"]; 3], "the rule is needed");
}

impl Trio {
    /// Gives a row of a node that owns it no more to those who do, as rule D1 has it.
    async fn give_away(&self, at: usize, tenant: &str, key: &str, layout: &Layout, to: &[usize]) {
        let tenant = self.store(at).tenant(tenant).expect("there").id;
        let mut rows = Vec::new();
        let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
        let keep = |engine_key: &[u8], row: &[u8]| {
            let found = EngineKey::decode(engine_key)?;
            if (found.tenant, found.key) == (tenant, key.as_bytes()) {
                let key = Bytes::copy_from_slice(found.key);
                let owners = to.iter().map(|at| id(*at)).collect();
                rows.push(Held { tenant, key, row: Bytes::copy_from_slice(row), owners });
            }
            Ok(true)
        };
        self.store(at).visit_by_token(whole, None, usize::MAX, keep).expect("read");
        assert_eq!(rows.len(), 1, "it is here");
        let peers: Arc<dyn Peers> = Arc::new(Link { node: id(at), net: Arc::clone(&self.net) });
        let fence: Arc<dyn Fence> = Arc::clone(&self.nodes[at].gate) as _;
        let cover = Cover {
            store: self.store(at),
            peers: &peers,
            fence: &fence,
            layout,
            rate: &Rate::new(0),
            timeout: Duration::from_secs(5),
        };
        cover.cover(&rows, &[BTreeSet::new()]).await.expect("taken");
    }
}

/// The same, but the node that has lost the delete owns the row no more: it has it still to give
/// to its owners, who have forgotten both. Its floor is no word on what it has lost, whether the
/// block is lost before or after the layout changed.
#[tokio::test(start_paused = true)]
async fn what_a_lost_block_hid_does_not_come_back_by_a_row_that_is_given_away() {
    for (tenant, is_lost_before) in TENANTS.into_iter().flat_map(|one| [(one, true), (one, false)])
    {
        let mut trio = Trio::new();
        trio.lose_a_delete(tenant, "k").await;
        if is_lost_before {
            assert!(trio.store(2).read(tenant, b"k").is_err());
            trio.net.down.lock().extend([id(0), id(1)]);
            trio.anti_entropy(2).heal().await;
            trio.net.down.lock().clear();
        }
        let without = document(2, |document| {
            document.owners.retain(|node, _| *node != id(2));
            document.departed.insert(id(2), 2);
        });
        trio.adopt(&without, &[0, 1, 2]);
        assert_eq!(trio.store(2).read(tenant, b"k").is_err(), !is_lost_before);
        trio.anti_entropy(2).heal().await;
        assert_eq!(trio.store(2).unreadable(), []);
        trio.anti_entropy(2).exchange_damaged().await;
        trio.give_away(2, tenant, "k", &without, &[0, 1]).await;
        for at in 0..2 {
            assert!(trio.values(at, tenant, "k").is_empty(), "it was deleted");
        }
        // With the last of these rows the mark goes.
        assert!(!trio.store(2).damaged().is_empty());
        trio.store(2).forget_safe_points(|| vec![ALL]).expect("forgotten");
        assert_eq!(trio.store(2).damaged(), []);
    }
}

/// Two of three replicas are to be none, and hold what the third has lost: it does not say that
/// there is nothing before they have given it away.
#[tokio::test(start_paused = true)]
async fn a_giver_that_still_has_rows_to_give_away_is_waited_for() {
    let trio = Trio::new();
    trio.write(0, "default", put("k", "v"), &[1]);
    trio.store(2).mark_damaged(ALL, &OTHERS).expect("marked");
    let alone = |epoch, departed: &[usize]| {
        document(epoch, |document| {
            document.tenants.values_mut().for_each(|tenant| tenant.replication_factor = 1);
            document.owners.retain(|node, _| *node == id(2));
            document.departed = departed.iter().map(|at| (id(*at), 2)).collect();
        })
    };
    trio.adopt(&alone(2, &[0, 1]), &[0, 1, 2]);
    trio.anti_entropy(2).exchange_damaged().await;
    let left = trio.store(2).damaged();
    assert!(left.iter().all(|(_, peers)| peers[..] == OTHERS) && left.len() == 4, "{left:?}");
    let tenant = trio.store(2).tenant("default").expect("there").id;
    assert!(trio.store(2).raw_row(tenant, b"k").is_err(), "it has no word");
    trio.give_away(0, "default", "k", &alone(2, &[0, 1]), &[2]).await;
    trio.adopt(&alone(3, &[1]), &[0, 1, 2]);
    trio.anti_entropy(2).exchange_damaged().await;
    let left = trio.store(2).damaged();
    assert!(left.iter().all(|(_, peers)| peers[..] == [2]) && left.len() == 4, "{left:?}");
    trio.adopt(&alone(4, &[]), &[0, 1, 2]);
    trio.anti_entropy(2).exchange_damaged().await;
    assert_eq!(trio.store(2).damaged(), []);
    assert_eq!(trio.values(2, "default", "k"), ["v"]);
}

/// Two of three have lost data of the same partitions, each something else: each gets back from
/// the other what only that one has. What the third knows to be dead stays dead, though one of the
/// two has lost the delete and still has the value below it.
#[tokio::test(start_paused = true)]
async fn two_that_have_lost_data_do_not_wait_for_each_other_for_ever() {
    for tenant in TENANTS {
        let mut trio = Trio::new();
        trio.lose_a_delete(tenant, "dead").await;
        assert!(trio.store(2).read(tenant, b"dead").is_err());
        trio.net.down.lock().extend([id(0), id(1)]);
        trio.anti_entropy(2).heal().await;
        trio.net.down.lock().clear();
        for n in 0..20 {
            trio.write(1, tenant, put(&format!("first{n}"), "v"), &[0]);
            trio.write(2, tenant, put(&format!("second{n}"), "v"), &[0]);
            trio.write(1, tenant, put(&format!("only{n}"), "v"), &[]);
        }
        trio.store(2).mark_damaged(ALL, &OTHERS).expect("marked");
        trio.store(1).mark_damaged(ALL, &[1, 3]).expect("marked");
        let tenant_id = trio.store(2).tenant(tenant).expect("there").id;
        let hidden = trio.store(2).damaged_row(tenant_id, b"dead").expect("readable");
        assert!(hidden.row.is_some(), "it is seen again");
        for at in [1, 2, 1, 2, 1, 2] {
            trio.anti_entropy(at).exchange_damaged().await;
        }
        assert_eq!((trio.store(1).damaged(), trio.store(2).damaged()), (vec![], vec![]));
        assert_eq!(trio.all_values(tenant, "dead"), [[""; 0]; 3]);
        for (n, of) in (0..20).flat_map(|n| ["first", "second", "only"].map(|of| (n, of))) {
            trio.compare(0, 2).await.expect("compared");
            assert_eq!(trio.all_values(tenant, &format!("{of}{n}")), [["v"]; 3]);
        }
        assert_eq!(trio.round().await, 0);
    }
}
