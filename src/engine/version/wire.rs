//! Little-endian fields in and out of a byte string, for the manifest.
//!
//! Reading never panics and never allocates more than the input holds: a length is checked against
//! the bytes that are left before anything is made of it.

/// Why a field could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside a field.
    #[error("{what} needs {need} bytes, {left} are left")]
    Short {
        /// The field.
        what: &'static str,
        /// Its length in bytes.
        need: usize,
        /// What was left.
        left: usize,
    },
    /// A field holds a value that no version of the program writes.
    #[error("{what} is {found}")]
    Bad {
        /// The field.
        what: &'static str,
        /// What it holds.
        found: u64,
    },
}

/// Takes fields off the front of a byte string.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// Whether everything was read.
    pub const fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, what: &'static str, len: usize) -> Result<&'a [u8], WireError> {
        let Some((head, rest)) = self.left.split_at_checked(len) else {
            return Err(WireError::Short { what, need: len, left: self.left.len() });
        };
        self.left = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let bytes = self.bytes(what, N)?;
        Ok(bytes.try_into().expect("`bytes` returns exactly the length asked for"))
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// Four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// Eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Sixteen bytes.
    pub fn u128(&mut self, what: &'static str) -> Result<u128, WireError> {
        Ok(u128::from_le_bytes(self.array(what)?))
    }

    /// A key: `u16` length, then its bytes.
    pub fn key(&mut self, what: &'static str) -> Result<Box<[u8]>, WireError> {
        let len = self.u16(what)?;
        Ok(self.bytes(what, len.into())?.into())
    }
}

/// Appends a key as [`Reader::key`] reads it.
///
/// # Panics
/// If the key is longer than `KEY_BYTES_MAX`, which the engine refuses at its door.
pub fn put_key(out: &mut Vec<u8>, key: &[u8]) {
    let len = u16::try_from(key.len()).expect("keys are at most KEY_BYTES_MAX = u16::MAX long");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(key);
}
