//! The way to one peer: what is asked of it at the same time goes in one message.
//!
//! A lane is a bounded queue and a task. While fewer than [`CALLS_MAX`] calls are under way what
//! comes is sent at once; while there are more it gathers, and goes together. So batching costs no
//! wait, and the busier the peer the larger the batches.
//!
//! 1. Every parcel is answered once: one that finds no room at once, one whose time is over when
//!    its turn comes, which is when a call before it ends, by its own deadline.
//! 2. A parcel is sent at most once; a message is of one epoch and one kind.
//! 3. What waits or is under way is bounded, in parcels and in bytes of keys and rows: whoever sent
//!    it may have told its client long ago, so that nothing else bounds it.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::NodeId;
use crate::cluster::peer::{Class, PeerError, Peers, Reply, Request};
use crate::proto;
use crate::resilience::bytes::{ByteBudget, Charge};
use crate::resilience::scores::Scores;

/// Parcels that wait for a peer at most.
const PARCELS_MAX: usize = 4096;
/// Calls under way to a peer at most.
const CALLS_MAX: usize = 8;
/// A message is closed before it exceeds this: in bytes of keys and rows.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// A message is closed before it exceeds this: in rows or keys.
const MESSAGE_ITEMS_MAX: usize = 1024;

/// What is asked of a peer.
#[derive(Clone, Debug)]
pub(super) enum Load {
    /// Join these.
    Rows(Vec<proto::RowState>, proto::RowsCause),
    /// Join these, which were judged by floors.
    Repairs(Vec<proto::JudgedRow>),
    /// Tell of these; `true`: digests only.
    Keys(Vec<proto::RowKey>, bool),
}

/// What it answers: one for each row or key.
#[derive(Clone, Debug)]
pub(super) enum Answers {
    Rows(Vec<proto::RowResult>),
    Keys(Vec<proto::RowAnswer>),
}

/// Called with the answer to a parcel.
pub(super) type Answered = Box<dyn FnOnce(Result<Answers, PeerError>) + Send>;

/// One request on its way to the peer.
pub(super) struct Parcel {
    pub epoch: u64,
    pub load: Load,
    pub deadline: Instant,
    pub answered: Answered,
}

/// The sender's end.
#[derive(Clone)]
pub(super) struct Lane {
    parcels: mpsc::Sender<(Parcel, Charge)>,
    budget: ByteBudget,
}

/// Parcels that go together.
struct Message {
    epoch: u64,
    load: Load,
    bytes: usize,
    deadline: Instant,
    parts: Vec<(usize, Answered)>,
    /// Given back when it is answered.
    charges: Vec<Charge>,
}

fn row_bytes(row: &proto::RowState) -> usize {
    row.key.len() + row.row.len()
}

impl Load {
    fn items(&self) -> usize {
        match self {
            Self::Rows(rows, _) => rows.len(),
            Self::Repairs(rows) => rows.len(),
            Self::Keys(keys, _) => keys.len(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Rows(rows, _) => rows.iter().map(row_bytes).sum(),
            Self::Repairs(rows) => {
                rows.iter().filter_map(|row| row.state.as_ref()).map(row_bytes).sum()
            }
            Self::Keys(keys, _) => keys.iter().map(|key| key.key.len()).sum(),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Rows(_, a), Self::Rows(_, b)) => a == b,
            (Self::Repairs(_), Self::Repairs(_)) => true,
            (Self::Keys(_, a), Self::Keys(_, b)) => a == b,
            _ => false,
        }
    }

    fn extend(&mut self, other: Self) {
        match (self, other) {
            (Self::Rows(rows, _), Self::Rows(more, _)) => rows.extend(more),
            (Self::Repairs(rows), Self::Repairs(more)) => rows.extend(more),
            (Self::Keys(keys, _), Self::Keys(more, _)) => keys.extend(more),
            _ => debug_assert!(false, "only like loads go together"),
        }
    }

    /// As it is sent.
    pub fn into_request(self) -> Request {
        match self {
            Self::Rows(rows, cause) => {
                Request::WriteRows(proto::WriteRows { rows, cause: cause.into() })
            }
            Self::Repairs(rows) => Request::RepairRows(proto::RepairRows { rows }),
            Self::Keys(keys, digest_only) => {
                Request::ReadRows(proto::ReadRows { keys, digest_only, ..Default::default() })
            }
        }
    }
}

impl Answers {
    /// The answers in a reply, if they are `items`.
    pub fn of(reply: Reply, items: usize) -> Result<Self, PeerError> {
        match reply {
            Reply::WriteRows(_) => reply.row_results(items).map(Self::Rows),
            _ => reply.row_answers(items).map(Self::Keys),
        }
    }

    /// Whether nothing of it was done.
    fn are_refusals(&self) -> bool {
        match self {
            Self::Rows(results) => results.iter().all(|result| result.failure.is_some()),
            Self::Keys(answers) => answers.iter().all(|answer| answer.failure.is_some()),
        }
    }

    /// Takes the first `items` off.
    fn split_first(&mut self, items: usize) -> Self {
        match self {
            Self::Rows(results) => Self::Rows(results.drain(..items).collect()),
            Self::Keys(answers) => Self::Keys(answers.drain(..items).collect()),
        }
    }
}

/// How many of `rows` go in each message, so that none exceeds the limits unless one row does.
/// A parcel is never split: who makes one looks here first.
pub(super) fn messages_of(rows: &[proto::RowState]) -> Vec<usize> {
    let mut messages = Vec::new();
    let (mut items, mut bytes) = (0, 0);
    for row in rows {
        let more = row.key.len() + row.row.len();
        if items > 0 && (bytes + more > MESSAGE_BYTES_MAX || items == MESSAGE_ITEMS_MAX) {
            messages.push(items);
            (items, bytes) = (0, 0);
        }
        items += 1;
        bytes += more;
    }
    messages.push(items);
    messages
}

impl Message {
    fn of((parcel, charge): (Parcel, Charge)) -> Self {
        let Parcel { epoch, load, deadline, answered } = parcel;
        let (bytes, parts) = (load.bytes(), vec![(load.items(), answered)]);
        Self { epoch, load, bytes, deadline, parts, charges: vec![charge] }
    }

    /// Takes a parcel in, or gives it back if it cannot go along.
    fn add(&mut self, (parcel, charge): (Parcel, Charge)) -> Result<(), (Parcel, Charge)> {
        let bytes = self.bytes + parcel.load.bytes();
        let items = self.load.items() + parcel.load.items();
        let fits = bytes <= MESSAGE_BYTES_MAX && items <= MESSAGE_ITEMS_MAX;
        if parcel.epoch != self.epoch || !fits || !self.load.is_like(&parcel.load) {
            return Err((parcel, charge));
        }
        self.bytes = bytes;
        self.charges.push(charge);
        self.deadline = self.deadline.max(parcel.deadline);
        self.parts.push((parcel.load.items(), parcel.answered));
        self.load.extend(parcel.load);
        Ok(())
    }

    async fn send(self, node: NodeId, peers: Arc<dyn Peers>, scores: Arc<Scores<NodeId>>) {
        let began = Instant::now();
        let timeout = self.deadline.saturating_duration_since(began);
        let items = self.load.items();
        scores.begin(&node);
        let request = self.load.into_request();
        let reply = peers.call(node, Class::Foreground, self.epoch, request, timeout).await;
        let answers = reply.and_then(|reply| Answers::of(reply, items));
        let is_refused = match &answers {
            Ok(answers) => answers.are_refusals(),
            Err(error) => !matches!(error, PeerError::NoAnswer { .. }),
        };
        // How long it takes to be refused says nothing of how fast the peer is.
        match is_refused {
            true => scores.refused(&node),
            false => scores.end(&node, began.elapsed()),
        }
        match answers {
            Ok(mut answers) => {
                for (items, answered) in self.parts {
                    answered(Ok(answers.split_first(items)));
                }
            }
            Err(error) => {
                self.parts.into_iter().for_each(|(_, answered)| answered(Err(error.clone())));
            }
        }
    }
}

impl Lane {
    /// A lane to `node`, on which so many bytes may wait. Its task ends when the last sender is
    /// gone.
    pub fn start(
        node: NodeId,
        peers: Arc<dyn Peers>,
        scores: Arc<Scores<NodeId>>,
        budget: ByteBudget,
    ) -> Self {
        let (sender, parcels) = mpsc::channel(PARCELS_MAX);
        tokio::spawn(run(node, peers, scores, parcels));
        Self { parcels: sender, budget }
    }

    /// Bytes that wait or are under way.
    pub fn bytes(&self) -> usize {
        self.budget.used()
    }

    /// Sends a parcel on its way. `false`: there was no room, and it has been answered with that.
    pub fn send(&self, node: NodeId, parcel: Parcel) -> bool {
        let (parcel, why) = match self.budget.take(parcel.load.bytes()) {
            Some(charge) => match self.parcels.try_send((parcel, charge)) {
                Ok(()) => return true,
                Err(refused) => {
                    (refused.into_inner().0, format!("{PARCELS_MAX} parcels, which is the limit"))
                }
            },
            None => {
                let (used, limit) = (self.budget.used(), self.budget.limit());
                (parcel, format!("{used} bytes of the {limit} there is room for"))
            }
        };
        (parcel.answered)(Err(PeerError::Overloaded { node: node.to_string(), why }));
        false
    }
}

async fn run(
    node: NodeId,
    peers: Arc<dyn Peers>,
    scores: Arc<Scores<NodeId>>,
    mut parcels: mpsc::Receiver<(Parcel, Charge)>,
) {
    let mut calls = JoinSet::new();
    let mut held = None;
    loop {
        while calls.len() >= CALLS_MAX {
            calls.join_next().await;
        }
        let first = match held.take() {
            Some(parcel) => parcel,
            None => match parcels.recv().await {
                Some(parcel) => parcel,
                None => break,
            },
        };
        // Time may be over for what waited while the peer was slow: it is not sent any more.
        if first.0.deadline <= Instant::now() {
            let (node, why) = (node.to_string(), "time was over before it was sent".to_owned());
            (first.0.answered)(Err(PeerError::Unreachable { node, why }));
            continue;
        }
        let mut message = Message::of(first);
        while let Ok(next) = parcels.try_recv() {
            if let Err(parcel) = message.add(next) {
                held = Some(parcel);
                break;
            }
        }
        calls.spawn(message.send(node, Arc::clone(&peers), Arc::clone(&scores)));
    }
    // What was taken is answered even when nobody sends any more.
    while calls.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::sync::Semaphore;
    use tonic::async_trait;

    use super::*;

    /// A peer that answers as often as it is allowed to.
    struct Held(Semaphore, proto::RowResult);

    #[async_trait]
    impl Peers for Held {
        async fn call(
            &self,
            _to: NodeId,
            _class: Class,
            _epoch: u64,
            request: Request,
            _timeout: Duration,
        ) -> Result<Reply, PeerError> {
            self.0.acquire().await.expect("never closed").forget();
            let Request::WriteRows(request) = request else { panic!("only rows are sent") };
            let results = vec![self.1.clone(); request.rows.len()];
            Ok(Reply::WriteRows(proto::WriteRowsReply { results }))
        }

        async fn call_address(
            &self,
            _address: &str,
            _request: Request,
            _timeout: Duration,
        ) -> Result<(NodeId, Reply), PeerError> {
            panic!("nobody has an address here")
        }
    }

    fn row(bytes: usize) -> proto::RowState {
        let row = vec![0; bytes].into();
        proto::RowState { tenant_id: 1, key: "k".into(), row }
    }

    #[test]
    fn rows_that_exceed_a_message_together_go_in_several() {
        let half = MESSAGE_BYTES_MAX / 2;
        assert_eq!(messages_of(&[row(half), row(half), row(10), row(half)]), [1, 2, 1]);
        let large = 3 * MESSAGE_BYTES_MAX;
        assert_eq!(
            messages_of(&[row(large), row(1), row(large)]),
            [1, 1, 1],
            "one row is never cut"
        );
        let many = vec![row(1); MESSAGE_ITEMS_MAX + 3];
        assert_eq!(messages_of(&many), [MESSAGE_ITEMS_MAX, 3]);
    }

    /// One whose disk has failed refuses at once: it would be asked before all others.
    #[tokio::test(start_paused = true)]
    async fn a_reply_full_of_refusals_does_not_make_a_peer_fast() {
        for (failure, cost) in [(None, 1), (Some(proto::Failure::default()), 1000)] {
            let peer = Arc::new(Held(Semaphore::new(1), proto::RowResult { failure }));
            let scores = Arc::new(Scores::default());
            let budget = ByteBudget::new(1 << 20);
            let lane = Lane::start(NodeId(2), peer, Arc::clone(&scores), budget);
            let (tell, told) = tokio::sync::oneshot::channel();
            let answered = Box::new(move |answer: Result<Answers, PeerError>| {
                tell.send(answer.is_ok()).expect("it is waited for");
            });
            let load = Load::Rows(vec![row(1)], proto::RowsCause::Write);
            let deadline = Instant::now() + Duration::from_secs(10);
            assert!(lane.send(NodeId(2), Parcel { epoch: 1, load, deadline, answered }));
            assert!(told.await.expect("answered"));
            assert_eq!(scores.cost(&NodeId(2)), cost);
        }
    }

    /// A peer that hangs: what waits for it is bounded in bytes, not only in number, for those who
    /// sent it have told their clients long ago. The rest is refused at once, with the limit.
    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_peer_is_bounded_in_bytes() {
        let peer = Arc::new(Held(Semaphore::new(0), proto::RowResult::default()));
        let budget = ByteBudget::new(4 << 20);
        let lane = Lane::start(NodeId(2), Arc::clone(&peer) as _, Arc::default(), budget);
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let send = || {
            let outcomes = Arc::clone(&outcomes);
            let answered = Box::new(move |answer: Result<Answers, PeerError>| {
                outcomes.lock().push(answer.map(drop));
            });
            let load = Load::Rows(vec![row((1 << 20) - 1)], proto::RowsCause::Write);
            let deadline = Instant::now() + Duration::from_secs(10);
            lane.send(NodeId(2), Parcel { epoch: 1, load, deadline, answered })
        };
        let taken = (0..100).filter(|_| send()).count();
        tokio::task::yield_now().await;
        assert_eq!((taken, lane.bytes()), (4, 4 << 20), "nothing was answered yet");
        let refused = std::mem::take(&mut *outcomes.lock());
        assert_eq!(refused.len(), 96, "they are told at once");
        for refusal in refused {
            let Err(PeerError::Overloaded { why, .. }) = refusal else { panic!("{refusal:?}") };
            assert_eq!(why, "4194304 bytes of the 4194304 there is room for");
        }
        peer.0.add_permits(4);
        while outcomes.lock().len() < 4 {
            tokio::task::yield_now().await;
        }
        assert!(outcomes.lock().iter().all(Result::is_ok));
        tokio::task::yield_now().await;
        assert_eq!(lane.bytes(), 0);
        assert!(send(), "there is room again");
    }
}
