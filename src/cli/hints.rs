//! `pairdb hints`

use serde_json::{Value, json};

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::ListHintsRequest;

/// Show the hints the node keeps for others
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let call = async |admin: &mut Admin, request| admin.list_hints(request).await;
    let told = args.connect.admin_client()?.admin_call(ListHintsRequest {}, call).await?;
    let text: Vec<String> = told
        .hints
        .iter()
        .map(|one| format!("{}  {} rows, {} bytes", one.node_id, one.pending, one.bytes))
        .collect();
    let json: Vec<Value> = told
        .hints
        .iter()
        .map(|one| {
            json!({
                "node_id": one.node_id,
                "pending": one.pending,
                "bytes": one.bytes,
            })
        })
        .collect();
    let text = if text.is_empty() { "no hints".to_owned() } else { text.join("\n") };
    args.connect.print(&text, &json!({ "hints": json }))
}
