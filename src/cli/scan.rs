//! `pairdb scan`

use std::io::{BufWriter, Write as _};

use super::args::{Connect, Output, Tenant};
use super::failure::Failure;
use super::record;
use crate::client;
use crate::proto;

/// Which keys, for scan, keys and export.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Range {
    /// Only keys of this partition key, in order; without it, the whole tenant in token order
    #[arg(long, value_name = "KEY")]
    partition_key: Option<String>,
    /// Only keys that begin with this
    #[arg(long, default_value = "")]
    prefix: String,
    /// Only keys at or after this
    #[arg(long, default_value = "")]
    start: String,
    /// Only keys before this
    #[arg(long, default_value = "")]
    end: String,
    /// At most so many
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    limit: u64,
}

impl Range {
    /// The request for this range.
    pub fn request(self, tenant: String) -> proto::ScanRequest {
        proto::ScanRequest {
            tenant,
            partition_key: self.partition_key.map(Into::into),
            prefix: self.prefix.into(),
            start: self.start.into(),
            end: self.end.into(),
            limit: self.limit,
            ..Default::default()
        }
    }
}

/// Read rows
///
/// Text: key, tab, value, a line a sibling, with tabs, line ends and backslashes escaped and what
/// is not UTF-8 replaced. JSON: the lines of export.
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
    let mut pages = client.scan(args.range.request(args.tenant.tenant)).await?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    loop {
        let page = pages.message().await.map_err(|status| client::Error::of(&status, false))?;
        let Some(page) = page else { break };
        for row in &page.rows {
            match args.connect.output {
                Output::Json => writeln!(out, "{}", record::to_json_line(row))?,
                Output::Text => {
                    for sibling in &row.siblings {
                        writeln!(out, "{}\t{}", escape(&row.key), escape(&sibling.value))?;
                    }
                }
            }
        }
    }
    Ok(out.flush()?)
}

/// Text that stays on its line and in its column.
pub(super) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_stays_on_its_line() {
        assert_eq!(escape(b"a\tb\nc\\d\x1b[0m"), "a\\tb\\nc\\\\d\\u{1b}[0m");
        assert_eq!(escape(b"\xff"), "\u{fffd}");
    }
}
