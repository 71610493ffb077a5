//! The group that orders changes to the layout document: openraft, on files of this node and over
//! [`Peers`].
//!
//! | file | what |
//! |---|---|
//! | `log_file`, `log_store` | votes and entries, in `raft/LOG` |
//! | `state_machine` | the document, its snapshots in `raft/SNAPSHOT` |
//! | `network` | messages to the other members |
//! | `voters`, `keeper` | who votes, and the task of the leader that sees to it |
//! | `again` | a cluster of one that was brought back from a checkpoint |
//!
//! 1. A document is published when it is committed and durable on this node
//!    ([`Fence::adopt`]).
//! 2. Each command is proposed at most once by a call. What may have been committed is
//!    [`ProposeError::Unknown`], everything else did not happen.
//! 3. Everything runs on the tokio runtime of the caller, on its time; chance is drawn once, from
//!    the environment's source. File work is done inline: the files are small and change with the
//!    layout, not with the load.
//!
//! 4. A file that cannot be written ends the group on this node until the next start:
//!    [`Consensus::ended`] tells, and [`Consensus::status`] knows no leader any more.
//!
//! It takes no part in reads and writes: a cluster without a leader serves on.

mod again;
mod keeper;
mod log_file;
mod log_store;
mod network;
mod state_machine;
mod types;
mod voters;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{ClientWriteError, Fatal, InitializeError, RaftError};
use openraft::{Config, ServerState, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

pub use self::again::begin_again;
use self::log_store::LogStore;
use self::network::{Network, SNAPSHOT_PIECE_BYTES};
use self::state_machine::StateMachine;
use self::types::{LogId, Proposal, Raft};
use super::NodeId;
use super::fence::Fence;
use super::layout::{Answer, Command, Document, Layout, Member};
use super::peer::{Class, PeerError, Peers, Reply, Request};
use crate::engine;
use crate::store::environment::Environment;
use crate::store::{self, Outcome};

pub use self::voters::{VotesDue, voters};

const DIR_NAME: &str = "raft";
/// A command has at most so many bytes as JSON: several fit into one message.
pub const COMMAND_BYTES_MAX: usize = 256 << 10;
/// How often a proposal follows one node's word on who leads before it waits.
const REDIRECTS_MAX: u32 = 3;

/// The pace of the group.
#[derive(Clone, Copy, Debug)]
pub struct ConsensusOptions {
    /// How often a leader is heard of.
    pub heartbeat_ms: u64,
    /// A node that has not heard of a leader waits at least so long, ...
    pub election_min_ms: u64,
    /// ... and less than this, for an election: which time of the two is drawn at the start.
    pub election_max_ms: u64,
    /// Entries after which a snapshot is taken.
    pub snapshot_entries: u64,
}

impl Default for ConsensusOptions {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            election_min_ms: 300,
            election_max_ms: 600,
            snapshot_entries: 500,
        }
    }
}

/// Why the group does not run.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConsensusError {
    /// The files, or an option out of its bounds.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It has ended; its last words.
    #[error("the consensus group has stopped: {why}")]
    Stopped {
        /// Why.
        why: String,
    },
}

/// What became of a proposal that was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader took it before the deadline. It did not happen.
    #[error("no leader of the layout group was found in time")]
    NoLeader,
    /// It is longer than any command of this cluster. It did not happen.
    #[error("the command has {found} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        found: usize,
        /// [`COMMAND_BYTES_MAX`].
        limit: usize,
    },
    /// This node's member of the group has stopped. It did not happen.
    #[error("the consensus group has stopped: {why}")]
    Stopped {
        /// Why.
        why: String,
    },
    /// It was given to a leader, and may be committed or yet be.
    #[error("what became of the command is not known: {why}")]
    Unknown {
        /// Why.
        why: String,
    },
}

impl ProposeError {
    /// Whether it may take effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown { .. } => Outcome::Unknown,
            Self::NoLeader | Self::TooLarge { .. } | Self::Stopped { .. } => Outcome::NotApplied,
        }
    }
}

/// For the tenants, which are the store's matter.
impl From<ProposeError> for store::Error {
    fn from(error: ProposeError) -> Self {
        let message = error.to_string();
        match error {
            ProposeError::NoLeader => Self::Refused { reason: "NO_LEADER", message },
            ProposeError::TooLarge { .. } => {
                Self::InvalidArgument { what: "command", why: message }
            }
            ProposeError::Stopped { .. } => Self::Closed,
            ProposeError::Unknown { .. } => {
                Self::unknown(Self::Refused { reason: "NO_LEADER", message })
            }
        }
    }
}

/// The group as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Grows with every election.
    pub term: u64,
    /// Who leads, as far as known.
    pub leader: Option<NodeId>,
    /// Whether it is this node.
    pub is_leader: bool,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who follows without a vote.
    pub learners: BTreeSet<NodeId>,
}

/// How far a proposal got at one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Attempt {
    /// It was committed, and this came of it.
    Answer(Answer),
    /// The node does not lead; perhaps this one does. Nothing happened.
    Elsewhere(Option<NodeId>),
    /// It may be committed.
    Unknown(String),
}

/// This node's member of the group. Dropping it ends it.
pub struct Consensus {
    // Constant.
    me: NodeId,
    raft: Raft,
    peers: Arc<dyn Peers>,
    fence: Arc<Fence>,
    heartbeat: Duration,
    keeper: JoinHandle<()>,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Drop for Consensus {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Consensus {
    /// Starts the member of node `me` in the data directory `dir`, which exists, with what it kept
    /// there. A member that never was in a group waits to be called by one or for
    /// [`Consensus::form`]. `has_cluster` says whether the node has one: its first start was before
    /// that, so there must be a log.
    ///
    /// # Errors
    /// Damage, a newer format, I/O, or options out of their bounds.
    pub async fn start(
        options: ConsensusOptions,
        environment: &Environment,
        dir: &Path,
        me: NodeId,
        peers: Arc<dyn Peers>,
        fence: Arc<Fence>,
        has_cluster: bool,
    ) -> Result<Self, ConsensusError> {
        let config = config(options, environment)?;
        let vfs = &environment.vfs;
        let raft_dir = raft_dir(&**vfs, dir)?;
        let document = fence.document();
        // One that is alone votes for nobody else.
        let has_voted = votes_with_others(&document, me) || (has_cluster && !document.is_formed());
        check_whole(&**vfs, &raft_dir, has_voted)?;
        let (durable, snapshot) = watch::channel(None);
        let log = LogStore::open(Arc::clone(vfs), &raft_dir, snapshot.clone())?;
        let machine = StateMachine::open(Arc::clone(vfs), &raft_dir, Arc::clone(&fence), durable)?;
        check_reach(&raft_dir, log.purged(), *snapshot.borrow())?;
        let heartbeat = Duration::from_millis(options.heartbeat_ms);
        let network =
            Network { peers: Arc::clone(&peers), fence: Arc::clone(&fence), pause: heartbeat };
        let raft = Raft::new(me, Arc::new(config), network, log, machine)
            .await
            .map_err(|error| ConsensusError::Stopped { why: error.to_string() })?;
        let patience = Duration::from_millis(options.election_max_ms) * 4;
        let keeper = keeper::Keeper::new(raft.clone(), fence.watch(), heartbeat, patience);
        let keeper = tokio::spawn(keeper.run());
        Ok(Self { me, raft, peers, fence, heartbeat, keeper })
    }

    /// Forms the cluster of this id and formation, whose first members are `members`, all of which
    /// call this with the same ones, as often as they need to: whoever is first, it happens once.
    /// Because it does, an unknown outcome is no answer: it is proposed again until the deadline.
    ///
    /// # Errors
    /// As [`Consensus::propose`]; after an error nothing speaks against calling it again.
    pub async fn form(
        &self,
        (cluster_id, formation): (NodeId, NodeId),
        partition_bits: u32,
        members: &BTreeMap<NodeId, Member>,
        now_ms: u64,
        deadline: Instant,
    ) -> Result<Answer, ProposeError> {
        let first = voters(members, &BTreeSet::new());
        if first.contains(&self.me) {
            match self.raft.initialize(first).await {
                // It was called into the group before it could call others.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => return Err(ProposeError::Stopped { why: error.to_string() }),
            }
        }
        let members = members.clone();
        let command = Command::Form { cluster_id, formation, partition_bits, members, now_ms };
        loop {
            match self.propose(command.clone(), deadline).await {
                Err(ProposeError::Unknown { .. }) if Instant::now() < deadline => {
                    sleep_until(deadline.min(Instant::now() + self.heartbeat)).await;
                }
                settled => return settled,
            }
        }
    }

    /// Has a command committed, here or by the leader, and says what came of it. Answered when it
    /// is durable on a majority and applied by the leader; this node may learn of it a moment
    /// later.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Answer, ProposeError> {
        let encoded = encode_command(&command)?;
        let mut metrics = self.raft.server_metrics();
        let mut hint = None;
        let mut redirects = 0;
        loop {
            let known = metrics.borrow_and_update().current_leader;
            let leader = hint.take().or(known);
            let attempt = match leader {
                Some(leader) if leader == self.me => self.propose_here(&command, deadline).await?,
                Some(leader) => self.forward(leader, encoded.clone(), deadline).await,
                None => Attempt::Elsewhere(None),
            };
            match attempt {
                Attempt::Answer(answer) => return Ok(answer),
                Attempt::Unknown(why) => return Err(ProposeError::Unknown { why }),
                Attempt::Elsewhere(next) => hint = next.filter(|next| Some(*next) != leader),
            }
            if Instant::now() >= deadline {
                return Err(ProposeError::NoLeader);
            }
            redirects += 1;
            if hint.is_none() || redirects > REDIRECTS_MAX {
                redirects = 0;
                let until = deadline.min(Instant::now() + self.heartbeat);
                if let Ok(Err(_)) = timeout_at(until, metrics.changed()).await {
                    return Err(ProposeError::Stopped { why: "it was shut down".to_owned() });
                }
            }
        }
    }

    /// Tries here, and only here.
    async fn propose_here(
        &self,
        command: &Command,
        deadline: Instant,
    ) -> Result<Attempt, ProposeError> {
        let proposal = Proposal::new(command.clone());
        let logged = proposal.logged();
        let Ok(written) = timeout_at(deadline, self.raft.client_write(proposal)).await else {
            return Ok(Attempt::Unknown("it was not committed in time".to_owned()));
        };
        match written {
            Ok(response) => Ok(Attempt::Answer(response.data)),
            // A leader that lost its office may say "elsewhere" of what others have taken.
            Err(error) if logged.is_set() => Ok(Attempt::Unknown(error.to_string())),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Ok(Attempt::Elsewhere(to.leader_id))
            }
            Err(error) => Err(ProposeError::Stopped { why: error.to_string() }),
        }
    }

    async fn forward(&self, leader: NodeId, command: Vec<u8>, deadline: Instant) -> Attempt {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let request = Request::Propose(command.into());
        let epoch = self.fence.epoch();
        match self.peers.call(leader, Class::Control, epoch, request, timeout).await {
            Ok(Reply::Propose(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                Attempt::Unknown(format!("the leader's answer cannot be read: {error}"))
            }),
            Ok(_) => Attempt::Unknown("the leader's answer is of another kind".to_owned()),
            Err(error) if error.may_have_run() => Attempt::Unknown(error.to_string()),
            Err(_) => Attempt::Elsewhere(None),
        }
    }

    /// Answers a message of the group ([`Request::Raft`]).
    ///
    /// # Errors
    /// [`PeerError::Refused`] for one that cannot be read or speaks for somebody else.
    pub async fn handle(&self, from: NodeId, message: &[u8]) -> Result<Vec<u8>, PeerError> {
        network::handle(&self.raft, from, message).await
    }

    /// Answers a proposal of another node ([`Request::Propose`]); it is not sent on.
    ///
    /// # Errors
    /// [`PeerError::Refused`] for one that cannot be read, or when the group has stopped here.
    pub async fn handle_propose(
        &self,
        command: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let refused = |reason: &str, message: String| PeerError::Refused {
            reason: reason.to_owned(),
            message,
        };
        if command.len() > COMMAND_BYTES_MAX {
            let message = format!("the command has {} bytes", command.len());
            return Err(refused("INVALID_ARGUMENT", message));
        }
        let command: Command = serde_json::from_slice(command)
            .map_err(|error| refused("INVALID_ARGUMENT", error.to_string()))?;
        let attempt = self.propose_here(&command, Instant::now() + timeout).await;
        let attempt = attempt.map_err(|error| refused("CLOSED", error.to_string()))?;
        Ok(serde_json::to_vec(&attempt).expect("an attempt is plain data"))
    }

    /// The committed documents, as this node learns of them; see [`Fence::watch`].
    pub fn watch(&self) -> watch::Receiver<Arc<Layout>> {
        self.fence.watch()
    }

    /// The group as this node sees it.
    pub fn status(&self) -> GroupStatus {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow();
        // What it knew last is still shown by one that has ended.
        let runs = metrics.running_state.is_ok() && receiver.has_changed().is_ok();
        let membership = metrics.membership_config.membership();
        GroupStatus {
            term: metrics.current_term,
            leader: metrics.current_leader.filter(|_| runs),
            is_leader: runs && metrics.state == ServerState::Leader,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
        }
    }

    /// How the votes in the group, as this node sees it, differ from what a document asks for.
    pub fn votes_due(&self, document: &Document) -> VotesDue {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow();
        let membership = metrics.membership_config.membership();
        VotesDue::of(&document.members, membership.get_joint_config())
    }

    /// Waits until the group has ended on this node by itself, and says why: a file could not be
    /// read or written. It runs again after the next start. One that is shut down tells nothing.
    pub async fn ended(&self) -> String {
        let mut metrics = self.raft.metrics();
        let why = match metrics.wait_for(|metrics| metrics.running_state.is_err()).await {
            Ok(metrics) => metrics.running_state.clone().err(),
            Err(_gone) => Some(Fatal::Panicked),
        };
        match why {
            None | Some(Fatal::Stopped) => std::future::pending().await,
            Some(fatal) => fatal.to_string(),
        }
    }

    /// Ends it; returns when nothing of it runs any more.
    pub async fn shutdown(&self) {
        self.keeper.abort();
        // An error says that it ended by itself before.
        let _ended = self.raft.shutdown().await;
    }
}

/// The directory of the group's files in the data directory `dir`; made if need be.
fn raft_dir(vfs: &dyn engine::vfs::Vfs, dir: &Path) -> Result<PathBuf, store::Error> {
    let raft_dir = dir.join(DIR_NAME);
    vfs.create_dir_all(&raft_dir)
        .and_then(|()| vfs.sync_dir(dir))
        .map_err(engine::Error::io("create", &raft_dir))?;
    Ok(raft_dir)
}

/// Whether somebody else may have a part in the group.
fn votes_with_others(document: &Document, me: NodeId) -> bool {
    document.members.iter().any(|(id, member)| *id != me && votes(member))
}

/// Whether it may have a part in the group.
fn votes(member: &Member) -> bool {
    !member.state.is_gone()
}

/// A member that lost its votes must not vote again: the log is made before there is anything else.
fn check_whole(
    vfs: &dyn engine::vfs::Vfs,
    raft_dir: &Path,
    has_voted: bool,
) -> Result<(), store::Error> {
    let (log, snapshot) = (raft_dir.join("LOG"), raft_dir.join("SNAPSHOT"));
    let exists = |path: &Path| vfs.exists(path).map_err(engine::Error::io("look for", path));
    if exists(&log)? {
        return Ok(());
    }
    let what = match exists(&snapshot)? {
        true => "it is missing beside SNAPSHOT",
        false if has_voted => {
            "it is missing, and with it what the node has promised to the others: a node of \
             several does not come back from a checkpoint; replace it by one with an empty \
             directory"
        }
        false => return Ok(()),
    };
    Err(engine::Error::corrupt(&log, 0, what).into())
}

/// What was cut from the log must stand in the snapshot: the group would go on without it.
fn check_reach(
    raft_dir: &Path,
    purged: Option<LogId>,
    reaches: Option<LogId>,
) -> Result<(), store::Error> {
    let Some(purged) = purged.filter(|_| purged > reaches) else { return Ok(()) };
    let reaches = reaches.map_or_else(|| "nowhere".to_owned(), |id| format!("up to {id}"));
    let what = format!("the log was cut up to {purged}, the snapshot reaches {reaches}");
    Err(engine::Error::corrupt(&raft_dir.join("SNAPSHOT"), 0, what).into())
}

fn encode_command(command: &Command) -> Result<Vec<u8>, ProposeError> {
    let encoded = serde_json::to_vec(command).expect("a command is plain data");
    let (found, limit) = (encoded.len(), COMMAND_BYTES_MAX);
    if found > limit { Err(ProposeError::TooLarge { found, limit }) } else { Ok(encoded) }
}

fn config(options: ConsensusOptions, environment: &Environment) -> Result<Config, store::Error> {
    let ConsensusOptions { heartbeat_ms, election_min_ms, election_max_ms, .. } = options;
    let invalid = |why: String| store::Error::InvalidArgument { what: "consensus options", why };
    if election_min_ms >= election_max_ms {
        return Err(invalid("the election range is empty".to_owned()));
    }
    // openraft draws once, when it starts, from a source of its own. Drawn here instead, and given
    // to it as a range of one number, so that the same seed makes the same elections.
    let range = election_max_ms - election_min_ms;
    let election_ms = election_min_ms + environment.random.next_u64()? % range;
    let config = Config {
        cluster_name: "pairdb".to_owned(),
        heartbeat_interval: heartbeat_ms,
        election_timeout_min: election_ms,
        election_timeout_max: election_ms + 1,
        install_snapshot_timeout: 10 * election_max_ms,
        max_payload_entries: 64,
        // Greater than the distance between snapshots, or a snapshot would not end a lag.
        replication_lag_threshold: 2 * options.snapshot_entries,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_entries),
        snapshot_max_chunk_size: SNAPSHOT_PIECE_BYTES,
        max_in_snapshot_log_to_keep: options.snapshot_entries / 4,
        ..Config::default()
    };
    config.validate().map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests;
