//! `pairdb checkpoint`

use serde_json::json;

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::CheckpointRequest;

/// Make a consistent copy of the store, in a directory of the node
///
/// The path that is told is on the node's machine, as the node's own settings put it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The copy's name
    name: String,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.upkeep_client()?;
    let call = async |admin: &mut Admin, request| admin.checkpoint(request).await;
    let made = client.admin_call(CheckpointRequest { name: args.name }, call).await?;
    args.connect.print(&made.path, &json!({ "path": made.path }))
}
