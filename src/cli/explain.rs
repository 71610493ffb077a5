//! `pairdb explain`

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::args::{Connect, Key};
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::{ExplainKeyRequest, ReplicaEntry};

/// Show what each replica of a key holds, and what that means
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The tenant
    tenant: String,
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let request = ExplainKeyRequest { tenant: args.tenant, key: args.key.bytes()? };
    let call = async |admin: &mut Admin, request| admin.explain_key(request).await;
    let told = args.connect.admin_client()?.admin_call(request, call).await?;
    let mut text = format!("token {:016x}, partition {}\n", told.token, told.partition);
    for replica in &told.replicas {
        let _ = write!(text, "\n{} ({})\n", replica.node, replica.node_id);
        if !replica.error.is_empty() {
            let _ = writeln!(text, "  no answer: {}", replica.error);
            continue;
        }
        let digest = if replica.digest.is_empty() { "no row" } else { &replica.digest };
        let _ = writeln!(text, "  digest {digest}, {} values", replica.siblings);
        for dot in &replica.dots {
            let _ = writeln!(text, "  live   {dot}");
        }
        for entry in &replica.clock {
            let _ = writeln!(text, "  seen   {entry}");
        }
    }
    let _ = write!(text, "\n{}", told.verdict);
    let json = json!({
        "token": format!("{:016x}", told.token),
        "partition": told.partition,
        "replicas": told.replicas.iter().map(to_json).collect::<Vec<_>>(),
        "verdict": told.verdict,
    });
    args.connect.print(&text, &json)
}

fn to_json(replica: &ReplicaEntry) -> Value {
    json!({
        "node": replica.node,
        "node_id": replica.node_id,
        "error": replica.error,
        "digest": replica.digest,
        "siblings": replica.siblings,
        "dots": replica.dots,
        "clock": replica.clock,
        "floor": replica.floor,
    })
}
