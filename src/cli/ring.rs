//! `pairdb ring`

use serde_json::{Value, json};

use super::args::{Connect, Tenant, decode};
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::{PartitionEntry, RingRequest};

/// Show which nodes hold which partitions
///
/// For the tenant's number of replicas; with --key, only the key's partition.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only the partition of this key
    #[arg(long)]
    key: Option<String>,
    /// The key is given in base64
    #[arg(long, requires = "key")]
    key_base64: bool,
    #[command(flatten)]
    tenant: Tenant,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let key = match args.key {
        Some(key) if args.key_base64 => Some(decode("the key", &key)?),
        key => key.map(Into::into),
    };
    let request = RingRequest { tenant: args.tenant.tenant, key };
    let call = async |admin: &mut Admin, request| admin.ring(request).await;
    let ring = args.connect.admin_client()?.admin_call(request, call).await?;
    let text: Vec<String> = ring.partitions.iter().map(line).collect();
    let json: Vec<Value> = ring.partitions.iter().map(to_json).collect();
    args.connect.print(&text.join("\n"), &json!({ "partitions": json }))
}

fn line(entry: &PartitionEntry) -> String {
    let mut line =
        format!("{:>5}  {:016x}  {}", entry.partition, entry.token_start, entry.replicas.join(" "));
    if !entry.next_replicas.is_empty() {
        line += &format!("  -> {}", entry.next_replicas.join(" "));
    }
    line
}

fn to_json(entry: &PartitionEntry) -> Value {
    json!({
        "partition": entry.partition,
        "token_start": format!("{:016x}", entry.token_start),
        "replicas": entry.replicas,
        "next_replicas": entry.next_replicas,
    })
}
