//! What keeps one slow or dead part from taking the rest with it.
//!
//! | file | what |
//! |---|---|
//! | [`deadline`] | when an answer is of use no more; the wait that ends there |
//! | [`retry`] | how long to wait before the next try, and how many tries all calls together have |
//! | [`breaker`] | calls to something that fails or crawls fail at once, until a few got through |
//! | [`bulkhead`] | so many at once, so many in the queue, so long |
//! | [`bytes`] | so many bytes wait at once |
//! | [`scores`] | how fast others answer: whom to ask first |
//!
//! From the outside in, a call passes deadline, retry, breaker and bulkhead. Each of them refuses
//! before anything is done, or leaves the outcome alone.
//!
//! It knows no other module of the crate: an embedder can use it too. Time is tokio's, so that a
//! simulation drives it; randomness is handed in. Settings are checked when they are handed in.

pub mod breaker;
pub mod bulkhead;
pub mod bytes;
pub mod deadline;
pub mod retry;
pub mod scores;

/// Settings that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {why}")]
pub struct Invalid {
    /// Which one.
    pub setting: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Invalid {
    /// An error unless `is_valid`.
    fn unless(is_valid: bool, setting: &'static str, why: &'static str) -> Result<(), Self> {
        if is_valid { Ok(()) } else { Err(Self { setting, why }) }
    }
}
