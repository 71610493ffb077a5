//! How far the log is written and durable, who may sync, and who waits for it.
//!
//! Who writes is settled by the lock of the files ([`super::writer`]). At any time at most one
//! thread syncs; the others wait on a condition variable until their bytes are through or it is
//! their turn.
//!
//! Invariants:
//! 1. `durable <= written`, and neither goes back;
//! 2. after the first failure neither end advances and no turn is given out again: what the files
//!    hold is unknown, and a second sync might hide what the first one reported;
//! 3. a callback runs exactly once, outside all locks.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Memory};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::engine::Position;
use crate::engine::error::{Error, Result};

/// Called with the fate of what it waited for.
pub type OnDurable = Box<dyn FnOnce(Result<()>) + Send>;

/// What a thread that wants bytes synced is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Somebody did it.
    Done,
    /// Do it, then report the end or the failure.
    Lead,
}

pub(super) struct Progress {
    state: Mutex<State>,
    durable_changed: Condvar,
    // Release on store, Acquire on load: whoever sees a position also sees the writes it stands
    // for.
    /// Stored by the thread that holds the lock of the files.
    written: AtomicU64,
    /// Stored under `state`.
    durable: AtomicU64,
    // Set under `state` together with its cause; a hint that spares appends the lock.
    poisoned: AtomicBool,
}

#[derive(Default)]
struct State {
    syncing: bool,
    cause: Option<Arc<str>>,
    waiting: BinaryHeap<Waiting>,
}

struct Waiting {
    upto: Position,
    done: OnDurable,
}

impl Progress {
    /// Of a log that has written nothing. It starts from zero, not from where the log begins: a
    /// first frame that named a later position would prove its torn header durable.
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            durable_changed: Condvar::new(),
            written: AtomicU64::new(Position::ZERO.to_u64()),
            durable: AtomicU64::new(Position::ZERO.to_u64()),
            poisoned: AtomicBool::new(false),
        }
    }

    pub(super) fn written(&self) -> Position {
        Position::from_u64(self.written.load(Memory::Acquire))
    }

    pub(super) fn durable(&self) -> Position {
        Position::from_u64(self.durable.load(Memory::Acquire))
    }

    pub(super) fn poisoned(&self) -> Option<String> {
        self.state.lock().cause.as_deref().map(str::to_owned)
    }

    /// Refuses with `Poisoned` after a failure.
    pub(super) fn check(&self) -> Result<()> {
        if self.poisoned.load(Memory::Acquire) { self.state.lock().check() } else { Ok(()) }
    }

    /// Waits until `upto` is durable or it is the caller's turn to sync.
    pub(super) fn turn_to_sync(&self, upto: Position) -> Result<Turn> {
        let mut state = self.state.lock();
        loop {
            if self.durable() >= upto {
                return Ok(Turn::Done);
            }
            state.check()?;
            if !state.syncing {
                state.syncing = true;
                return Ok(Turn::Lead);
            }
            self.durable_changed.wait(&mut state);
        }
    }

    /// Takes note of a write; the caller holds the lock of the files.
    pub(super) fn wrote(&self, end: &Result<Position>) {
        match end {
            Ok(end) => self.written.store(end.to_u64(), Memory::Release),
            Err(error) => self.poison(self.state.lock(), error),
        }
    }

    /// Ends a turn to sync.
    pub(super) fn synced(&self, end: &Result<Position>) {
        let mut state = self.state.lock();
        state.syncing = false;
        match end {
            Ok(end) => {
                self.durable.store(end.to_u64(), Memory::Release);
                let due = state.due(*end);
                drop(state);
                self.durable_changed.notify_all();
                due.into_iter().for_each(|waiting| (waiting.done)(Ok(())));
            }
            Err(error) => self.poison(state, error),
        }
    }

    /// Calls `done` once `upto` is durable or never will be; at once if that is known.
    pub(super) fn on_durable(&self, upto: Position, done: OnDurable) {
        let mut state = self.state.lock();
        if self.durable() >= upto {
            drop(state);
            return done(Ok(()));
        }
        match state.check() {
            Ok(()) => state.waiting.push(Waiting { upto, done }),
            Err(error) => {
                drop(state);
                done(Err(error));
            }
        }
    }

    /// Calls all callbacks that are left: it is not known what becomes of what they wait for.
    pub(super) fn forsake(&self) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        for waiting in waiting {
            let cause = "it went away before the write was durable".to_owned();
            (waiting.done)(Err(Error::Poisoned { cause }));
        }
    }

    /// Refuses everything from now on. The first failure is the cause that all are told.
    fn poison(&self, mut state: MutexGuard<'_, State>, error: &Error) {
        let cause = state.cause.get_or_insert_with(|| error.to_string().into()).clone();
        let waiting = std::mem::take(&mut state.waiting);
        self.poisoned.store(true, Memory::Release);
        drop(state);
        self.durable_changed.notify_all();
        for waiting in waiting {
            (waiting.done)(Err(Error::Poisoned { cause: cause.to_string() }));
        }
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.cause {
            Some(cause) => Err(Error::Poisoned { cause: cause.to_string() }),
            None => Ok(()),
        }
    }

    fn due(&mut self, durable: Position) -> Vec<Waiting> {
        let mut due = Vec::new();
        while self.waiting.peek().is_some_and(|first| first.upto <= durable) {
            due.extend(self.waiting.pop());
        }
        due
    }
}

/// Ordered for the heap, whose top is the greatest: the earliest position first.
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        other.upto.cmp(&self.upto)
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.upto == other.upto
    }
}

impl Eq for Waiting {}
