//! The ordering rules of the engine by name, so that tests can take one away.
//!
//! The rules were found with a model of one node whose every operation is cut into its real steps;
//! each was then removed alone and a history was found that breaks. `engine/tests/rules.rs`
//! replays these histories on the engine itself: with the rule they pass, without it they fail. In
//! a build that is not a test, [`rule!`] is `true` and costs nothing.

/// Whether a rule holds: always, except in a test that removed it.
///
/// Of an open store: `rule!(shared, name)`. While it opens there is no `shared` yet: `rule!(name)`
/// asks what the test removed for the stores that its thread opens, which then keep it.
macro_rules! rule {
    ($shared:expr, $name:ident) => {{
        #[cfg(test)]
        let holds = !$shared.removed_rules.lock().contains(&stringify!($name));
        #[cfg(not(test))]
        let holds = true;
        holds
    }};
    ($name:ident) => {{
        #[cfg(test)]
        let holds = !crate::engine::rules::removed_at_open().contains(&stringify!($name));
        #[cfg(not(test))]
        let holds = true;
        holds
    }};
}

pub(super) use rule;

impl super::Engine {
    /// [`rule!`] for the layers above, whose rules are kept or removed with the engine's.
    #[inline]
    pub(crate) fn keeps(&self, rule: &'static str) -> bool {
        #[cfg(test)]
        let keeps = !self.shared.removed_rules.lock().contains(rule);
        #[cfg(not(test))]
        let keeps = !rule.is_empty();
        keeps
    }
}

#[cfg(test)]
thread_local! {
    static REMOVED_AT_OPEN: std::cell::RefCell<std::collections::HashSet<&'static str>> =
        std::cell::RefCell::default();
}

/// The rules that stores opened by this thread do without.
#[cfg(test)]
pub(super) fn removed_at_open() -> std::collections::HashSet<&'static str> {
    REMOVED_AT_OPEN.with_borrow(Clone::clone)
}

/// Runs `open` with these rules removed.
#[cfg(test)]
pub(crate) fn open_without<R>(names: &[&'static str], open: impl FnOnce() -> R) -> R {
    REMOVED_AT_OPEN.set(names.iter().copied().collect());
    let opened = open();
    REMOVED_AT_OPEN.set(std::collections::HashSet::default());
    opened
}
