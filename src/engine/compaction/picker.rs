//! Chooses what to compact next. Pure: a function of the tree's shape, the jobs that run, and time.
//!
//! # Invariants of what is picked
//! 1. *Age-contiguous and reaching down*: for no key does an older record stay in a table between
//!    an input and the output level. At level 0 a table is taken only with every older one that it
//!    overlaps; below, all tables of the output level that the inputs overlap are inputs.
//! 2. Two jobs at a time share no table, and their outputs at one level cannot interleave.
//! 3. A table with an unreadable block is merged with no other, so newer tables that overlap it
//!    stay above it. Once it is set aside, at level 0 with its Fulls read as Deltas, it hides
//!    nothing and they may pass it.
//!
//! # Order
//! The level that is furthest beyond its target, if any is; within it the table that overlaps the
//! fewest bytes below for its size (RocksDB's `kMinOverlappingRatio`). An idle tree still moves:
//! tables whose tombstones may be forgotten, then tables that are old, go down until everything is
//! at the last level, so nothing is kept for ever. What writers have left at level 0 goes down when
//! there has been no new table for a while, if it is enough to be worth the rewriting.
//!
//! Last of all comes the space of keys that were excised from tables: such a table is rewritten
//! alone, where it is, one at a time. Under load only where that frees as much as it writes; in a
//! tree at rest where it writes at most ten bytes for each that it frees; and where the disk is
//! short of space the same, before everything else. What is less goes when the table is old.

mod compaction;

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;

use super::gc::floor_counts;
use super::rules::{Rule, Rules};
use super::targets::Targets;
use crate::engine::options::{Compression, LEVELS, Options};
use crate::engine::version::{TableMeta, VersionState};
use compaction::hull;
pub use compaction::{Compaction, Reason};

const LAST: usize = LEVELS - 1;
/// A table that overlaps more than this many tables two levels down is not moved as it is: its own
/// compaction later would be large.
pub(super) const GRANDPARENTS_MAX: u64 = 10;
/// Level 0 of a tree at rest goes down if that rewrites at most so many times its bytes. What it
/// pushes beyond the base level's target would be pushed sooner or later.
const REST_REWRITE_MAX: u64 = 10;
/// Excised bytes are taken back at rest if there is one for so many of the table, and under load.
const RECLAIM_REST_MAX: u64 = 10;
const RECLAIM_BUSY_MAX: u64 = 2;
const HOUR_MS: u64 = 3_600_000;

/// What the picker goes by. From [`Options`]; the ages are settled here.
#[derive(Clone, Debug)]
pub struct PickerOptions {
    /// As in [`Options`].
    pub level0_tables_trigger: usize,
    /// What level 0 brings down at once: memtables as many as start a compaction.
    pub arriving_bytes: u64,
    /// As in [`Options`].
    pub base_level_bytes: u64,
    /// As in [`Options`].
    pub level_ratio: u64,
    /// As in [`Options`].
    pub table_bytes: u64,
    /// Compression of tables, by level.
    pub compression: [Compression; LEVELS],
    /// Inputs of a job beyond its first table, in bytes, as far as they are a matter of choice.
    pub job_bytes_max: u64,
    /// A table above the last level that is older goes down; one at the last level is rewritten if
    /// that can shrink it or spare reads.
    pub table_age_max_ms: u64,
    /// The same for tables of which half are tombstones or Deltas.
    pub heavy_age_max_ms: u64,
    /// A table of which a tenth may be forgotten, as far as the floor goes, waits no longer.
    pub purge_age_ms: u64,
    /// A tree rests when its youngest table of level 0 is older.
    pub rest_age_ms: u64,
}

impl From<&Options> for PickerOptions {
    fn from(options: &Options) -> Self {
        let (upper, lower) = (options.compression_upper, options.compression_lower);
        Self {
            level0_tables_trigger: options.level0_tables_trigger,
            arriving_bytes: (options.level0_tables_trigger as u64)
                .saturating_mul(options.memtable_bytes as u64),
            base_level_bytes: options.base_level_bytes,
            level_ratio: options.level_ratio,
            table_bytes: options.table_bytes,
            compression: std::array::from_fn(|level| if level <= 1 { upper } else { lower }),
            job_bytes_max: options.table_bytes.saturating_mul(25),
            table_age_max_ms: 7 * 24 * HOUR_MS,
            heavy_age_max_ms: 24 * HOUR_MS,
            purge_age_ms: HOUR_MS,
            rest_age_ms: HOUR_MS / 60,
        }
    }
}

/// See the module page. Made anew for each choice.
#[derive(Debug)]
pub struct Picker<'a> {
    state: &'a VersionState,
    running: &'a [Arc<Compaction>],
    options: &'a PickerOptions,
    now_ms: u64,
    oldest_unflushed_epoch: u64,
    targets: Targets,
    /// Inputs of running jobs, and tables with an unreadable block.
    busy: HashSet<u64>,
    /// Tables with an unreadable block.
    quarantined: HashSet<u64>,
    /// Whether the disk is short of space.
    is_short: bool,
    /// Bytes of the disk that another job may take.
    room: u64,
    /// What the smallest job would take that was left out because it would take more.
    lacked_room: Cell<Option<u64>>,
    rules: Rules,
}

impl<'a> Picker<'a> {
    /// A picker for a tree in which `running` are under way. Records of memtables from
    /// `oldest_unflushed_epoch` on are not in tables yet.
    pub fn new(
        state: &'a VersionState,
        running: &'a [Arc<Compaction>],
        options: &'a PickerOptions,
        oldest_unflushed_epoch: u64,
        now_ms: u64,
    ) -> Self {
        let inputs = running.iter().flat_map(|job| job.inputs.iter().map(|table| table.number));
        let quarantined: HashSet<u64> =
            state.quarantined().iter().map(|range| range.table).collect();
        Self {
            busy: inputs.chain(quarantined.iter().copied()).collect(),
            quarantined,
            targets: Targets::new(state, options),
            rules: Rules::default(),
            is_short: false,
            room: u64::MAX,
            lacked_room: Cell::new(None),
            state,
            running,
            options,
            now_ms,
            oldest_unflushed_epoch,
        }
    }

    /// The same picker where the disk is short of space, if it is.
    #[must_use]
    pub fn short_of_space(mut self, is_short: bool) -> Self {
        self.is_short = is_short;
        self
    }

    /// The same picker where jobs may take `bytes` of the disk, the running ones among them.
    #[must_use]
    pub fn with_room(mut self, bytes: u64) -> Self {
        let taken = self.running.iter().map(|job| job.room_bytes).sum();
        self.room = bytes.saturating_sub(taken);
        self
    }

    /// Bytes that the smallest job would take that was left out for want of room.
    pub fn lacked_room(&self) -> Option<u64> {
        self.lacked_room.get()
    }

    #[cfg(test)]
    pub(super) fn without(mut self, rule: Rule) -> Self {
        self.rules = Rules::without(rule);
        self
    }

    /// Without the rules that a test of the engine removed.
    #[cfg(test)]
    pub(crate) fn without_named(mut self, names: &std::collections::HashSet<&'static str>) -> Self {
        self.rules = Rules::without_named(names);
        self
    }

    /// The targets the choice goes by.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// How far level `level` is beyond its target: from 1 on it is to be compacted.
    pub fn score(&self, level: usize) -> f64 {
        let idle = self.state.level(level).iter().filter(|table| !self.is_busy(table));
        if level == 0 {
            return idle.count() as f64 / self.options.level0_tables_trigger as f64;
        }
        if level < self.targets.base_level || level == LAST {
            return 0.0;
        }
        idle.map(|table| table.bytes).sum::<u64>() as f64 / self.targets.bytes[level] as f64
    }

    /// The next compaction; `None` if there is nothing to do, or what there is has to wait for a
    /// job that runs.
    pub fn pick(&self) -> Option<Compaction> {
        if self.is_short
            && let Some(job) = self.pick_excised(RECLAIM_REST_MAX)
        {
            return Some(job);
        }
        let mut levels: Vec<(f64, usize)> =
            (0..LAST).map(|level| (self.score(level), level)).filter(|it| it.0 >= 1.0).collect();
        levels.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut picked = levels.iter().filter_map(|(_, level)| match level {
            0 => self.pick_level0(Reason::Level0),
            level => self.pick_level(*level),
        });
        picked.next().or_else(|| self.pick_idle())
    }

    /// The next step of a compaction of everything that has a file number below `before`: first
    /// all goes down level by level, then what was not rewritten on the way is rewritten. What
    /// there is no room for stays where it is, and the levels below go on without it. `None` with
    /// no job running: it is done, or all that is left lacks room.
    pub fn pick_all(&self, before: u64) -> Option<Compaction> {
        let is_sound = |table: &Arc<TableMeta>| !self.quarantined.contains(&table.number);
        for level in (0..LAST).filter(|level| self.state.level(*level).iter().any(is_sound)) {
            let picked = match level {
                0 => self.pick_level0(Reason::Manual),
                level => self.pick_run(level),
            };
            // Room that a job has comes back with it.
            if picked.is_some() || self.lacked_room().is_none() || !self.is_alone() {
                return picked;
            }
        }
        self.idle_tables(LAST)
            .filter(|table| table.number < before)
            .find_map(|table| self.complete(vec![Arc::clone(table)], LAST, Reason::Manual))
    }

    /// Whether no job runs: what is found then is not for want of tables or room that one has.
    pub fn is_alone(&self) -> bool {
        self.running.is_empty()
    }

    /// Tables to be replaced where they are, all in one edit, by what takes `room_bytes` of the
    /// disk at most; `None` if one of them is not there any more, or an input of a job, or there is
    /// no room. One with an unreadable block is free: what is excised from it is not read.
    pub fn pick_tables(&self, numbers: &[u64], room_bytes: u64) -> Option<Compaction> {
        let table = |number: &u64| self.state.tables().find(|table| table.number == *number);
        let alone = self.rules.hold(Rule::RemovalAlone);
        let free = |table: &&Arc<TableMeta>| !self.is_input(table.number) || !alone;
        let inputs = numbers.iter().map(|number| table(number).filter(free).cloned());
        // They stay at their levels: nothing that others write there can come between.
        self.fitting(Self::in_place(inputs.collect::<Option<_>>()?, 0, room_bytes))
    }

    /// A table with an unreadable block alone, which no other choice takes; `None` if it is not
    /// there any more, or an input of a job that began before the block was found, or there is no
    /// room for another one.
    pub fn pick_quarantined(&self, number: u64) -> Option<Compaction> {
        self.fitting(self.alone(number)?)
    }

    fn alone(&self, number: u64) -> Option<Compaction> {
        let table = self.state.tables().find(|table| table.number == number)?;
        let level = usize::from(table.level);
        let alone = || Self::in_place(vec![Arc::clone(table)], level, table.visible_bytes());
        (!self.is_input(number)).then(alone)
    }

    /// Whether a job that runs has a table.
    fn is_input(&self, number: u64) -> bool {
        self.running.iter().any(|job| job.has_input(number))
    }

    /// A table with an unreadable block that is not set aside yet, alone. One at a time, for each
    /// takes an epoch of level 0.
    pub fn pick_aside(&self) -> Option<Compaction> {
        if self.running.iter().any(|job| job.reason == Reason::Damage) {
            return None;
        }
        let tables = self.state.tables().filter(|table| self.quarantined.contains(&table.number));
        let mut in_the_way = tables.filter(|table| !self.is_aside(table));
        let job = in_the_way.find_map(|table| self.alone(table.number))?;
        let reason = Reason::Damage;
        Some(Compaction { reason, output_level: 0, trivial_move: true, room_bytes: 0, ..job })
    }

    fn is_aside(&self, table: &TableMeta) -> bool {
        table.level == 0 && table.demote_full && self.quarantined.contains(&table.number)
    }

    fn in_place(inputs: Vec<Arc<TableMeta>>, output_level: usize, room_bytes: u64) -> Compaction {
        Compaction {
            reason: Reason::Manual,
            inputs,
            output_level,
            grandparents: Vec::new(),
            trivial_move: false,
            room_bytes,
        }
    }

    fn is_busy(&self, table: &TableMeta) -> bool {
        self.busy.contains(&table.number)
    }

    fn idle_tables(&self, level: usize) -> impl Iterator<Item = &'a Arc<TableMeta>> {
        self.state.level(level).iter().filter(|table| !self.is_busy(table))
    }

    /// Tables of level 0, oldest first, each with all the older ones it overlaps.
    fn pick_level0(&self, reason: Reason) -> Option<Compaction> {
        self.pick_level0_as(|tables| self.complete(tables, self.targets.base_level, reason))
    }

    fn pick_level0_as(
        &self,
        complete: impl Fn(Vec<Arc<TableMeta>>) -> Option<Compaction>,
    ) -> Option<Compaction> {
        let mut picked: Option<Compaction> = None;
        let mut tables: Vec<Arc<TableMeta>> = Vec::new();
        let mut bytes = 0_u64;
        // Those that stay: nothing newer that overlaps them may pass.
        let mut left: Vec<&TableMeta> = Vec::new();
        for table in self.state.level(0).iter().rev() {
            let held = self.rules.hold(Rule::AgeContiguous)
                && left.iter().any(|older| older.overlaps(&table.smallest, &table.largest));
            let fits = picked.is_none() || bytes + table.bytes <= self.options.job_bytes_max;
            if !self.is_busy(table) && !held && fits {
                // Newest first, as a merge takes its sources.
                tables.insert(0, Arc::clone(table));
                if let Some(next) = complete(tables.clone()) {
                    bytes += table.bytes;
                    picked = Some(next);
                    continue;
                }
                tables.remove(0);
            }
            if !self.is_aside(table) {
                left.push(table);
            }
        }
        picked
    }

    /// The table of `level` that overlaps least for its size, and neighbours that come for free.
    fn pick_level(&self, level: usize) -> Option<Compaction> {
        let mut tables: Vec<(f64, &Arc<TableMeta>)> = self
            .idle_tables(level)
            .map(|table| {
                let below = self.state.overlapping(level + 1, &table.smallest, &table.largest);
                let bytes: u64 = below.map(|table| table.bytes).sum();
                (bytes as f64 / table.bytes.max(1) as f64, table)
            })
            .collect();
        tables.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.number.cmp(&b.1.number)));
        tables.iter().find_map(|(_, table)| {
            let picked = self.complete(vec![Arc::clone(table)], level + 1, Reason::Size)?;
            Some(self.widen(level, picked))
        })
    }

    /// Adds tables of `level` that lie within the inputs and overlap nothing more below.
    fn widen(&self, level: usize, picked: Compaction) -> Compaction {
        if picked.trivial_move {
            return picked;
        }
        let (smallest, largest) = hull(&picked.inputs);
        let within = self.state.overlapping(level, smallest, largest).filter(|table| {
            *table.smallest >= *smallest && *table.largest <= *largest && !self.is_busy(table)
        });
        let upper: Vec<Arc<TableMeta>> = within.cloned().collect();
        let lower = picked.inputs.iter().filter(|table| usize::from(table.level) > level).count();
        match self.complete(upper, level + 1, picked.reason) {
            Some(wide)
                if wide.inputs.iter().filter(|table| usize::from(table.level) > level).count()
                    == lower
                    && wide.input_bytes() <= self.options.job_bytes_max =>
            {
                wide
            }
            _ => picked,
        }
    }

    /// Neighbours of `level`, as many as a job takes.
    fn pick_run(&self, level: usize) -> Option<Compaction> {
        let mut picked: Option<Compaction> = None;
        let mut run = Vec::new();
        for table in self.state.level(level) {
            run.push(Arc::clone(table));
            let next = self.complete(run.clone(), level + 1, Reason::Manual);
            let small = |job: &Compaction| job.input_bytes() <= self.options.job_bytes_max;
            match next {
                Some(next) if picked.is_none() || small(&next) => picked = Some(next),
                _ if picked.is_some() => break,
                _ => run.clear(),
            }
        }
        picked
    }

    /// What an idle tree does: tables that can shrink, then old ones, then level 0, then space of
    /// excised keys.
    fn pick_idle(&self) -> Option<Compaction> {
        let purge = |table: &TableMeta| self.is_purge_due(table).then_some(Reason::Purge);
        let age = |table: &TableMeta| self.is_age_due(table).then_some(Reason::Age);
        let picked = self.pick_due(purge).or_else(|| self.pick_due(age));
        picked.or_else(|| self.pick_rest()).or_else(|| {
            let at_rest = self.is_at_rest(self.state.tables());
            self.pick_excised(if at_rest { RECLAIM_REST_MAX } else { RECLAIM_BUSY_MAX })
        })
    }

    /// Whether none of these tables has come lately.
    fn is_at_rest<'t>(&self, tables: impl Iterator<Item = &'t Arc<TableMeta>>) -> bool {
        let youngest_ms = tables.map(|table| table.created_ms).max();
        let age_ms = youngest_ms.map(|youngest_ms| self.now_ms.saturating_sub(youngest_ms));
        age_ms.is_none_or(|age_ms| age_ms >= self.options.rest_age_ms)
    }

    /// The table of which the most was excised, alone, if that is a byte for `rewrite_max` of it:
    /// it frees the most for what it writes. One at a time, for nobody waits for it.
    fn pick_excised(&self, rewrite_max: u64) -> Option<Compaction> {
        if self.running.iter().any(|job| job.reason == Reason::Excised) {
            return None;
        }
        let share = |table: &TableMeta| table.excised_bytes as f64 / table.bytes.max(1) as f64;
        let is_due = |table: &&Arc<TableMeta>| {
            table.excised_bytes > 0
                && table.excised_bytes.saturating_mul(rewrite_max) >= table.bytes
                && !self.is_busy(table)
        };
        let mut tables: Vec<&Arc<TableMeta>> = self.state.tables().filter(is_due).collect();
        tables.sort_by(|a, b| share(b).total_cmp(&share(a)).then(a.number.cmp(&b.number)));
        tables.into_iter().find_map(|table| {
            self.complete(vec![Arc::clone(table)], usize::from(table.level), Reason::Excised)
        })
    }

    /// Level 0, if there has been no new table for a while.
    fn pick_rest(&self) -> Option<Compaction> {
        if !self.is_at_rest(self.state.level(0).iter()) {
            return None;
        }
        let base = self.targets.base_level;
        // What is not worth the rewriting does not wait for room.
        let whole = self.pick_level0_as(|tables| self.job_of(tables, base, Reason::Rest));
        whole.filter(|job| self.is_worth_it(job))?;
        self.pick_level0(Reason::Rest).filter(|job| self.is_worth_it(job))
    }

    fn is_worth_it(&self, job: &Compaction) -> bool {
        let upper = job.inputs.iter().filter(|table| table.level == 0);
        let upper_bytes: u64 = upper.map(|table| table.bytes).sum();
        upper_bytes.saturating_mul(REST_REWRITE_MAX) >= job.input_bytes()
    }

    fn pick_due(&self, due: impl Fn(&TableMeta) -> Option<Reason>) -> Option<Compaction> {
        (0..LEVELS).find_map(|level| {
            let tables = self.idle_tables(level);
            tables.filter_map(|table| Some((due(table)?, table))).find_map(|(reason, table)| {
                match level {
                    0 => self.pick_level0(reason),
                    _ => self.complete(vec![Arc::clone(table)], (level + 1).min(LAST), reason),
                }
            })
        })
    }

    fn is_purge_due(&self, table: &TableMeta) -> bool {
        let age_ms = self.now_ms.saturating_sub(table.created_ms);
        age_ms >= self.options.purge_age_ms
            && table.purgeable.saturating_mul(10) >= table.entries.max(1)
            && self.floors(table).min().is_some_and(|floor| table.time_max <= floor)
    }

    fn is_age_due(&self, table: &TableMeta) -> bool {
        let heavy = table.purgeable.max(table.deltas).saturating_mul(2) >= table.entries;
        let limit =
            if heavy { self.options.heavy_age_max_ms } else { self.options.table_age_max_ms };
        if self.now_ms.saturating_sub(table.created_ms) < limit {
            return false;
        }
        let purge = table.purgeable > 0
            && self.floors(table).max().is_some_and(|floor| table.live_time_min <= floor);
        usize::from(table.level) < LAST
            || table.deltas > 0
            || table.demote_full
            || purge
            || !table.excised.is_empty()
    }

    /// The floors that count in the partitions of a table, 0 where none does.
    fn floors(&self, table: &TableMeta) -> impl Iterator<Item = u64> {
        let partitions = table.partitions(self.state.partition_bits());
        let points = self.state.safe_points()[partitions].iter();
        points.map(|point| {
            let counts = floor_counts(point, self.oldest_unflushed_epoch, self.rules);
            if counts { point.floor } else { 0 }
        })
    }

    /// The job that takes `upper`, which are idle and newest first, to `output_level`, if there is
    /// room for it.
    fn complete(
        &self,
        upper: Vec<Arc<TableMeta>>,
        output_level: usize,
        reason: Reason,
    ) -> Option<Compaction> {
        self.fitting(self.job_of(upper, output_level, reason)?)
    }

    /// The job, if there is room for it.
    fn fitting(&self, job: Compaction) -> Option<Compaction> {
        let bytes = job.room_bytes;
        if bytes > self.room {
            let least = self.lacked_room.get().map_or(bytes, |least| least.min(bytes));
            self.lacked_room.set(Some(least));
            return None;
        }
        Some(job)
    }

    /// The same, whatever room there is: adds what they overlap there. `None` if that collides with
    /// a job that runs or with a rule.
    fn job_of(
        &self,
        upper: Vec<Arc<TableMeta>>,
        output_level: usize,
        reason: Reason,
    ) -> Option<Compaction> {
        let (smallest, largest) = hull(&upper);
        let taken = |table: &TableMeta| upper.iter().any(|one| one.number == table.number);
        let mut lower: Vec<Arc<TableMeta>> = Vec::new();
        let top = upper.iter().map(|table| usize::from(table.level)).min()?;
        for level in top.max(1)..=output_level {
            for table in self.state.overlapping(level, smallest, largest) {
                if taken(table) {
                    continue;
                }
                if level < output_level || self.is_busy(table) {
                    return None;
                }
                lower.push(Arc::clone(table));
            }
        }
        if upper.iter().any(|table| self.is_busy(table)) {
            return None;
        }
        let trivial_move = lower.is_empty() && self.is_move(&upper, output_level);
        let mut inputs = upper;
        inputs.append(&mut lower);
        let (smallest, largest) = hull(&inputs);
        let collides = |job: &Arc<Compaction>| {
            job.output_level == output_level
                && job.smallest() <= largest
                && smallest <= job.largest()
        };
        if self.running.iter().any(collides) {
            return None;
        }
        let grandparents = match output_level + 1 {
            LEVELS => Vec::new(),
            level => self.state.overlapping(level, smallest, largest).cloned().collect(),
        };
        let visible_bytes = inputs.iter().map(|table| table.visible_bytes()).sum();
        let room_bytes = if trivial_move { 0 } else { visible_bytes };
        Some(Compaction { reason, inputs, output_level, grandparents, trivial_move, room_bytes })
    }

    /// Whether tables that overlap nothing at `output_level` can go there without being read.
    fn is_move(&self, upper: &[Arc<TableMeta>], output_level: usize) -> bool {
        let compression = &self.options.compression;
        let mut ordered: Vec<&Arc<TableMeta>> = upper.iter().collect();
        ordered.sort_by(|a, b| a.smallest.cmp(&b.smallest));
        let disjoint = ordered.is_sorted_by(|a, b| a.largest < b.smallest);
        disjoint
            && upper.iter().all(|table| {
                usize::from(table.level) != output_level
                    && compression[usize::from(table.level)] == compression[output_level]
                    && self.grandparent_bytes(table, output_level)
                        <= self.options.table_bytes.saturating_mul(GRANDPARENTS_MAX)
            })
    }

    fn grandparent_bytes(&self, table: &TableMeta, output_level: usize) -> u64 {
        if output_level == LAST {
            return 0;
        }
        let below = self.state.overlapping(output_level + 1, &table.smallest, &table.largest);
        below.map(|table| table.bytes).sum()
    }
}

#[cfg(test)]
mod tests;
