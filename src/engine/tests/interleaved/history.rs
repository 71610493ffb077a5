//! What may happen, and what may happen in the middle of what.

use proptest::prelude::*;

use super::KEYS;

/// One operation of a history.
#[derive(Clone, Debug)]
pub enum Op {
    /// Read-modify-write of the node itself; `None` deletes.
    Update {
        key: usize,
        covers: bool,
        value: Option<u32>,
    },
    /// Another node writes; its state arrives later, or never, or twice.
    Remote {
        key: usize,
        covers: bool,
        value: Option<u32>,
        saw_us: bool,
    },
    /// One of its states arrives as a message.
    Deliver(usize),
    /// As a table.
    Ingest(usize),
    Get(usize),
    Scan,
    Seal,
    /// The head of the queue becomes a table.
    Flush,
    Compact,
    /// Everything, down to the last level.
    CompactAll,
    Sync,
    /// Everything that exists is here: tombstones may go.
    Floor,
    Crash(u64),
}

/// An operation and those that run in its middle, if it comes by their hooks.
pub type Step = (Op, Vec<(&'static str, Op)>);

/// What an operation holds on to while another runs in its middle.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Stripes, by key.
    pub keys: [bool; KEYS],
    /// A memtable with a writer, which no flush may wait for.
    pub writer: bool,
    pub flush: bool,
    pub ingest: bool,
    pub install: bool,
    /// The inputs of a compaction.
    pub compact: bool,
}

impl Held {
    /// What is held at a hook of the operation that holds `self`.
    pub fn with(self, hook: &str) -> Self {
        match hook {
            "write:picked" => Self { writer: true, ..self },
            "flush:built" => Self { flush: true, ..self },
            // Of a flush as well as of a compaction.
            "install:next_epoch" | "install:fixed" => Self { flush: true, install: true, ..self },
            "install:swapped" => Self { flush: true, ..self },
            "compact:merged" => Self { compact: true, ..self },
            _ => self,
        }
    }

    /// Whether `op` would get along without what is held.
    pub fn allows(self, op: &Op) -> bool {
        let installs = !self.install;
        let flushes = installs && !self.flush && !self.writer;
        match op {
            Op::Update { key, .. } => !self.keys[*key],
            Op::Deliver(_) | Op::Remote { .. } | Op::Get(_) | Op::Scan => true,
            Op::Seal | Op::Sync | Op::Crash(_) => true,
            Op::Flush => flushes,
            Op::Compact => installs,
            Op::Ingest(_) => flushes && !self.ingest,
            Op::Floor => installs && !self.ingest && self.keys == [false; KEYS],
            // It waits for what the outer operation compacts.
            Op::CompactAll => self == Self::default(),
        }
    }
}

/// Where other operations may run: every hook of the engine, and one of this file.
const HOOKS: &[&str] = &[
    "update:read",
    "apply:checked",
    "write:picked",
    "read:pinned",
    "read:before_fill",
    "scan:pinned",
    "flush:built",
    "install:next_epoch",
    "install:fixed",
    "install:swapped",
    "ingest:queued",
    "compact:merged",
    "fence:in_force",
    "floor:synced",
];

fn op() -> impl Strategy<Value = Op> {
    let value = || proptest::option::weighted(0.6, 0..100_u32);
    prop_oneof![
        6 => (0..KEYS, any::<bool>(), value())
            .prop_map(|(key, covers, value)| Op::Update { key, covers, value }),
        5 => (0..KEYS, any::<bool>(), value(), any::<bool>())
            .prop_map(|(key, covers, value, saw_us)| Op::Remote { key, covers, value, saw_us }),
        8 => (0..12_usize).prop_map(Op::Deliver),
        3 => (0..12_usize).prop_map(Op::Ingest),
        5 => (0..KEYS).prop_map(Op::Get),
        2 => Just(Op::Scan),
        5 => Just(Op::Seal),
        6 => Just(Op::Flush),
        5 => Just(Op::Compact),
        1 => Just(Op::CompactAll),
        1 => Just(Op::Sync),
        3 => Just(Op::Floor),
        1 => any::<u64>().prop_map(Op::Crash),
    ]
}

/// See [`Step`].
pub fn step() -> impl Strategy<Value = Step> {
    (op(), proptest::collection::vec((proptest::sample::select(HOOKS), op()), 0..4))
}
