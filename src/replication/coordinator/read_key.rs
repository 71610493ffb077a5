//! What a coordinator knows of one key, and what follows from it. No waiting, no network.
//!
//! 1. A row counts as read when each set has as many answers as the level asks for, and at QUORUM
//!    and ALL every one of them holds the join: by its digest, or because it was repaired.
//! 2. A replica that failed, or could not be repaired, has not answered.
//! 3. The join respects the floors the replicas vouch for.

use std::collections::BTreeMap;

use super::{Level, Sets, lacking};
use crate::cluster::NodeId;
use crate::proto;
use crate::store::{self, RawRow, Store, Tenant};

/// What a replica has said of the key so far.
#[derive(Clone, Debug)]
pub(super) enum Word {
    /// It was asked; `true`: for the whole row.
    Asked(bool),
    /// It holds a row of this digest under this floor.
    Digest { digest: u64, floor: u64 },
    /// It gave a digest, and was asked for the row itself.
    Fetching,
    /// It holds this.
    Row { raw: RawRow, digest: u64 },
    /// It held less than the join, which has this digest under its floor and was sent to it.
    Repairing { digest: u64, floor: u64 },
    /// It holds what was sent to it.
    Repaired { digest: u64, floor: u64 },
    /// It gave no answer.
    Failed,
}

/// Who holds less than the join, and the floor of its own that it was judged under.
pub(super) type Behind = (NodeId, u64);

/// What to do next for a key.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing, until somebody answers.
    Wait,
    /// Ask a replica; `true`: for the whole row.
    Ask(NodeId, bool),
    /// Ask these for the row, of which they gave the digest.
    Fetch(Vec<NodeId>),
    /// Bring these up to the row, and wait for it.
    Repair(Vec<Behind>, RawRow),
    /// It is read: the row, and who is behind it without being waited for.
    Done(RawRow, Vec<Behind>),
    /// Nobody is left to ask.
    TooFew { answers: usize, needed: usize },
    /// Nobody is left to ask who might show what the client has seen.
    Stale,
}

/// A key that is being read.
#[derive(Debug)]
pub(super) struct ReadKey {
    pub key: Vec<u8>,
    /// What the client has seen.
    pub min_context: Option<Vec<u8>>,
    /// Digests tell nothing of tokens whose versions are gone: who wants to know of those asks
    /// everybody for whole rows.
    pub wants_rows: bool,
    pub words: BTreeMap<NodeId, Word>,
    /// Why the last replica that failed did.
    pub why: String,
    /// The join of the rows so far.
    joined: Option<RawRow>,
    /// Rows that are not in it yet.
    rows: Vec<RawRow>,
}

/// What the keys of a group share.
pub(super) struct Group<'g> {
    pub store: &'g Store,
    pub tenant: &'g Tenant,
    pub sets: &'g Sets,
    pub level: Level,
    /// Who may be asked, best first.
    pub candidates: &'g [NodeId],
}

impl ReadKey {
    pub fn new(key: Vec<u8>, min_context: Option<Vec<u8>>, wants_rows: bool) -> Self {
        Self {
            key,
            min_context,
            wants_rows,
            words: BTreeMap::new(),
            why: String::new(),
            joined: None,
            rows: Vec::new(),
        }
    }

    /// Takes the digest, or the row, that a replica holds.
    pub fn take(&mut self, node: NodeId, word: Word) {
        // Late: it was counted as failed, or brought up meanwhile.
        let is_late = |word: &Word| {
            matches!(word, Word::Failed | Word::Repairing { .. } | Word::Repaired { .. })
        };
        if self.words.get(&node).is_some_and(is_late) {
            return;
        }
        if let Word::Row { raw, .. } = &word {
            self.rows.push(raw.clone());
        }
        self.words.insert(node, word);
    }

    /// Takes a replica's answer.
    pub fn hear(&mut self, node: NodeId, answer: proto::RowAnswer) {
        if let Some(failure) = answer.failure {
            return self.fail(node, format!("{}: {}", failure.reason, failure.message));
        }
        let (digest, floor) = (answer.digest, answer.floor);
        let wants_row = matches!(self.words.get(&node), Some(Word::Asked(true) | Word::Fetching));
        let word = if wants_row {
            let raw = RawRow { row: answer.row.map(|row| row.to_vec()), floor };
            Word::Row { raw, digest }
        } else {
            Word::Digest { digest, floor }
        };
        self.take(node, word);
    }

    /// Answers of the set that lacks most, and how many it needs.
    pub fn progress(&self, group: &Group<'_>) -> (usize, usize) {
        let (needed, answers) =
            lacking(group.sets, group.level, |node| self.has_answered(node)).unwrap_or_default();
        (answers, needed)
    }

    /// Counts a replica as one that did not answer.
    pub fn fail(&mut self, node: NodeId, why: String) {
        self.why = why;
        self.words.insert(node, Word::Failed);
    }

    /// A replica has taken what was sent to it.
    pub fn repaired(&mut self, node: NodeId) {
        if let Some(Word::Repairing { digest, floor }) = self.words.get(&node).cloned() {
            self.words.insert(node, Word::Repaired { digest, floor });
        }
    }

    /// Whom the key waits for.
    pub fn waits_for(&self) -> impl Iterator<Item = NodeId> + '_ {
        let waits =
            |word: &Word| matches!(word, Word::Asked(_) | Word::Fetching | Word::Repairing { .. });
        self.words.iter().filter(move |(_, word)| waits(word)).map(|(node, _)| *node)
    }

    /// One more replica to ask because one is slow, if there is one.
    pub fn hedge(&mut self, candidates: &[NodeId]) -> Option<NodeId> {
        let node = candidates.iter().find(|node| !self.words.contains_key(node)).copied()?;
        self.words.insert(node, Word::Asked(true));
        Some(node)
    }

    fn has_answered(&self, node: NodeId) -> bool {
        !matches!(self.words.get(&node), None | Some(Word::Asked(_) | Word::Failed))
    }

    fn may_answer(&self, node: NodeId) -> bool {
        !matches!(self.words.get(&node), None | Some(Word::Failed))
    }

    /// What to do next.
    ///
    /// # Errors
    /// A replica's row cannot be read.
    pub fn step(&mut self, group: &Group<'_>) -> store::Result<Step> {
        if let Some(ask) = self.more(group) {
            return Ok(ask);
        }
        let lacks = |has: &dyn Fn(NodeId) -> bool| lacking(group.sets, group.level, has);
        if let Some((needed, answers)) = lacks(&|node| self.may_answer(node)) {
            return Ok(Step::TooFew { answers, needed });
        }
        if lacks(&|node| self.has_answered(node)).is_some() {
            return Ok(Step::Wait);
        }
        if let Some(fetch) = self.fetch() {
            return Ok(fetch);
        }
        // A slow one is waited for only where the others are too few without it.
        let has_told = |node| self.has_answered(node) && !self.is_fetching(node);
        let has_row = self.joined.is_some() || !self.rows.is_empty();
        if !has_row || lacks(&has_told).is_some() {
            return Ok(Step::Wait);
        }
        self.settle(group)
    }

    /// The next replica to ask, if one is needed.
    fn more(&self, group: &Group<'_>) -> Option<Step> {
        let asked = |node: NodeId| self.may_answer(node);
        let wanted = |node: &NodeId| {
            group.sets.each().filter(|set| set.contains(node)).any(|set| {
                let found = set.iter().filter(|node| asked(**node)).count();
                found < group.level.needed(set.len())
            })
        };
        let fresh = |node: &&NodeId| !self.words.contains_key(node);
        let node = group.candidates.iter().filter(fresh).find(|node| wanted(node))?;
        let has_row = |word: &Word| matches!(word, Word::Asked(true) | Word::Row { .. });
        Some(Step::Ask(*node, self.wants_rows || !self.words.values().any(has_row)))
    }

    fn is_fetching(&self, node: NodeId) -> bool {
        matches!(self.words.get(&node), Some(Word::Fetching))
    }

    /// Whose rows are needed, if digests do not settle it.
    fn fetch(&self) -> Option<Step> {
        let mut rows = self.words.values().filter_map(|word| match word {
            Word::Row { digest, .. } => Some(*digest),
            _ => None,
        });
        let first = rows.next();
        let differs = |word: &Word| match word {
            Word::Digest { digest, .. } => first.is_some_and(|first| first != *digest),
            _ => false,
        };
        let is_digest = |word: &Word| matches!(word, Word::Digest { .. });
        let pick = |test: &dyn Fn(&Word) -> bool| -> Vec<NodeId> {
            self.words.iter().filter(|(_, word)| test(word)).map(|(node, _)| *node).collect()
        };
        let whole = match first {
            Some(_) => pick(&differs),
            // The one that was asked for the row failed; any other will do.
            None if self.joined.is_none() && !self.words.keys().any(|n| self.is_fetching(*n)) => {
                pick(&is_digest).into_iter().take(1).collect()
            }
            None => Vec::new(),
        };
        (!whole.is_empty()).then_some(Step::Fetch(whole))
    }

    /// The rows of those who gave a digest alone, equal to that of a row, where they vouch for more
    /// than who gave the row: what they are sent must have been judged by their floors too.
    fn vouched_by_digests(&self) -> Vec<RawRow> {
        let row_of = |digest: u64| {
            self.words.values().find_map(|word| match word {
                Word::Row { raw, digest: of } if *of == digest => Some(raw),
                _ => None,
            })
        };
        let vouched = self.words.values().filter_map(|word| match word {
            Word::Digest { digest, floor } => {
                let raw = row_of(*digest).filter(|raw| raw.floor < *floor)?;
                Some(RawRow { row: raw.row.clone(), floor: *floor })
            }
            _ => None,
        });
        vouched.collect()
    }

    /// All answers are rows, or agree with one: joins them and looks who is behind.
    fn settle(&mut self, group: &Group<'_>) -> store::Result<Step> {
        let alike = self.vouched_by_digests();
        let rows = self.joined.take().into_iter().chain(self.rows.drain(..));
        let mut rows = rows.chain(alike);
        let first = rows.next().unwrap_or_default();
        let joined = rows.try_fold(first, |joined, raw| group.store.join_raw(joined, raw))?;
        drop(rows);
        self.joined = Some(joined.clone());
        let mut behind = Vec::new();
        // Where the floors prove that nothing is left there is nothing to send either: who still
        // holds what they call dead forgets it by himself.
        let words = self.words.iter().filter(|_| joined.row.is_some());
        for (node, word) in words {
            let (held, floor) = match word {
                Word::Row { raw, digest } => (*digest, raw.floor),
                Word::Digest { digest, floor } | Word::Repaired { digest, floor } => {
                    (*digest, *floor)
                }
                _ => continue,
            };
            // Under the replica's own floor, as its digest was.
            let digest = group.store.digest(&RawRow { row: joined.row.clone(), floor })?;
            if digest != held {
                behind.push((*node, Word::Repairing { digest, floor }));
            }
        }
        let covered = match &self.min_context {
            Some(context) => group.store.covers(group.tenant, &self.key, &joined, context)?,
            None => true,
        };
        if !covered {
            return Ok(self.widen(group));
        }
        let floor = |word: &Word| match word {
            Word::Repairing { floor, .. } => *floor,
            _ => 0,
        };
        let nodes: Vec<Behind> = behind.iter().map(|(node, word)| (*node, floor(word))).collect();
        if group.level == Level::One {
            return Ok(Step::Done(joined, nodes));
        }
        if !behind.is_empty() {
            self.words.extend(behind);
            return Ok(Step::Repair(nodes, joined));
        }
        let holds_it = |node: NodeId| {
            let word = self.words.get(&node);
            matches!(word, Some(Word::Row { .. } | Word::Digest { .. } | Word::Repaired { .. }))
        };
        // Who is slow to take its repair is waited for only where it is needed.
        let is_read = lacking(group.sets, group.level, holds_it).is_none();
        Ok(if is_read { Step::Done(joined, nodes) } else { Step::Wait })
    }

    /// Asks one more, for what the client has seen and the answers do not show.
    fn widen(&mut self, group: &Group<'_>) -> Step {
        if self.waits_for().next().is_some() {
            return Step::Wait;
        }
        let fresh = group.candidates.iter().find(|node| !self.words.contains_key(node));
        fresh.map_or(Step::Stale, |node| Step::Ask(*node, true))
    }
}
