//! `pairdb layout`
//!
//! | file | what |
//! |---|---|
//! | here | the verbs, and what a change is made of |
//! | `plan` | what a change would do, written down |
//! | `rate` | how fast rows move: of one node, or of all |
//! | `show` | the layout as it is and how far its change is |
//! | `wait` | following a change to its end |

mod plan;
mod rate;
mod show;
mod wait;

use std::collections::HashMap;

use clap::Subcommand;
use serde_json::json;

use super::args::{Connect, Output, size};
use super::failure::Failure;
use crate::client::{Admin, Client};
use crate::ops::config::Size;
use crate::proto;

pub(super) use wait::{ABORTED, Goal, UNDER_WAY, unless_interrupted, wait_until_done};

/// Show and change who owns what
///
/// A change is planned, then committed; it goes on by itself, and layout show tells how far it is.
/// Until the owners have changed it can be aborted, and nothing is lost by that.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say what a change would move and cost, and why it would be refused; changes nothing
    Plan {
        #[command(flatten)]
        change: ChangeArgs,
        /// A node that would join: its zone, and its weight unless that is 1
        #[arg(long, value_name = "ZONE[=WEIGHT]", value_parser = new_node)]
        join: Vec<proto::NewNode>,
        #[command(flatten)]
        connect: Connect,
    },
    /// Begin a change; with --wait exit code 7 if it has not ended in time, 8 if it was aborted
    Commit {
        #[command(flatten)]
        change: ChangeArgs,
        /// A node that came in, and whose coming in was aborted, shall come in after all
        #[arg(long, value_name = "NODE")]
        join: Vec<String>,
        #[command(flatten)]
        commit: CommitArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// End the change under way with the owners of before
    Abort {
        /// Only if it is the one of this epoch
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        epoch: u64,
        #[command(flatten)]
        connect: Connect,
    },
    /// Tell how fast the node that is asked moves partitions, or set it until it is started anew
    Rate {
        /// Bytes a second, such as 64MiB; 0 for no limit
        #[arg(value_parser = size)]
        rate: Option<Size>,
        /// All nodes of the cluster, not only the one that is asked
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Show the layout, and how far its change is
    Show {
        #[command(flatten)]
        connect: Connect,
    },
}

/// What is to change. Nodes are named by name or id.
#[derive(Clone, Debug, clap::Args)]
#[group(multiple = true)]
struct ChangeArgs {
    /// A node that hands over all it holds and leaves
    #[arg(long, value_name = "NODE")]
    leave: Vec<String>,
    /// A node that is taken out without its help: what only it held is lost
    #[arg(long, value_name = "NODE")]
    remove: Vec<String>,
    /// A node's share of the partitions beside the others' (each has 1 at first)
    #[arg(long, value_name = "NODE=WEIGHT", value_parser = pair::<u32>)]
    weight: Vec<(String, u32)>,
    /// A node's failure zone
    #[arg(long, value_name = "NODE=ZONE", value_parser = pair::<String>)]
    zone: Vec<(String, String)>,
    /// How many copies of each row of a tenant there are
    #[arg(long, value_name = "TENANT=COUNT", value_parser = pair::<u32>)]
    replication_factor: Vec<(String, u32)>,
}

/// How a change is begun.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CommitArgs {
    /// Only if the layout is of this epoch still, as the plan said
    #[arg(long)]
    epoch: Option<u64>,
    /// Take nodes out although writes that only they had are lost with them
    #[arg(long)]
    accept_loss: bool,
    /// Take nodes out although so many partitions, as the plan lists them, keep too few replicas:
    /// acknowledged writes may be lost there, and only there
    #[arg(long, value_name = "COUNT", requires = "accept_loss")]
    accept_lost_partitions: Option<usize>,
    /// Begin it although partitions have no quorum then, until nodes that are down are back
    #[arg(long)]
    accept_down: bool,
    /// Follow the change to its end
    #[arg(long)]
    wait: bool,
}

impl CommitArgs {
    /// Whether the change is to be followed to its end.
    pub fn waits(&self) -> bool {
        self.wait
    }
}

impl From<ChangeArgs> for proto::LayoutChange {
    fn from(args: ChangeArgs) -> Self {
        Self {
            leaves: args.leave,
            removes: args.remove,
            weights: HashMap::from_iter(args.weight),
            zones: HashMap::from_iter(args.zone),
            replication_factors: HashMap::from_iter(args.replication_factor),
            ..Self::default()
        }
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    match args.verb {
        Verb::Plan { change, join, connect } => {
            let change = proto::LayoutChange { joins: join, ..change.into() };
            let plan = ask_plan(&connect.upkeep_client()?, change).await?;
            connect.conclude(&plan::text(&plan), &plan::to_json(&plan), refused(&plan))
        }
        Verb::Commit { change, join, commit, connect } => {
            let again = |node| proto::NewNode { node, ..Default::default() };
            let joins = join.into_iter().map(again).collect();
            let change = proto::LayoutChange { joins, ..change.into() };
            begin(change, &commit, &connect).await
        }
        Verb::Abort { epoch, connect } => {
            let call = async |admin: &mut Admin, request| admin.abort_layout(request).await;
            let request = proto::AbortLayoutRequest { epoch };
            let done = connect.admin_client()?.admin_call(request, call).await;
            let done = done.map_err(Failure::of_change)?;
            let text = format!("aborted: in epoch {} the owners are those of before", done.epoch);
            connect.print(&text, &json!({ "epoch": done.epoch }))
        }
        Verb::Rate { rate, all, connect } => rate::run(rate, all, &connect).await,
        Verb::Show { connect } => {
            let status = status(&connect.admin_client()?).await?;
            connect.print(&show::text(&status), &show::to_json(&status))
        }
    }
}

/// Plans a change, shows the plan, and begins it unless that would be refused.
pub(super) async fn begin(
    mut change: proto::LayoutChange,
    commit: &CommitArgs,
    connect: &Connect,
) -> Result<(), Failure> {
    let client = connect.upkeep_client()?;
    change.accepts_down = commit.accept_down;
    let mut plan = ask_plan(&client, change.clone()).await?;
    if let Some(count) = commit.accept_lost_partitions {
        if plan.lost.len() != count {
            return Err(Failure::refused(format!(
                "{} partitions would keep too few replicas, not {count}, as layout plan lists them",
                plan.lost.len()
            )));
        }
        change.accepts_loss.clone_from(&plan.lost);
        plan = ask_plan(&client, change.clone()).await?;
    }
    if connect.output == Output::Text {
        // Who does not read the plan has asked for the change all the same.
        let shown = connect.print(&plan::text(&plan), &json!(null));
        shown.or_else(|failure| if failure.is_silent() { Ok(()) } else { Err(failure) })?;
    }
    // Who leaves and has died is given up in mid-change; that is no change of its own.
    let is_more = change.removes.is_empty() || !plan.refusals.iter().all(is_in_progress);
    if is_more {
        refused(&plan)?;
    }
    let takes_out = change.replaces.values().any(|new| !new.is_empty());
    if (takes_out || !change.removes.is_empty()) && !commit.accept_loss {
        let message = "rows that only a removed node has are lost with it, such as writes at ONE \
                       of late: --accept-loss says that this may be";
        return Err(Failure::refused(message));
    }
    if takes_out {
        let replaced = commit_change(&client, commit.epoch.unwrap_or(plan.epoch), change).await?;
        let json = json!({ "epoch": replaced.epoch, "done": false, "plan": plan::to_json(&plan) });
        return connect.print("it is taken out when the new node joins: start that one", &json);
    }
    let goal = match commit.wait {
        true => Some(Goal::of(&change, &status(&client).await?)),
        false => None,
    };
    let begun = commit_change(&client, commit.epoch.unwrap_or(plan.epoch), change).await?;
    if let Some(goal) = goal {
        wait_until_done(&client, connect, begun.epoch, &goal).await?;
    }
    let done = if commit.wait { "done" } else { "begun; layout show tells how far it is" };
    let text = format!("epoch {}: {done}", begun.epoch);
    let json = json!({
        "epoch": begun.epoch,
        "done": commit.wait,
        "plan": plan::to_json(&plan),
    });
    connect.print(&text, &json)
}

/// Has a change decided.
pub(super) async fn commit_change(
    client: &Client,
    epoch: u64,
    change: proto::LayoutChange,
) -> Result<proto::CommitLayoutResponse, Failure> {
    let call = async |admin: &mut Admin, request| admin.commit_layout(request).await;
    let request = proto::CommitLayoutRequest { epoch, change: Some(change) };
    client.admin_call(request, call).await.map_err(Failure::of_change)
}

fn is_in_progress(refusal: &proto::LayoutRefusal) -> bool {
    refusal.reason == "TRANSITION_IN_PROGRESS"
}

async fn ask_plan(
    client: &Client,
    change: proto::LayoutChange,
) -> Result<proto::PlanLayoutResponse, Failure> {
    let call = async |admin: &mut Admin, request| admin.plan_layout(request).await;
    let request = proto::PlanLayoutRequest { change: Some(change) };
    client.admin_call(request, call).await.map_err(Failure::of_plan)
}

/// The cluster as the node that is asked knows it.
pub(super) async fn status(client: &Client) -> Result<proto::ClusterStatusResponse, Failure> {
    let call = async |admin: &mut Admin, request| admin.cluster_status(request).await;
    Ok(client.admin_call(proto::ClusterStatusRequest {}, call).await?)
}

/// The cluster's id.
pub(super) async fn cluster_id(client: &Client) -> Result<String, Failure> {
    Ok(status(client).await?.cluster_id)
}

/// How far the change of the layout is; all default where no cluster was formed.
pub(super) fn transition(told: &proto::ClusterStatusResponse) -> proto::TransitionState {
    told.layout.as_ref().and_then(|layout| layout.state.clone()).unwrap_or_default()
}

/// The member of a name or id; of several, one that stays before one on its way out.
pub(super) fn find<'s>(
    told: &'s proto::ClusterStatusResponse,
    text: &str,
) -> Option<&'s proto::NodeEntry> {
    let members = told.nodes.iter().filter(|node| node.state != "candidate");
    let named = members.filter(|node| node.name == text || node.node_id == text);
    named.min_by_key(|node| match &node.state[..] {
        "left" | "removed" => 2,
        "removing" => 1,
        _ => 0,
    })
}

/// The member of a name or id, as [`find`] does.
pub(super) fn member<'s>(
    told: &'s proto::ClusterStatusResponse,
    text: &str,
) -> Result<&'s proto::NodeEntry, Failure> {
    let none = || Failure::refused(format!("{text:?} is the name or id of no member"));
    find(told, text).ok_or_else(none)
}

/// A client of a member and no other node.
pub(super) fn client_of(node: &proto::NodeEntry, connect: &Connect) -> Result<Client, Failure> {
    connect.client_of(endpoint_of(node)?)
}

/// Where clients of a node connect.
fn endpoint_of(node: &proto::NodeEntry) -> Result<String, Failure> {
    if node.client_address.is_empty() {
        let message = format!("it is not known where {} is: give it as --endpoint", node.name);
        return Err(Failure::with_code(5, message));
    }
    Ok(format!("http://{}", node.client_address))
}

/// A failure if the change would be refused.
fn refused(plan: &proto::PlanLayoutResponse) -> Result<(), Failure> {
    match plan.refusals.as_slice() {
        [] => Ok(()),
        refusals => {
            let why = refusals.iter().map(|one| format!("{} ({})", one.message, one.reason));
            let why = why.collect::<Vec<_>>().join("; ");
            Err(Failure::refused(format!("refused: {why}")))
        }
    }
}

/// `NAME=VALUE`, for clap.
fn pair<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(String, T), String> {
    let (name, value) = text.rsplit_once('=').ok_or("expected NAME=VALUE")?;
    let value = value.parse().map_err(|error| format!("{value:?}: {error}"))?;
    if name.is_empty() { Err("no name before =".to_owned()) } else { Ok((name.to_owned(), value)) }
}

/// `ZONE` or `ZONE=WEIGHT`, for clap.
fn new_node(text: &str) -> Result<proto::NewNode, String> {
    match text.rsplit_once('=') {
        None => Ok(proto::NewNode { zone: text.to_owned(), weight: 1, ..Default::default() }),
        Some((zone, weight)) => {
            let weight = weight.parse().map_err(|error| format!("{weight:?}: {error}"))?;
            if weight == 0 {
                // To a node it would be none given.
                return Err("a weight of 0: it must be at least 1".to_owned());
            }
            Ok(proto::NewNode { zone: zone.to_owned(), weight, ..Default::default() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_named_before_the_last_equals_sign() {
        assert_eq!(pair::<u32>("n1=2"), Ok(("n1".to_owned(), 2)));
        assert_eq!(pair::<String>("a=b=z"), Ok(("a=b".to_owned(), "z".to_owned())));
        for bad in ["n1", "n1=", "n1=x", "=2", "n1=-1"] {
            assert!(pair::<u32>(bad).is_err(), "{bad}");
        }
        let (one, two) = (new_node("a").expect("a zone"), new_node("=3").expect("a weight"));
        assert_eq!((one.zone.as_str(), one.weight), ("a", 1));
        assert_eq!((two.zone.as_str(), two.weight), ("", 3));
        assert!(new_node("a=b").is_err());
        assert!(new_node("a=0").expect_err("no weight").contains("at least 1"));
    }

    #[test]
    fn a_node_is_found_by_name_or_id_where_its_clients_are() {
        let node = |name: &str, client: &str| proto::NodeEntry {
            name: name.to_owned(),
            node_id: format!("id of {name}"),
            client_address: client.to_owned(),
            ..Default::default()
        };
        let nodes = vec![node("a", "10.0.0.1:8080"), node("b", "[::1]:8081"), node("c", "")];
        let told = proto::ClusterStatusResponse { nodes, ..Default::default() };
        let found = |named: &str| member(&told, named).and_then(endpoint_of).ok();
        assert_eq!(found("a").as_deref(), Some("http://10.0.0.1:8080"));
        assert_eq!(found("id of b").as_deref(), Some("http://[::1]:8081"));
        assert_eq!(found("c"), None);
        assert_eq!(found("d"), None);
    }
}
