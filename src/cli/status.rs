//! `pairdb status`

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::NodeStatusRequest;

/// Show the node and its figures
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.data_client()?;
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
    args.connect.print(&text, &json)
}
