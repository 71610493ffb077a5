//! Comparisons and rounds that a replica takes no part in, and the name it gives for that.

use super::*;
use crate::proto::RoundStep;
use crate::store::leaves::LEAVES;

async fn reason(trio: &Trio, epoch: u64, request: Request) -> String {
    let answer = trio.anti_entropy(0).answer(epoch, &request).await.expect("it is for replicas");
    match answer {
        Err(PeerError::Refused { reason, .. }) => reason,
        Err(PeerError::NotAReplica) => "NOT_A_REPLICA".to_owned(),
        Err(PeerError::StaleLayout { .. }) => "STALE_LAYOUT".to_owned(),
        other => panic!("{other:?}"),
    }
}

fn tree(partitions: Vec<u32>, roots: bool) -> proto::TreeRequest {
    let floors = vec![0; partitions.len()];
    proto::TreeRequest { replicas: 3, partitions, floors, roots, of_damaged: false }
}

fn ranges(first: u32, last: u32, count: usize) -> Vec<proto::PartitionRange> {
    vec![proto::PartitionRange { first, last }; count]
}

fn fence(version: u64, partitions: Vec<proto::PartitionRange>, step: RoundStep) -> Request {
    let step = step.into();
    Request::Fence(proto::FenceRequest { version, partitions, step, ..Default::default() })
}

/// What would make it read, or answer, without a bound.
#[tokio::test(start_paused = true)]
async fn a_comparison_beyond_its_bounds_is_refused_by_name() {
    let trio = Trio::new();
    let epoch = trio.anti_entropy(0).layout().epoch();
    let good = tree(vec![1], true);
    let lame = proto::TreeRequest { floors: Vec::new(), ..good.clone() };
    let wide = proto::TreeRequest { replicas: 256, ..good.clone() };
    for request in [
        tree(vec![1 << BITS], true),
        tree(vec![0; 1025], true),
        tree(vec![0, 1], false),
        lame,
        wide,
    ] {
        let found = reason(&trio, epoch, Request::Tree(request.clone())).await;
        assert_eq!(found, "INVALID_ARGUMENT", "{request:?}");
    }
    let leaf = LEAVES as u32;
    let leaves = proto::LeafRequest { replicas: 3, leaf, ..Default::default() };
    assert_eq!(reason(&trio, epoch, Request::Leaves(leaves)).await, "INVALID_ARGUMENT");
    let with = id(1).to_bytes().to_vec();
    let compare = |with: Vec<u8>, partitions| {
        Request::Compare(proto::CompareRequest { with: with.into(), partitions })
    };
    for request in [
        compare(vec![1; 15], ranges(0, 0, 1)),
        compare(with.clone(), ranges(0, 1 << BITS, 1)),
        compare(with.clone(), ranges(2, 1, 1)),
        compare(with, ranges(0, 0, 16_385)),
    ] {
        assert_eq!(reason(&trio, epoch, request).await, "INVALID_ARGUMENT");
    }
}

/// A round is of one version of the layout: of another one it would prove nothing.
#[tokio::test(start_paused = true)]
async fn a_round_of_another_version_or_epoch_of_the_layout_is_refused_by_name() {
    let trio = Trio::new();
    let layout = trio.anti_entropy(0).layout();
    let (epoch, version) = (layout.epoch(), layout.version());
    let all = || ranges(*ALL.start(), *ALL.end(), 1);
    let ask = async |epoch, request| reason(&trio, epoch, request).await;
    assert_eq!(ask(epoch, fence(version + 1, all(), RoundStep::Fence)).await, "LAYOUT_CHANGING");
    assert_eq!(ask(epoch - 1, fence(version, all(), RoundStep::Fence)).await, "STALE_LAYOUT");
    let none = fence(version, all(), RoundStep::Unspecified);
    assert_eq!(ask(epoch, none).await, "INVALID_ARGUMENT");
    let beyond = fence(version, ranges(0, 1 << BITS, 1), RoundStep::Fence);
    assert_eq!(ask(epoch, beyond).await, "INVALID_ARGUMENT");
    assert!(trio.floors(0).iter().all(|floor| *floor == 0));
}
