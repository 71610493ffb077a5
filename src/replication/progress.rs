//! How far a node is with what a change of ownership asks of it, and how fast it may be.
//!
//! 1. Figures only: nothing is decided by them.
//! 2. [`Rate`] lets bytes through in the order they are asked for, on average not faster than it
//!    is set to; a change counts at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::Instant;

/// The rate of late is that of at least so long.
const WINDOW: Duration = Duration::from_secs(2);

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Task {
    /// Nothing.
    #[default]
    None,
    /// Partitions that the node will own are merged.
    Merging,
    /// Rows that the node does not own go to their owners.
    HandingOver,
    /// Hints are delivered or handed over.
    Hints,
    /// The certificate is stored.
    Certifying,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::None, Self::Merging, Self::HandingOver, Self::Hints, Self::Certifying];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Merging => "merging",
            Self::HandingOver => "handing over",
            Self::Hints => "delivering hints",
            Self::Certifying => "certifying",
        }
    }
}

/// The figures at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Figures {
    /// What is being done.
    pub task: Task,
    /// Partitions of the task.
    pub partitions: u64,
    /// Of those, done.
    pub partitions_done: u64,
    /// Rows so far.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes a second of late.
    pub bytes_per_second: u64,
    /// How long the rest takes, if it goes on as so far; unknown before anything was done.
    pub eta: Option<Duration>,
    /// What it waits for, for people; empty: nothing.
    pub waits_for: String,
}

/// Longest text of what is waited for that is told to others, in bytes.
const WAITS_FOR_BYTES_MAX: usize = 160;

impl Figures {
    /// As it is told to others; empty: nothing is being done.
    pub fn to_text(&self) -> String {
        if self.task == Task::None {
            return String::new();
        }
        let eta_ms = self.eta.map_or(String::new(), |eta| eta.as_millis().to_string());
        let end = self.waits_for.floor_char_boundary(WAITS_FOR_BYTES_MAX);
        format!(
            "{}|{}|{}|{}|{}|{}|{eta_ms}|{}",
            self.task.name(),
            self.partitions,
            self.partitions_done,
            self.keys,
            self.bytes,
            self.bytes_per_second,
            &self.waits_for[..end],
        )
    }

    /// Reads what another said; what cannot be read is nothing.
    pub fn from_text(text: &str) -> Self {
        Self::parse(text).unwrap_or_default()
    }

    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.splitn(8, '|').collect();
        let [task, partitions, partitions_done, keys, bytes, rate, eta_ms, waits_for] = parts[..]
        else {
            return None;
        };
        Some(Self {
            task: Task::ALL.into_iter().find(|one| one.name() == task)?,
            partitions: partitions.parse().ok()?,
            partitions_done: partitions_done.parse().ok()?,
            keys: keys.parse().ok()?,
            bytes: bytes.parse().ok()?,
            bytes_per_second: rate.parse().ok()?,
            eta: eta_ms.parse().ok().map(Duration::from_millis),
            waits_for: waits_for.to_owned(),
        })
    }
}

/// Counts; see the module page.
#[derive(Debug, Default)]
pub struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    figures: Figures,
    began: Option<Instant>,
    /// Since when the rate is measured, and the bytes since.
    window: Option<(Instant, u64)>,
}

impl Progress {
    /// A task begins. The one before is forgotten.
    pub fn begin(&self, task: Task, partitions: u64) {
        let now = Instant::now();
        *self.0.lock() = State {
            figures: Figures { task, partitions, ..Figures::default() },
            began: Some(now),
            window: Some((now, 0)),
        };
    }

    /// The task is over.
    pub fn end(&self) {
        *self.0.lock() = State::default();
    }

    /// Partitions are done.
    pub fn done(&self, partitions: u64) {
        self.0.lock().figures.partitions_done += partitions;
    }

    /// So many partitions are done.
    pub fn reached(&self, partitions: u64) {
        self.0.lock().figures.partitions_done = partitions;
    }

    /// Rows were moved.
    pub fn moved(&self, keys: u64, bytes: u64) {
        let mut state = self.0.lock();
        state.figures.keys += keys;
        state.figures.bytes += bytes;
        state.figures.waits_for.clear();
        let Some((since, before)) = state.window else { return };
        let all = before + bytes;
        let time = since.elapsed();
        if time < WINDOW {
            state.window = Some((since, all));
        } else {
            state.figures.bytes_per_second = (all as f64 / time.as_secs_f64()) as u64;
            state.window = Some((Instant::now(), 0));
        }
    }

    /// The task cannot go on before this.
    pub fn wait_for(&self, what: impl Into<String>) {
        self.0.lock().figures.waits_for = what.into();
    }

    /// The figures now, of a task that goes at `rate`.
    pub fn figures_at(&self, rate: &Rate) -> Figures {
        let mut figures = self.figures();
        if figures.task != Task::None && figures.waits_for.is_empty() {
            figures.waits_for = rate.wait();
        }
        figures
    }

    /// The figures now.
    pub fn figures(&self) -> Figures {
        let state = self.0.lock();
        let mut figures = state.figures.clone();
        let time = state.began.map_or(Duration::ZERO, |began| began.elapsed());
        // Of one that has come to a halt too: nothing else ends its window.
        let overdue = state.window.filter(|(since, _)| since.elapsed() >= WINDOW);
        if let Some((since, bytes)) = overdue {
            figures.bytes_per_second = (bytes as f64 / since.elapsed().as_secs_f64()) as u64;
        }
        if figures.bytes_per_second == 0 && overdue.is_none() && !time.is_zero() {
            figures.bytes_per_second = (figures.bytes as f64 / time.as_secs_f64()) as u64;
        }
        let left = figures.partitions.saturating_sub(figures.partitions_done);
        figures.eta = match figures.partitions_done {
            0 => None,
            done => Some(time.mul_f64(left as f64 / done as f64)),
        };
        figures
    }
}

/// So long a turn is waited for without words.
const WAIT_USUAL: Duration = Duration::from_secs(2);
/// Credit for bytes that were let through too late: the clock is no finer.
const CREDIT: Duration = Duration::from_millis(5);

/// A limit on bytes a second.
#[derive(Debug)]
pub struct Rate {
    /// 0: none.
    bytes_per_second: watch::Sender<u64>,
    debt: AsyncMutex<Debt>,
    /// When it is the turn of who waits first; `None`: nobody waits.
    turn: Mutex<Option<Instant>>,
    /// Let through so far.
    total: AtomicU64,
}

/// What was let through and is not paid for by time yet.
#[derive(Debug, Default)]
struct Debt {
    bytes: f64,
    /// The moment up to which it is.
    at: Option<Instant>,
}

impl Debt {
    fn pay(&mut self, rate: u64) {
        let now = Instant::now();
        let time = self.at.replace(now).map_or(Duration::ZERO, |at| now - at);
        let credit = rate as f64 * CREDIT.as_secs_f64();
        self.bytes = (self.bytes - time.as_secs_f64() * rate as f64).max(-credit);
    }
}

/// Nobody waits any more when it goes, however it does.
struct Turn<'r>(&'r Mutex<Option<Instant>>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl Rate {
    /// 0: no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        let bytes_per_second = watch::Sender::new(bytes_per_second);
        Self {
            bytes_per_second,
            debt: AsyncMutex::default(),
            turn: Mutex::default(),
            total: AtomicU64::new(0),
        }
    }

    /// The limit; 0: none.
    pub fn get(&self) -> u64 {
        *self.bytes_per_second.borrow()
    }

    /// Changes the limit, also for those who wait.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.send_replace(bytes_per_second);
    }

    /// Bytes that were let through since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// How long it holds up whatever is next, in words; empty: no longer than is usual.
    fn wait(&self) -> String {
        let rest = self.turn.lock().map_or(Duration::ZERO, |turn| turn - Instant::now());
        match rest < WAIT_USUAL {
            true => String::new(),
            false => format!("its rate limit of {} bytes/s", self.get()),
        }
    }

    /// Waits until so many bytes may go.
    pub async fn take(&self, bytes: u64) {
        let mut limit = self.bytes_per_second.subscribe();
        // Whoever waits keeps those behind it waiting: they come in their order.
        let mut debt = self.debt.lock().await;
        let turn = Turn(&self.turn);
        loop {
            let rate = *limit.borrow_and_update();
            if rate == 0 {
                *debt = Debt::default();
                break;
            }
            debt.pay(rate);
            if debt.bytes <= 0.0 {
                debt.bytes += bytes as f64;
                break;
            }
            let rest = Duration::from_secs_f64(debt.bytes / rate as f64);
            *turn.0.lock() = Instant::now().checked_add(rest);
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                _ = limit.changed() => debt.pay(rate),
            }
        }
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_go_at_the_rate_that_is_set_at_the_time() {
        let rate = Rate::new(1000);
        let began = Instant::now();
        for _ in 0..5 {
            rate.take(500).await;
        }
        assert_eq!(began.elapsed().as_millis(), 2000, "the first goes at once");
        rate.set(0);
        rate.take(1 << 40).await;
        assert_eq!(began.elapsed().as_millis(), 2000);
        rate.set(500);
        rate.take(500).await;
        rate.take(1).await;
        assert_eq!(began.elapsed().as_millis(), 3000, "what went without a limit is not owed");
        assert_eq!(rate.total(), 3001 + (1 << 40));
    }

    /// A limit that was set too low must not hold up what waits for its turn already.
    #[tokio::test(start_paused = true)]
    async fn a_change_counts_for_who_waits_already() {
        let rate = std::sync::Arc::new(Rate::new(1));
        let began = Instant::now();
        rate.take(3600).await;
        let waiting = std::sync::Arc::clone(&rate);
        let waiting = tokio::spawn(async move { waiting.take(1).await });
        tokio::time::sleep(Duration::from_secs(10)).await;
        let progress = Progress::default();
        assert_eq!(progress.figures_at(&rate).waits_for, "", "nothing is being done");
        progress.begin(Task::Merging, 1);
        let said = progress.figures_at(&rate).waits_for;
        assert_eq!(said, "its rate limit of 1 bytes/s");
        rate.set(359);
        waiting.await.expect("it goes");
        assert_eq!(began.elapsed().as_millis(), 20_000);
        assert_eq!(progress.figures_at(&rate).waits_for, "");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_is_expected_to_take_as_long_as_what_was_done() {
        let progress = Progress::default();
        progress.begin(Task::Merging, 4);
        assert_eq!(progress.figures().eta, None);
        tokio::time::sleep(Duration::from_secs(3)).await;
        progress.wait_for("b");
        assert_eq!(progress.figures().waits_for, "b");
        progress.moved(10, 3000);
        progress.done(1);
        let figures = progress.figures();
        assert_eq!((figures.keys, figures.bytes, figures.bytes_per_second), (10, 3000, 1000));
        assert_eq!((figures.eta, figures.waits_for), (Some(Duration::from_secs(9)), String::new()));
        progress.end();
        assert_eq!(progress.figures(), Figures::default());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_come_to_a_halt_does_not_tell_the_rate_of_before() {
        let progress = Progress::default();
        progress.begin(Task::Merging, 4);
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            progress.moved(1, 1000);
        }
        assert_eq!(progress.figures().bytes_per_second, 1000);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(progress.figures().bytes_per_second, 0);
    }

    #[test]
    fn figures_are_read_as_they_are_told_and_garbage_is_nothing() {
        let figures = Figures {
            task: Task::HandingOver,
            partitions: 9,
            partitions_done: 2,
            keys: 5,
            bytes: 77,
            bytes_per_second: 3,
            eta: Some(Duration::from_millis(1500)),
            waits_for: "n2 | to take rows".to_owned(),
        };
        assert_eq!(Figures::from_text(&figures.to_text()), figures);
        let long = Figures { waits_for: "\u{fc}".repeat(200), eta: None, ..figures };
        assert!(Figures::from_text(&long.to_text()).waits_for.len() <= WAITS_FOR_BYTES_MAX);
        for garbage in ["", "merging", "merging|x|1|1|1|1||", "||||||||"] {
            assert_eq!(Figures::from_text(garbage), Figures::default(), "{garbage}");
        }
    }

    #[test]
    fn names_of_tasks_are_their_own() {
        let names: std::collections::BTreeSet<_> = Task::ALL.map(Task::name).into();
        assert_eq!(names.len(), Task::ALL.len());
    }
}
