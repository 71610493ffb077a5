//! How fast partitions move: told or set, of the node that is asked or of all.

use std::pin::pin;

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use super::{client_of, status};
use crate::cli::args::Connect;
use crate::cli::failure::Failure;
use crate::cli::progress::volume;
use crate::client::{Admin, Client};
use crate::ops::config::Size;
use crate::proto;

/// Nodes that are asked at once.
const AT_ONCE: usize = 16;

/// Tells the rate after it was set, if it is to be. Of all nodes each is asked, whatever became of
/// the one before it: who did not answer is named at the end.
pub(super) async fn run(rate: Option<Size>, all: bool, connect: &Connect) -> Result<(), Failure> {
    if !all {
        let rate = ask(&connect.one_node_client()?, rate).await?;
        return connect.print(&text(rate), &json!({ "bytes_per_second": rate }));
    }
    let told = status(&connect.admin_client()?).await?;
    let (mut lines, mut nodes, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    // One that is still to join counts: it fetches most.
    let is_gone = |node: &proto::NodeEntry| matches!(&node.state[..], "left" | "removed");
    let mut there: Vec<_> = told.nodes.iter().filter(|node| !is_gone(node)).collect();
    there.sort_unstable_by_key(|node| &node.name);
    // Side by side: one that hangs keeps no other waiting.
    let answers = stream::iter(there).map(async |node: &proto::NodeEntry| {
        let asked = async { ask(&client_of(node, connect)?, rate).await };
        (node, asked.await)
    });
    let mut answers = pin!(answers.buffered(AT_ONCE));
    while let Some((node, answer)) = answers.next().await {
        match answer {
            Ok(rate) => {
                lines.push(format!("{} {}", node.name, text(rate)));
                nodes.push(json!({ "name": node.name, "bytes_per_second": rate }));
            }
            Err(failure) => failures.push(format!("{}: {failure}", node.name)),
        }
    }
    let outcome = match failures.is_empty() {
        true => Ok(()),
        false => Err(Failure::with_code(5, failures.join("; "))),
    };
    connect.conclude(&lines.join("\n"), &json!({ "nodes": nodes }), outcome)
}

/// What a node says, after it was set if it is to be.
async fn ask(client: &Client, rate: Option<Size>) -> Result<u64, Failure> {
    let call = async |admin: &mut Admin, request| admin.set_transfer_rate(request).await;
    let request = proto::SetTransferRateRequest { bytes_per_second: rate.map(|rate| rate.0) };
    Ok(client.admin_call(request, call).await?.bytes_per_second)
}

fn text(rate: u64) -> String {
    match rate {
        0 => "no limit".to_owned(),
        rate => format!("{}/s", volume(rate)),
    }
}
