//! Rows that another node asks for by their keys, or the digests of them.
//!
//! 1. Nothing is told of a row that this node is no replica of, and nothing under another epoch:
//!    the fence is not raised meanwhile.
//! 2. What is found may be in memory only; how far the log must be durable before it is told comes
//!    with it.
//! 3. A request has a bound in keys, a reply in bytes: only its first row may exceed that.

use std::sync::Arc;

use bytes::Bytes;

use super::error::Error;
use super::fence::{Fence, enter};
use super::reason::{NOT_A_REPLICA, REPLY_TOO_LARGE};
use super::replica::{ToFailure, refused};
use super::sum;
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::PeerError;
use crate::engine::Position;
use crate::proto;
use crate::store::{self, Early, RawRow, Store, TenantId};

/// Rows or keys of a request at most.
const ITEMS_MAX: usize = 10_000;
/// Keys that are read in one go: their rows may be large, and more than the reply takes.
const READ_CHUNK: usize = 16;
/// Rows of a reply together, unless its first one alone is larger: in bytes.
const REPLY_BYTES_MAX: usize = 8 << 20;

/// What is needed to read rows, on whichever thread.
pub(super) struct Reading {
    pub node: NodeId,
    pub store: Arc<Store>,
    pub fence: Arc<dyn Fence>,
    pub to_failure: ToFailure,
}

impl Reading {
    fn is_member(&self, layout: &Layout, tenant: TenantId, key: &[u8]) -> store::Result<bool> {
        let tenant = self.store.tenant_by_id(tenant)?;
        let partition = layout.partition_of(tenant.token(key));
        Ok(layout.sets_of(partition, &tenant).contains(self.node))
    }

    /// A refusal as it is sent.
    pub(super) fn failure(&self, error: store::Error) -> proto::Failure {
        (self.to_failure)(&Error::Store(error))
    }

    /// Why nothing is done with a row; `None` if it may be.
    pub(super) fn refusal(
        &self,
        layout: &Layout,
        tenant: TenantId,
        key: &[u8],
    ) -> Option<proto::Failure> {
        match self.is_member(layout, tenant, key) {
            Ok(true) => None,
            Ok(false) => Some(proto::Failure {
                code: tonic::Code::FailedPrecondition as i32,
                reason: NOT_A_REPLICA.to_owned(),
                message: "the node is no replica of the row".to_owned(),
                outcome: proto::Outcome::NotApplied.into(),
                ..proto::Failure::default()
            }),
            Err(error) => Some(self.failure(error)),
        }
    }

    /// What is found under the keys, which may not be durable yet.
    ///
    /// # Errors
    /// It is another epoch's, or too much.
    pub(super) fn peek(
        &self,
        layout: &Layout,
        request: &proto::ReadRows,
    ) -> Result<Early<Vec<proto::RowAnswer>>, PeerError> {
        check_items(request.keys.len())?;
        let _pass = enter(&*self.fence, layout.epoch())?;
        let mut bytes = 0;
        let mut answers = Early::durable(Vec::with_capacity(request.keys.len()));
        for keys in request.keys.chunks(READ_CHUNK) {
            let upto = self.peek_chunk(layout, keys, request, &mut bytes, &mut answers.found);
            answers.upto = answers.upto.max(upto);
        }
        Ok(answers)
    }

    /// Reads some keys in one go; `bytes` are those of the rows in the reply so far, or all it may
    /// have once a row was left out. How far the log must be durable before they are told.
    fn peek_chunk(
        &self,
        layout: &Layout,
        keys: &[proto::RowKey],
        request: &proto::ReadRows,
        bytes: &mut usize,
        answers: &mut Vec<proto::RowAnswer>,
    ) -> Position {
        let is_full = *bytes >= REPLY_BYTES_MAX;
        let places: Vec<(TenantId, &[u8])> =
            keys.iter().map(|key| (TenantId(key.tenant_id), &key.key[..])).collect();
        let Early { found, upto } = match is_full {
            true => Early::durable(Vec::new()),
            false if request.of_damaged => self.store.peek_damaged_rows(&places),
            false => self.store.peek_raw_rows(&places),
        };
        let mut rows = found.into_iter();
        answers.extend(places.iter().map(|(tenant, key)| {
            let raw = rows.next().unwrap_or(Err(store::Error::Closed));
            if let Some(failure) = self.refusal(layout, *tenant, key) {
                return failed(failure);
            }
            if *bytes >= REPLY_BYTES_MAX {
                return failed(left_out());
            }
            let digest = |raw: &RawRow| match request.as_they_are {
                true => Ok(sum::digest_of(raw.row.as_deref())),
                false => self.store.digest(raw),
            };
            let read = raw.and_then(|raw| Ok((digest(&raw)?, raw)));
            match read {
                Ok((digest, raw)) => {
                    let row = raw.row.filter(|_| !request.digest_only).map(Bytes::from);
                    let more = row.as_ref().map_or(0, Bytes::len);
                    if *bytes > 0 && *bytes + more > REPLY_BYTES_MAX {
                        // No more is read: who looks for rows that still fit reads them all.
                        *bytes = REPLY_BYTES_MAX;
                        return failed(left_out());
                    }
                    *bytes += more;
                    proto::RowAnswer { row, digest, floor: raw.floor, failure: None }
                }
                Err(error) => failed(self.failure(error)),
            }
        }));
        upto
    }
}

pub(super) fn check_items(items: usize) -> Result<(), PeerError> {
    if items <= ITEMS_MAX {
        return Ok(());
    }
    let message = format!("the request has {items} items, the limit is {ITEMS_MAX}");
    Err(refused("BATCH_TOO_LARGE", message))
}

fn left_out() -> proto::Failure {
    proto::Failure {
        code: tonic::Code::ResourceExhausted as i32,
        reason: REPLY_TOO_LARGE.to_owned(),
        message: "the rows before it fill the reply".to_owned(),
        ..proto::Failure::default()
    }
}

fn failed(failure: proto::Failure) -> proto::RowAnswer {
    proto::RowAnswer { failure: Some(failure), ..proto::RowAnswer::default() }
}
