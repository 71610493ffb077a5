//! What is seen of the messages between all nodes: who leads the layout group, and whether anybody
//! takes what it had refused before (I13).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use pairdb::proto::{PeerReply, PeerRequest};
use parking_lot::Mutex;

use crate::step::{Step, Topic, has_passed};

/// Shared by all machines.
#[derive(Clone, Default)]
pub struct Observer(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// Grows with every message.
    moment: u64,
    /// The highest epoch each node has answered under, since when.
    epochs: BTreeMap<usize, BTreeMap<u64, u64>>,
    /// By the asker's end of the connection and the id.
    asked: BTreeMap<(SocketAddr, u64), Asked>,
    leader: Option<usize>,
    broken: Vec<String>,
}

#[derive(Clone, Copy)]
struct Asked {
    moment: u64,
    stamp: u64,
    topic: Topic,
}

impl Observer {
    /// A request goes out.
    pub fn asked(&self, node: usize, connection: SocketAddr, request: &PeerRequest, topic: Topic) {
        let mut seen = self.0.lock();
        seen.moment += 1;
        if topic == Topic::Append {
            seen.leader = Some(node);
        }
        let asked = Asked { moment: seen.moment, stamp: request.epoch, topic };
        // One that comes twice may be answered for its first time.
        seen.asked.entry((connection, request.id)).or_insert(asked);
    }

    /// What the answer to a request is about.
    pub fn step_of_answer(&self, connection: SocketAddr, reply: &PeerReply) -> Step {
        let seen = self.0.lock();
        let asked = seen.asked.get(&(connection, reply.id));
        Step::Answer(asked.map_or(Topic::Other, |asked| asked.topic))
    }

    /// A reply goes out.
    pub fn answered(&self, node: usize, connection: SocketAddr, reply: &PeerReply) {
        let seen = &mut *self.0.lock();
        seen.moment += 1;
        let moment = seen.moment;
        let epochs = seen.epochs.entry(node).or_default();
        let before = |moment: u64| epochs.range(..moment).map(|(_, epoch)| *epoch).max();
        let highest = before(moment);
        let asked_at = seen.asked.get(&(connection, reply.id)).copied();
        let refuses = asked_at.and_then(|asked| before(asked.moment));
        if let (Some(asked), Some(fence)) = (asked_at, refuses)
            && asked.stamp < fence
            && reply.body.as_ref().is_some_and(has_passed)
        {
            let what = format!(
                "I13: n{node} took a request of epoch {} ({:?}), having answered under {fence}",
                asked.stamp, asked.topic
            );
            seen.broken.push(what);
        }
        if highest.is_none_or(|highest| highest < reply.epoch) {
            epochs.insert(moment, reply.epoch);
        }
        seen.asked.remove(&(connection, reply.id));
    }

    /// The machine is another node from here on.
    pub fn forget(&self, node: usize) {
        self.0.lock().epochs.remove(&node);
    }

    /// Who sent entries last.
    pub fn leader(&self) -> Option<usize> {
        self.0.lock().leader
    }

    /// What must not be.
    pub fn broken(&self) -> Vec<String> {
        self.0.lock().broken.clone()
    }
}

#[test]
fn who_takes_what_it_had_refused_before_is_seen() {
    use pairdb::cluster::peer::{Reply, Request};
    use pairdb::proto::{PageReply, PageRequest};
    let connection = SocketAddr::from(([10, 0, 0, 1], 1));
    let ask = |observer: &Observer, id, epoch| {
        let body = Some(Request::Page(PageRequest::default()));
        let request = PeerRequest { id, epoch, body, ..PeerRequest::default() };
        observer.asked(0, connection, &request, Topic::Page);
    };
    let answer = |observer: &Observer, id, epoch| {
        let body = Some(Reply::Page(PageReply::default()));
        observer.answered(1, connection, &PeerReply { id, epoch, body });
    };
    let observer = Observer::default();
    ask(&observer, 1, 4);
    ask(&observer, 2, 5);
    answer(&observer, 2, 5);
    // It may have taken this one before it went on.
    answer(&observer, 1, 5);
    assert!(observer.broken().is_empty(), "{:?}", observer.broken());
    ask(&observer, 3, 4);
    answer(&observer, 3, 5);
    assert_eq!(observer.broken().len(), 1);
}
