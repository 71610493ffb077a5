//! `pairdb replace`

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::args::Connect;
use super::failure::{Failure, say};
use super::layout::{
    ABORTED, CommitArgs, Goal, UNDER_WAY, begin, commit_change, find, member, status, transition,
    unless_interrupted, wait_until_done,
};
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
    let old = member(&told, &args.old)?.node_id.clone();
    let is_member = find(&told, &args.new).is_some_and(|node| node.node_id != old);
    if is_member {
        wait_for(&client, &args, |told| stands(told, &args.new)).await?;
        let change = proto::LayoutChange { removes: vec![old], ..Default::default() };
        return begin(change, &args.commit, &args.connect).await;
    }
    begin(replaces(&args.new), &args.commit, &args.connect).await?;
    if !args.commit.waits() {
        return Ok(());
    }
    unless_interrupted(wait_for(&client, &args, |told| is_gone(told, &old, &args.new))).await?;
    wait_until_done(&client, &args.connect, 0, &Goal::default()).await
}

/// Whether the new node owns its share; what it is instead.
fn stands(told: &proto::ClusterStatusResponse, new: &str) -> Result<bool, Failure> {
    let is_joint = transition(told).phase() == proto::TransitionPhase::Joint;
    match find(told, new).map(|node| node.state.as_str()) {
        Some("normal") => Ok(true),
        Some("leaving" | "left" | "removing" | "removed") => {
            Err(Failure::refused(format!("{new:?} is on its way out itself")))
        }
        Some("joining") if !is_joint => Err(kept_out(new)),
        _ => Ok(false),
    }
}

/// Whether the old node was taken out.
fn is_gone(told: &proto::ClusterStatusResponse, old: &str, new: &str) -> Result<bool, Failure> {
    let node = told.nodes.iter().find(|node| node.node_id == old);
    let state = transition(told);
    let is_joint = state.phase() == proto::TransitionPhase::Joint;
    let comes = find(told, new).filter(|node| node.node_id != old);
    match node.map_or("removed", |node| &node.state[..]) {
        "removed" => Ok(true),
        "normal" if comes.is_some_and(|node| node.state == "joining") && !is_joint => {
            Err(kept_out(new))
        }
        "normal" if !is_joint && !state.replacements.contains_key(old) => {
            let message =
                format!("{new:?} shall not come in any more: the replacement was cancelled");
            Err(Failure::with_code(ABORTED, message))
        }
        _ => Ok(false),
    }
}

/// Who owns nothing, and does not come in, had its coming in aborted.
fn kept_out(new: &str) -> Failure {
    let message = format!(
        "the change by which {new:?} came in was aborted; layout commit --join {new} has it come in"
    );
    Failure::with_code(ABORTED, message)
}

/// Waits until something is so. A node that does not answer is asked again.
async fn wait_for(
    client: &Client,
    args: &Args,
    is_so: impl Fn(&proto::ClusterStatusResponse) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let end = Instant::now() + args.connect.patience();
    let mut said = false;
    loop {
        match status(client).await {
            Ok(told) if is_so(&told)? => return Ok(()),
            Ok(_) => {}
            Err(failure) if failure.may_pass() => {}
            Err(failure) => return Err(failure),
        }
        if !said {
            say(format_args!("waiting for {} to own its share", args.new));
            said = true;
        }
        if Instant::now() + LOOK > end {
            let message = format!("{:?} does not own its share yet", args.new);
            return Err(Failure::with_code(UNDER_WAY, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}
