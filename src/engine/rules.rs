//! The ordering rules of the engine by name, so that tests can take one away.
//!
//! The rules were found with a model of one node whose every operation is cut into its real steps;
//! each was then removed alone and a history was found that breaks. `engine/tests/rules.rs`
//! replays these histories on the engine itself: with the rule they pass, without it they fail. In
//! a build that is not a test, [`rule!`] is `true` and costs nothing.

/// Whether a rule holds: always, except in a test that removed it.
macro_rules! rule {
    ($shared:expr, $name:ident) => {{
        #[cfg(test)]
        let holds = !$shared.removed_rules.lock().contains(&stringify!($name));
        #[cfg(not(test))]
        let holds = true;
        holds
    }};
}

pub(super) use rule;
