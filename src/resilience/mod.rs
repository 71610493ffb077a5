//! What keeps one slow or dead part from taking the rest with it.
//!
//! | file | what |
//! |---|---|
//! | [`retry`] | how long to wait before the next try, and how many tries all calls together have |
//!
//! It knows no other module of the crate: an embedder can use it too. Time is tokio's, so that a
//! simulation drives it; randomness is handed in.

pub mod retry;
