//! What the peer port counts, and how often it complains.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::hello::{Reason, Refusal};

/// A refusal of one kind is logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Figures of both sides of the peer port.
// Relaxed throughout: figures that guard nothing.
#[derive(Debug, Default)]
pub struct Counters {
    /// Streams this node opened.
    pub streams_opened: AtomicU64,
    /// Streams it could not open.
    pub streams_failed: AtomicU64,
    /// Streams others opened.
    pub streams_accepted: AtomicU64,
    /// Requests sent.
    pub requests_sent: AtomicU64,
    /// Requests that had no answer.
    pub requests_unanswered: AtomicU64,
    /// Requests for which a queue had no room.
    pub requests_overloaded: AtomicU64,
    /// Requests received.
    pub requests_received: AtomicU64,
    /// Messages that are not answered and were lost before they were sent.
    pub posts_lost: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    logged: Mutex<[Option<Instant>; Reason::ALL.len()]>,
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// Streams and requests refused for this reason, by this node or to it.
    pub fn refused(&self, reason: Reason) -> u64 {
        self.refused[reason as usize].load(Ordering::Relaxed)
    }

    /// Counts a refusal and logs it, if the last one of its kind is some time ago.
    pub(super) fn refuse(&self, refusal: &Refusal, whom: &str) {
        let at = refusal.reason as usize;
        count(&self.refused[at]);
        let now = Instant::now();
        let mut logged = self.logged.lock();
        if logged[at].is_none_or(|last| now - last >= LOG_INTERVAL) {
            logged[at] = Some(now);
            let (reason, message) = (refusal.reason.name(), &refusal.message);
            tracing::warn!(reason, peer = whom, "a peer is refused: {message}");
        }
    }
}
