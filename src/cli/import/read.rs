//! Reads and parses the input, in batches, on a thread of its own.
//!
//! # Invariants
//! 1. A line that is too long is read past without being kept: memory is bounded by the longest
//!    allowed line and the size of a batch.
//! 2. A batch's end lies behind all its records and all bad ones before them.
//! 3. Where the order of a key's lines counts no batch has two of them.
//! 4. What lies before the start is not told. A file is read from there; standard input from its
//!    beginning, and it must have a record that ends there.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Sender;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::Format;
use crate::cli::failure::Failure;
use crate::cli::record::{self, Record, RecordValue};
use crate::proto;

/// Longest line, in bytes: ten times the largest value that is sensible, in base64.
const LINE_BYTES_MAX: u64 = 32 << 20;
/// A batch ends when its records have this many bytes.
const BATCH_BYTES: usize = 1 << 20;

/// A place in the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Bytes before it.
    pub offset: u64,
    /// Lines before it.
    pub line: u64,
    /// CSV records before it.
    pub record: u64,
}

/// A record on its way.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub line: u64,
    pub mutation: proto::Mutation,
}

/// Records that are sent together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub items: Vec<Item>,
    /// Behind the last of them.
    pub end: Place,
    /// Bad records before that, which are left out.
    pub left_out: u64,
    /// Of the records, where the order of a key's lines counts.
    pub keys: HashSet<Bytes>,
    bytes: usize,
}

/// What the reader tells.
#[derive(Debug)]
pub(super) enum Event {
    Batch(Batch),
    Bad {
        line: u64,
        why: String,
    },
    /// Nothing more can be read.
    Broken(String),
}

/// What to read, and how.
#[derive(Debug)]
pub(super) struct Input {
    /// None is standard input.
    pub path: Option<PathBuf>,
    pub format: Format,
    pub key_field: Option<String>,
    pub key_column: String,
    pub value_column: Option<String>,
    pub delimiter: u8,
    pub import_id: u64,
    pub items_max: usize,
    /// Whether to read on after a bad record.
    pub go_on: bool,
    /// Whether the order of a key's lines counts.
    pub is_ordered: bool,
    /// Behind what an earlier run has done.
    pub start: Place,
}

/// The file's size in bytes.
pub(super) fn size_of(path: &Path) -> Result<u64, Failure> {
    let read =
        |error: io::Error| Failure::error(format!("cannot read {}: {error}", path.display()));
    let meta = std::fs::metadata(path).map_err(read)?;
    if meta.is_dir() {
        return Err(Failure::error(format!("{} is a directory", path.display())));
    }
    Ok(meta.len())
}

/// Why reading ended early.
enum End {
    /// Nobody listens, or a bad record stops it.
    Quiet,
    /// This happened.
    Broken(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(format!("cannot read the input: {error}"))
    }
}

impl Input {
    /// Reads to the end, or until nobody listens.
    pub fn read(self, events: &Sender<Event>) {
        let mut reading = Reading { input: &self, events, batch: Batch::default() };
        let result = match self.format {
            Format::Jsonl => reading.json_lines(),
            Format::Csv => reading.csv(),
        };
        if let Err(End::Broken(why)) = result.and_then(|()| reading.flush()) {
            // Nobody may listen any more.
            let _ = events.blocking_send(Event::Broken(why));
        }
    }

    /// Opens the lines at the start.
    fn open_lines(&self) -> Result<Box<dyn BufRead>, End> {
        let Some(path) = &self.path else {
            let mut lines = BufReader::new(io::stdin());
            let mut bytes = 0;
            for _ in 0..self.start.line {
                bytes += lines.skip_until(b'\n')? as u64;
            }
            return match bytes == self.start.offset {
                true => Ok(Box::new(lines)),
                false => Err(self.another()),
            };
        };
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(self.start.offset))?;
        Ok(Box::new(BufReader::with_capacity(256 << 10, file)))
    }

    /// The end of an import whose progress was made with another input.
    fn another(&self) -> End {
        let Place { offset, line, .. } = self.start;
        End::Broken(format!(
            "the progress belongs to another input: no record ends at byte {offset}, in line {line}"
        ))
    }

    /// Turns a record into mutations, each named by this import, its line and its content.
    fn mutations(&self, line: u64, record: Record) -> Result<Vec<Item>, String> {
        if record.key.is_empty() {
            return Err("the key is empty".to_owned());
        }
        let key = Bytes::from(record.key);
        let mut items = Vec::with_capacity(record.values.len());
        for (at, value) in record.values.into_iter().enumerate() {
            let Some(ttl_ms) = ttl_of(&value)? else { continue };
            let place = [self.import_id, line, at as u64].map(u64::to_le_bytes).concat();
            let seed = xxh3_64_with_seed(&key, self.import_id);
            let mut name = xxh3_128_with_seed(&place, seed).to_le_bytes().to_vec();
            name.extend(xxh3_64_with_seed(&value.bytes, self.import_id).to_le_bytes());
            items.push(Item {
                line,
                mutation: proto::Mutation {
                    key: key.clone(),
                    change: Some(proto::mutation::Change::Value(value.bytes.into())),
                    content_type: value.content_type,
                    context: Bytes::new(),
                    ttl_ms,
                    idempotency_key: name.into(),
                },
            });
        }
        Ok(items)
    }
}

/// The time to live: `None` if the value has expired, `Some(None)` if it has no limit.
fn ttl_of(value: &RecordValue) -> Result<Option<Option<u64>>, String> {
    match (value.ttl_ms, value.expires_at_ms) {
        (ttl, None) => Ok(Some(ttl)),
        (None, Some(at)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            Ok((at > now).then(|| Some(at - now)))
        }
        (Some(_), Some(_)) => Err("both ttl_ms and expires_at_ms".to_owned()),
    }
}

struct Reading<'a> {
    input: &'a Input,
    events: &'a Sender<Event>,
    batch: Batch,
}

impl Reading<'_> {
    fn tell(&self, event: Event) -> Result<(), End> {
        self.events.blocking_send(event).map_err(|_| End::Quiet)
    }

    fn flush(&mut self) -> Result<(), End> {
        let end = self.batch.end;
        let batch = std::mem::replace(&mut self.batch, Batch { end, ..Batch::default() });
        // An empty one still moves the place behind what was left out.
        if batch.end == Place::default() { Ok(()) } else { self.tell(Event::Batch(batch)) }
    }

    /// Adds a parsed record, or tells what is wrong with it.
    fn add(&mut self, line: u64, end: Place, record: Result<Record, String>) -> Result<(), End> {
        match record.and_then(|record| self.input.mutations(line, record)) {
            Ok(items) => {
                if let (true, Some(first)) = (self.input.is_ordered, items.first()) {
                    // A key that comes again begins a batch.
                    if self.batch.keys.contains(&first.mutation.key) {
                        self.flush()?;
                    }
                    self.batch.keys.insert(first.mutation.key.clone());
                }
                for item in items {
                    self.batch.bytes += item.mutation.key.len() + 64;
                    if let Some(proto::mutation::Change::Value(value)) = &item.mutation.change {
                        self.batch.bytes += value.len();
                    }
                    self.batch.items.push(item);
                }
                self.batch.end = end;
                let full = self.batch.items.len() >= self.input.items_max
                    || self.batch.bytes >= BATCH_BYTES;
                if full { self.flush() } else { Ok(()) }
            }
            Err(why) if self.input.go_on => {
                self.batch.end = end;
                self.batch.left_out += 1;
                self.tell(Event::Bad { line, why })
            }
            Err(why) => {
                // What was good before it is sent; the place stays before it.
                self.flush()?;
                self.tell(Event::Bad { line, why })?;
                Err(End::Quiet)
            }
        }
    }

    fn json_lines(&mut self) -> Result<(), End> {
        let mut reader = self.input.open_lines()?;
        let mut place = self.input.start;
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut taken = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
            if taken == 0 {
                return Ok(());
            }
            let too_long = taken == LINE_BYTES_MAX && line.last() != Some(&b'\n');
            if too_long {
                taken += reader.skip_until(b'\n')? as u64;
            }
            place.offset += taken;
            place.line += 1;
            if line.trim_ascii().is_empty() {
                self.batch.end = place;
                continue;
            }
            let record = match &self.input.key_field {
                _ if too_long => Err(format!("the line is longer than {LINE_BYTES_MAX} bytes")),
                None => record::from_json_line(&line),
                Some(field) => record::from_object_line(&line, field),
            };
            self.add(place.line, place, record)?;
        }
    }

    fn csv(&mut self) -> Result<(), End> {
        let mut builder = csv::ReaderBuilder::new();
        builder.delimiter(self.input.delimiter);
        match &self.input.path {
            None => self.csv_records(&mut builder.from_reader(io::stdin())),
            Some(path) => {
                let mut reader = builder.from_reader(File::open(path)?);
                let start = self.input.start;
                if start.offset > 0 {
                    // The names of the columns stand at the beginning, wherever we go on.
                    reader.byte_headers().map_err(|error| End::Broken(error.to_string()))?;
                    let mut at = csv::Position::new();
                    at.set_byte(start.offset).set_line(start.line + 1).set_record(start.record);
                    reader.seek(at).map_err(|error| End::Broken(error.to_string()))?;
                }
                self.csv_records(&mut reader)
            }
        }
    }

    fn csv_records<R: io::Read>(&mut self, reader: &mut csv::Reader<R>) -> Result<(), End> {
        let broken = |error: csv::Error| End::Broken(format!("line 1: {error}"));
        let headers = reader.byte_headers().map_err(broken)?.clone();
        let columns = Columns::find(self.input, &headers).map_err(End::Broken)?;
        let mut row = csv::ByteRecord::new();
        let mut skip_to = match &self.input.path {
            None => self.input.start.offset,
            Some(_) => 0,
        };
        loop {
            let line = reader.position().line();
            let read = reader.read_byte_record(&mut row);
            let line = row.position().map_or(line, csv::Position::line);
            let at = reader.position();
            let end =
                Place { offset: at.byte(), line: at.line().saturating_sub(1), record: at.record() };
            if skip_to > 0 {
                match end.offset.cmp(&skip_to) {
                    Ordering::Less if !matches!(read, Ok(false)) => {}
                    Ordering::Equal => skip_to = 0,
                    _ => return Err(self.input.another()),
                }
                continue;
            }
            let record = match read {
                Ok(false) => return Ok(()),
                Ok(true) => columns.record(&headers, &row),
                Err(error) => match error.kind() {
                    csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                        Err(format!("{len} columns, expected {expected_len}"))
                    }
                    _ => return Err(End::Broken(format!("line {line}: {error}"))),
                },
            };
            self.add(line, end, record)?;
        }
    }
}

/// Where key and value stand.
struct Columns {
    key: usize,
    value: Option<usize>,
}

impl Columns {
    fn find(input: &Input, headers: &csv::ByteRecord) -> Result<Self, String> {
        let find = |name: &str| {
            let at = headers.iter().position(|header| header == name.as_bytes());
            at.ok_or_else(|| format!("line 1: no column {name:?}"))
        };
        let value = input.value_column.as_deref().map(find).transpose()?;
        Ok(Self { key: find(&input.key_column)?, value })
    }

    fn record(&self, headers: &csv::ByteRecord, row: &csv::ByteRecord) -> Result<Record, String> {
        let cell = |at: usize| row.get(at).ok_or("a column is missing");
        let value = match self.value {
            Some(at) => RecordValue { bytes: cell(at)?.to_vec(), ..RecordValue::default() },
            None => RecordValue {
                bytes: row_json(headers, row)?.into_bytes(),
                content_type: "application/json".to_owned(),
                ..RecordValue::default()
            },
        };
        Ok(Record { key: cell(self.key)?.to_vec(), values: vec![value] })
    }
}

/// A row as a JSON object of texts, in the order of the columns.
fn row_json(headers: &csv::ByteRecord, row: &csv::ByteRecord) -> Result<String, String> {
    let quoted = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).map_err(|_| "a cell is not UTF-8")?;
        Ok::<_, String>(serde_json::Value::from(text).to_string())
    };
    let cells = headers
        .iter()
        .zip(row)
        .map(|(header, cell)| Ok(format!("{}:{}", quoted(header)?, quoted(cell)?)));
    Ok(format!("{{{}}}", cells.collect::<Result<Vec<_>, String>>()?.join(",")))
}
