//! Whether a cluster keeps its promises, as far as its clients can see.
//!
//! | file | what |
//! |---|---|
//! | [`workload`] | clients that write, read and delete at all levels, and give contexts back |
//! | [`recorder`] | writes down what they did and saw |
//! | [`history`] | the form of that |
//! | [`checker`] | finds what should not have happened |
//! | [`dice`] | chance with a seed |
//!
//! A live cluster is verified by `pairdb verify run`; simulations run the same workload and the
//! same checks.

pub mod checker;
pub mod dice;
pub mod history;
pub mod recorder;
pub mod workload;
