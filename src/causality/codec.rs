//! The bytes of a row.
//!
//! Canonical: a row has exactly one encoding, and [`decode`] refuses every other. All numbers are
//! little endian; a varint is LEB128 without superfluous bytes.
//!
//! # Last-write-wins row
//! | bytes | what | when |
//! |---|---|---|
//! | 1 | flags | |
//! | 8, 8 | time, actor | not `NO_VERSION` |
//! | varint | expiry, in wall-clock milliseconds | `HAS_EXPIRY` |
//! | tokens | as below | `HAS_TOKENS` |
//! | varint, n | length of the content type, content type | not `ALL_DEAD` |
//! | rest | value | not `ALL_DEAD` |
//!
//! # Siblings row
//! | bytes | what | when |
//! |---|---|---|
//! | 1 | flags | |
//! | varint, 16 each | number of clock entries; actor and time, sorted by actor | |
//! | varint, 24 each | number of tokens; hash and time, sorted by hash | `HAS_TOKENS` |
//! | varint | number of versions, then each of them, sorted by dot: | |
//! | 1 | kind: 0 value, 1 tombstone, 2 stripped; + 4 expires; + 8 named by a token | |
//! | varint | index of its actor, or of its token | |
//! | varint | actor's entry minus the dot's time, or version's time minus the token's | |
//! | varint | expiry | + 4 |
//! | varint, n, varint, n | length of content type, content type, length of value, value | value |

use std::cmp::Ordering;

use super::actor::Actor;
use super::clock::time_of_ms;
use super::dot::Dot;
use super::join::{ModeMismatch, join, lww_order};
use super::row::{Mode, Row};
use super::version::{CONTENT_TYPE_BYTES_MAX, Payload, Version};
use super::wire::{
    Reader, read_actors, read_tokens, write_actors, write_sized, write_tokens, write_varint,
};

/// The row is of a last-write-wins tenant.
pub const LAST_WRITE_WINS: u8 = 1 << 0;
/// No live version holds a value.
pub const ALL_DEAD: u8 = 1 << 1;
/// A live version has an expiry.
pub const HAS_EXPIRY: u8 = 1 << 2;
/// The row knows of tokens.
pub const HAS_TOKENS: u8 = 1 << 3;
/// The one version of a last-write-wins row is stripped (else, with `ALL_DEAD`, a tombstone).
pub const STRIPPED: u8 = 1 << 4;
/// A last-write-wins row without a version.
pub const NO_VERSION: u8 = 1 << 5;

const KIND_MASK: u8 = 3;
const KIND_EXPIRES: u8 = 4;
const KIND_TOKEN: u8 = 8;

/// Bytes that are not the encoding of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a row at byte {at}: {what}")]
pub struct DecodeError {
    /// Where, in bytes from the start.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl From<ModeMismatch> for DecodeError {
    fn from(_: ModeMismatch) -> Self {
        Self { at: 0, what: "a row of the other mode" }
    }
}

/// Appends the encoding of `row` to `out`.
pub fn encode(row: &Row<'_>, out: &mut Vec<u8>) {
    match row.mode {
        Mode::LastWriteWins => encode_lww(row, out),
        Mode::Siblings => encode_siblings(row, out),
    }
}

/// The row that `bytes` are the encoding of.
///
/// # Errors
/// [`DecodeError`] for anything that [`encode`] does not produce.
pub fn decode(bytes: &[u8]) -> Result<Row<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let flags = reader.byte()?;
    let row = if flags & LAST_WRITE_WINS != 0 {
        decode_lww(flags, &mut reader)?
    } else {
        decode_siblings(flags, &mut reader)?
    };
    reader.finish()?;
    if flags == flags_of(&row) { Ok(row) } else { Err(DecodeError { at: 0, what: "wrong flags" }) }
}

/// The flags byte.
///
/// # Errors
/// [`DecodeError`] if there is none.
pub fn flags(bytes: &[u8]) -> Result<u8, DecodeError> {
    Reader::new(bytes).byte()
}

/// Appends the encoding of a last-write-wins row that holds `version`, written by `actor`, and
/// knows of no token: what a blind write stores.
pub fn encode_lww_version(actor: Actor, version: &Version<'_>, out: &mut Vec<u8>) {
    let mut flags = LAST_WRITE_WINS | version_flags(version);
    if matches!(version.payload(), Payload::Stripped) {
        flags |= STRIPPED;
    }
    out.push(flags);
    write_lww_head(actor, version, out);
    write_lww_value(version, out);
}

/// The writer and version of a last-write-wins row without tokens; `None` for any other row, which
/// has to be [`decode`]d. Allocates nothing.
///
/// # Errors
/// [`DecodeError`] if the bytes are not a row.
pub fn lww_version(bytes: &[u8]) -> Result<Option<(Actor, Version<'_>)>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let flags = reader.byte()?;
    if flags & (LAST_WRITE_WINS | HAS_TOKENS | NO_VERSION) != LAST_WRITE_WINS {
        return Ok(None);
    }
    let (time, actor) = (reader.u64()?, Actor::new(reader.u64()?));
    let expires_at_ms = read_expiry(flags & HAS_EXPIRY != 0, &mut reader)?;
    let version = read_lww_value(flags, expires_at_ms, time, &mut reader)?;
    reader.finish()?;
    Ok(Some((actor, version)))
}

/// The time of a last-write-wins row's version; `None` for a siblings row or one without a version.
///
/// # Errors
/// [`DecodeError`] if the bytes are too few.
pub fn lww_time(bytes: &[u8]) -> Result<Option<u64>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let has_time = reader.byte()? & (LAST_WRITE_WINS | NO_VERSION) == LAST_WRITE_WINS;
    if has_time { reader.u64().map(Some) } else { Ok(None) }
}

/// The time of the oldest live dot, `u64::MAX` if none is live.
///
/// # Errors
/// [`DecodeError`] if the bytes are not a row.
pub fn live_time_min(bytes: &[u8]) -> Result<u64, DecodeError> {
    if flags(bytes)? & LAST_WRITE_WINS != 0 {
        return Ok(lww_time(bytes)?.unwrap_or(u64::MAX));
    }
    let row = decode(bytes)?;
    Ok(row.live.iter().map(|(dot, _)| row.time_of(dot)).min().unwrap_or(u64::MAX))
}

/// The greatest time in the row, its expiries counted as times.
///
/// # Errors
/// [`DecodeError`] if the bytes are not a row.
pub fn time_max(bytes: &[u8]) -> Result<u64, DecodeError> {
    if let Some((_, version)) = lww_version(bytes)? {
        return Ok(version.time().max(time_of_ms(version.expires_at_ms())));
    }
    let row = decode(bytes)?;
    let expiries = row.live.iter().map(|(_, version)| time_of_ms(version.expires_at_ms()));
    Ok(expiries.fold(row.time_max(), u64::max))
}

/// Appends the join of two encoded rows to `out`. Equal bytes, and last-write-wins rows without
/// tokens, are joined by a copy.
///
/// # Errors
/// [`DecodeError`] if one of them is not a row, or if their modes differ.
pub fn join_bytes(a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    if a == b {
        out.extend_from_slice(a);
        return Ok(());
    }
    if let (Some(x), Some(y)) = (lww_version(a)?, lww_version(b)?) {
        let order = lww_order(&plain(x), &plain(y));
        out.extend_from_slice(if order == Ordering::Less { b } else { a });
        return Ok(());
    }
    let joined = join(&decode(a)?, &decode(b)?)?;
    encode(&joined, out);
    Ok(())
}

/// A last-write-wins version with its dot.
fn plain((actor, version): (Actor, Version<'_>)) -> (Dot, Version<'_>) {
    (Dot::Plain { actor, time: version.time() }, version)
}

/// The flags that a version of either mode adds.
fn version_flags(version: &Version<'_>) -> u8 {
    let dead = if version.is_dead() { ALL_DEAD } else { 0 };
    dead | if version.expires_at_ms() != 0 { HAS_EXPIRY } else { 0 }
}

fn flags_of(row: &Row<'_>) -> u8 {
    let mut flags = 0;
    if row.live.iter().all(|(_, version)| version.is_dead()) {
        flags |= ALL_DEAD;
    }
    if row.live.iter().any(|(_, version)| version.expires_at_ms() != 0) {
        flags |= HAS_EXPIRY;
    }
    if !row.tokens.is_empty() {
        flags |= HAS_TOKENS;
    }
    if row.mode == Mode::LastWriteWins {
        flags |= LAST_WRITE_WINS;
        match row.live.first().map(|(_, version)| version.payload()) {
            None => flags |= NO_VERSION,
            Some(Payload::Stripped) => flags |= STRIPPED,
            Some(_) => {}
        }
    }
    flags
}

fn encode_lww(row: &Row<'_>, out: &mut Vec<u8>) {
    out.push(flags_of(row));
    let only = row.live.first();
    if let Some((Dot::Plain { actor, .. }, version)) = only {
        write_lww_head(*actor, version, out);
    }
    if !row.tokens.is_empty() {
        write_tokens(&row.tokens, out);
    }
    if let Some((_, version)) = only {
        write_lww_value(version, out);
    }
}

fn write_lww_head(actor: Actor, version: &Version<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&version.time().to_le_bytes());
    out.extend_from_slice(&actor.to_u64().to_le_bytes());
    if version.expires_at_ms() != 0 {
        write_varint(version.expires_at_ms(), out);
    }
}

fn write_lww_value(version: &Version<'_>, out: &mut Vec<u8>) {
    if let Payload::Value { value, content_type } = version.payload() {
        write_sized(content_type.as_bytes(), out);
        out.extend_from_slice(value);
    }
}

fn decode_lww<'a>(flags: u8, reader: &mut Reader<'a>) -> Result<Row<'a>, DecodeError> {
    let mut row = Row::empty(Mode::LastWriteWins);
    let head = if flags & NO_VERSION == 0 {
        let (time, actor) = (reader.u64()?, Actor::new(reader.u64()?));
        Some((time, actor, read_expiry(flags & HAS_EXPIRY != 0, reader)?))
    } else {
        None
    };
    if flags & HAS_TOKENS != 0 {
        row.tokens = read_tokens(reader)?;
    }
    if let Some((time, actor, expires_at_ms)) = head {
        let version = read_lww_value(flags, expires_at_ms, time, reader)?;
        row.live.push(plain((actor, version)));
    }
    Ok(row)
}

fn read_lww_value<'a>(
    flags: u8,
    expires_at_ms: u64,
    time: u64,
    reader: &mut Reader<'a>,
) -> Result<Version<'a>, DecodeError> {
    let payload = match (flags & ALL_DEAD != 0, flags & STRIPPED != 0) {
        (false, false) => {
            let content_type = read_content_type(reader)?;
            Payload::Value { value: reader.rest(), content_type }
        }
        (true, false) => Payload::Tombstone,
        (true, true) => Payload::Stripped,
        (false, true) => return Err(reader.error("a stripped version with a value")),
    };
    checked_version(payload, expires_at_ms, time, reader)
}

/// A version, unless its expiry contradicts its payload.
fn checked_version<'a>(
    payload: Payload<'a>,
    expires_at_ms: u64,
    time: u64,
    reader: &Reader<'_>,
) -> Result<Version<'a>, DecodeError> {
    let version = Version::new(payload, expires_at_ms, time);
    let same = version.payload() == payload && version.expires_at_ms() == expires_at_ms;
    if same { Ok(version) } else { Err(reader.error("an expiry that cannot be")) }
}

fn read_expiry(is_there: bool, reader: &mut Reader<'_>) -> Result<u64, DecodeError> {
    match is_there {
        false => Ok(0),
        true => match reader.varint()? {
            0 => Err(reader.error("an expiry of never")),
            expires_at_ms => Ok(expires_at_ms),
        },
    }
}

fn read_content_type<'a>(reader: &mut Reader<'a>) -> Result<&'a str, DecodeError> {
    let bytes = reader.sized()?;
    if bytes.len() > CONTENT_TYPE_BYTES_MAX {
        return Err(reader.error("a content type too long"));
    }
    std::str::from_utf8(bytes).map_err(|_| reader.error("a content type that is no text"))
}

fn encode_siblings(row: &Row<'_>, out: &mut Vec<u8>) {
    out.push(flags_of(row));
    write_actors(&row.vv, out);
    if !row.tokens.is_empty() {
        write_tokens(&row.tokens, out);
    }
    write_varint(row.live.len() as u64, out);
    for (dot, version) in &row.live {
        let mut kind = match version.payload() {
            Payload::Value { .. } => 0,
            Payload::Tombstone => 1,
            Payload::Stripped => 2,
        };
        if version.expires_at_ms() != 0 {
            kind |= KIND_EXPIRES;
        }
        let (index, distance) = match dot {
            Dot::Plain { actor, time } => {
                let index = row.vv.partition_point(|entry| entry.0 < *actor);
                (index, row.vv[index].1 - time)
            }
            Dot::Token(token) => {
                kind |= KIND_TOKEN;
                let index = row.tokens.partition_point(|entry| entry.0 < *token);
                (index, version.time() - row.tokens[index].1)
            }
        };
        out.push(kind);
        write_varint(index as u64, out);
        write_varint(distance, out);
        if version.expires_at_ms() != 0 {
            write_varint(version.expires_at_ms(), out);
        }
        if let Payload::Value { value, content_type } = version.payload() {
            write_sized(content_type.as_bytes(), out);
            write_sized(value, out);
        }
    }
}

fn decode_siblings<'a>(flags: u8, reader: &mut Reader<'a>) -> Result<Row<'a>, DecodeError> {
    let mut row = Row::empty(Mode::Siblings);
    row.vv = read_actors(reader)?;
    if flags & HAS_TOKENS != 0 {
        row.tokens = read_tokens(reader)?;
    }
    // A version takes three bytes at least.
    let count = reader.count(3)?;
    row.live.reserve_exact(count);
    for _ in 0..count {
        let entry = read_sibling(&row, reader)?;
        if row.live.last().is_some_and(|last| last.0 >= entry.0) {
            return Err(reader.error("versions out of order"));
        }
        row.live.push(entry);
    }
    Ok(row)
}

fn read_sibling<'a>(
    row: &Row<'a>,
    reader: &mut Reader<'a>,
) -> Result<(Dot, Version<'a>), DecodeError> {
    let kind = reader.byte()?;
    if kind > KIND_MASK | KIND_EXPIRES | KIND_TOKEN {
        return Err(reader.error("an unknown kind of version"));
    }
    let index = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    let distance = reader.varint()?;
    let (dot, time) = if kind & KIND_TOKEN != 0 {
        let entry = row.tokens.get(index).ok_or_else(|| reader.error("a dot of no token"))?;
        (Dot::Token(entry.0), entry.1.checked_add(distance))
    } else {
        let entry = row.vv.get(index).ok_or_else(|| reader.error("a dot of no actor"))?;
        let time = entry.1.checked_sub(distance);
        (Dot::Plain { actor: entry.0, time: time.unwrap_or(0) }, time)
    };
    let time = time.ok_or_else(|| reader.error("a time out of range"))?;
    let expires_at_ms = read_expiry(kind & KIND_EXPIRES != 0, reader)?;
    let payload = match kind & KIND_MASK {
        0 => {
            let content_type = read_content_type(reader)?;
            Payload::Value { value: reader.sized()?, content_type }
        }
        1 => Payload::Tombstone,
        2 => Payload::Stripped,
        _ => return Err(reader.error("an unknown kind of version")),
    };
    Ok((dot, checked_version(payload, expires_at_ms, time, reader)?))
}

#[cfg(test)]
mod tests;
