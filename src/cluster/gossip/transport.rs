//! chitchat's messages as messages between peers that nobody answers.
//!
//! The envelope, in bytes:
//!
//! | at | what |
//! |--:|---|
//! | 0 | version: 1 |
//! | 1 | 4 or 6: the kind of the address |
//! | 2 | the address the sender is reached at: 4 or 16 bytes |
//! | 6 or 18 | its port, big-endian |
//! | 8 or 20 | the message, as chitchat encodes it: at most [`MESSAGE_BYTES_MAX`] |
//!
//! 1. Sending only queues; receiving never fails: chitchat's loop would wait for the one and end at
//!    the other. Of what comes in faster than it is taken the oldest is lost, as on any network.
//! 2. Answers go to the address in the envelope: where a connection comes from says nothing.
//! 3. What cannot be read is dropped. Who sent it has passed the handshake of the peer port.
//! 4. What is too long is not sent, and that is said: a digest of so many incarnations that it
//!    fills a message would silence this node, and all others would look dead to it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::async_trait;

use crate::cluster::peer::{Post, Request};

/// What chitchat keeps its messages below.
pub const MESSAGE_BYTES_MAX: usize = 65_507;

const VERSION: u8 = 1;
/// Messages that wait to be taken.
const INBOX_MAX: usize = 256;

/// Messages that came in.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    // Held for a few instructions.
    queue: Mutex<VecDeque<Bytes>>,
    arrived: Notify,
    // Relaxed: a figure.
    lost: AtomicU64,
}

impl Inbox {
    pub fn put(&self, message: Bytes) {
        let mut queue = self.queue.lock();
        if queue.len() >= INBOX_MAX {
            queue.pop_front();
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        queue.push_back(message);
        drop(queue);
        self.arrived.notify_one();
    }

    async fn take(&self) -> Bytes {
        loop {
            if let Some(message) = self.queue.lock().pop_front() {
                return message;
            }
            self.arrived.notified().await;
        }
    }
}

/// Seeds, each under an address chitchat can hold: it knows no names. Those of names are of a block
/// of the Internet that is used for nothing (RFC 1112, class E).
#[derive(Debug)]
pub(super) struct Seeds(BTreeMap<SocketAddr, String>);

impl Seeds {
    pub fn new(seeds: &[String]) -> Self {
        let stand_in = |number: usize| {
            let number = u32::try_from(number).unwrap_or(u32::MAX) & 0x00ff_ffff;
            SocketAddr::new(Ipv4Addr::from(0xf000_0000 | number).into(), 1)
        };
        let named = |(number, seed): (usize, &String)| {
            (seed.parse().unwrap_or_else(|_| stand_in(number)), seed.clone())
        };
        Self(seeds.iter().enumerate().map(named).collect())
    }

    /// As chitchat is told of them.
    pub fn addresses(&self) -> Vec<String> {
        self.0.keys().map(SocketAddr::to_string).collect()
    }

    /// Whom an address means.
    fn address(&self, to: SocketAddr) -> String {
        self.0.get(&to).cloned().unwrap_or_else(|| to.to_string())
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct PeerTransport {
    pub inbox: Arc<Inbox>,
    pub post: Arc<dyn Post>,
    pub seeds: Arc<Seeds>,
    /// Where this node is reached.
    pub own: SocketAddr,
    /// Messages that were too long to be sent. Relaxed: a figure.
    pub too_long: Arc<AtomicU64>,
}

impl PeerTransport {
    fn drop_too_long(&self, bytes: usize) {
        let count = self.too_long.fetch_add(1, Ordering::Relaxed) + 1;
        // It comes with every round: said at the first, the second, the fourth, ...
        if count.is_power_of_two() {
            tracing::error!(
                bytes,
                count,
                "a gossip message is too long to be sent: too many nodes, or restarts of them"
            );
        }
    }
}

#[async_trait]
impl Transport for PeerTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> Result<Box<dyn Socket>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Socket for PeerTransport {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> Result<()> {
        let message = message.serialize_to_vec();
        if to == self.own {
            return Ok(());
        }
        if message.len() > MESSAGE_BYTES_MAX {
            self.drop_too_long(message.len());
            return Ok(());
        }
        let sealed = seal(self.own, &message);
        self.post.post(&self.seeds.address(to), Request::Gossip(sealed));
        Ok(())
    }

    async fn recv(&mut self) -> Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let message = self.inbox.take().await;
            match open(message) {
                // A seed may be this node under another name.
                Some((from, message)) if from != self.own => return Ok((from, message)),
                Some(_) => {}
                None => tracing::debug!("a gossip message cannot be read"),
            }
        }
    }
}

fn seal(from: SocketAddr, message: &[u8]) -> Bytes {
    let mut sealed = BytesMut::with_capacity(20 + message.len());
    sealed.put_u8(VERSION);
    match from.ip() {
        IpAddr::V4(ip) => {
            sealed.put_u8(4);
            sealed.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            sealed.put_u8(6);
            sealed.put_slice(&ip.octets());
        }
    }
    sealed.put_u16(from.port());
    sealed.put_slice(message);
    sealed.freeze()
}

fn open(mut sealed: Bytes) -> Option<(SocketAddr, ChitchatMessage)> {
    if sealed.try_get_u8().ok()? != VERSION {
        return None;
    }
    let ip: IpAddr = match sealed.try_get_u8().ok()? {
        4 => Ipv4Addr::from(sealed.try_get_u32().ok()?).into(),
        6 => Ipv6Addr::from(sealed.try_get_u128().ok()?).into(),
        _ => return None,
    };
    let from = SocketAddr::new(ip, sealed.try_get_u16().ok()?);
    if sealed.len() > MESSAGE_BYTES_MAX {
        return None;
    }
    let mut rest = &sealed[..];
    let message = ChitchatMessage::deserialize(&mut rest).ok()?;
    rest.is_empty().then_some((from, message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_envelope_carries_the_address_its_sender_is_reached_at() {
        for from in ["10.1.2.3:7946", "[2001:db8::1]:1"] {
            let from = from.parse().expect("an address");
            let message = ChitchatMessage::BadCluster;
            let sealed = seal(from, &message.serialize_to_vec());
            assert_eq!(open(sealed), Some((from, message)));
        }
    }

    #[tokio::test]
    async fn the_oldest_of_too_many_messages_is_lost() {
        let inbox = Inbox::default();
        for number in 0..INBOX_MAX as u16 + 10 {
            inbox.put(Bytes::copy_from_slice(&number.to_be_bytes()));
        }
        assert_eq!(inbox.lost.load(Ordering::Relaxed), 10);
        assert_eq!(inbox.take().await, [0, 10][..]);
        assert_eq!(inbox.queue.lock().len(), INBOX_MAX - 1);
    }

    /// Counts what is posted.
    #[derive(Default)]
    struct Posted(AtomicU64);

    impl Post for Posted {
        fn post(&self, _address: &str, _request: Request) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Too many incarnations to fit into a digest: silence would look as if all others were dead.
    #[tokio::test]
    async fn a_message_that_is_too_long_is_counted_and_does_not_end_the_gossip() {
        let posted = Arc::new(Posted::default());
        let mut transport = PeerTransport {
            inbox: Arc::default(),
            post: Arc::clone(&posted) as _,
            seeds: Arc::new(Seeds::new(&[])),
            own: "10.0.0.1:7946".parse().expect("an address"),
            too_long: Arc::default(),
        };
        // A greeting of no nodes, with the longest name of a cluster that there can be.
        let mut greeting = vec![0x53, 0xb0, 0, 0, 0, 0, 0xff, 0xff];
        greeting.resize(greeting.len() + 0xffff, b'x');
        let greeting = || ChitchatMessage::deserialize(&mut &greeting[..]).expect("a greeting");
        let to = "10.0.0.2:7946".parse().expect("an address");
        for _ in 0..3 {
            transport.send(to, greeting()).await.expect("never fails");
        }
        transport.send(to, ChitchatMessage::BadCluster).await.expect("never fails");
        assert_eq!(transport.too_long.load(Ordering::Relaxed), 3);
        assert_eq!(posted.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_seed_by_name_is_asked_for_by_name() {
        let seeds = Seeds::new(&["db-0.db:7946".to_owned(), "10.0.0.1:7946".to_owned()]);
        let mut names: Vec<_> = seeds
            .addresses()
            .iter()
            .map(|address| seeds.address(address.parse().expect("an address")))
            .collect();
        names.sort();
        assert_eq!(names, ["10.0.0.1:7946", "db-0.db:7946"]);
        let other = "10.0.0.2:7946".parse().expect("an address");
        assert_eq!(seeds.address(other), "10.0.0.2:7946");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_bytes_make_a_node_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = open(Bytes::copy_from_slice(&bytes));
            // The same behind a good envelope and chitchat's own mark.
            let mark = [VERSION, 4, 10, 0, 0, 1, 31, 10, 0x53, 0xb0, 0];
            bytes.splice(0..0, mark);
            let _ = open(Bytes::from(bytes));
        }
    }
}
