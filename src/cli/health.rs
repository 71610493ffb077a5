//! `pairdb health`

use serde_json::json;

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::NodeStatusRequest;

/// Ask whether the node serves; exit code 5 if not
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.admin_client()?;
    let call = async |admin: &mut Admin, request| admin.node_status(request).await;
    let status = client.admin_call(NodeStatusRequest {}, call).await?;
    let json = json!({ "state": status.state, "node_id": status.node_id });
    let outcome = match status.state.as_str() {
        "serving" => Ok(()),
        _ => Err(Failure::with_code(5, "the node does not serve")),
    };
    args.connect.conclude(&status.state, &json, outcome)
}
