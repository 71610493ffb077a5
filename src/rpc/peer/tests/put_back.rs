//! Who learns by the first messages of a stream that a node was put back.

use super::*;
use crate::cluster::local::Told;
use crate::rpc::peer::hello::Reason;

const FOUND: u64 = 300;

/// Node 2 in its generation 8, which found [`FOUND`], and others.
struct Stage {
    world: World,
    two: TestNode,
}

impl Stage {
    async fn new() -> Self {
        let (mut world, _) = World::in_memory();
        world.lease_found = FOUND;
        let any = "127.0.0.1:0".parse().expect("an address");
        let two = world.start(2, Some(CLUSTER), 8, any).await;
        Self { world, two }
    }

    /// A node that has heard this of it.
    async fn who_heard(&self, id: u128, generation: u64, lease: u64) -> TestNode {
        let node = self.world.node(id, Some(CLUSTER)).await;
        node.local.hear_generation(self.two.node, generation).expect("the first");
        node.local.hear_lease(self.two.node, generation, lease);
        node
    }

    /// Whether node 2 was put back, and whether its clock was confirmed, as far as it knows.
    fn learnt(&self) -> (bool, bool) {
        let local = &self.two.local;
        (*local.rolled_back().borrow(), *local.confirmed().borrow())
    }
}

/// They speak no more, in whichever direction, and nothing was asked of a handler.
async fn silent(one: &TestNode, two: &TestNode) {
    let before = one.asked() + two.asked();
    for (from, to) in [(one, two), (two, one)] {
        let error = from.ask(to, "still there?").await.expect_err("refused");
        assert!(error.to_string().contains(Reason::RolledBack.name()), "{error}");
    }
    assert_eq!(one.asked() + two.asked(), before);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_calls_learns_it_by_the_answer() {
    let stage = Stage::new().await;
    let one = stage.who_heard(1, 7, FOUND + 1).await;
    let error = stage.two.ask(&one, "hello").await.expect_err("it was put back");
    assert!(error.to_string().contains("ROLLED_BACK"), "{error}");
    assert_eq!(stage.learnt(), (true, false));
    silent(&one, &stage.two).await;
}

/// Who calls may not know yet that another life has begun: what it heard in the one before counts.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_called_learns_it_at_once() {
    let stage = Stage::new().await;
    let one = stage.who_heard(1, 7, FOUND + 1).await;
    let error = one.ask(&stage.two, "hello").await.expect_err("it was put back");
    assert!(error.to_string().contains("ROLLED_BACK"), "{error}");
    assert_eq!(stage.learnt(), (true, false));
    silent(&one, &stage.two).await;
}

/// A machine put back with its memory goes on in the same life: no start has looked at the disk.
#[tokio::test(start_paused = true)]
async fn a_life_that_goes_on_from_an_earlier_moment_is_put_back() {
    let stage = Stage::new().await;
    stage.two.local.tell_lease(500);
    let one = stage.who_heard(1, 8, 500).await;
    assert_eq!(stage.two.ask(&one, "hello").await, echoed("hello"));
    assert_eq!(stage.learnt(), (false, true));
    let three = stage.who_heard(3, 8, 501).await;
    three.ask(&stage.two, "hello").await.expect_err("it was put back");
    assert_eq!(stage.learnt(), (true, true));
    silent(&three, &stage.two).await;
    // Nor to who knows no more than it does, on the stream it had.
    silent(&one, &stage.two).await;
}

/// Who answers knows this life by then, who calls only if it was heard of before.
#[tokio::test(start_paused = true)]
async fn a_clock_is_confirmed_by_who_knows_this_life() {
    let stage = Stage::new().await;
    let (one, two) = (stage.who_heard(1, 7, FOUND).await, &stage.two);
    assert_eq!(one.ask(two, "of the life before").await, echoed("of the life before"));
    assert_eq!(stage.learnt(), (false, false));
    assert_eq!(two.ask(&one, "of this one").await, echoed("of this one"));
    assert_eq!(stage.learnt(), (false, true));

    let stage = Stage::new().await;
    let (one, two) = (stage.who_heard(1, 8, 0).await, &stage.two);
    assert_eq!(one.ask(two, "of this one").await, echoed("of this one"));
    assert_eq!(stage.learnt(), (false, true));
    // What it confirmed does not keep the node from hearing of more.
    let three = stage.who_heard(3, 7, FOUND + 1).await;
    silent(&three, two).await;
    assert_eq!(stage.learnt(), (true, true));
}

/// A copy of a directory tells what the original never held, in a generation of its own: the
/// original is not put back for it.
#[tokio::test(start_paused = true)]
async fn what_a_copy_told_is_not_held_against_the_original() {
    let stage = Stage::new().await;
    stage.two.local.tell_lease(400);
    let one = stage.who_heard(1, 8, 400).await;
    one.local.hear_generation(stage.two.node, 9).expect("a later one");
    one.local.hear_lease(stage.two.node, 9, 900);
    let told = Told { generation: 9, lease: 900, lease_before: 400 };
    assert_eq!(one.local.told_by(stage.two.node), told);
    for (from, to) in [(&one, &stage.two), (&stage.two, &one)] {
        let error = from.ask(to, "hello").await.expect_err("its life is over");
        assert!(error.to_string().contains("STALE_GENERATION"), "{error}");
    }
    assert_eq!(stage.learnt(), (false, false));
    // But it does not go on: it would alone, since nobody speaks to it.
    assert!(*stage.two.local.superseded().borrow());
}

#[tokio::test(start_paused = true)]
async fn who_has_no_cluster_and_who_has_another_says_nothing_about_it() {
    let stage = Stage::new().await;
    let apart = stage.who_heard(1, 7, FOUND + 1).await;
    stage.two.local.formed_as(NodeId(11));
    apart.local.formed_as(NodeId(12));
    let alone = stage.world.node(3, None).await;
    alone.local.hear_generation(stage.two.node, 7).expect("the first");
    alone.local.hear_lease(stage.two.node, 7, FOUND + 1);
    for (other, reason) in [(&apart, "WRONG_FORMATION"), (&alone, "NO_CLUSTER")] {
        for (from, to) in [(other, &stage.two), (&stage.two, other)] {
            let error = from.ask(to, "hello").await.expect_err("not spoken to");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
    assert_eq!(stage.learnt(), (false, false));
}
