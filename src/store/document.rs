//! Small files that are replaced as a whole: JSON for people, a checksum for machines.
//!
//! ```text
//! pairdb NAME FORMAT CHECKSUM \n     CHECKSUM: 16 hex digits, xxh3_64("NAME FORMAT\n" | body)
//! body                               JSON, to the end of the file
//! ```
//!
//! 1. A document is written beside itself (`NAME.tmp`), synced, renamed and its directory synced:
//!    a crash leaves the old one or the new one, whole.
//! 2. An error before the rename means the old one stands. An error at or after it is
//!    [`Error::Unknown`]: either may stand, and syncing again proves nothing. The writer must then
//!    stop writing.
//! 3. Everything but the JSON is the same in every format, so a newer document is told from a
//!    damaged one. Damage never reads as "there is none".
//!
//! It does not lock: a directory has one writer.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64;

use crate::engine;
use crate::engine::vfs::Vfs;

use super::error::{Error, Result};

/// Longer is damage, not a document; keeps a broken length from taking all memory.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 64 << 20;

/// Where a document is and what it is called.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    path: PathBuf,
    name: &'static str,
    /// Written, and the newest that is read.
    format: u32,
}

impl Document {
    pub(crate) fn new(dir: &Path, name: &'static str, format: u32) -> Self {
        Self { path: dir.join(name), name, format }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The document, or `None` if there is no such file.
    pub(crate) fn read<T: DeserializeOwned>(&self, vfs: &dyn Vfs) -> Result<Option<T>> {
        match read_file(vfs, &self.path, DOCUMENT_BYTES_MAX)? {
            Some(bytes) => self.decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Puts `content` in the place of what was there.
    pub(crate) fn replace<T: Serialize>(&self, vfs: &dyn Vfs, content: &T) -> Result<()> {
        replace_file(vfs, &self.path, &self.encode(content)?)
    }

    fn encode<T: Serialize>(&self, content: &T) -> Result<Vec<u8>> {
        let mut body = serde_json::to_vec_pretty(content).map_err(|error| {
            Error::InvalidArgument { what: "document", why: format!("{}: {error}", self.name) }
        })?;
        body.push(b'\n');
        let mut bytes = self.header(self.format, &body).into_bytes();
        bytes.append(&mut body);
        Ok(bytes)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T> {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            return Err(self.corrupt(0, "its first line does not end"));
        };
        let (header, body) = bytes.split_at(end + 1);
        let format = std::str::from_utf8(header)
            .ok()
            .and_then(|header| header.split(' ').nth(2)?.parse::<u32>().ok())
            .ok_or_else(|| self.corrupt(0, "its first line is not that of a document"))?;
        // Compared as it would be written: no other spelling of the same header passes.
        if header != self.header(format, body).as_bytes() {
            return Err(self.corrupt(0, "its checksum does not match"));
        }
        if format > self.format {
            let file = self.path.clone();
            return Err(Error::FormatTooNew { file, found: format, supported: self.format });
        }
        serde_json::from_slice(body).map_err(|error| self.invalid(body_offset(header), error))
    }

    fn header(&self, format: u32, body: &[u8]) -> String {
        let mut hashed = format!("{} {format}\n", self.name).into_bytes();
        hashed.extend_from_slice(body);
        format!("pairdb {} {format} {:016x}\n", self.name, xxh3_64(&hashed))
    }

    /// The content is what was written but breaks a rule of its own.
    pub(crate) fn invalid(&self, offset: u64, why: impl std::fmt::Display) -> Error {
        self.corrupt(offset, &format!("its content is invalid: {why}"))
    }

    /// The file should exist and does not.
    pub(crate) fn missing(&self) -> Error {
        self.corrupt(0, "it is missing, though other files say that it was there")
    }

    fn corrupt(&self, offset: u64, what: &str) -> Error {
        engine::Error::corrupt(&self.path, offset, what).into()
    }
}

fn body_offset(header: &[u8]) -> u64 {
    header.len() as u64
}

/// The whole of a small file, or `None` if there is none. Over `bytes_max` is corruption.
pub(crate) fn read_file(vfs: &dyn Vfs, path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
    if !vfs.exists(path).map_err(engine::Error::io("look for", path))? {
        return Ok(None);
    }
    let file = vfs.open(path).map_err(engine::Error::io("open", path))?;
    let len = file.len().map_err(engine::Error::io("read", path))?;
    if len > bytes_max {
        let what = format!("it has {len} bytes, the limit is {bytes_max}");
        return Err(engine::Error::corrupt(path, bytes_max, what).into());
    }
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(0, &mut bytes).map_err(engine::Error::io("read", path))?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// Puts `bytes` in the place of the file at `path`, durably and as a whole; see the module page
/// for what an error means.
pub(crate) fn replace_file(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temp = path.to_path_buf();
    temp.as_mut_os_string().push(".tmp");
    if vfs.exists(&temp).map_err(engine::Error::io("look for", &temp))? {
        vfs.remove(&temp).map_err(engine::Error::io("remove", &temp))?;
    }
    let file = vfs.create(&temp).map_err(engine::Error::io("create", &temp))?;
    file.write_at(0, bytes).map_err(engine::Error::io("write", &temp))?;
    file.sync_data().map_err(engine::Error::io("sync", &temp))?;
    drop(file);
    let renamed = vfs.rename(&temp, path).map_err(engine::Error::io("rename", path));
    let dir = path.parent().unwrap_or(Path::new(""));
    renamed
        .and_then(|()| vfs.sync_dir(dir).map_err(engine::Error::io("sync", dir)))
        .map_err(Error::unknown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::engine::vfs::mem::MemVfs;

    use super::*;

    fn document(format: u32) -> Document {
        Document::new(Path::new("/"), "NOTE", format)
    }

    /// The first bytes of the file are a format: a future version must tell ours from damage.
    #[test]
    fn a_document_looks_like_this() {
        let bytes = document(1).encode(&("x", 7)).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text, "pairdb NOTE 1 42e4aaebd9f0a32f\n[\n  \"x\",\n  7\n]\n");
    }

    #[test]
    fn a_newer_document_is_refused_by_its_version_and_an_older_one_is_read() {
        let vfs = MemVfs::new();
        document(2).replace(&vfs, &7).unwrap();
        let error = document(1).read::<u32>(&vfs).unwrap_err();
        assert!(matches!(error, Error::FormatTooNew { found: 2, supported: 1, .. }), "{error}");
        assert_eq!(document(3).read::<u32>(&vfs).unwrap(), Some(7));
        assert_eq!(Document::new(Path::new("/"), "OTHER", 1).read::<u32>(&vfs).unwrap(), None);
    }

    /// A file of another kind under this name is not this document, even if it is whole.
    #[test]
    fn a_document_is_not_taken_for_another() {
        let bytes = document(1).encode(&7).unwrap();
        let other = Document::new(Path::new("/"), "ETON", 1);
        assert_eq!(other.decode::<u32>(&bytes).unwrap_err().reason(), "CORRUPTION");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn one_flipped_bit_or_a_cut_is_always_noticed(at in any::<usize>(), bit in 0..8_u32) {
            let bytes = document(1).encode(&("some text", 12_345)).unwrap();
            let at = at % bytes.len();
            let cut = document(1).decode::<(String, u32)>(&bytes[..at]).unwrap_err();
            prop_assert_eq!(cut.reason(), "CORRUPTION");
            let mut flipped = bytes;
            flipped[at] ^= 1 << bit;
            let error = document(1).decode::<(String, u32)>(&flipped).unwrap_err();
            prop_assert_eq!(error.reason(), "CORRUPTION");
        }

        #[test]
        fn garbage_is_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(document(1).decode::<u32>(&bytes).is_err());
            let headed = [b"pairdb NOTE 1 ", bytes.as_slice()].concat();
            prop_assert!(document(1).decode::<u32>(&headed).is_err());
        }
    }
}
