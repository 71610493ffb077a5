//! `pairdb get`

use std::io::Write as _;

use serde_json::{Map, Value, json};

use super::args::{Connect, Key, Output, Tenant, encode, print_bytes, put_bytes};
use super::failure::Failure;
use crate::proto;

/// Read a value
///
/// Writes the bare value to standard output. A key with several siblings has no one value: then
/// nothing is written, and the exit code is 1, unless --all or --output json is given. A missing
/// key has exit code 3.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    key: Key,
    /// Write all siblings, one a line
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    tenant: Tenant,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.rows_client(&args.tenant)?;
    let row = client.read(&args.tenant.tenant, args.key.bytes()?).await?;
    if args.connect.output == Output::Json {
        let outcome = if row.found { Ok(()) } else { Err(Failure::not_found("")) };
        return args.connect.conclude("", &to_json(&row), outcome);
    }
    match row.siblings.as_slice() {
        [] => Err(Failure::not_found("the key was not found")),
        [one] => print_bytes(&one.value),
        several if args.all => {
            let mut out = std::io::stdout().lock();
            for sibling in several {
                out.write_all(&sibling.value)?;
                out.write_all(b"\n")?;
            }
            Ok(out.flush()?)
        }
        several => Err(Failure::error(format!(
            "the key has {} siblings; see them with --output json or --all, and merge them with \
             put --resolve or put --context",
            several.len()
        ))),
    }
}

/// A row as JSON.
fn to_json(row: &proto::ReadResponse) -> Value {
    json!({
        "found": row.found,
        "siblings": row.siblings.iter().map(sibling_json).collect::<Vec<_>>(),
        "context": encode(&row.context),
        "deleted_concurrently": row.deleted_concurrently,
    })
}

/// A sibling as JSON.
pub(super) fn sibling_json(sibling: &proto::Sibling) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "value", &sibling.value);
    object.insert("content_type".to_owned(), sibling.content_type.as_str().into());
    object.insert("expires_at_ms".to_owned(), sibling.expires_at_ms.into());
    object.insert("hlc".to_owned(), sibling.hlc.into());
    object.into()
}
