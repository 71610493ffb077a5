//! `pairdb delete`

use bytes::Bytes;
use serde_json::json;

use super::args::{Connect, Key, Tenant, context, encode};
use super::failure::{Failure, say};
use crate::proto;

/// Delete a key
///
/// Without --context it deletes what is there. Deleting a missing key is not an error.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    key: Key,
    /// Delete only what this context (base64, from get or put) has seen
    #[arg(long, value_name = "BASE64")]
    context: Option<String>,
    /// Name the delete: a retry with the same name is the same delete
    #[arg(long, value_name = "TEXT", default_value = "")]
    idempotency_key: String,
    #[command(flatten)]
    tenant: Tenant,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.rows_client(&args.tenant)?;
    let key = args.key.bytes()?;
    let tenant = args.tenant.tenant;
    let context = match args.context {
        Some(text) => context(&text)?,
        None => Bytes::new(),
    };
    let request = proto::DeleteRequest {
        tenant,
        key,
        context,
        idempotency_key: args.idempotency_key.into(),
        consistency: 0,
    };
    let deleted = client.delete(request).await.map_err(Failure::of_write)?;
    if deleted.siblings > 0 {
        say(format_args!("{} values are newer than the context and stay", deleted.siblings));
    }
    let json = json!({
        "context": encode(&deleted.context),
        "siblings": deleted.siblings,
        "duplicate": deleted.duplicate,
        "hlc": deleted.hlc,
    });
    args.connect.print("", &json)
}
