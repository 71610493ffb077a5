//! The names in one directory: as they are, as they were synced, and what was done in between.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::random::Random;

#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    pub(super) names: BTreeMap<OsString, Entry>,
    synced: BTreeMap<OsString, Entry>,
    since_sync: Vec<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File(u64),
    Directory,
}

/// A change of names, as the directory was told of it.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Insert(OsString, Entry),
    Remove(OsString, Entry),
    Rename(OsString, OsString, Entry),
}

impl Directory {
    pub(super) fn apply(&mut self, change: Change) {
        change.apply_to(&mut self.names);
        self.since_sync.push(change);
    }

    /// Makes the names durable; whether there was anything to do.
    pub(super) fn sync(&mut self) -> bool {
        if self.since_sync.is_empty() {
            return false;
        }
        self.since_sync.clear();
        self.synced = self.names.clone();
        true
    }

    /// Every entry that is there or may be there after a crash.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> {
        let changed = self.since_sync.iter().map(Change::entry);
        self.names.values().chain(self.synced.values()).copied().chain(changed)
    }

    pub(super) fn lose_power(&mut self, random: &mut Random, keep_percent: u64) {
        for change in std::mem::take(&mut self.since_sync) {
            if random.percent(keep_percent) {
                change.apply_to(&mut self.synced);
            }
        }
        self.names = self.synced.clone();
    }
}

impl Change {
    fn entry(&self) -> Entry {
        match self {
            Self::Insert(_, entry) | Self::Remove(_, entry) | Self::Rename(_, _, entry) => *entry,
        }
    }

    /// Also right where changes before this one were lost: it then does what is left of it.
    fn apply_to(&self, names: &mut BTreeMap<OsString, Entry>) {
        match self {
            Self::Insert(name, entry) => {
                names.insert(name.clone(), *entry);
            }
            Self::Remove(name, entry) => {
                if names.get(name) == Some(entry) {
                    names.remove(name);
                }
            }
            Self::Rename(from, to, entry) => {
                if names.get(from) == Some(entry) {
                    names.remove(from);
                }
                names.insert(to.clone(), *entry);
            }
        }
    }
}
