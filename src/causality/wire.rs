//! Reading and writing the parts that rows and contexts are made of.
//!
//! The reader never panics and allocates no more than the bytes at hand can fill.

use super::actor::Actor;
use super::codec::DecodeError;
use super::dot::Token;

/// A cursor over bytes that may be anything.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// An error at the cursor.
    pub(super) fn error(&self, what: &'static str) -> DecodeError {
        DecodeError { at: self.at, what }
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..len).ok_or_else(|| self.error("cut short"))?;
        self.at += len;
        Ok(taken)
    }

    /// All bytes that are left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A LEB128 number in its one shortest form.
    pub(super) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.error("a number beyond 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(self.error("a number longer than needed"));
                }
                return Ok(value);
            }
        }
        Err(self.error("a number without end"))
    }

    /// A varint that counts entries of at least `entry_bytes` each: refused if they cannot fit.
    pub(super) fn count(&mut self, entry_bytes: usize) -> Result<usize, DecodeError> {
        let count = self.varint()?;
        let fits = (self.bytes.len() - self.at) / entry_bytes;
        usize::try_from(count)
            .ok()
            .filter(|&count| count <= fits)
            .ok_or_else(|| self.error("more entries than bytes"))
    }

    /// A varint length and that many bytes.
    pub(super) fn sized(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.count(1)?;
        self.take(len)
    }

    /// Nothing may be left.
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.error("bytes left over")) }
    }
}

pub(super) fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn write_sized(bytes: &[u8], out: &mut Vec<u8>) {
    write_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(super) fn write_actors(vv: &[(Actor, u64)], out: &mut Vec<u8>) {
    write_varint(vv.len() as u64, out);
    for (actor, time) in vv {
        out.extend_from_slice(&actor.to_u64().to_le_bytes());
        out.extend_from_slice(&time.to_le_bytes());
    }
}

pub(super) fn read_actors(reader: &mut Reader<'_>) -> Result<Vec<(Actor, u64)>, DecodeError> {
    let count = reader.count(16)?;
    let mut vv: Vec<(Actor, u64)> = Vec::with_capacity(count);
    for _ in 0..count {
        let actor = Actor::new(reader.u64()?);
        if vv.last().is_some_and(|last| last.0 >= actor) {
            return Err(reader.error("actors out of order"));
        }
        vv.push((actor, reader.u64()?));
    }
    Ok(vv)
}

pub(super) fn write_tokens(tokens: &[(Token, u64)], out: &mut Vec<u8>) {
    write_varint(tokens.len() as u64, out);
    for (token, time) in tokens {
        out.extend_from_slice(&token.to_u128().to_le_bytes());
        out.extend_from_slice(&time.to_le_bytes());
    }
}

pub(super) fn read_tokens(reader: &mut Reader<'_>) -> Result<Vec<(Token, u64)>, DecodeError> {
    let count = reader.count(24)?;
    let mut tokens: Vec<(Token, u64)> = Vec::with_capacity(count);
    for _ in 0..count {
        let token = Token::new(u128::from_le_bytes(reader.array()?));
        if tokens.last().is_some_and(|last| last.0 >= token) {
            return Err(reader.error("tokens out of order"));
        }
        tokens.push((token, reader.u64()?));
    }
    Ok(tokens)
}
