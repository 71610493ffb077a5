//! `pairdb stop`

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::{NodeStatusRequest, StopNodeRequest};

/// How often it is looked whether the node still takes calls.
const LOOK: Duration = Duration::from_millis(100);

/// Have a node stop, for a restart or an upgrade
///
/// As SIGTERM does: it is not ready any more, serves on for its time of grace, tells the others,
/// finishes what runs, flushes, and ends. It keeps its data and its place in the cluster. Returns
/// when the node takes no more calls: its process ends a little later, when all is on disk, and
/// only then it can be started anew. --no-wait returns at once. To take a node out for good, use
/// drain.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Return as soon as the node has been told, while it still serves
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.one_node_client()?;
    let call = async |admin: &mut Admin, request| admin.stop_node(request).await;
    let told = client.admin_call(StopNodeRequest {}, call).await?;
    if args.no_wait {
        let within_ms = told.within_ms;
        return args.connect.print("the node stops", &json!({ "within_ms": within_ms }));
    }
    let end = Instant::now() + Duration::from_millis(told.within_ms);
    let mut uptime_seconds = 0;
    loop {
        let call = async |admin: &mut Admin, request| admin.node_status(request).await;
        let last = match client.admin_call(NodeStatusRequest {}, call).await {
            // Who has been up for a shorter time than before is another life of the node.
            Ok(status) if status.uptime_seconds < uptime_seconds => break,
            Ok(status) => {
                uptime_seconds = status.uptime_seconds;
                None
            }
            Err(error) if matches!(error.reason(), "UNREACHABLE" | "CONNECTION_LOST") => break,
            // Who is silent or refuses may be there, and may serve others.
            Err(error) => Some(error),
        };
        if Instant::now() >= end {
            let message = match last {
                None => "the node still takes calls".to_owned(),
                Some(error) => format!("it is not known whether the node takes calls: {error}"),
            };
            return Err(Failure::with_code(5, message));
        }
        tokio::time::sleep(LOOK).await;
    }
    args.connect.print("the node takes no more calls", &json!({ "within_ms": told.within_ms }))
}
