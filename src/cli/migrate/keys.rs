//! A file of keys, one a line, in the form in which `pairdb keys` writes them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::cli::failure::Failure;
use crate::cli::scan::unescape;

/// Keys of a batch.
const KEYS_MAX: usize = 1000;
/// Bytes of keys of a batch, before its last one.
const BYTES_MAX: usize = 1 << 20;

/// The open file.
pub(super) struct KeyFile {
    path: PathBuf,
    file: BufReader<File>,
    bytes: u64,
    offset: u64,
}

impl KeyFile {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let path = path.to_owned();
        let open = || {
            let file = File::open(&path)?;
            let bytes = file.metadata()?.len();
            Ok((BufReader::new(file), bytes))
        };
        match open() {
            Ok((file, bytes)) => Ok(Self { path, file, bytes, offset: 0 }),
            Err(error) => Err(cannot_read(&path, &error)),
        }
    }

    /// Goes to a place reached before.
    pub fn seek(&mut self, offset: u64) -> Result<(), Failure> {
        self.offset = offset;
        let sought = self.file.seek(SeekFrom::Start(offset));
        sought.map(drop).map_err(|error| cannot_read(&self.path, &error))
    }

    /// Behind the last key that was given.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The share of the file before that, 0 to 1.
    pub fn done(&self) -> f64 {
        if self.bytes == 0 { 1.0 } else { self.offset as f64 / self.bytes as f64 }
    }

    /// The next keys; none at the end.
    pub fn batch(&mut self) -> Result<Vec<Bytes>, Failure> {
        let mut keys = Vec::new();
        let mut bytes = 0;
        let mut line = Vec::new();
        while keys.len() < KEYS_MAX && bytes < BYTES_MAX {
            line.clear();
            let read = self.file.read_until(b'\n', &mut line);
            let read = read.map_err(|error| cannot_read(&self.path, &error))?;
            if read == 0 {
                break;
            }
            let at = self.offset;
            self.offset += read as u64;
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            if text.is_empty() {
                continue;
            }
            let key = unescape(text).map_err(|why| {
                Failure::error(format!("{}, at byte {at}: {why}", self.path.display()))
            })?;
            bytes += key.len();
            keys.push(key.into());
        }
        Ok(keys)
    }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Failure {
    Failure::error(format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn keys_come_in_batches_and_go_on_where_they_were() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let lines: String = (0..1500).map(|n| format!("k\\t{n}\n")).collect();
        file.write_all(lines.as_bytes()).expect("written");
        let mut keys = KeyFile::open(file.path()).expect("opens");
        assert_eq!(keys.batch().expect("keys").len(), KEYS_MAX);
        let place = keys.offset();
        assert!(keys.done() > 0.5 && keys.done() < 1.0);
        let rest = keys.batch().expect("keys");
        assert_eq!((rest.len(), &rest[0][..]), (500, &b"k\t1000"[..]));
        assert!(keys.batch().expect("the end").is_empty());
        keys.seek(place).expect("goes back");
        assert_eq!(keys.batch().expect("keys"), rest);
    }
}
