//! `pairdb status`

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::args::Connect;
use super::failure::Failure;
use crate::client::{Admin, Client};
use crate::proto::{ClusterStatusRequest, NodeEntry, NodeStatusRequest, TransitionPhase};

/// Show the cluster; with --node, the node and its figures
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show the node that is asked, with all its figures
    #[arg(long)]
    node: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.admin_client()?;
    let (text, json) = match args.node {
        true => node(&client).await?,
        false => cluster(&client).await?,
    };
    args.connect.print(&text, &json)
}

async fn cluster(client: &Client) -> Result<(String, Value), Failure> {
    let call = async |admin: &mut Admin, request| admin.cluster_status(request).await;
    let status = client.admin_call(ClusterStatusRequest {}, call).await?;
    let layout = status.layout.unwrap_or_default();
    let state = layout.state.clone().unwrap_or_default();
    let width = status.nodes.iter().map(|node| node.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!(
        "{:<width$}  {:<9}  {:<4}  {:<8}  {:<21}  {:>12}  {:>5}  {}\n",
        "name", "state", "up", "zone", "address", "load", "hints", "node id"
    );
    for node in &status.nodes {
        let up = if node.up { "up" } else { "down" };
        let _ = writeln!(
            text,
            "{:<width$}  {:<9}  {up:<4}  {:<8}  {:<21}  {:>12}  {:>5}  {}",
            node.name,
            node.state,
            node.zone,
            node.address,
            node.load_bytes,
            node.hints_pending,
            node.node_id
        );
    }
    for node in &status.nodes {
        text.push_str(&damage_of(node));
    }
    let agreed = if layout.agreed { "agreed" } else { "not agreed by all that are up" };
    let _ = write!(text, "\nlayout {}, {agreed}", layout.version);
    if !layout.transition.is_empty() {
        let _ = write!(text, ", {}", layout.transition);
    } else if state.phase() == TransitionPhase::Clearing {
        let _ = write!(text, ", clearing: layout show tells more");
    }
    let json = json!({
        "cluster_id": status.cluster_id,
        "nodes": status.nodes.iter().map(to_json).collect::<Vec<_>>(),
        "layout": {
            "version": layout.version,
            "agreed": layout.agreed,
            "transition": layout.transition,
            "leader": layout.leader,
        },
    });
    Ok((text, json))
}

/// What a disk has lost; nothing if nothing.
fn damage_of(node: &NodeEntry) -> String {
    let mut text = String::new();
    if node.partitions_damaged > 0 {
        let _ = writeln!(
            text,
            "\n{}: {} partitions have lost data on its disk and get it back from the others",
            node.name, node.partitions_damaged
        );
    }
    if node.blocks_unreadable > 0 {
        let _ = writeln!(
            text,
            "\n{}: {} blocks of its tables cannot be read",
            node.name, node.blocks_unreadable
        );
    }
    text
}

fn to_json(node: &NodeEntry) -> Value {
    json!({
        "name": node.name,
        "node_id": node.node_id,
        "state": node.state,
        "up": node.up,
        "zone": node.zone,
        "address": node.address,
        "client_address": node.client_address,
        "load_bytes": node.load_bytes,
        "hints_pending": node.hints_pending,
        "generation": node.generation,
        "epoch": node.epoch,
        "version": node.version,
        "disk_used": node.disk_used,
        "partitions": node.partitions,
        "voter": node.voter,
        "run_state": node.run_state,
        "partitions_damaged": node.partitions_damaged,
        "blocks_unreadable": node.blocks_unreadable,
    })
}

async fn node(client: &Client) -> Result<(String, Value), Failure> {
    let call = async |admin: &mut Admin, request| admin.node_status(request).await;
    let status = client.admin_call(NodeStatusRequest {}, call).await?;
    let mut figures: Vec<_> = status.figures.iter().collect();
    figures.sort_by(|one, other| one.0.cmp(other.0));
    let mut text = format!(
        "node      {}\nname      {}\nzone      {}\nversion   {}\nstate     {}\nuptime    {} s\n\
         pressure  {:.2}\n",
        status.node_id,
        status.node_name,
        status.zone,
        status.version,
        status.state,
        status.uptime_seconds,
        status.pressure
    );
    for (name, value) in &figures {
        let _ = write!(text, "\n{name} {value}");
    }
    let figures: Map<String, Value> =
        figures.into_iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let json = json!({
        "node_id": status.node_id,
        "node_name": status.node_name,
        "zone": status.zone,
        "version": status.version,
        "state": status.state,
        "uptime_seconds": status.uptime_seconds,
        "pressure": status.pressure,
        "figures": figures,
    });
    Ok((text, json))
}
