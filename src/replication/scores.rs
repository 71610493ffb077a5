//! How fast the other nodes answer: whom to ask first, and when to ask one more.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cluster::NodeId;

/// Answers that a p95 is taken over.
const SAMPLES: usize = 64;
/// Answers between two looks at them.
const SAMPLES_BETWEEN: usize = 16;
/// Weight of the newest answer in the moving average, as a power of two.
const NEWEST_SHIFT: u32 = 3;
/// What an unknown node is taken for.
const UNKNOWN_US: u64 = 1000;

/// Of every node asked so far.
#[derive(Debug, Default)]
pub(super) struct Scores {
    nodes: Mutex<BTreeMap<NodeId, Score>>,
}

#[derive(Clone, Debug, Default)]
struct Score {
    average_us: u64,
    in_flight: u64,
    p95_us: u64,
    samples: Vec<u32>,
    next: usize,
}

impl Scores {
    /// A call goes out.
    pub fn begin(&self, node: NodeId) {
        self.nodes.lock().entry(node).or_default().in_flight += 1;
    }

    /// It is refused, or could not be sent: that tells nothing of how fast the node is.
    pub fn refused(&self, node: NodeId) {
        let mut nodes = self.nodes.lock();
        let score = nodes.entry(node).or_default();
        score.in_flight = score.in_flight.saturating_sub(1);
    }

    /// It is answered, or given up.
    pub fn end(&self, node: NodeId, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        let mut nodes = self.nodes.lock();
        let score = nodes.entry(node).or_default();
        score.in_flight = score.in_flight.saturating_sub(1);
        score.average_us = match score.average_us {
            0 => took_us.max(1),
            old => old - (old >> NEWEST_SHIFT) + (took_us >> NEWEST_SHIFT),
        };
        if score.samples.len() < SAMPLES {
            score.samples.push(took_us as u32);
        } else {
            score.samples[score.next % SAMPLES] = took_us as u32;
        }
        score.next += 1;
        if score.next.is_multiple_of(SAMPLES_BETWEEN) {
            let mut sorted = score.samples.clone();
            sorted.sort_unstable();
            score.p95_us = u64::from(sorted[sorted.len() * 95 / 100]);
        }
    }

    /// The lower the better: the average answer time, times what already waits for the node.
    pub fn cost(&self, node: NodeId) -> u64 {
        let nodes = self.nodes.lock();
        nodes
            .get(&node)
            .map_or(UNKNOWN_US, |score| score.average_us.max(1).saturating_mul(1 + score.in_flight))
    }

    /// What all but a twentieth of the node's answers take; zero before it is known.
    pub fn p95(&self, node: NodeId) -> Duration {
        Duration::from_micros(self.nodes.lock().get(&node).map_or(0, |score| score.p95_us))
    }

    /// Forgets nodes that are gone.
    pub fn keep(&self, is_known: impl Fn(NodeId) -> bool) {
        self.nodes.lock().retain(|node, _| is_known(*node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_node_and_a_busy_node_cost_more() {
        let scores = Scores::default();
        let [fast, slow] = [NodeId(1), NodeId(2)];
        for _ in 0..SAMPLES_BETWEEN {
            for (node, took_ms) in [(fast, 1), (slow, 20)] {
                scores.begin(node);
                scores.end(node, Duration::from_millis(took_ms));
            }
        }
        assert!(scores.cost(fast) < scores.cost(slow));
        assert_eq!(scores.p95(slow), Duration::from_millis(20));
        for _ in 0..SAMPLES {
            scores.begin(slow);
            scores.refused(slow);
        }
        assert!(scores.cost(fast) < scores.cost(slow), "who refuses at once is not fast");
        (0..40).for_each(|_| scores.begin(fast));
        assert!(scores.cost(fast) > scores.cost(slow), "forty calls wait for it");
        scores.keep(|node| node == slow);
        assert_eq!(scores.p95(fast), Duration::ZERO);
    }
}
