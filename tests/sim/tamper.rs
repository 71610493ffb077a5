//! What befalls single messages between nodes: they come twice, late, or not at all.
//!
//! Connections keep their order and lose nothing, but what is asked may be asked again by those who
//! do not know, and what is held up somewhere comes late: after later ones, after its asker has
//! given up, over the next connection. Only the forwarding of a client's write is never doubled:
//! without an idempotency key two of them are two writes, and nobody sends it twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pairdb::cluster::peer::Request;
use pairdb::verify::dice::Dice;
use parking_lot::Mutex;

/// Messages that wait for a connection to the same node.
const KEPT_MAX: usize = 4;
/// Ids that no asker gives.
const STRANGE_IDS: u64 = 1 << 62;

/// How likely something befalls a message, of 10,000; of a machine.
pub type Chance = Arc<AtomicU64>;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    Twice,
    /// Only after this time.
    Late(Duration),
    /// Now, and again after this time.
    AgainLate(Duration),
    /// Now, and again over the next connection to the same node.
    AgainOverNext,
    Lost,
}

/// As they were sent, oldest first.
type Requests = Vec<Vec<u8>>;

/// Of one process.
#[derive(Clone)]
pub struct Tamper(Arc<Inner>);

struct Inner {
    dice: Dice,
    chance: Chance,
    /// Whole requests, by the address and the class of work they went to.
    kept: Mutex<BTreeMap<(String, u32), Requests>>,
    strange: AtomicU64,
}

impl Tamper {
    pub fn new(seed: u64, chance: Chance) -> Self {
        let (dice, kept) = (Dice::new(seed, 1), Mutex::default());
        Self(Arc::new(Inner { dice, chance, kept, strange: AtomicU64::new(STRANGE_IDS) }))
    }

    /// What becomes of a request.
    pub fn of_request(&self, request: &Request) -> Fate {
        match (self.fate(), request) {
            (_, Request::Hello(_)) => Fate::Arrives,
            (Fate::Twice | Fate::AgainLate(_) | Fate::AgainOverNext, Request::ForwardWrite(_)) => {
                Fate::Arrives
            }
            (fate, _) => fate,
        }
    }

    /// What becomes of an answer: one that comes again finds nobody.
    pub fn of_answer(&self) -> Fate {
        match self.fate() {
            Fate::AgainOverNext => Fate::Lost,
            fate => fate,
        }
    }

    fn fate(&self) -> Fate {
        let chance = self.0.chance.load(Ordering::Relaxed);
        if chance == 0 || self.0.dice.below(10_000) >= chance {
            return Fate::Arrives;
        }
        let late = || Duration::from_millis(1 + self.0.dice.below(1 << self.0.dice.below(13)));
        match self.0.dice.below(10) {
            0..2 => Fate::Twice,
            2..5 => Fate::Late(late()),
            5..7 => Fate::AgainLate(late()),
            7..9 => Fate::AgainOverNext,
            _ => Fate::Lost,
        }
    }

    /// The id of a request that comes again: its own, or one that nobody waits for.
    pub fn id_of_again(&self, id: u64) -> u64 {
        match self.0.dice.percent(50) {
            true => id,
            false => self.strange_id(),
        }
    }

    fn strange_id(&self) -> u64 {
        self.0.strange.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a request for the next connection.
    pub fn keep(&self, to: &str, class: u32, request: Vec<u8>) {
        let mut kept = self.0.kept.lock();
        let kept = kept.entry((to.to_owned(), class)).or_default();
        if kept.len() < KEPT_MAX {
            kept.push(request);
        }
    }

    /// What was kept from earlier connections, and an id for each.
    pub fn kept(&self, to: &str, class: u32) -> Vec<(u64, Vec<u8>)> {
        let kept = self.0.kept.lock().remove(&(to.to_owned(), class)).unwrap_or_default();
        kept.into_iter().map(|request| (self.strange_id(), request)).collect()
    }
}
