//! Compaction: which tables are merged, how fast, and what may be forgotten on the way.
//!
//! | part | what it is |
//! |---|---|
//! | [`Picker`] | pure function: shape of the tree -> next [`Compaction`] |
//! | [`Targets`] | how large each level should be, and how far behind the tree is |
//! | [`Pacer`] | how long a job has to wait before it writes on |

mod pacer;
mod picker;
mod rules;
mod targets;

pub use pacer::Pacer;
pub use picker::{Compaction, Picker, PickerOptions, Reason};
pub(crate) use rules::{Rule, Rules};
pub use targets::Targets;
