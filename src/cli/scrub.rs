//! `pairdb scrub`

use std::fmt::Write as _;

use serde_json::json;

use super::args::Connect;
use super::failure::Failure;
use crate::client::Admin;
use crate::proto::ScrubRequest;

/// Read every block and check it; exit code 1 if something is damaged
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.upkeep_client()?;
    let call = async |admin: &mut Admin, request| admin.scrub(request).await;
    let report = client.admin_call(ScrubRequest {}, call).await?;
    let damage: Vec<_> = report
        .damage
        .iter()
        .map(|one| json!({ "file": one.file, "offset": one.offset, "what": one.what }))
        .collect();
    let mut text = format!("{} tables, {} bytes read", report.tables, report.bytes);
    for one in &report.damage {
        let _ = write!(text, "\n{} at byte {}: {}", one.file, one.offset, one.what);
    }
    let json = json!({ "tables": report.tables, "bytes": report.bytes, "damage": damage });
    let outcome = match report.damage.len() {
        0 => Ok(()),
        found => Err(Failure::error(format!("{found} damaged places"))),
    };
    args.connect.conclude(&text, &json, outcome)
}
