//! `pairdb compact`

use serde_json::json;

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::CompactRequest;

/// Compact until nothing is left to do
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.upkeep_client()?;
    let call = async |admin: &mut Admin, request| admin.compact(request).await;
    client.admin_call(CompactRequest {}, call).await?;
    args.connect.print("done", &json!({}))
}
