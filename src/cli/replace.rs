//! `pairdb replace`

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::args::Connect;
use super::failure::Failure;
use super::layout::{CommitArgs, UNDER_WAY, begin, commit_change, status, wait_until_stable};
use crate::client::Client;
use crate::proto;

/// How often it is looked whether the new node is there.
const LOOK: Duration = Duration::from_millis(500);

/// Have a node that joins take the place of a dead one, in one change
///
/// Say it first, then start the new node with an empty directory and some seeds: it joins, and by
/// the same change the dead one is taken out. It may have the dead one's name, as a pod has whose
/// volume was lost. If the new node is a member already, the dead one is taken out when it owns its
/// share.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The dead node, by name or id
    old: String,
    /// The name of the node that comes in for it; of a member also its id
    new: String,
    /// No node shall come in for it after all
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    commit: CommitArgs,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.admin_client()?;
    let replaces = |new: &str| proto::LayoutChange {
        replaces: HashMap::from([(args.old.clone(), new.to_owned())]),
        ..Default::default()
    };
    if args.cancel {
        let done = commit_change(&client, 0, replaces("")).await?;
        let text = format!("no node comes in for {}", args.old);
        return args.connect.print(&text, &json!({ "epoch": done.epoch }));
    }
    let told = status(&client).await?;
    let old = find(&told, &args.old).ok_or_else(|| unknown(&args.old))?.node_id.clone();
    let is_member = find(&told, &args.new).is_some_and(|node| node.node_id != old);
    if is_member {
        wait_for(&client, &args, |node| stands(node, &args.new)).await?;
        let change = proto::LayoutChange { removes: vec![old], ..Default::default() };
        return begin(change, &args.commit, &args.connect).await;
    }
    begin(replaces(&args.new), &args.commit, &args.connect).await?;
    if !args.commit.waits() {
        return Ok(());
    }
    wait_for(&client, &args, |node| is_gone(node, &old)).await?;
    wait_until_stable(&client, &args.connect, 0).await
}

/// The member of a name or id; of several the one that is no member any more comes last.
fn find<'s>(told: &'s proto::ClusterStatusResponse, text: &str) -> Option<&'s proto::NodeEntry> {
    let gone = |node: &&proto::NodeEntry| matches!(&node.state[..], "left" | "removed");
    let members = told.nodes.iter().filter(|node| node.state != "candidate");
    let mut named: Vec<_> =
        members.filter(|node| node.name == text || node.node_id == text).collect();
    named.sort_by_key(|node| gone(node));
    named.first().copied()
}

fn unknown(text: &str) -> Failure {
    Failure::with_code(5, format!("{text:?} is the name or id of no member; nothing was changed"))
}

/// Whether the new node owns its share; what it is instead.
fn stands(told: &proto::ClusterStatusResponse, new: &str) -> Result<bool, String> {
    match find(told, new).map(|node| node.state.as_str()) {
        Some("normal") => Ok(true),
        Some("leaving" | "left" | "removing" | "removed") => {
            Err(format!("{new:?} is on its way out itself"))
        }
        _ => Ok(false),
    }
}

/// Whether the old node was taken out.
fn is_gone(told: &proto::ClusterStatusResponse, old: &str) -> Result<bool, String> {
    let node = told.nodes.iter().find(|node| node.node_id == old);
    Ok(node.is_none_or(|node| node.state == "removed"))
}

/// Waits until something is so. A node that does not answer is asked again.
async fn wait_for(
    client: &Client,
    args: &Args,
    is_so: impl Fn(&proto::ClusterStatusResponse) -> Result<bool, String>,
) -> Result<(), Failure> {
    let end = Instant::now() + args.connect.patience();
    let mut said = false;
    loop {
        match status(client).await {
            Ok(told) if is_so(&told).map_err(Failure::error)? => return Ok(()),
            Ok(_) => {}
            Err(failure) if failure.may_pass() => {}
            Err(failure) => return Err(failure),
        }
        if !said {
            eprintln!("pairdb: waiting for {} to own its share", args.new);
            said = true;
        }
        if Instant::now() + LOOK > end {
            let message = format!("{:?} does not own its share yet", args.new);
            return Err(Failure::with_code(UNDER_WAY, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}
