//! `pairdb scan`

use std::io::{BufWriter, Write as _};

use super::args::{Connect, Output, Tenant};
use super::failure::Failure;
use super::record;
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
    /// At most so many; 0 for all
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
    while let Some(page) = pages.next().await? {
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

/// The bytes that [`escape`] made a line of. What was not UTF-8 cannot be had back from that.
pub(super) fn unescape(line: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let Some((kind, behind)) = rest.split_first() else {
            return Err("a backslash at the end".to_owned());
        };
        rest = behind;
        match kind {
            b'\\' => bytes.push(b'\\'),
            b't' => bytes.push(b'\t'),
            b'n' => bytes.push(b'\n'),
            b'r' => bytes.push(b'\r'),
            b'u' => {
                let end = rest.iter().position(|byte| *byte == b'}');
                let digits = end.and_then(|end| rest[..end].strip_prefix(b"{"));
                let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
                let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
                let Some(c) = code.and_then(char::from_u32) else {
                    return Err("a backslash with an u and no {character}".to_owned());
                };
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[end.map_or(rest.len(), |end| end + 1)..];
            }
            other => return Err(format!("a backslash before {:?}", char::from(*other))),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        for key in ["a\tb\nc\\d\x1b[0m\r", "plain", "", "\u{e9}\u{7f}\u{1f600}"] {
            assert_eq!(unescape(escape(key.as_bytes()).as_bytes()).as_deref(), Ok(key.as_bytes()));
        }
        for bad in [&b"a\\"[..], b"\\x", b"\\u{zz}", b"\\u{41", b"\\u{110000}"] {
            assert!(unescape(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_row_stays_on_its_line() {
        assert_eq!(escape(b"a\tb\nc\\d\x1b[0m"), "a\\tb\\nc\\\\d\\u{1b}[0m");
        assert_eq!(escape(b"\xff"), "\u{fffd}");
    }
}
