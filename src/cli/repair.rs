//! `pairdb repair`

use serde_json::json;

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::RepairPartitionsRequest;

/// Compare the node's partitions with their other replicas now
///
/// Replicas compare and repair each other all the time; this puts the node's partitions first and
/// waits for them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this partition
    #[arg(long)]
    partition: Option<u32>,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let request = RepairPartitionsRequest { partition: args.partition };
    let call = async |admin: &mut Admin, request| admin.repair_partitions(request).await;
    let done = args.connect.upkeep_client()?.admin_call(request, call).await?;
    let text = format!("{} partitions compared, {} rows repaired", done.partitions, done.rows);
    args.connect.print(&text, &json!({ "partitions": done.partitions, "rows": done.rows }))
}
