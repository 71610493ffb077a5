//! How fast others answer: whom to ask first, and when to ask one more.
//!
//! What is known of somebody fades while nobody asks: one that was slow is asked again some time.
//! Somebody unknown is asked at once, by one call, or all would go on asking those they know.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Answers that a p95 is taken over.
const SAMPLES: usize = 64;
/// Answers between two looks at them.
const SAMPLES_BETWEEN: usize = 16;
/// Weight of the newest answer in the moving average, as a power of two.
const NEWEST_SHIFT: u32 = 3;
/// What somebody unknown is taken for while the first call to it is out.
const UNKNOWN_US: u64 = 1000;
/// The average halves with each of these that passes without an answer; and one that has never
/// answered is asked again.
const FADES_WITHIN: Duration = Duration::from_secs(4);

/// Of everybody asked so far, by name.
#[derive(Debug)]
pub struct Scores<K> {
    known: Mutex<BTreeMap<K, Score>>,
}

impl<K> Default for Scores<K> {
    fn default() -> Self {
        Self { known: Mutex::default() }
    }
}

#[derive(Clone, Debug, Default)]
struct Score {
    average_us: u64,
    in_flight: u64,
    p95_us: u64,
    samples: Vec<u32>,
    next: usize,
    asked: Option<Instant>,
    answered: Option<Instant>,
}

impl<K: Ord + Clone> Scores<K> {
    /// A call goes out.
    pub fn begin(&self, name: &K) {
        let mut known = self.known.lock();
        let asked = Some(Instant::now());
        match known.get_mut(name) {
            Some(score) => (score.in_flight, score.asked) = (score.in_flight + 1, asked),
            None => {
                known.insert(name.clone(), Score { in_flight: 1, asked, ..Score::default() });
            }
        }
    }

    /// It is refused, or could not be sent: that tells nothing of how fast the other is.
    pub fn refused(&self, name: &K) {
        if let Some(score) = self.known.lock().get_mut(name) {
            score.in_flight = score.in_flight.saturating_sub(1);
        }
    }

    /// It is answered, or given up.
    pub fn end(&self, name: &K, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        let mut known = self.known.lock();
        // Forgotten meanwhile.
        let Some(score) = known.get_mut(name) else { return };
        score.in_flight = score.in_flight.saturating_sub(1);
        score.average_us = match score.faded_us() {
            None => took_us.max(1),
            Some(old) => old - (old >> NEWEST_SHIFT) + (took_us >> NEWEST_SHIFT),
        };
        score.answered = Some(Instant::now());
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

    /// The lower the better: the average answer time, times what already waits there.
    pub fn cost<Q: Ord + ?Sized>(&self, name: &Q) -> u64
    where
        K: Borrow<Q>,
    {
        self.known.lock().get(name).map_or(0, Score::cost)
    }

    /// What all but a twentieth of the answers take; zero before it is known.
    pub fn p95(&self, name: &K) -> Duration {
        Duration::from_micros(self.known.lock().get(name).map_or(0, |score| score.p95_us))
    }

    /// Forgets those that are gone.
    pub fn keep(&self, is_known: impl Fn(&K) -> bool) {
        self.known.lock().retain(|name, _| is_known(name));
    }
}

impl Score {
    fn cost(&self) -> u64 {
        let Some(average_us) = self.faded_us() else {
            let waits = self.asked.is_some_and(|asked| asked.elapsed() < FADES_WITHIN);
            return if waits { UNKNOWN_US * (1 + self.in_flight) } else { 0 };
        };
        average_us.saturating_mul(1 + self.in_flight)
    }

    /// The average as it counts by now, never 0; `None` before the first answer.
    fn faded_us(&self) -> Option<u64> {
        let idle = self.answered?.elapsed().as_micros() / FADES_WITHIN.as_micros();
        let faded = self.average_us.checked_shr(u32::try_from(idle).unwrap_or(u32::MAX));
        Some(faded.unwrap_or(0).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_and_a_busy_one_cost_more() {
        let scores = Scores::default();
        let [fast, slow] = [1, 2];
        for _ in 0..SAMPLES_BETWEEN {
            for (name, took_ms) in [(fast, 1), (slow, 20)] {
                scores.begin(&name);
                scores.end(&name, Duration::from_millis(took_ms));
            }
        }
        assert!(scores.cost(&fast) < scores.cost(&slow));
        assert_eq!(scores.p95(&slow), Duration::from_millis(20));
        for _ in 0..SAMPLES {
            scores.begin(&slow);
            scores.refused(&slow);
        }
        assert!(scores.cost(&fast) < scores.cost(&slow), "who refuses at once is not fast");
        (0..40).for_each(|_| scores.begin(&fast));
        assert!(scores.cost(&fast) > scores.cost(&slow), "forty calls wait for it");
        scores.keep(|name| *name == slow);
        assert_eq!(scores.p95(&fast), Duration::ZERO);
    }

    /// Where all others answer in less than is thought of somebody unknown, nobody would ask it.
    /// One call finds out, not all of them: it may not answer at all.
    #[tokio::test(start_paused = true)]
    async fn somebody_unknown_is_asked_first_by_one_call() {
        let scores = Scores::default();
        let [fast, new] = [1, 2];
        scores.begin(&fast);
        scores.end(&fast, Duration::from_micros(UNKNOWN_US / 2));
        assert!(scores.cost(&new) < scores.cost(&fast));
        scores.begin(&new);
        assert!(scores.cost(&new) > scores.cost(&fast));
        scores.refused(&new);
        assert!(scores.cost(&new) > scores.cost(&fast), "who refuses is not asked by each call");
        tokio::time::advance(FADES_WITHIN).await;
        assert!(scores.cost(&new) < scores.cost(&fast));
    }

    /// Who was slow once and is not asked any more could never show that it has recovered.
    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_somebody_fades_while_nobody_asks() {
        let scores = Scores::default();
        scores.begin(&1);
        scores.end(&1, Duration::from_secs(2));
        let cost = scores.cost(&1);
        tokio::time::advance(FADES_WITHIN * 3).await;
        assert_eq!(scores.cost(&1), cost >> 3);
        tokio::time::advance(FADES_WITHIN * 1000).await;
        assert_eq!(scores.cost(&1), 1);
    }

    /// What has faded is not brought back by the next answer, or one slow answer would keep others
    /// away for minutes: each of those that found out would count for an eighth.
    #[tokio::test(start_paused = true)]
    async fn an_answer_after_a_while_counts_beside_what_has_faded() {
        let scores = Scores::default();
        scores.begin(&1);
        scores.end(&1, Duration::from_secs(2));
        tokio::time::advance(FADES_WITHIN * 12).await;
        let faded = scores.cost(&1);
        scores.begin(&1);
        scores.end(&1, Duration::from_micros(500));
        assert!(scores.cost(&1) <= faded + 500, "{}", scores.cost(&1));
    }
}
