//! `pairdb export`
//!
//! # Invariants
//! 1. What the progress says is in the file is there, also after a crash of the machine; what the
//!    file holds beyond that is cut when it goes on.
//! 2. It ends well only behind the last page.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::{Connect, Tenant, decode, encode};
use super::failure::{Failure, say};
use super::import::Format;
use super::layout::cluster_id;
use super::progress::{Checkpoint, bar};
use super::record;
use super::scan::Range;
use crate::client;
use crate::proto;

/// Times that a broken stream is begun again where it broke, in a row.
const ATTEMPTS: u32 = 5;

/// Read all rows into a file
///
/// JSON Lines as import reads them; CSV with the columns key and value, a line a sibling. An
/// interrupted export to a file goes on where it was when it is started again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file; - for standard output
    #[arg(default_value = "-")]
    file: PathBuf,
    /// The file's format [default: by its name, else jsonl]
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    range: Range,
    /// Where to remember how far it is [default: beside the file]
    #[arg(long, value_name = "PATH")]
    progress_file: Option<PathBuf>,
    #[command(flatten)]
    tenant: Tenant,
    #[command(flatten)]
    connect: Connect,
}

/// What the progress file holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    cluster_id: String,
    /// Which rows and what of them, to notice that it is another export.
    range: String,
    /// Of the scan, in base64; empty at the beginning.
    cursor: String,
    /// Of the file.
    bytes: u64,
    records: u64,
    /// Whether they are all.
    complete: bool,
}

/// Counts what goes through it.
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.rows_client(&args.tenant)?;
    let stdout = args.file.to_str() == Some("-");
    let format = args.format.unwrap_or_else(|| Format::of_name(&args.file));
    let mut request = args.range.request(args.tenant.tenant);
    let range = format!("{format:?} {request:?}");
    let subject = (!stdout).then_some(args.file.as_path());
    let mut checkpoint = Checkpoint::beside(args.progress_file.as_deref(), subject);
    if stdout {
        checkpoint = Checkpoint::beside(None, None);
    }
    let cluster_id = cluster_id(&client).await?;
    let mut saved = Saved { cluster_id, range, ..Saved::default() };
    if let Some(before) = checkpoint.load::<Saved>()? {
        checkpoint.belongs(&before.cluster_id, &saved.cluster_id)?;
        if saved.range != before.range {
            let what = "the progress file belongs to another export; remove it to begin anew";
            return Err(Failure::error(what));
        }
        saved = before;
        say(format_args!("going on after {} records", saved.records));
        request.cursor = decode("the cursor", &saved.cursor)?;
        // 0 is none, and stays it.
        request.limit = request.limit.saturating_sub(saved.records);
    }
    let file = match stdout {
        true => None,
        false => Some(open(&args.file, saved.bytes, checkpoint.path())?),
    };
    let out: Box<dyn Write + '_> = match &file {
        None => Box::new(std::io::stdout()),
        Some(file) => Box::new(file),
    };
    let mut out = Counted { inner: BufWriter::new(out), bytes: saved.bytes };
    if format == Format::Csv && saved.bytes == 0 {
        out.write_all(b"key,value\n")?;
    }
    let began = Instant::now();
    let bar = bar(None);
    let mut attempt = 0;
    while !saved.complete {
        let end = copy(&client, &mut request, format, &mut out, |page, is_last, out| {
            attempt = 0;
            saved.records += page.rows.len() as u64;
            saved.cursor = encode(&page.cursor);
            saved.bytes = out.bytes;
            saved.complete = is_last;
            bar.set_position(out.bytes);
            bar.set_message(format!("{} records", saved.records));
            out.flush()?;
            if let (Some(file), true) = (&file, is_last || checkpoint.is_due()) {
                file.sync_data().map_err(|error| cannot_write(&args.file, &error))?;
                checkpoint.save(&saved, true)?;
            }
            Ok(())
        });
        match end.await {
            Ok(()) => {}
            Err(End::Failed(failure)) => return Err(failure),
            Err(End::Call(error)) => {
                attempt += 1;
                if attempt > ATTEMPTS || !error.may_retry() {
                    return Err(error.into());
                }
                tokio::time::sleep(std::time::Duration::from_millis(200) * attempt).await;
            }
        }
    }
    out.flush()?;
    bar.finish_and_clear();
    checkpoint.done();
    let took = began.elapsed().as_secs_f64();
    let text = format!("{} records, {} bytes exported, in {took:.1} s", saved.records, out.bytes);
    if stdout {
        say(&text);
        return Ok(());
    }
    args.connect.print(&text, &json!({ "exported": saved.records, "bytes": out.bytes }))
}

/// Opens the file and cuts what an interrupted run wrote beyond its progress.
fn open(path: &Path, bytes: u64, progress: Option<&Path>) -> Result<File, Failure> {
    let found = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(cannot_write(path, &error)),
    };
    if found < bytes {
        let progress = progress.map(|path| path.display().to_string()).unwrap_or_default();
        return Err(Failure::error(format!(
            "{} has {found} bytes, but {bytes} bytes were written, as {progress} says; \
             remove that to begin anew",
            path.display()
        )));
    }
    let open = || {
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        file.set_len(bytes)?;
        file.seek(SeekFrom::End(0))?;
        Ok(file)
    };
    open().map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::error(format!("cannot write {}: {error}", path.display()))
}

enum End {
    Call(client::Error),
    Failed(Failure),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Copies pages until the end; `reached` is told of each, and whether it is the last.
async fn copy<W: Write>(
    client: &client::Client,
    request: &mut proto::ScanRequest,
    format: Format,
    out: &mut Counted<W>,
    mut reached: impl FnMut(&proto::ScanResponse, bool, &mut Counted<W>) -> Result<(), Failure>,
) -> Result<(), End> {
    let mut pages = client.scan(request.clone()).await.map_err(End::Call)?;
    while let Some(page) = pages.next().await.map_err(End::Call)? {
        for row in &page.rows {
            write(row, format, out)?;
        }
        reached(&page, pages.is_over(), out).map_err(End::Failed)?;
        // 0 is none, and stays it. A limit is reached only by the last page.
        request.limit = request.limit.saturating_sub(page.rows.len() as u64);
        request.cursor = page.cursor;
    }
    Ok(())
}

fn write(row: &proto::ScanRow, format: Format, out: &mut impl Write) -> std::io::Result<()> {
    match format {
        Format::Jsonl => writeln!(out, "{}", record::to_json_line(row)),
        Format::Csv => {
            for sibling in &row.siblings {
                write_cell(&row.key, out)?;
                out.write_all(b",")?;
                write_cell(&sibling.value, out)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        }
    }
}

/// Quotes always: a value may hold anything.
fn write_cell(bytes: &[u8], out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(b"\"")?;
    for (at, piece) in bytes.split(|b| *b == b'"').enumerate() {
        if at > 0 {
            out.write_all(b"\"\"")?;
        }
        out.write_all(piece)?;
    }
    out.write_all(b"\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_may_hold_anything_and_reads_back() {
        for bytes in [&b""[..], b"a,b", b"\"", b"a\"\"b\"", b"line\nline", b"\xff\x00"] {
            let mut line = Vec::new();
            write_cell(bytes, &mut line).expect("into memory");
            let mut reader =
                csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_slice());
            let row = reader.byte_records().next().expect("a row").expect("valid");
            assert_eq!(&row[0], bytes);
        }
    }
}
