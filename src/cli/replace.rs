//! `pairdb replace`

use std::time::Duration;

use tokio::time::Instant;

use super::args::Connect;
use super::failure::Failure;
use super::layout::{CommitArgs, UNDER_WAY, begin, status};
use crate::client::Client;
use crate::proto;

/// How often it is looked whether the new node is there.
const LOOK: Duration = Duration::from_millis(500);

/// Take a dead node out once another one has come in for it
///
/// Start the new node first, with an empty directory and some seeds: it joins by itself. This waits
/// until it owns its share, then removes the old one.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The dead node, by name or id
    old: String,
    /// The node that has come in for it, by name or id
    new: String,
    #[command(flatten)]
    commit: CommitArgs,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    if args.old == args.new {
        return Err(Failure::usage("a node cannot replace itself"));
    }
    wait_until_normal(&args.connect.admin_client()?, &args.connect, &args.new).await?;
    let change = proto::LayoutChange { removes: vec![args.old], ..Default::default() };
    begin(change, &args.commit, &args.connect).await
}

async fn wait_until_normal(client: &Client, connect: &Connect, new: &str) -> Result<(), Failure> {
    let end = Instant::now() + connect.patience();
    let mut said = false;
    loop {
        let told = match status(client).await {
            Ok(status) => Some(status),
            Err(failure) if failure.may_pass() => None,
            Err(failure) => return Err(failure),
        };
        let nodes = told.iter().flat_map(|status| &status.nodes);
        let mut named = nodes.filter(|node| node.name == new || node.node_id == new);
        let state = match named.next().map(|node| node.state.as_str()) {
            Some("normal") => return Ok(()),
            Some("leaving" | "left" | "removing" | "removed") => {
                return Err(Failure::error(format!("{new:?} is on its way out itself")));
            }
            Some(state) => format!("it is {state} yet"),
            None => "it is not heard of".to_owned(),
        };
        if !said {
            eprintln!("pairdb: waiting until {new} owns its share: {state}");
            said = true;
        }
        if Instant::now() + LOOK > end {
            let message = format!("{new:?} does not own its share: {state}");
            return Err(Failure::with_code(UNDER_WAY, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}
