//! `pairdb import`
//!
//! A thread reads and parses; batches are in flight while it goes on, and finish in order, so that
//! one place in the input says what is done. Every record's write is named after this import and
//! its line: what is sent again after an interruption is the same write.
//!
//! # Invariants
//! 1. All records before the place are written, or were left out by name. It does not move behind
//!    a batch that the next run is to send again, whatever became of those after it.
//! 2. The counts that are saved are of the records before the place.
//! 3. Where one value of a key replaces another, the lines of a key are written one after the
//!    other: no batch has two of them, and none is sent before an earlier one is answered.
//!    Elsewhere they become siblings in any order.

mod acked;
mod read;

use std::collections::{HashSet, VecDeque};
use std::io::IsTerminal as _;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use clap::ValueEnum;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::args::{Connect, Output, Tenant};
use super::failure::{Failure, say};
use super::layout::cluster_id;
use super::progress::{Checkpoint, bar};
use super::writes;
use crate::client::{Client, Error};
use crate::proto;
use acked::AckedFile;
use read::{Batch, Event, Input, Item, Place};

/// What is wrong with a record itself: no other try, node or day makes it good. All else is no
/// reason to leave it out.
const BAD_RECORD: [&str; 8] = [
    "EMPTY_KEY",
    "KEY_TOO_LONG",
    "VALUE_TOO_LONG",
    "CONTENT_TYPE_TOO_LONG",
    "INVALID_TTL",
    "IDEMPOTENCY_CONFLICT",
    "TOO_MANY_SIBLINGS",
    "ROW_TOO_LARGE",
];

/// Write the records of a file
///
/// JSON Lines: {"key": ..., "value": ...}, with key_base64 and value_base64 for what is not
/// UTF-8; or any objects, with --key-field. CSV: --key-column, and --value-column or the whole row
/// as JSON. An interrupted import goes on where it was when it is started again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file; - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// The file's format [default: by its name, else jsonl]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// JSON Lines: this field is the key, the whole line the value
    #[arg(long, value_name = "FIELD")]
    key_field: Option<String>,
    /// CSV: the column of the key
    #[arg(long, value_name = "COLUMN", default_value = "key")]
    key_column: String,
    /// CSV: the column of the value [default: the whole row, as JSON]
    #[arg(long, value_name = "COLUMN")]
    value_column: Option<String>,
    /// CSV: the byte between columns
    #[arg(long, default_value = ",")]
    delimiter: char,
    /// What a bad record does
    #[arg(long, value_enum, default_value = "stop")]
    on_error: OnError,
    /// Read each key first, and replace what is there; else a second value becomes a sibling
    #[arg(long)]
    overwrite: bool,
    /// Records of a batch
    #[arg(long, value_name = "COUNT", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    batch: u32,
    /// Batches in flight
    #[arg(long, value_name = "COUNT", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    in_flight: u32,
    /// Where to remember how far it is [default: beside the file]
    #[arg(long, value_name = "PATH")]
    progress_file: Option<PathBuf>,
    /// Append the keys that the node has acknowledged, one a line, in the form of keys
    #[arg(long, value_name = "PATH")]
    acked_file: Option<PathBuf>,
    #[command(flatten)]
    tenant: Tenant,
    #[command(flatten)]
    connect: Connect,
}

/// Of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// One JSON object a line.
    Jsonl,
    /// With a line of column names.
    Csv,
}

impl Format {
    /// By the end of a name.
    pub fn of_name(path: &Path) -> Self {
        match path.extension().and_then(|end| end.to_str()) {
            Some("csv") => Self::Csv,
            _ => Self::Jsonl,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// It ends the import.
    Stop,
    /// It is named, counted and left out. Only what is wrong with a record itself is skipped.
    Skip,
}

/// What the progress file holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// Names this import in the idempotency keys.
    import_id: u64,
    cluster_id: String,
    tenant: String,
    /// Of the input, to notice that it is another one.
    bytes: u64,
    place: Place,
    /// Of the records before the place.
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Counts {
    imported: u64,
    /// Of them, known to the node already: sent again after an interruption.
    repeated: u64,
    failed: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.imported += other.imported;
        self.repeated += other.repeated;
        self.failed += other.failed;
    }
}

/// What became of a batch: the records that failed, by line.
#[derive(Default)]
struct Sent {
    end: Place,
    /// Records that were bad before they could be sent.
    left_out: u64,
    imported: u64,
    repeated: u64,
    failed: Vec<(u64, Error)>,
    acked: Vec<Bytes>,
}

/// A batch that is being sent.
struct InFlight {
    /// Where the order of a key's lines counts.
    keys: HashSet<Bytes>,
    sending: JoinHandle<Sent>,
}

struct Import {
    client: Arc<Client>,
    tenant: String,
    overwrite: bool,
    on_error: OnError,
    in_flight_max: usize,
    checkpoint: Checkpoint,
    acked: Option<AckedFile>,
    saved: Saved,
    /// What was met behind the place and is met again by the next run.
    beyond: Counts,
    /// Whether a batch is to be sent again by the next run: the place stays before it.
    is_held: bool,
    bar: ProgressBar,
    /// The first failure that ends it.
    stopped: Option<Failure>,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = Arc::new(args.connect.import_client(&args.tenant)?);
    // A node that is not there or a tenant that does not exist is found before anything is read.
    let probe = proto::GetTenantRequest { name: args.tenant.tenant.clone() };
    let ask = async |admin: &mut crate::client::Admin, request| admin.get_tenant(request).await;
    let tenant = client.admin_call(probe, ask).await?.tenant.unwrap_or_default();
    let is_ordered = args.overwrite || tenant.mode() == proto::TenantMode::LastWriteWins;

    let stdin = args.file.to_str() == Some("-");
    let bytes = match stdin {
        true => None,
        false => Some(read::size_of(&args.file)?),
    };
    let acked = args.acked_file.as_deref().map(AckedFile::open).transpose()?;
    let subject = (!stdin).then_some(args.file.as_path());
    let checkpoint = Checkpoint::beside(args.progress_file.as_deref(), subject);
    let saved = resume(&checkpoint, &args, cluster_id(&client).await?, bytes.unwrap_or(0))?;
    let input = Input {
        path: (!stdin).then(|| args.file.clone()),
        format: args.format.unwrap_or_else(|| Format::of_name(&args.file)),
        key_field: args.key_field,
        key_column: args.key_column,
        value_column: args.value_column,
        delimiter: u8::try_from(args.delimiter)
            .map_err(|_| Failure::usage("--delimiter must be one byte"))?,
        import_id: saved.import_id,
        items_max: args.batch as usize,
        go_on: args.on_error == OnError::Skip,
        is_ordered,
        start: saved.place,
    };
    let mut import = Import {
        client,
        tenant: args.tenant.tenant,
        overwrite: args.overwrite,
        on_error: args.on_error,
        in_flight_max: args.in_flight as usize,
        checkpoint,
        acked,
        saved,
        beyond: Counts::default(),
        is_held: false,
        bar: bar(bytes),
        stopped: None,
    };
    let began = Instant::now();
    import.work(input).await?;
    import.bar.finish_and_clear();
    let reported = report(&args.connect, &import, began.elapsed());
    match import.stopped {
        None => reported,
        Some(failure) => Err(failure),
    }
}

/// The place that an earlier run has reached, or the beginning.
fn resume(
    checkpoint: &Checkpoint,
    args: &Args,
    cluster_id: String,
    bytes: u64,
) -> Result<Saved, Failure> {
    if let Some(saved) = checkpoint.load::<Saved>()? {
        checkpoint.belongs(&saved.cluster_id, &cluster_id)?;
        let path = checkpoint.path().map(|path| path.display().to_string()).unwrap_or_default();
        if saved.bytes != bytes || saved.tenant != args.tenant.tenant {
            return Err(Failure::error(format!(
                "{path} belongs to an import of another input or tenant; remove it to begin anew"
            )));
        }
        say(format_args!("going on after line {}, as {path} says", saved.place.line));
        return Ok(saved);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = format!("{}.{}", now.as_nanos(), std::process::id());
    Ok(Saved {
        import_id: xxhash_rust::xxh3::xxh3_64(name.as_bytes()),
        cluster_id,
        tenant: args.tenant.tenant.clone(),
        bytes,
        place: Place::default(),
        counts: Counts::default(),
    })
}

impl Import {
    async fn work(&mut self, input: Input) -> Result<(), Failure> {
        let (events, mut received) = mpsc::channel(self.in_flight_max);
        let reader = tokio::task::spawn_blocking(move || input.read(&events));
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        // Saved before the first batch: what it sends is named by the import's id.
        self.checkpoint.save(&self.saved, true)?;
        while self.stopped.is_none() {
            let Some(event) = received.recv().await else { break };
            match event {
                Event::Batch(mut batch) => {
                    let keys = std::mem::take(&mut batch.keys);
                    while in_flight.iter().any(|earlier| !earlier.keys.is_disjoint(&keys)) {
                        self.finish(in_flight.pop_front()).await?;
                    }
                    if self.stopped.is_some() {
                        // An earlier line of a key may be sent again, behind this one.
                        break;
                    }
                    let (client, tenant) = (Arc::clone(&self.client), self.tenant.clone());
                    let sending = tokio::spawn(send(client, tenant, batch, self.overwrite));
                    in_flight.push_back(InFlight { keys, sending });
                }
                Event::Bad { line, why } if self.on_error == OnError::Skip => {
                    self.tell_skipped(line, &why);
                }
                Event::Bad { line, why } => {
                    self.beyond.failed += 1;
                    self.stop(Failure::error(format!("line {line}: {why}")));
                }
                Event::Broken(why) => self.stop(Failure::error(why)),
            }
            while in_flight.len() >= self.in_flight_max {
                self.finish(in_flight.pop_front()).await?;
            }
        }
        while !in_flight.is_empty() {
            self.finish(in_flight.pop_front()).await?;
        }
        drop(received);
        // It ends by itself now that nobody listens; on standard input it may wait for a line more.
        drop(reader);
        match self.stopped {
            None => self.checkpoint.done(),
            Some(_) => self.checkpoint.save(&self.saved, true)?,
        }
        Ok(())
    }

    /// Waits for the oldest batch and moves the place behind it, if all before is done.
    async fn finish(&mut self, batch: Option<InFlight>) -> Result<(), Failure> {
        let Some(batch) = batch else { return Ok(()) };
        let sent =
            batch.sending.await.map_err(|_| Failure::error("a batch was not sent: a bug"))?;
        if let Some(acked) = &mut self.acked {
            acked.append(&sent.acked)?;
        }
        let failed = sent.left_out + sent.failed.len() as u64;
        let counts = Counts { imported: sent.imported, repeated: sent.repeated, failed };
        for (line, error) in sent.failed {
            if self.on_error == OnError::Skip && is_bad_record(&error) {
                self.tell_skipped(line, &error.to_string());
            } else {
                self.is_held = true;
                self.stop(Failure::of_write(error).at(line));
            }
        }
        match self.is_held {
            // The next run sends it again: its writes are the same writes.
            true => self.beyond += counts,
            false => {
                self.saved.counts += counts;
                self.saved.place = sent.end;
                self.checkpoint.save(&self.saved, false)?;
            }
        }
        self.bar.set_position(sent.end.offset);
        self.bar.set_message(format!("{} records", self.counts().imported));
        Ok(())
    }

    /// Of all runs so far.
    fn counts(&self) -> Counts {
        let mut counts = self.saved.counts;
        counts += self.beyond;
        counts
    }

    fn tell_skipped(&self, line: u64, why: &str) {
        self.bar.suspend(|| say(format_args!("line {line}: {why}; skipped")));
    }

    fn stop(&mut self, failure: Failure) {
        if self.stopped.is_none() {
            self.stopped = Some(failure);
        }
    }
}

/// Whether it is the record that is wrong: what a batch is refused for is so once its parts are.
fn is_bad_record(error: &Error) -> bool {
    BAD_RECORD.contains(&error.reason()) || writes::is_too_large(error)
}

/// Sends a batch.
async fn send(client: Arc<Client>, tenant: String, batch: Batch, overwrite: bool) -> Sent {
    let mut sent = Sent { end: batch.end, left_out: batch.left_out, ..Sent::default() };
    let mut items = batch.items;
    // Once: the values of one record are siblings, whatever part they are sent in.
    if overwrite && let Err(error) = give_contexts(&client, &tenant, &mut items).await {
        sent.failed = items.iter().map(|item| (item.line, error.clone())).collect();
        return sent;
    }
    let (lines, mutations): (Vec<_>, Vec<_>) =
        items.into_iter().map(|item| (item.line, item.mutation)).unzip();
    let all = writes::write(&client, &tenant, &mutations).await;
    for ((line, mutation), written) in lines.into_iter().zip(mutations).zip(all) {
        match written {
            Ok(written) => {
                sent.imported += 1;
                sent.repeated += u64::from(written.duplicate);
                sent.acked.push(mutation.key);
            }
            Err(unwritten) => sent.failed.push((line, unwritten.into_error())),
        }
    }
    sent
}

/// Reads the rows that the batch replaces.
async fn give_contexts(client: &Client, tenant: &str, items: &mut [Item]) -> Result<(), Error> {
    use proto::batch_read_result::Result as Read;
    let keys = items.iter().map(|item| item.mutation.key.clone()).collect();
    let rows = client.batch_read(tenant, keys).await?;
    for (item, row) in items.iter_mut().zip(rows) {
        match row.result {
            Some(Read::Row(row)) => item.mutation.context = row.context,
            Some(Read::Failure(failure)) => return Err(Error::of_item(&failure)),
            None => return Err(writes::broken("an empty result")),
        }
    }
    Ok(())
}

fn report(connect: &Connect, import: &Import, took: Duration) -> Result<(), Failure> {
    let counts = import.counts();
    let place = import.saved.place;
    let mut text = format!(
        "{} records imported, {} failed, {} lines and {} bytes read, in {:.1} s",
        counts.imported,
        counts.failed,
        place.line,
        place.offset,
        took.as_secs_f64()
    );
    if counts.repeated > 0 {
        text.push_str(&format!("; {} were there from an earlier run", counts.repeated));
    }
    if import.stopped.is_some() && import.checkpoint.path().is_some() {
        text.push_str("; start it again to go on");
    }
    let json = json!({
        "imported": counts.imported,
        "repeated": counts.repeated,
        "failed": counts.failed,
        "lines": place.line,
        "bytes": place.offset,
        "complete": import.stopped.is_none(),
    });
    if connect.output == Output::Text && std::io::stderr().is_terminal() {
        import.bar.finish_and_clear();
    }
    connect.print(&text, &json)
}
