//! A data directory that was put back to an earlier state: a volume's snapshot, a copy.
//!
//! What the node has acknowledged since is not there, nor what it has voted for, nor under which
//! epoch it last acted; times it has given to writes would be given again. Others heard of a later
//! bound of its clock ([`crate::cluster::local`]), and then it is never started from that directory
//! again: a file says so, for the next start would have a later bound itself.

use std::path::Path;

use super::node::Error;
use crate::engine::vfs::Vfs;
use crate::store::{self, document};

const NAME: &str = "ROLLED_BACK";
const TEXT: &[u8] = b"This directory was put back to an earlier state of its node, which others \
                      knew of. Nothing is started from it. Replace the node by an empty one.\n";

/// Refuses a directory that was found to be put back.
pub(super) fn check(vfs: &dyn Vfs, dir: &Path) -> Result<(), Error> {
    let path = dir.join(NAME);
    match vfs.exists(&path) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::RolledBack),
        Err(source) => Err(Error::System { what: format!("look for {}", path.display()), source }),
    }
}

/// Notes it, durably.
pub(super) fn note(vfs: &dyn Vfs, dir: &Path) -> store::Result<()> {
    document::replace_file(vfs, &dir.join(NAME), TEXT)
}
