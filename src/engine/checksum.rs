//! The checksum of a piece of a file that has its place in it.

/// CRC-32 of `bytes` as they belong at `offset` of file `number`: what was written to another place
/// or file is found, too.
pub fn of_placed(number: u64, offset: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
