//! `pairdb flush`

use serde_json::json;

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::FlushRequest;

/// Write the memtables to tables
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.upkeep_client()?;
    let call = async |admin: &mut Admin, request| admin.flush(request).await;
    client.admin_call(FlushRequest {}, call).await?;
    args.connect.print("done", &json!({}))
}
