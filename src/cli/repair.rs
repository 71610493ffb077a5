//! `pairdb repair`

use serde_json::json;

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::{RepairPartitionsRequest, RepairPartitionsResponse};

/// Compare the node's partitions with their other replicas now
///
/// Replicas compare and repair each other all the time; this puts the node's partitions first and
/// waits for them. Ends with an error where one of the replicas could not be asked, or rows are
/// left that may differ.
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
    let json = json!({
        "partitions": done.partitions,
        "rows": done.rows,
        "rows_refused": done.rows_refused,
        "partitions_left": done.partitions_left,
        "leaves_left": done.leaves_left,
        "nodes_down": done.nodes_down,
    });
    args.connect.print(&text, &json)?;
    let missing = missing(&done);
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::error(format!(
            "replicas may differ still: {}; run it again",
            missing.join(", ")
        ))),
    }
}

/// What was not repaired, and why.
fn missing(done: &RepairPartitionsResponse) -> Vec<String> {
    let counted = |count: u64, what: &str| (count > 0).then(|| format!("{count} {what}"));
    let down = done.nodes_down.iter().map(|node| format!("{node} is down"));
    let counts = [
        counted(done.partitions_left, "partitions are not read yet or have lost data"),
        counted(done.leaves_left, "parts of partitions change faster than they are compared"),
        counted(done.rows_refused, "rows were refused"),
    ];
    down.chain(counts.into_iter().flatten()).collect()
}
