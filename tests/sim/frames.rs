//! The messages in what a peer's connection sends: HTTP/2 as far as that needs it.
//!
//! ```text
//! preface (24, a client's) | frame ...
//! frame    length (3, big endian) | type | flags | stream (4) | payload
//! data     payload is a piece of: compressed (1) | length (4, big endian) | message
//! ```
//!
//! # Invariants
//! 1. What comes out in order is what went in: nothing is lost, and only data is framed anew.

use std::collections::BTreeMap;

const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;
const PREFIX_BYTES: usize = 5;
/// The largest frame anybody takes unasked.
const FRAME_BYTES_MAX: usize = 16 << 10;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// A part of what is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Whatever is no message.
    Raw(Vec<u8>),
    /// A message of a stream, whole, without its prefix.
    Message { stream: u32, bytes: Vec<u8> },
}

impl Piece {
    /// As it goes over the wire.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes,
            Self::Message { stream, bytes } => {
                let mut message = vec![0];
                message.extend((bytes.len() as u32).to_be_bytes());
                message.extend(bytes);
                message.chunks(FRAME_BYTES_MAX).flat_map(|part| data(stream, part, 0)).collect()
            }
        }
    }
}

fn data(stream: u32, payload: &[u8], flags: u8) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([DATA, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Frames {
    preface_left: usize,
    /// Of a frame that is not whole yet.
    rest: Vec<u8>,
    /// Of messages that are not.
    streams: BTreeMap<u32, Vec<u8>>,
}

impl Frames {
    /// What the side sends that connected, or the other.
    pub fn new(connected: bool) -> Self {
        let preface_left = if connected { PREFACE_BYTES } else { 0 };
        Self { preface_left, rest: Vec::new(), streams: BTreeMap::new() }
    }

    /// What has become whole with these bytes.
    pub fn take(&mut self, mut bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.preface_left > 0 {
            let (preface, others) = bytes.split_at(self.preface_left.min(bytes.len()));
            self.preface_left -= preface.len();
            pieces.push(Piece::Raw(preface.to_vec()));
            bytes = others;
        }
        self.rest.extend(bytes);
        while let Some(frame) = self.frame() {
            self.read(frame, &mut pieces);
        }
        pieces
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        let length = self.rest.get(..3)?;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if self.rest.len() < HEADER_BYTES + length {
            return None;
        }
        let others = self.rest.split_off(HEADER_BYTES + length);
        Some(std::mem::replace(&mut self.rest, others))
    }

    fn read(&mut self, frame: Vec<u8>, pieces: &mut Vec<Piece>) {
        let (kind, flags) = (frame[3], frame[4]);
        if kind != DATA || flags & PADDED != 0 {
            return pieces.push(Piece::Raw(frame));
        }
        let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
        let begun = self.streams.entry(stream).or_default();
        begun.extend(&frame[HEADER_BYTES..]);
        while let Some(bytes) = message(begun) {
            pieces.push(Piece::Message { stream, bytes });
        }
        if flags & END_STREAM != 0 {
            let left = self.streams.remove(&stream).unwrap_or_default();
            pieces.push(Piece::Raw(data(stream, &left, END_STREAM)));
        }
    }
}

/// Takes a whole message off the front.
fn message(begun: &mut Vec<u8>) -> Option<Vec<u8>> {
    let prefix = begun.get(..PREFIX_BYTES)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if begun.len() < PREFIX_BYTES + length {
        return None;
    }
    let others = begun.split_off(PREFIX_BYTES + length);
    let whole = std::mem::replace(begun, others);
    Some(whole[PREFIX_BYTES..].to_vec())
}

#[test]
fn what_a_connection_sends_comes_out_as_it_went_in_however_it_is_cut() {
    let sent = |message: &[u8]| Piece::Message { stream: 5, bytes: message.to_vec() };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // Two messages in three frames.
    let both = [&sent(&[1; 700]).into_bytes()[9..], &sent(&[2; 3]).into_bytes()[9..]].concat();
    both.chunks(300).for_each(|part| bytes.extend(data(5, part, 0)));
    bytes.extend(data(5, &[], END_STREAM));
    for cut in 1..bytes.len() {
        let mut frames = Frames::new(true);
        let pieces: Vec<_> = bytes.chunks(cut).flat_map(|part| frames.take(part)).collect();
        let messages: Vec<_> =
            pieces.iter().filter(|piece| matches!(piece, Piece::Message { .. })).cloned().collect();
        assert_eq!(messages, [sent(&[1; 700]), sent(&[2; 3])]);
        let raw = pieces.iter().map(|piece| match piece {
            Piece::Raw(raw) => raw.len(),
            Piece::Message { .. } => 0,
        });
        assert_eq!(raw.sum::<usize>(), PREFACE_BYTES + 2 * HEADER_BYTES);
    }
}
