//! The bytes of hint segments; `super` has the tables.

use crate::cluster::NodeId;
use crate::engine::checksum;
use crate::engine::options::ROW_BYTES_MAX;
use crate::proto;
use crate::store::limits::KEY_BYTES_CEILING;

const MAGIC: [u8; 4] = *b"PDBH";
const FORMAT: u32 = 1;
/// Bytes of a segment before its first frame.
pub const HEADER_BYTES: u64 = 36;
/// Bytes of a frame before its body: checksum and length.
pub const FRAME_HEADER_BYTES: usize = 8;
/// Bytes of a body before the key.
const BODY_HEADER_BYTES: usize = 14;
/// No body is longer.
pub const BODY_BYTES_MAX: usize = BODY_HEADER_BYTES + KEY_BYTES_CEILING + ROW_BYTES_MAX;

/// A row kept for a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Hint {
    /// When it was missed, on the wall clock in milliseconds.
    pub created_ms: u64,
    /// The row.
    pub row: proto::RowState,
}

/// The first bytes of a segment.
pub fn header(target: NodeId, number: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES as usize);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&target.to_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    let checksum = crc32fast::hash(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// Bytes of the frame of a row.
pub fn frame_bytes(row: &proto::RowState) -> u64 {
    (FRAME_HEADER_BYTES + BODY_HEADER_BYTES + row.key.len() + row.row.len()) as u64
}

/// Appends a frame that will lie at `offset` of segment `number`.
pub fn append(hint: &Hint, number: u64, offset: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let length = BODY_HEADER_BYTES + hint.row.key.len() + hint.row.row.len();
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&hint.created_ms.to_le_bytes());
    out.extend_from_slice(&hint.row.tenant_id.to_le_bytes());
    out.extend_from_slice(&(hint.row.key.len() as u16).to_le_bytes());
    out.extend_from_slice(&hint.row.key);
    out.extend_from_slice(&hint.row.row);
    let checksum = checksum::of_placed(number, offset, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// The length of the body behind these bytes, if it can be one.
pub fn body_length(frame_header: [u8; FRAME_HEADER_BYTES]) -> Option<usize> {
    let [.., a, b, c, d] = frame_header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    (BODY_HEADER_BYTES + 1..=BODY_BYTES_MAX).contains(&length).then_some(length)
}

/// The hint in a whole frame that lies at `offset` of segment `number`; `None` for all else.
pub fn decode(frame: &[u8], number: u64, offset: u64) -> Option<Hint> {
    let (stored, rest) = frame.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*stored) != checksum::of_placed(number, offset, rest) {
        return None;
    }
    let (_, body) = rest.split_first_chunk::<4>()?;
    let (created_ms, body) = body.split_first_chunk::<8>()?;
    let (tenant, body) = body.split_first_chunk::<4>()?;
    let (key_bytes, body) = body.split_first_chunk::<2>()?;
    let (key, row) = body.split_at_checked(usize::from(u16::from_le_bytes(*key_bytes)))?;
    let row = proto::RowState {
        tenant_id: u32::from_le_bytes(*tenant),
        key: key.to_vec().into(),
        row: row.to_vec().into(),
    };
    Some(Hint { created_ms: u64::from_le_bytes(*created_ms), row })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// A disk gives back anything: a frame is read as it was written, or not at all.
        #[test]
        fn a_frame_comes_back_or_is_refused(
            key in prop::collection::vec(any::<u8>(), 1..40),
            row in prop::collection::vec(any::<u8>(), 0..200),
            created_ms: u64, tenant_id: u32, number: u64, offset: u64, flip: u16,
        ) {
            let row = proto::RowState { tenant_id, key: key.into(), row: row.into() };
            let hint = Hint { created_ms, row };
            let mut frame = Vec::new();
            append(&hint, number, offset, &mut frame);
            prop_assert_eq!(frame.len() as u64, frame_bytes(&hint.row));
            let header = frame.first_chunk().expect("longer");
            prop_assert_eq!(body_length(*header), Some(frame.len() - FRAME_HEADER_BYTES));
            prop_assert_eq!(decode(&frame, number, offset), Some(hint));
            prop_assert_eq!(decode(&frame, number, offset ^ 1), None);
            prop_assert_eq!(decode(&frame, number ^ 1, offset), None);
            let bit = usize::from(flip) % (frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&frame, number, offset), None);
        }

        #[test]
        fn garbage_is_no_frame(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(&bytes, 1, 36), None);
            if let Some(header) = bytes.first_chunk() {
                prop_assert!(body_length(*header).is_none_or(|length| length <= BODY_BYTES_MAX));
            }
        }
    }
}
