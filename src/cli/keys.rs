//! `pairdb keys`

use std::io::{BufWriter, Write as _};

use serde_json::{Map, Value};

use super::args::{Connect, Output, Tenant, put_bytes};
use super::failure::Failure;
use super::scan::{Range, escape};
use crate::proto;

/// List keys
///
/// One a line, escaped as scan does; JSON: one object a line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    tenant: Tenant,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.rows_client(&args.tenant)?;
    let scan = args.range.request(args.tenant.tenant);
    let mut left = if scan.limit == 0 { u64::MAX } else { scan.limit };
    let mut request = proto::GetKeyRangeRequest {
        tenant: scan.tenant,
        partition_key: scan.partition_key,
        prefix: scan.prefix,
        start: scan.start,
        end: scan.end,
        ..Default::default()
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    loop {
        request.limit = u32::try_from(left).unwrap_or(0);
        let page = client.key_range(request.clone()).await?;
        for key in &page.keys {
            match args.connect.output {
                Output::Text => writeln!(out, "{}", escape(key))?,
                Output::Json => {
                    let mut object = Map::new();
                    put_bytes(&mut object, "key", key);
                    writeln!(out, "{}", Value::from(object))?;
                }
            }
        }
        left = left.saturating_sub(page.keys.len() as u64);
        if page.cursor.is_empty() || left == 0 {
            return Ok(out.flush()?);
        }
        request.cursor = page.cursor;
    }
}
