//! A cluster of one that begins again from its document: its directory was put together from a
//! checkpoint, which has no log of the group, or has lost that log.
//!
//! 1. Only a node that votes with nobody begins again: what it had promised to others would be
//!    forgotten with its log.
//! 2. It is another formation from then on. If the old cluster lives, and may have grown since, the
//!    two refuse each other.
//! 3. A crash on the way leaves a node that begins again once more: the snapshot, which ends it, is
//!    written last.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::log_store::LogStore;
use super::state_machine::StateMachine;
use super::{check_whole, raft_dir, votes_with_others};
use crate::cluster::NodeId;
use crate::cluster::fence::Fence;
use crate::store::environment::Environment;
use crate::store::error::Result;
use crate::store::identity::uuid;

/// Lets the group of `me`, whose data directory is `dir`, begin again, if it must. Says whether it
/// did. To be called before the group is started, and before the node speaks to anybody.
///
/// # Errors
/// Damage, a newer format, or I/O.
pub fn begin_again(
    environment: &Environment,
    dir: &Path,
    me: NodeId,
    fence: &Arc<Fence>,
) -> Result<bool> {
    let document = fence.document();
    if !document.is_formed() || votes_with_others(&document, me) {
        return Ok(false);
    }
    let (vfs, raft_dir) = (&environment.vfs, raft_dir(&*environment.vfs, dir)?);
    check_whole(&**vfs, &raft_dir, false)?;
    let (durable, snapshot) = watch::channel(None);
    let log = LogStore::open(Arc::clone(vfs), &raft_dir, snapshot)?;
    let machine = StateMachine::open(Arc::clone(vfs), &raft_dir, Arc::clone(fence), durable)?;
    if !log.is_new() || !machine.is_new() {
        return Ok(false);
    }
    let formation = uuid::mint(&*environment.random).map(NodeId)?;
    let document = fence.form_again(formation)?;
    machine.begin_with(me, &document)?;
    Ok(true)
}
