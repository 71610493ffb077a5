//! The ordering rules of compaction by name, so that tests can take one away.
//!
//! Each was found with a model of the engine in which removing it alone loses a write or brings a
//! deleted one back. The test of that name replays the history: with the rule it passes, without
//! it the test sees the damage. In a build that is not a test every rule holds, at no cost.

/// A rule that can be removed in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A newer table of level 0 never moves below an older one that it overlaps.
    AgeContiguous,
    /// A Full of a `demote_full` table is read as a Delta.
    DemoteFull,
    /// A Delta becomes a Full only if no table older than the inputs may hold the key.
    PromoteOldest,
    /// A row is purged only if every table that may hold the key is an input.
    PurgeAllTables,
    /// A floor counts only once all memtables of its time are tables.
    PurgeFloorEpoch,
    /// Only rows without a value are purged, and only below the floor.
    PurgeTombstonesOnly,
    /// Nothing is purged in a partition that lost data.
    PurgeUndamaged,
    /// No key is taken out of a table that a compaction reads.
    RemovalAlone,
}

/// Which rules hold: all, except in a test that removed one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    #[cfg(test)]
    removed: Option<Rule>,
}

impl Rules {
    /// All but `rule`.
    #[cfg(test)]
    pub(crate) fn without(rule: Rule) -> Self {
        Self { removed: Some(rule) }
    }

    /// All but the one that is removed by its name in the table of the rules, if it is one of
    /// these.
    #[cfg(test)]
    pub(crate) fn without_named(names: &std::collections::HashSet<&'static str>) -> Self {
        let named = [
            ("age_contiguous", Rule::AgeContiguous),
            ("demote_full", Rule::DemoteFull),
            ("promote_b_oldest", Rule::PromoteOldest),
            ("purge_all_tables", Rule::PurgeAllTables),
            ("purge_floor_epoch", Rule::PurgeFloorEpoch),
            ("removal_alone", Rule::RemovalAlone),
        ];
        let removed = named.iter().find(|(name, _)| names.contains(name));
        Self { removed: removed.map(|(_, rule)| *rule) }
    }

    /// Whether `rule` holds.
    #[inline]
    pub(crate) fn hold(self, rule: Rule) -> bool {
        #[cfg(test)]
        let holds = self.removed != Some(rule);
        #[cfg(not(test))]
        let holds = {
            let _ = rule;
            true
        };
        holds
    }
}
