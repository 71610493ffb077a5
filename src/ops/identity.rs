//! Who the node is: a UUID made when its data directory is first used, kept in the file
//! `node.json` there. The address is not part of it.
//!
//! # Invariants
//! 1. The file is written aside, synced and renamed: it is whole or it is not there.
//! 2. A file that cannot be understood is an error: a node never changes its id silently.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file's name in the data directory.
pub const FILE: &str = "node.json";
/// The newest format of the file.
const FORMAT: u32 = 1;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Format of the file.
    pub format: u32,
    /// The node's id: a UUID of version 4.
    pub node_id: String,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// "read" or "write".
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what was written there.
    #[error("{} is corrupt: {why}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file was written by a newer version of the program.
    #[error("{} has format version {found}; this program reads up to {FORMAT}", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

/// Reads the identity of `data_dir`, or makes one. The caller holds the directory's lock.
///
/// # Errors
/// See [`Error`].
pub fn load_or_create(data_dir: &Path) -> Result<Identity, Error> {
    let path = data_dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(data_dir, &path).map_err(|source| Error::Io { operation: "write", path, source })
        }
        Err(source) => Err(Error::Io { operation: "read", path, source }),
    }
}

fn parse(path: &Path, text: &str) -> Result<Identity, Error> {
    let corrupt = |why: String| Error::Corrupt { path: path.to_owned(), why };
    // The version first: a newer format may have other fields.
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| corrupt(error.to_string()))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found > FORMAT.into() => {
            return Err(Error::TooNew { path: path.to_owned(), found });
        }
        Some(_) => {}
        None => return Err(corrupt("no format version".to_owned())),
    }
    let identity: Identity =
        serde_json::from_value(value).map_err(|error| corrupt(error.to_string()))?;
    let is_uuid = identity.node_id.len() == 36
        && identity.node_id.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    if is_uuid { Ok(identity) } else { Err(corrupt("node_id is not a UUID".to_owned())) }
}

fn create(data_dir: &Path, path: &Path) -> io::Result<Identity> {
    let identity = Identity { format: FORMAT, node_id: uuid()? };
    let aside = data_dir.join(format!("{FILE}.new"));
    let mut file = File::create(&aside)?;
    file.write_all(&serde_json::to_vec_pretty(&identity)?)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(data_dir)?.sync_all()?;
    Ok(identity)
}

/// A random UUID of version 4, from the system's generator.
fn uuid() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = load_or_create(dir.path()).expect("made");
        assert_eq!(load_or_create(dir.path()).expect("read"), made);
        let other = tempfile::tempdir().expect("a directory");
        assert_ne!(load_or_create(other.path()).expect("made"), made);
        assert_eq!(made.node_id.as_bytes()[14], b'4');
    }

    #[test]
    fn a_damaged_or_newer_identity_is_refused_by_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE);
        for bad in ["", "{", "{}", "{\"format\":1,\"node_id\":\"x\"}", "{\"format\":1,\"n\":2}"] {
            fs::write(&path, bad).expect("written");
            let error = load_or_create(dir.path()).expect_err(bad);
            assert!(matches!(&error, Error::Corrupt { path: at, .. } if *at == path), "{error}");
        }
        fs::write(&path, "{\"format\":2,\"cluster\":{}}").expect("written");
        let error = load_or_create(dir.path()).expect_err("newer");
        assert!(matches!(error, Error::TooNew { found: 2, .. }), "{error}");
    }
}
