//! All that is known of one key.

use super::actor::Actor;
use super::clock::is_tokened;
use super::dot::{Dot, Token};
use super::version::Version;

/// What happens to concurrent writes of a key; fixed for a tenant, and named in every row, so that
/// a join asks nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Mode {
    /// They stay as siblings until a write that has seen them replaces them.
    Siblings,
    /// The one with the greater `(time, actor)` stays.
    LastWriteWins,
}

/// The state of a key: `vv` and `tokens` name everything ever seen, `live` what is left of it.
///
/// The three lists are sorted by their first member, without duplicates. Values are borrowed from
/// the bytes the row was decoded from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row<'a> {
    pub(super) mode: Mode,
    /// Greatest time seen of each actor; empty in last-write-wins rows.
    pub(super) vv: Vec<(Actor, u64)>,
    /// Every token seen, with its earliest known time.
    pub(super) tokens: Vec<(Token, u64)>,
    pub(super) live: Vec<(Dot, Version<'a>)>,
}

impl<'a> Row<'a> {
    /// The row of a key nobody has written.
    pub fn empty(mode: Mode) -> Self {
        Self { mode, vv: Vec::new(), tokens: Vec::new(), live: Vec::new() }
    }

    /// The row's mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The live versions (siblings and tombstones), by dot.
    pub fn live(&self) -> &[(Dot, Version<'a>)] {
        &self.live
    }

    /// The greatest time seen of each actor; empty in last-write-wins rows.
    pub fn clock_entries(&self) -> &[(Actor, u64)] {
        &self.vv
    }

    /// The tokens seen, each with the time of its first write.
    pub fn tokens(&self) -> &[(Token, u64)] {
        &self.tokens
    }

    /// Whether nothing was ever seen.
    pub fn is_empty(&self) -> bool {
        self.vv.is_empty() && self.tokens.is_empty() && self.live.is_empty()
    }

    /// The live version under `dot`.
    pub fn version(&self, dot: &Dot) -> Option<&Version<'a>> {
        find(&self.live, dot)
    }

    /// When `token` was first written, if this row knows of it.
    pub fn token_time(&self, token: Token) -> Option<u64> {
        find(&self.tokens, &token).copied()
    }

    /// Whether the row holds the write named `dot` or one that replaced it.
    pub fn has_seen(&self, dot: &Dot) -> bool {
        match (self.mode, dot) {
            (_, Dot::Token(token)) => self.token_time(*token).is_some(),
            (Mode::Siblings, Dot::Plain { actor, time }) => {
                find(&self.vv, actor).is_some_and(|seen| time <= seen)
            }
            (Mode::LastWriteWins, Dot::Plain { actor, time }) => {
                self.live.last().is_some_and(|(winner, _)| match winner {
                    Dot::Plain { actor: a, time: t } => (time, actor) <= (t, a),
                    Dot::Token(_) => false,
                })
            }
        }
    }

    /// The time of one of this row's live dots: what floors and guards are compared with.
    pub(super) fn time_of(&self, dot: &Dot) -> u64 {
        match dot {
            Dot::Plain { time, .. } => *time,
            Dot::Token(token) => self.token_time(*token).unwrap_or(0),
        }
    }

    /// The greatest time anywhere in the row: a write that has read it is minted above.
    pub fn time_max(&self) -> u64 {
        let entries = self.vv.iter().map(|entry| entry.1);
        let tokens = self.tokens.iter().map(|entry| entry.1);
        let live = self.live.iter().map(|(_, version)| version.time());
        entries.chain(tokens).chain(live).max().unwrap_or(0)
    }

    /// Whether every live version is deleted or has expired at `now_ms`.
    pub fn is_gone_at(&self, now_ms: u64) -> bool {
        self.live.iter().all(|(_, version)| version.is_gone_at(now_ms))
    }

    /// Whether `token` still has a live version under its own dot or, in last-write-wins rows,
    /// beside it.
    pub fn version_of_token(&self, token: Token) -> Option<&Version<'a>> {
        match self.mode {
            Mode::Siblings => self.version(&Dot::Token(token)),
            Mode::LastWriteWins => {
                let time = self.token_time(token)?;
                self.live.iter().map(|(_, version)| version).find(|v| v.time() == time)
            }
        }
    }

    /// [`Row::version_of_token`] unless it may be another write's. In last-write-wins rows that is
    /// so where another node has minted the same time: without a token it is none of a token's,
    /// with one the row knows that too.
    pub fn version_surely_of(&self, token: Token) -> Option<&Version<'a>> {
        let version = self.version_of_token(token)?;
        let is_of_another =
            |(other, time): &(Token, u64)| *other != token && *time == version.time();
        let is_sure = match self.mode {
            Mode::Siblings => true,
            Mode::LastWriteWins => {
                is_tokened(version.time()) && !self.tokens.iter().any(is_of_another)
            }
        };
        is_sure.then_some(version)
    }
}

/// The value under `key` in a sorted list of pairs.
pub(super) fn find<'v, K: Ord, V>(sorted: &'v [(K, V)], key: &K) -> Option<&'v V> {
    let index = sorted.binary_search_by(|entry| entry.0.cmp(key)).ok()?;
    Some(&sorted[index].1)
}

/// Inserts or replaces `key` in a sorted list; `keep` picks the value if the key is there.
pub(super) fn insert<K: Ord, V: Copy>(
    sorted: &mut Vec<(K, V)>,
    key: K,
    value: V,
    keep: impl FnOnce(V, V) -> V,
) {
    match sorted.binary_search_by(|entry| entry.0.cmp(&key)) {
        Ok(index) => sorted[index].1 = keep(sorted[index].1, value),
        Err(index) => sorted.insert(index, (key, value)),
    }
}
