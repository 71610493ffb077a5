//! `pairdb remove`

use super::args::Connect;
use super::failure::Failure;
use super::layout::{CommitArgs, begin};
use crate::proto;

/// Take a dead node out of the cluster
///
/// The other replicas of its partitions make up for it. A node that is alive is drained instead: of
/// one that is removed, what only it held is lost. Its id never comes back; its directory is of use
/// no more.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The node, by name or id
    node: String,
    #[command(flatten)]
    commit: CommitArgs,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let change = proto::LayoutChange { removes: vec![args.node], ..Default::default() };
    begin(change, &args.commit, &args.connect).await
}
