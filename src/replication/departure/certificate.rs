//! What a node says when it has left, and where that is kept.
//!
//! ```text
//! certificates/<node id>.json     certificates: this node's own, or one it keeps for another
//! certificates/<node id>.draft    what this node held when it had handed all of it over
//! ```
//!
//! # Invariants
//! 1. A certificate is a text; its digest is of its bytes. It is never written anew.
//! 2. The draft is durable before the first row is removed, so a node that is stopped in between
//!    still knows what it held.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::cluster::NodeId;
use crate::engine;
use crate::engine::vfs::Vfs;
use crate::store::document::{read_file, replace_file};
use crate::store::{Error, Result};

/// Longest certificate that is read or kept, in bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 8 << 20;

/// What a node held of a partition when it had handed all of it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionProof {
    /// The partition.
    pub partition: u32,
    /// Its rows.
    pub keys: u64,
    /// Their size.
    pub bytes: u64,
    /// Of all of them in their order, 16 hex digits.
    pub digest: String,
    /// The owners that hold all of them. Of each row a quorum of its owners does.
    pub owners: Vec<NodeId>,
}

/// A node has left: every row it held was, durably, on a quorum of its owners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Of the form of this text.
    pub format: u32,
    /// The cluster.
    pub cluster_id: NodeId,
    /// Who left.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// The layout epoch under which the owners took the rows.
    pub epoch: u64,
    /// When, in milliseconds since 1970.
    pub made_ms: u64,
    /// Hints for others that were delivered or handed over at the end.
    pub hints: u64,
    /// What it held; partitions without rows are left out.
    pub partitions: Vec<PartitionProof>,
}

/// The form of certificates that this program writes.
pub const CERTIFICATE_FORMAT: u32 = 1;

impl Certificate {
    /// Reads a text.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(json: &[u8]) -> std::result::Result<Self, String> {
        if json.len() > CERTIFICATE_BYTES_MAX {
            return Err(format!("it is longer than {CERTIFICATE_BYTES_MAX} bytes"));
        }
        let certificate: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        match certificate.format {
            CERTIFICATE_FORMAT => Ok(certificate),
            other => Err(format!("it is of form {other}, this program knows {CERTIFICATE_FORMAT}")),
        }
    }

    /// Its text.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a certificate is plain data")
    }

    /// Rows and bytes of all partitions.
    pub fn totals(&self) -> (u64, u64) {
        let sum = |of: fn(&PartitionProof) -> u64| self.partitions.iter().map(of).sum();
        (sum(|one| one.keys), sum(|one| one.bytes))
    }
}

/// The digest of a certificate's text: 32 hex digits.
pub fn digest_of(json: &[u8]) -> String {
    format!("{:032x}", xxh3_128(json))
}

/// The certificates in a directory.
#[derive(Debug)]
pub struct Certificates {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
}

impl Certificates {
    /// Those in `dir`, which is created if need be.
    ///
    /// # Errors
    /// I/O.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Self> {
        engine::create_dir_durably(&*vfs, dir)?;
        Ok(Self { vfs, dir: dir.to_path_buf() })
    }

    /// The text of a node's certificate, if it is kept here.
    ///
    /// # Errors
    /// I/O.
    pub fn read(&self, node: NodeId) -> Result<Option<Vec<u8>>> {
        read_file(&*self.vfs, &self.path(node, "json"), CERTIFICATE_BYTES_MAX as u64)
    }

    /// Keeps a certificate, durably.
    ///
    /// # Errors
    /// It is none, or not of that node; there is another one of the node; I/O.
    pub fn keep(&self, node: NodeId, json: &[u8]) -> Result<()> {
        let invalid = |why| Error::InvalidArgument { what: "certificate", why };
        let certificate = Certificate::parse(json).map_err(invalid)?;
        if certificate.node_id != node {
            return Err(invalid(format!("it is of {}", certificate.node_id)));
        }
        match self.read(node)? {
            Some(kept) if kept == json => Ok(()),
            Some(_) => Err(invalid(format!("there is another one of {node}"))),
            None => replace_file(&*self.vfs, &self.path(node, "json"), json),
        }
    }

    /// What a node held, as it was drafted.
    ///
    /// # Errors
    /// I/O, or damage.
    pub fn draft(&self, node: NodeId) -> Result<Option<Certificate>> {
        let path = self.path(node, "draft");
        let Some(json) = read_file(&*self.vfs, &path, CERTIFICATE_BYTES_MAX as u64)? else {
            return Ok(None);
        };
        let corrupt = |what| Error::Corruption { file: path.clone(), offset: 0, what };
        Certificate::parse(&json).map(Some).map_err(corrupt)
    }

    /// Keeps a draft, durably, unless there is one.
    ///
    /// # Errors
    /// I/O, or damage.
    pub fn keep_draft(&self, draft: &Certificate) -> Result<()> {
        if self.draft(draft.node_id)?.is_some() {
            return Ok(());
        }
        replace_file(&*self.vfs, &self.path(draft.node_id, "draft"), &draft.to_json())
    }

    fn path(&self, node: NodeId, suffix: &str) -> PathBuf {
        self.dir.join(format!("{node}.{suffix}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::vfs::mem::MemVfs;

    fn certificate(node: u128) -> Certificate {
        let proof = |partition| PartitionProof {
            partition,
            keys: 2,
            bytes: 30,
            digest: "00000000000000ff".to_owned(),
            owners: vec![NodeId(1), NodeId(2)],
        };
        Certificate {
            format: CERTIFICATE_FORMAT,
            cluster_id: NodeId(7),
            node_id: NodeId(node),
            node_name: "d".to_owned(),
            epoch: 5,
            made_ms: 9,
            hints: 0,
            partitions: vec![proof(0), proof(3)],
        }
    }

    #[test]
    fn a_certificate_is_read_as_it_was_written_and_its_digest_is_of_its_bytes() {
        let written = certificate(3);
        let json = written.to_json();
        assert_eq!(Certificate::parse(&json), Ok(written.clone()));
        assert_eq!(written.totals(), (4, 60));
        let mut altered = json.clone();
        let digit = altered.iter().position(|byte| *byte == b'9').expect("a time");
        altered[digit] = b'8';
        assert!(Certificate::parse(&altered).is_ok() && digest_of(&altered) != digest_of(&json));
        assert!(Certificate::parse(&json[1..]).is_err());
        let newer = Certificate { format: 2, ..written }.to_json();
        assert!(Certificate::parse(&newer).is_err());
    }

    /// Whoever keeps one keeps it for good: another text about the same node is a forgery, or a
    /// mistake.
    #[test]
    fn a_certificate_is_kept_over_a_power_loss_and_never_replaced() {
        let disk = MemVfs::new();
        let open = |disk: &MemVfs| {
            Certificates::open(Arc::new(disk.clone()), Path::new("/certificates")).expect("opens")
        };
        let json = certificate(3).to_json();
        let kept = open(&disk);
        assert_eq!(kept.read(NodeId(3)).expect("reads"), None);
        kept.keep(NodeId(3), &json).expect("kept");
        kept.keep(NodeId(3), &json).expect("kept already");
        let other = Certificate { hints: 1, ..certificate(3) }.to_json();
        assert!(kept.keep(NodeId(3), &other).is_err() && kept.keep(NodeId(4), &json).is_err());
        kept.keep_draft(&certificate(5)).expect("kept");
        kept.keep_draft(&Certificate { hints: 1, ..certificate(5) }).expect("the first stays");
        let after = open(&disk.crash_clone(1));
        assert_eq!(after.read(NodeId(3)).expect("reads"), Some(json));
        assert_eq!(after.draft(NodeId(5)).expect("reads"), Some(certificate(5)));
    }
}
