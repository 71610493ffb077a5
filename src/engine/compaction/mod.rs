//! Compaction: which tables are merged, how fast, and what may be forgotten on the way.
//!
//! | part | what it is |
//! |---|---|
//! | [`Picker`] | pure function: shape of the tree -> next [`Compaction`] |
//! | [`Targets`] | how large each level should be, and how far behind the tree is |
//! | [`Job`] | runs one: merges, claims, forgets, and says what to install |
//! | [`Pacer`] | how long a job has to wait before it writes on |

mod gc;
mod job;
mod output;
mod pacer;
mod picker;
mod rules;
mod targets;

#[cfg(test)]
mod tests;

pub use gc::PurgeView;
pub use job::{Job, JobContext, JobDone, JobStats};
pub use output::OutputCutter;
pub use pacer::Pacer;
pub use picker::{Compaction, Picker, PickerOptions, Reason};
pub use targets::Targets;
