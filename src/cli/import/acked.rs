//! The file that `--acked-file` names: which keys the node has acknowledged.
//!
//! A line is written only after the answer that acknowledges its write, so whoever reads the file
//! while the import runs may rely on every whole line. An import that goes on where it was appends.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::cli::failure::Failure;
use crate::cli::scan::escape;

/// The open file.
pub(super) struct AckedFile {
    path: PathBuf,
    file: File,
}

impl AckedFile {
    /// Opens it, or makes it if it is not there.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let path = path.to_owned();
        match File::options().create(true).append(true).open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(Failure::error(format!("cannot write {}: {error}", path.display()))),
        }
    }

    /// Adds keys with one write, so that a reader sees whole lines.
    pub fn append(&mut self, keys: &[Bytes]) -> Result<(), Failure> {
        let mut lines = String::new();
        for key in keys {
            lines.push_str(&escape(key));
            lines.push('\n');
        }
        self.file.write_all(lines.as_bytes()).map_err(|error| {
            Failure::error(format!("cannot write {}: {error}", self.path.display()))
        })
    }
}
