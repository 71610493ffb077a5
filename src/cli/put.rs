//! `pairdb put`

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::args::{Connect, Key, Tenant, context, duration, encode};
use super::failure::{Failure, say};
use crate::proto;
use crate::store::limits::VALUE_BYTES_CEILING;

/// Write a value
///
/// Without --context or --resolve the write replaces nothing that this client has not seen: if the
/// key has a value already, both stay, as siblings.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    key: Key,
    /// The value
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<String>,
    /// Read the value from a file; - for standard input
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// A media type for readers
    #[arg(long, default_value = "")]
    content_type: String,
    /// Let the value expire after this time, such as 10m
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    ttl: Option<Duration>,
    /// Replace what this context (base64, from get or put) has seen
    #[arg(long, value_name = "BASE64", conflicts_with = "resolve")]
    context: Option<String>,
    /// Read first, and replace everything that is there
    #[arg(long)]
    resolve: bool,
    /// Name the write: a retry with the same name is the same write
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
    let value = match (args.value, &args.file) {
        (Some(value), _) => Bytes::from(value),
        (None, Some(path)) => read(path)?,
        (None, None) => return Err(Failure::usage("a value or --file is needed")),
    };
    let context = match (args.context, args.resolve) {
        (Some(text), _) => context(&text)?,
        (None, true) => client.read(&tenant, key.clone()).await?.context,
        (None, false) => Bytes::new(),
    };
    let request = proto::WriteRequest {
        tenant,
        key,
        value,
        content_type: args.content_type,
        context,
        ttl_ms: args.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        idempotency_key: args.idempotency_key.into(),
        consistency: 0,
    };
    let bytes = request.value.len();
    let written = client.write(request).await.map_err(|error| match error.reason() {
        // The node has not seen that it is the value that is too long.
        "MESSAGE_TOO_LARGE" => Failure::of_write(error).of_value(bytes),
        _ => Failure::of_write(error),
    })?;
    if written.siblings > 1 {
        say(format_args!("the key has {} siblings now; --resolve merges them", written.siblings));
    }
    let json = json!({
        "context": encode(&written.context),
        "siblings": written.siblings,
        "sibling_warning": written.sibling_warning,
        "duplicate": written.duplicate,
        "hlc": written.hlc,
    });
    args.connect.print("", &json)
}

fn read(path: &std::path::Path) -> Result<Bytes, Failure> {
    let mut value = Vec::new();
    // One byte more than any node takes is enough to know.
    let most = VALUE_BYTES_CEILING as u64 + 1;
    let result = match path.to_str() {
        Some("-") => std::io::stdin().lock().take(most).read_to_end(&mut value),
        _ => std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut value)),
    };
    let name = path.display();
    result.map_err(|error| Failure::error(format!("cannot read {name}: {error}")))?;
    if value.len() > VALUE_BYTES_CEILING {
        let message = format!(
            "{name} has more than {VALUE_BYTES_CEILING} bytes, which no node takes for a value; \
             the write was not applied"
        );
        return Err(Failure::with_code(5, message));
    }
    Ok(value.into())
}
