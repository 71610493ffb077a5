//! What a node without a cluster has promised: the document `FORMATION`.
//!
//! It is a store document (`store::document` has its bytes): null, or the promise.
//!
//! 1. A node has one promise at a time, durable before it is told of.
//! 2. Only the initiator, the first of the members, may commit it, and only when all members have
//!    made it. What is committed stays.
//! 3. A member takes a promise back only when its initiator no longer stands by it. The initiator
//!    gives up durably before it says so, and never comes back to it: its id is used once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::cluster::NodeId;
use crate::cluster::layout::Member;
use crate::engine::vfs::Vfs;
use crate::store::document::Document as File;
use crate::store::error::{Error, Result};

const NAME: &str = "FORMATION";
const FORMAT: u32 = 1;

/// The cluster a node has agreed to form with others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Promise {
    /// Names it: a UUID, never used twice, whatever becomes of it. The cluster's own may be. It
    /// becomes the cluster's formation.
    pub(super) id: NodeId,
    /// The cluster to be.
    pub(super) cluster_id: NodeId,
    /// Its first members. The one with the lowest id began.
    pub(super) members: BTreeMap<NodeId, Member>,
    /// All members have made it: the cluster is.
    pub(super) committed: bool,
}

impl Promise {
    /// Who began, and decides.
    pub(super) fn initiator(&self) -> Option<NodeId> {
        self.members.keys().next().copied()
    }
}

/// The promise of this node, kept.
#[derive(Debug)]
pub(super) struct Promises {
    // Constant after open.
    vfs: Arc<dyn Vfs>,
    file: File,
    // Held while it is written.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    promise: Option<Promise>,
    /// Why nothing is written any more.
    refused: Option<Error>,
}

impl Promises {
    pub(super) fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Self> {
        let file = File::new(dir, NAME, FORMAT);
        let promise = file.read::<Option<Promise>>(&*vfs)?.flatten();
        Ok(Self { vfs, file, state: Mutex::new(State { promise, refused: None }) })
    }

    pub(super) fn current(&self) -> Option<Promise> {
        self.state.lock().promise.clone()
    }

    /// Puts `next` in the place of `from`, durably; does nothing if `from` is not what stands
    /// there. Says what stands there afterwards.
    pub(super) fn replace(
        &self,
        from: Option<&Promise>,
        next: Option<Promise>,
    ) -> Result<Option<Promise>> {
        let mut state = self.state.lock();
        if let Some(refused) = &state.refused {
            return Err(refused.clone());
        }
        if state.promise.as_ref() == from && state.promise != next {
            if let Err(error) = self.file.replace(&*self.vfs, &next) {
                state.refused = Some(Error::ReadOnly { cause: error.to_string() });
                return Err(error);
            }
            state.promise = next;
        }
        Ok(state.promise.clone())
    }
}
