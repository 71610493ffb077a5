//! The messages of the group, over [`Peers`].
//!
//! ```text
//! request  | tag (1): 1 append entries, 2 vote, 3 piece of a snapshot
//!          | bytes of the JSON (4, little endian) | JSON | bytes of the piece
//! reply    JSON: what openraft answers, or its error
//! ```
//!
//! 1. A message is bounded: entries by what the log hands out, pieces by
//!    [`SNAPSHOT_PIECE_BYTES`], and what comes in by [`MESSAGE_BYTES_MAX`].
//! 2. A message counts only from the node whose vote it carries.
//! 3. A call that failed is not sent again at once: openraft waits for a heartbeat first.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{Raft, TypeConfig};
use crate::cluster::NodeId;
use crate::cluster::fence::Fence;
use crate::cluster::peer::{Class, PeerError, Peers, Reply, Request};

/// So much of a snapshot is sent at once.
pub(super) const SNAPSHOT_PIECE_BYTES: u64 = 512 << 10;
/// A snapshot has at most so many bytes.
const SNAPSHOT_BYTES_MAX: u64 = 64 << 20;
/// Nothing longer is decoded.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

const APPEND: u8 = 1;
const VOTE: u8 = 2;
const SNAPSHOT: u8 = 3;
const HEADER_BYTES: usize = 5;

type Failed<E = RaftError<NodeId>> = RPCError<NodeId, EmptyNode, E>;
type AppendResult = Result<AppendEntriesResponse<NodeId>, RaftError<NodeId>>;
type VoteResult = Result<VoteResponse<NodeId>, RaftError<NodeId>>;
type SnapshotResult =
    Result<InstallSnapshotResponse<NodeId>, RaftError<NodeId, InstallSnapshotError>>;

/// Makes links to the other nodes of the group.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) peers: Arc<dyn Peers>,
    pub(super) fence: Arc<Fence>,
    /// How long to wait after a failure.
    pub(super) pause: Duration,
}

/// A link to one of them.
pub(super) struct Link {
    network: Network,
    to: NodeId,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> Link {
        Link { network: self.clone(), to: target }
    }
}

impl Link {
    async fn call<T, E>(
        &self,
        request: Bytes,
        timeout: Duration,
    ) -> Result<T, RPCError<NodeId, EmptyNode, E>>
    where
        Result<T, E>: DeserializeOwned,
        E: std::error::Error,
    {
        let Network { peers, fence, .. } = &self.network;
        let request = Request::Raft(request);
        let reply = peers.call(self.to, Class::Control, fence.epoch(), request, timeout).await;
        let bytes = match reply {
            Ok(Reply::Raft(bytes)) => bytes,
            Ok(_) => return Err(garbled("the reply is of another kind")),
            Err(error) => return Err(RPCError::Unreachable(Unreachable::new(&error))),
        };
        let result: Result<T, E> = serde_json::from_slice(&bytes)
            .map_err(|error| garbled(&format!("the reply cannot be read: {error}")))?;
        result.map_err(|error| RPCError::RemoteError(RemoteError::new(self.to, error)))
    }
}

fn garbled<E: std::error::Error>(why: &str) -> RPCError<NodeId, EmptyNode, E> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(why)))
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, Failed> {
        self.call(encode(APPEND, &rpc, &[]), option.hard_ttl()).await
    }

    async fn install_snapshot(
        &mut self,
        mut rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, Failed<RaftError<NodeId, InstallSnapshotError>>>
    {
        let piece = std::mem::take(&mut rpc.data);
        self.call(encode(SNAPSHOT, &rpc, &piece), option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, Failed> {
        self.call(encode(VOTE, &rpc, &[]), option.hard_ttl()).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.network.pause))
    }
}

/// Answers a message of the group.
pub(super) async fn handle(raft: &Raft, from: NodeId, bytes: &[u8]) -> Result<Vec<u8>, PeerError> {
    match decode(bytes).map_err(|why| refused("INVALID_ARGUMENT", why))? {
        Message::Append(rpc) => {
            check_sender(from, rpc.vote.leader_id().voted_for())?;
            let result: AppendResult = raft.append_entries(rpc).await;
            reply(&result)
        }
        Message::Vote(rpc) => {
            check_sender(from, rpc.vote.leader_id().voted_for())?;
            let result: VoteResult = raft.vote(rpc).await;
            reply(&result)
        }
        Message::Snapshot(rpc) => {
            check_sender(from, rpc.vote.leader_id().voted_for())?;
            let result: SnapshotResult = raft.install_snapshot(rpc).await;
            reply(&result)
        }
    }
}

fn check_sender(from: NodeId, voted_for: Option<NodeId>) -> Result<(), PeerError> {
    if voted_for == Some(from) {
        return Ok(());
    }
    Err(refused("PERMISSION_DENIED", format!("{from} sends with the vote of another node")))
}

fn reply<T: Serialize>(result: &T) -> Result<Vec<u8>, PeerError> {
    serde_json::to_vec(result).map_err(|error| refused("INTERNAL", error.to_string()))
}

fn refused(reason: &str, message: String) -> PeerError {
    PeerError::Refused { reason: reason.to_owned(), message }
}

#[derive(Debug)]
enum Message {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<NodeId>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
}

fn encode<T: Serialize>(tag: u8, rpc: &T, piece: &[u8]) -> Bytes {
    let json = serde_json::to_vec(rpc).expect("the types of the group are plain data");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + json.len() + piece.len());
    bytes.push(tag);
    bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(piece);
    bytes.into()
}

fn decode(bytes: &[u8]) -> Result<Message, String> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(format!("it has {} bytes, the limit is {MESSAGE_BYTES_MAX}", bytes.len()));
    }
    let (header, rest) =
        bytes.split_at_checked(HEADER_BYTES).ok_or("it is shorter than a header")?;
    let json_len = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let (json, piece) = rest.split_at_checked(json_len).ok_or("it is shorter than it says")?;
    match header[0] {
        APPEND => parse(json).map(Message::Append),
        VOTE => parse(json).map(Message::Vote),
        SNAPSHOT => {
            let mut rpc: InstallSnapshotRequest<TypeConfig> = parse(json)?;
            let end = rpc.offset.checked_add(piece.len() as u64);
            if end.is_none_or(|end| end > SNAPSHOT_BYTES_MAX) {
                return Err(format!("the snapshot has more than {SNAPSHOT_BYTES_MAX} bytes"));
            }
            rpc.data = piece.to_vec();
            Ok(Message::Snapshot(rpc))
        }
        tag => Err(format!("it has the unknown tag {tag}")),
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

/// A vote request as it is sent.
#[cfg(test)]
pub(super) fn tests_vote(rpc: VoteRequest<NodeId>) -> Bytes {
    encode(VOTE, &rpc, &[])
}

#[cfg(test)]
mod tests {
    use openraft::{SnapshotMeta, Vote};
    use proptest::prelude::*;

    use super::*;

    fn piece(data: &[u8], offset: u64) -> Bytes {
        let rpc = InstallSnapshotRequest::<TypeConfig> {
            vote: Vote::new(3, NodeId(7)),
            meta: SnapshotMeta::default(),
            offset,
            data: Vec::new(),
            done: true,
        };
        encode(SNAPSHOT, &rpc, data)
    }

    #[test]
    fn a_piece_of_a_snapshot_travels_as_bytes_beside_the_json() {
        let bytes = piece(b"\0\x01piece", 5);
        let Message::Snapshot(rpc) = decode(&bytes).unwrap() else { panic!("another message") };
        assert_eq!((rpc.data.as_slice(), rpc.offset), (&b"\0\x01piece"[..], 5));
        assert!(bytes.ends_with(b"\0\x01piece"));
    }

    /// The receiver buffers a snapshot up to the offset it is told.
    #[test]
    fn a_piece_beyond_the_largest_snapshot_is_refused() {
        assert!(decode(&piece(b"x", SNAPSHOT_BYTES_MAX - 1)).is_ok());
        for offset in [SNAPSHOT_BYTES_MAX, u64::MAX] {
            assert!(decode(&piece(b"x", offset)).unwrap_err().contains("more than"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn garbage_is_an_error_and_no_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<usize>(),
            bit in 0..8_u32,
        ) {
            prop_assert!(decode(&bytes).is_err());
            let mut flipped = piece(&bytes, 0).to_vec();
            let at = at % flipped.len();
            flipped[at] ^= 1 << bit;
            let _ = decode(&flipped);
            prop_assert!(decode(&flipped[..at.min(HEADER_BYTES)]).is_err());
        }
    }
}
