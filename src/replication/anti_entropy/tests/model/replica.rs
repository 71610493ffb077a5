//! One replica: what it holds, in memory and on disk.

use std::collections::BTreeSet;

use super::{Writes, time_of};
use crate::causality::floor::{Admission, admit, may_purge};
use crate::causality::{Actor, Mode, Row, join_with_floors};

/// Whether a message was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Yes,
    No,
}

/// What a disk was at one moment.
#[derive(Clone)]
struct Snapshot {
    row: Row<'static>,
    known: Writes,
    floor: u64,
    guard: u64,
    actor: Actor,
}

#[derive(Clone)]
pub struct Replica {
    pub is_up: bool,
    pub row: Row<'static>,
    /// Writes whose rows, or whose followers', came here.
    pub known: Writes,
    pub floor: u64,
    pub guard: u64,
    /// The last time minted.
    pub last: u64,
    pub actor: Actor,
    pub incarnation: u64,
    pub news: u64,
    pub damaged: BTreeSet<usize>,
    disk: (Row<'static>, Writes),
    /// What older blocks hold, below the newest of the key.
    below: (Row<'static>, Writes),
    snapshot: Option<Snapshot>,
}

impl Replica {
    pub fn new(mode: Mode, actor: Actor) -> Self {
        let nothing = || (Row::empty(mode), Writes::new());
        Self {
            is_up: true,
            row: Row::empty(mode),
            known: Writes::new(),
            floor: 0,
            guard: 0,
            last: 0,
            actor,
            incarnation: 0,
            news: 0,
            damaged: BTreeSet::new(),
            disk: nothing(),
            below: nothing(),
            snapshot: None,
        }
    }

    pub fn sync(&mut self) {
        self.disk = (self.row.clone(), self.known.clone());
    }

    pub fn join(&mut self, row: &Row<'static>) {
        self.row = join_with_floors(&self.row, 0, row, 0, &mut Vec::new()).expect("one mode");
    }

    /// Takes a message as the guard has it.
    pub fn take(&mut self, row: &Row<'static>, known: &Writes, guard: u64) -> Taken {
        let local = (!self.row.is_empty()).then_some(&self.row);
        let taken = match admit(row, local, guard, self.floor.min(guard)) {
            // A guard of 0 is none.
            _ if guard == 0 => row.clone(),
            Admission::Whole => row.clone(),
            Admission::Stripped(stripped) => stripped,
            Admission::Refused => return Taken::No,
        };
        self.join(&taken);
        self.known.extend(known);
        Taken::Yes
    }

    /// Whether a repair brings a version at or below the guard.
    pub fn is_news(&self, row: &Row<'_>, guard: u64) -> bool {
        let mut live = row.live().iter().map(|(dot, _)| dot);
        live.any(|dot| {
            let is_here = self.row.version(dot).is_some() || self.row.has_seen(dot);
            time_of(row, dot) <= guard && !is_here
        })
    }

    /// Forgets the row if its floor allows; only what is in tables is ever forgotten.
    pub fn purge(&mut self, window_ms: u64) -> bool {
        let is_durable = self.disk.0 == self.row;
        let may = self.is_up && self.damaged.is_empty() && is_durable && !self.row.is_empty();
        if !may || self.floor == 0 || !may_purge(&self.row, self.floor, window_ms) {
            return false;
        }
        self.row = Row::empty(self.row.mode());
        self.disk.0 = self.row.clone();
        self.below.0 = self.row.clone();
        true
    }

    pub fn crash(&mut self) {
        self.is_up = false;
        (self.row, self.known) = self.disk.clone();
    }

    /// What is on disk goes below the newest block.
    pub fn lower(&mut self) {
        self.below = self.disk.clone();
    }

    /// The newest block, or all of it, cannot be read any more.
    pub fn quarantine(&mut self, whole: bool) {
        let mode = self.row.mode();
        let left = if whole { (Row::empty(mode), Writes::new()) } else { self.below.clone() };
        (self.row, self.known) = left;
        self.sync();
    }

    pub fn snapshot(&mut self) {
        let (row, known) = self.disk.clone();
        let (floor, guard, actor) = (self.floor, self.guard, self.actor);
        self.snapshot = Some(Snapshot { row, known, floor, guard, actor });
    }

    /// The disk is set back. `false`: there was no snapshot.
    pub fn roll_back(&mut self) -> bool {
        let Some(snapshot) = self.snapshot.clone() else { return false };
        let Snapshot { row, known, floor, guard, actor } = snapshot;
        (self.row, self.known, self.floor) = (row, known, floor);
        (self.guard, self.actor, self.is_up) = (guard, actor, true);
        self.below = (Row::empty(self.row.mode()), Writes::new());
        self.sync();
        true
    }
}
