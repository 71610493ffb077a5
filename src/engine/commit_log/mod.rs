//! The commit log: what was written before it is in a table.
//!
//! Writers append to a buffer under a short mutex and then ask for what they need: written (it
//! survives `kill -9`), durable (it survives power loss), or a call once it is durable. One thread
//! writes or syncs for all that wait, while the next group collects. The same mutex guards the
//! engine's state that may change only at an exact position of the log ([`CommitLog::lock`]).
//!
//! It does not know what a row is, has no threads and keeps no time: the engine decides when to
//! sync, flush and retire segments.
//!
//! Invariants:
//! 1. an append is in one frame, so a recovery finds all of it or nothing;
//! 2. `durable_upto` passes a position only after every segment up to it was synced;
//! 3. any failed write or sync poisons the log; nothing is tried again;
//! 4. a segment number is used once; frames of another number are no frames, so a log can reuse its
//!    files without erasing them, and only its own: what an earlier one left is removed;
//! 5. a recovered segment is never appended to.
//!
//! # Format
//!
//! Files `NNNNNNNNNN.log`, little-endian, version 4. They grow in steps ahead of what is written. A
//! `NNNNNNNNNN.spare` is a flushed segment that waits to be renamed to the next one; what it holds
//! means nothing, and an open removes it.
//!
//! A position is `segment number << 32 | offset`. Segment header, at offset 0:
//!
//! | offset | bytes | what |
//! |--:|--:|---|
//! | 0 | 8 | magic `PAIRDLOG` |
//! | 8 | 4 | format version, 4 |
//! | 12 | 4 | segment number, as in the file name |
//! | 16 | 8 | position where the log ended in the segment before; 0 in a log's first segment |
//! | 24 | 4 | CRC-32 (IEEE) of bytes 0 to 23 |
//! | 28 | 4 | zero |
//!
//! Then frames, one right behind the other. With `x = p * 0x9E3779B97F4A7C15`,
//! `y = (x ^ x >> 32) * 0xD6E8FEB86659FD93` and `i = y ^ y >> 32`, all modulo 2^64, of the frame's
//! position `p`:
//!
//! | bytes | what |
//! |--:|---|
//! | 3 | mark: bytes 1 to 3 of `i`, the first one made odd |
//! | 4 | CRC-32 (IEEE) of the rest of the frame, xor bytes 4 to 7 of `i` |
//! | varint | bytes of the records (n), at least 3 |
//! | varint | 0: nothing of the log was synced; else 1 + the distance from `durable_upto`, up to which it was, to `p` |
//! | n | records |
//!
//! Record:
//!
//! | bytes | what |
//! |--:|---|
//! | 1 | s: what is as in the record before it in the frame. Bits 0 to 3: bytes 0 to 3 of the row; bit 4: bytes 4 and 5; bits 5 and 6: bytes 6 and 7; bit 7: the lengths of key and row |
//! | varint | bytes of the key (k), if they are not as before |
//! | varint | bytes of the row (r), if they are not as before |
//! | k | key |
//! | r less those of s | row, without the bytes that are as before |
//!
//! A segment may end anywhere: zeros or frames of an older number follow, and the next segment's
//! header says that it ended there. Numbers may have gaps. A log that was flushed to its end at a
//! clean close has no files; the manifest's flushed position names the end.

mod allocation;
mod frame;
mod group;
mod progress;
mod reader;
mod segment;
mod writer;

pub use progress::OnDurable;
pub use reader::{Apply, Recovered, recover};
pub use segment::{next_segment_number, remove_segments};
pub use writer::{CommitLog, LogGuard, LogOptions, LogStats};

#[cfg(test)]
mod tests;
