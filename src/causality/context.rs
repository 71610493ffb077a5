//! What a client has seen of a key, as bytes it need not understand.
//!
//! A context names the clock entries of the row, the tokens of its live versions, and the newest
//! [`DEAD_TOKENS_MAX`] tokens whose versions were replaced. The dead ones matter where the client
//! writes next: a replica that has missed the replacing write still holds the old version, and
//! only the context can tell it that this client has seen both.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | format version, 1 |
//! | 8 | checksum of the rest, keyed by the cluster and the row's key, little endian |
//! | varint | number of clock entries |
//! | 16 each | actor, time (little endian), sorted by actor |
//! | varint | number of tokens |
//! | 24 each | token hash, time (little endian), sorted by hash |
//!
//! # Invariants
//! 1. A context of another key, cluster or format is refused by name, never misread: a clock entry
//!    that was not really seen would silently delete what it names.
//! 2. So is one with an entry in the future: it would mute an actor on the key until then.
//! 3. A context made here names at most [`DEAD_TOKENS_MAX`] tokens besides those of live versions,
//!    the newest: a key that is overwritten for ever gets no ever longer contexts. What is given
//!    up is little: a replica must have missed more than so many overwrites of one key, each with
//!    an idempotency key, to show an old version beside the new one until it is next compared.
//!
//! The checksum keeps mistakes and guesses out. It is no signature: who knows the cluster's id
//! can forge one, and only harms keys he may write anyway.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::actor::Actor;
use super::codec::DecodeError;
use super::dot::{Dot, Token};
use super::row::{Mode, Row, find, insert};
use super::wire::{Reader, read_actors, read_tokens, write_actors, write_tokens};

/// Tokens without a live version that a context names, at most.
pub const DEAD_TOKENS_MAX: usize = 64;
/// The format this program writes.
const FORMAT: u8 = 1;
/// Bytes before the checksummed body.
const HEADER_BYTES: usize = 9;

/// Why a context is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ContextError {
    /// Longer than any context this cluster hands out.
    #[error("the context has {found} bytes, the limit is {limit}")]
    TooLong {
        /// Bytes given.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Written by a newer program, or not a context at all.
    #[error("the context has format {found}, this program reads {FORMAT}")]
    UnknownFormat {
        /// The format byte.
        found: u8,
    },
    /// Cut short or empty.
    #[error("the context is truncated")]
    Truncated,
    /// Altered, or made for another key or cluster.
    #[error("the context was altered, or belongs to another key")]
    Forged,
    /// It claims to have seen what has not happened yet.
    #[error("the context has seen time {found}, now is at most {limit}")]
    Future {
        /// The greatest time in it.
        found: u64,
        /// The latest acceptable time.
        limit: u64,
    },
    /// The checksum is right but the content is not.
    #[error("the context cannot be decoded: {0}")]
    Malformed(#[from] DecodeError),
}

/// What keys the checksum of a context.
#[derive(Clone, Copy, Debug)]
pub struct ContextKey(u64);

impl ContextKey {
    /// The key for the row at `row_key` in the cluster with this number.
    pub fn new(cluster: u64, row_key: &[u8]) -> Self {
        Self(xxh3_64_with_seed(row_key, cluster))
    }
}

/// What a client has seen of a key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Context {
    vv: Vec<(Actor, u64)>,
    tokens: Vec<(Token, u64)>,
}

impl Context {
    /// What a reader of `row` has seen.
    pub fn of(row: &Row<'_>) -> Self {
        let winner = |(dot, _): &(Dot, _)| match dot {
            Dot::Plain { actor, time } => Some((*actor, *time)),
            Dot::Token(_) => None,
        };
        match row.mode {
            Mode::Siblings => {
                let is_live = |token| row.version(&Dot::Token(token)).is_some();
                Self { vv: row.vv.clone(), tokens: newest(row.tokens.clone(), is_live) }
            }
            Mode::LastWriteWins => {
                Self { vv: row.live.iter().filter_map(winner).collect(), tokens: Vec::new() }
            }
        }
    }

    /// What a reader of a last-write-wins row has seen whose version was written by `actor` at
    /// `time`.
    pub fn of_winner(actor: Actor, time: u64) -> Self {
        Self { vv: vec![(actor, time)], tokens: Vec::new() }
    }

    /// What the writer of `dot` has seen, who had seen this before and then wrote `dot` at `time`.
    #[must_use]
    pub fn with_write(mut self, dot: Dot, time: u64) -> Self {
        match dot {
            Dot::Plain { actor, time } => insert(&mut self.vv, actor, time, u64::max),
            Dot::Token(token) => {
                insert(&mut self.tokens, token, time, u64::min);
                self.tokens = newest(self.tokens, |other| other == token);
            }
        }
        self
    }

    /// The greatest time seen of each actor.
    pub fn clock_entries(&self) -> &[(Actor, u64)] {
        &self.vv
    }

    /// The tokens of the versions seen live, and the newest of those that were replaced.
    pub fn tokens(&self) -> &[(Token, u64)] {
        &self.tokens
    }

    /// The greatest time seen.
    pub fn time_max(&self) -> u64 {
        let entries = self.vv.iter().map(|entry| entry.1);
        entries.chain(self.tokens.iter().map(|entry| entry.1)).max().unwrap_or(0)
    }

    /// Whether the client has seen the write named `dot`.
    pub fn has_seen(&self, dot: &Dot) -> bool {
        match dot {
            Dot::Plain { actor, time } => find(&self.vv, actor).is_some_and(|seen| time <= seen),
            Dot::Token(token) => find(&self.tokens, token).is_some(),
        }
    }

    /// Appends the bytes to hand to a client.
    pub fn encode(&self, key: ContextKey, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(FORMAT);
        out.extend_from_slice(&[0; HEADER_BYTES - 1]);
        write_actors(&self.vv, out);
        write_tokens(&self.tokens, out);
        let checksum = xxh3_64_with_seed(&out[start + HEADER_BYTES..], key.0);
        out[start + 1..start + HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads what a client gives back. `latest` is the greatest time that may honestly be in it.
    ///
    /// # Errors
    /// [`ContextError`], by kind of fault.
    pub fn decode(
        bytes: &[u8],
        key: ContextKey,
        latest: u64,
        bytes_max: usize,
    ) -> Result<Self, ContextError> {
        if bytes.len() > bytes_max {
            return Err(ContextError::TooLong { found: bytes.len(), limit: bytes_max });
        }
        let &format = bytes.first().ok_or(ContextError::Truncated)?;
        if format != FORMAT {
            return Err(ContextError::UnknownFormat { found: format });
        }
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(ContextError::Truncated)?;
        let body = &bytes[HEADER_BYTES..];
        let mut reader = Reader::new(body);
        if header[1..] != xxh3_64_with_seed(body, key.0).to_le_bytes() {
            let cut = read_actors(&mut reader).and_then(|_| read_tokens(&mut reader)).is_err();
            return Err(if cut { ContextError::Truncated } else { ContextError::Forged });
        }
        let vv = read_actors(&mut reader)?;
        let tokens = read_tokens(&mut reader)?;
        reader.finish()?;
        let context = Self { vv, tokens };
        match context.time_max() {
            found if found > latest => Err(ContextError::Future { found, limit: latest }),
            _ => Ok(context),
        }
    }
}

/// Invariant 3: the live of `tokens`, and the newest of the rest.
fn newest(mut tokens: Vec<(Token, u64)>, is_live: impl Fn(Token) -> bool) -> Vec<(Token, u64)> {
    if tokens.len() <= DEAD_TOKENS_MAX {
        return tokens;
    }
    let is_dead = |entry: &&(Token, u64)| !is_live(entry.0);
    let mut dead: Vec<u64> = tokens.iter().filter(is_dead).map(|entry| entry.1).collect();
    let surplus = dead.len().saturating_sub(DEAD_TOKENS_MAX);
    if surplus > 0 {
        // Of tokens of one moment all go: there may be fewer than allowed, never more.
        let (_, &mut last_to_go, _) = dead.select_nth_unstable(surplus - 1);
        tokens.retain(|&(token, time)| time > last_to_go || is_live(token));
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64 << 10;

    fn some() -> Context {
        let vv = vec![(Actor::new(3), 70), (Actor::new(9), 50)];
        Context { vv, tokens: vec![(Token::new(11), 60)] }
    }

    fn encoded(context: &Context, key: ContextKey) -> Vec<u8> {
        let mut out = Vec::new();
        context.encode(key, &mut out);
        out
    }

    #[test]
    fn comes_back_as_it_went_out() {
        let key = ContextKey::new(1, b"k");
        for context in [Context::default(), some()] {
            let back = Context::decode(&encoded(&context, key), key, 100, LIMIT);
            assert_eq!(back.expect("own bytes"), context);
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let key = ContextKey::new(1, b"k");
        let bytes = encoded(&some(), key);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Context::decode(&bad, key, u64::MAX, LIMIT).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_cut_is_refused_as_truncated() {
        let key = ContextKey::new(1, b"k");
        let bytes = encoded(&some(), key);
        for len in 0..bytes.len() {
            let refused = Context::decode(&bytes[..len], key, u64::MAX, LIMIT);
            assert_eq!(refused, Err(ContextError::Truncated), "{len} bytes");
        }
    }

    #[test]
    fn another_key_or_cluster_is_forged() {
        let bytes = encoded(&some(), ContextKey::new(1, b"k"));
        for other in [ContextKey::new(1, b"l"), ContextKey::new(2, b"k")] {
            let refused = Context::decode(&bytes, other, u64::MAX, LIMIT);
            assert_eq!(refused, Err(ContextError::Forged));
        }
    }

    #[test]
    fn of_dead_tokens_only_the_newest_are_named_and_every_live_one() {
        let tokens: Vec<_> = (0..200_u64).map(|n| (Token::new(n.into()), 1_000 - n)).collect();
        let oldest = Token::new(199);
        let kept = newest(tokens, |token| token == oldest);
        let names: Vec<u128> = kept.iter().map(|(token, _)| token.to_u128()).collect();
        let newest_ones = 0..DEAD_TOKENS_MAX as u128;
        assert_eq!(names, newest_ones.chain([199]).collect::<Vec<_>>());
    }

    #[test]
    fn a_chain_of_tokened_writes_makes_no_ever_longer_context() {
        let mut context = Context::default();
        for n in 1..=1_000_u64 {
            context = context.with_write(Dot::Token(Token::new(n.into())), n);
        }
        assert_eq!(context.tokens().len(), DEAD_TOKENS_MAX + 1);
        assert!(context.has_seen(&Dot::Token(Token::new(1_000))));
    }

    #[test]
    fn future_long_and_foreign_formats_are_named() {
        let key = ContextKey::new(1, b"k");
        let bytes = encoded(&some(), key);
        let future = Context::decode(&bytes, key, 69, LIMIT);
        assert_eq!(future, Err(ContextError::Future { found: 70, limit: 69 }));
        let long = Context::decode(&bytes, key, 100, 10);
        assert_eq!(long, Err(ContextError::TooLong { found: bytes.len(), limit: 10 }));
        let mut newer = bytes;
        newer[0] = 2;
        let refused = Context::decode(&newer, key, 100, LIMIT);
        assert_eq!(refused, Err(ContextError::UnknownFormat { found: 2 }));
    }
}
