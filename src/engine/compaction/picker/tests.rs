//! The picker's choices, as text and as laws.

use proptest::prelude::*;

use super::*;
use crate::engine::ranges::KeyRanges;
use crate::engine::version::{Quarantined, SafePoint, VersionEdit};

const OPTIONS: PickerOptions = PickerOptions {
    level0_tables_trigger: 4,
    // Scenes that are about it say so.
    arriving_bytes: 0,
    base_level_bytes: 100,
    level_ratio: 10,
    table_bytes: 10,
    compression: [Compression::None; LEVELS],
    job_bytes_max: 200,
    table_age_max_ms: 1_000,
    heavy_age_max_ms: 100,
    purge_age_ms: 10,
    // Scenes that are about it say so.
    rest_age_ms: u64::MAX,
};

/// A tree, the jobs that run in it, and what time it is: what the text files describe.
struct Scene {
    state: VersionState,
    options: PickerOptions,
    running: Vec<Arc<Compaction>>,
    oldest_unflushed_epoch: u64,
    now_ms: u64,
    is_short: bool,
    room: u64,
}

impl Scene {
    fn new() -> Self {
        Self {
            state: VersionState::new(1),
            options: OPTIONS,
            running: Vec::new(),
            oldest_unflushed_epoch: 100,
            now_ms: 0,
            is_short: false,
            room: u64::MAX,
        }
    }

    fn picker(&self) -> Picker<'_> {
        let epoch = self.oldest_unflushed_epoch;
        let picker = Picker::new(&self.state, &self.running, &self.options, epoch, self.now_ms);
        picker.short_of_space(self.is_short).with_room(self.room)
    }

    /// A line such as `L2 7 a-f bytes=10 deltas=1`; without bytes 10 of them, and 10 entries.
    fn add_table(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let level = words.next().unwrap()[1..].parse().unwrap();
        let number = words.next().unwrap().parse().unwrap();
        let (smallest, largest) = words.next().unwrap().split_once('-').unwrap();
        let mut meta = table(number, level, smallest, largest);
        let mut edit = VersionEdit::default();
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, "1"));
            let value = value.parse().unwrap();
            match name {
                "bytes" => meta.bytes = value,
                "epoch" => meta.epoch = value,
                "deltas" => meta.deltas = value,
                "overwrites" => meta.overwrites = value,
                "purgeable" => meta.purgeable = value,
                "time_min" => meta.live_time_min = value,
                "time_max" => meta.time_max = value,
                "created" => meta.created_ms = value,
                "demote_full" => meta.demote_full = true,
                "excised" => {
                    let start = smallest.as_bytes().to_vec();
                    let end = [smallest.as_bytes(), b"+"].concat();
                    meta.excised = KeyRanges::of([(start, Some(end))]);
                    meta.excised_bytes = value;
                }
                "quarantined" => edit.quarantined.push(Quarantined {
                    table: number,
                    smallest: smallest.as_bytes().into(),
                    largest: smallest.as_bytes().into(),
                }),
                other => panic!("no such word: {other}"),
            }
        }
        edit.added.push(meta);
        self.state = self.state.apply(&edit).unwrap();
    }

    /// Makes the inputs the outputs, as far as the shape goes: one table of all their bytes.
    fn finish(&mut self, job: &Compaction) {
        let removed = job.inputs.iter().map(|table| (table.level, table.number)).collect();
        let number = self.state.file_next();
        let added = if job.trivial_move {
            let moved = |table: &Arc<TableMeta>| TableMeta {
                level: job.output_level as u8,
                ..TableMeta::clone(table)
            };
            job.inputs.iter().map(moved).collect()
        } else {
            vec![TableMeta {
                bytes: job.inputs.iter().map(|table| table.visible_bytes()).sum(),
                smallest: job.smallest().into(),
                largest: job.largest().into(),
                created_ms: job.created_ms(self.now_ms),
                ..table(number, job.output_level as u8, "", "")
            }]
        };
        let edit = VersionEdit { removed, added, ..VersionEdit::default() };
        self.state = self.state.apply(&edit).unwrap();
    }

    fn run(&mut self, command: &str, lines: &[&str]) -> String {
        let (name, arguments) = command.split_once(' ').unwrap_or((command, ""));
        let number = || arguments.parse::<u64>().unwrap();
        match name {
            "tree" => {
                *self = Self::new();
                lines.iter().for_each(|line| self.add_table(line));
                self.shape()
            }
            "add" => {
                lines.iter().for_each(|line| self.add_table(line));
                self.shape()
            }
            "arriving" => {
                self.options.arriving_bytes = number();
                String::new()
            }
            "base_level_bytes" => {
                self.options.base_level_bytes = number();
                String::new()
            }
            "now" => {
                self.now_ms = number();
                String::new()
            }
            "rest_age" => {
                self.options.rest_age_ms = number();
                String::new()
            }
            "short_of_space" => {
                self.is_short = true;
                String::new()
            }
            "room" => {
                self.room = number();
                String::new()
            }
            "unflushed" => {
                self.oldest_unflushed_epoch = number();
                String::new()
            }
            "lz4_below_1" => {
                self.options.compression[2..].fill(Compression::Lz4);
                String::new()
            }
            "floor" => {
                self.set_floor(arguments);
                String::new()
            }
            "scores" => self.scores(),
            "pick" => self.choice(|picker| picker.pick()),
            "pick_all" => self.choice(|picker| picker.pick_all(number())),
            "start" => {
                let job = self.picker().pick();
                let text = show(job.as_ref());
                self.running.extend(job.map(Arc::new));
                text
            }
            "run_all" => self.run_all(number()),
            "run_idle" => self.run_idle(),
            other => panic!("no such command: {other}"),
        }
    }

    /// A job, or what room was lacking for one.
    fn choice(&self, pick: impl Fn(&Picker<'_>) -> Option<Compaction>) -> String {
        let picker = self.picker();
        let job = pick(&picker);
        match picker.lacked_room() {
            Some(bytes) if job.is_none() => format!("nothing, for want of room for {bytes}\n"),
            _ => show(job.as_ref()),
        }
    }

    /// `partition floor floor_epoch [damaged]`
    fn set_floor(&mut self, arguments: &str) {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let partition = number(0) as u32;
        let damaged = if words.len() > 3 { vec![1_u128] } else { Vec::new() };
        let (floor, floor_epoch) = (number(1), number(2));
        let point = SafePoint { guard: floor, floor, floor_epoch, damaged: damaged.into() };
        let safe_points = vec![(partition..partition + 1, point)];
        let edit = VersionEdit { safe_points, ..VersionEdit::default() };
        self.state = self.state.apply(&edit).unwrap();
    }

    fn scores(&self) -> String {
        let picker = self.picker();
        let targets = picker.targets();
        let mut text = format!("base {}\n", targets.base_level);
        for level in 0..LEVELS {
            let (target, size) = (targets.bytes[level], self.state.level_bytes(level));
            if size > 0 {
                let score = picker.score(level);
                text += &format!("L{level}: {size} of {target}, score {score:.2}\n");
            }
        }
        text + &format!("debt {}\n", targets.debt_bytes(&self.state, &self.options))
    }

    fn shape(&self) -> String {
        let mut text = String::new();
        for level in 0..LEVELS {
            let tables: Vec<_> = self.state.level(level).iter().map(|it| it.number).collect();
            if !tables.is_empty() {
                text += &format!("L{level}: {}\n", join(&tables));
            }
        }
        text
    }

    fn run_all(&mut self, before: u64) -> String {
        let mut text = String::new();
        while let Some(job) = self.picker().pick_all(before) {
            text += &show(Some(&job));
            self.finish(&job);
        }
        text + &self.shape()
    }

    /// Runs every job there is, a heavy age passing after each, until nothing is left to do.
    fn run_idle(&mut self) -> String {
        let mut text = String::new();
        let mut quiet = 0;
        while quiet < 20 {
            self.now_ms += self.options.heavy_age_max_ms;
            match self.picker().pick() {
                None => quiet += 1,
                Some(job) => {
                    quiet = 0;
                    text += &show(Some(&job));
                    self.finish(&job);
                }
            }
        }
        text + &self.shape()
    }
}

fn table(number: u64, level: u8, smallest: &str, largest: &str) -> TableMeta {
    TableMeta {
        number,
        level,
        epoch: number,
        bytes: 10,
        entries: 10,
        deltas: 0,
        overwrites: 0,
        purgeable: 0,
        live_time_min: 0,
        time_max: 0,
        created_ms: 0,
        demote_full: false,
        smallest: smallest.as_bytes().into(),
        largest: largest.as_bytes().into(),
        excised: KeyRanges::default(),
        excised_bytes: 0,
    }
}

fn join(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn show(job: Option<&Compaction>) -> String {
    let Some(job) = job else { return "nothing\n".into() };
    let mut text = format!("{:?}", job.reason).to_lowercase();
    for level in 0..LEVELS {
        let of_level = job.inputs.iter().filter(|table| usize::from(table.level) == level);
        let tables: Vec<_> = of_level.map(|table| table.number).collect();
        if !tables.is_empty() {
            text += &format!(" L{level}({})", join(&tables));
        }
    }
    let moved = if job.trivial_move { " moved" } else { "" };
    text += &format!(" -> L{}{moved}", job.output_level);
    let below: Vec<_> = job.grandparents.iter().map(|table| table.number).collect();
    if !below.is_empty() {
        text += &format!(" over {}", join(&below));
    }
    text + "\n"
}

/// Every block of the files in `tests/data/compaction`: a command, its lines, `----`, and what it
/// answers. `UPDATE=1` writes the answers instead of comparing them.
#[test]
fn picker_answers_as_written() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/compaction");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut answered = String::new();
        let mut scene = Scene::new();
        for block in text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
            let asked: Vec<&str> = block.lines().take_while(|line| *line != "----").collect();
            let comments = asked.iter().take_while(|line| line.starts_with('#')).count();
            answered += &format!("{}\n----\n", asked.join("\n"));
            let input = &asked[comments..];
            if let Some((command, lines)) = input.split_first() {
                answered += &scene.run(command, lines);
            }
            answered += "\n";
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, answered.trim_end().to_owned() + "\n").unwrap();
        } else {
            assert_eq!(text.trim_end(), answered.trim_end(), "{}", file.display());
        }
    }
}

/// Level 0 brings as many memtables as start a compaction.
#[test]
fn what_arrives_at_once_follows_the_options() {
    let options = Options { level0_tables_trigger: 3, memtable_bytes: 7, ..Options::default() };
    assert_eq!(PickerOptions::from(&options).arriving_bytes, 21);
}

/// An input passes an older record: what the rule forbids.
fn passes_older(state: &VersionState, job: &Compaction) -> Option<(u64, u64)> {
    for input in &job.inputs {
        for other in state.tables() {
            let older = other.level > input.level
                || (other.level == 0 && input.level == 0 && other.epoch < input.epoch);
            let stays_above = usize::from(other.level) <= job.output_level;
            if older
                && stays_above
                && !job.has_input(other.number)
                && other.overlaps(&input.smallest, &input.largest)
            {
                return Some((input.number, other.number));
            }
        }
    }
    None
}

/// Rule `age_contiguous`: with Full 1 and Delta 2 of a key at level 0 and 1 held back, 2 must not
/// go to level 1 alone, or the Full above it hides it. Without the rule it does.
#[test]
fn age_contiguous() {
    let mut scene = Scene::new();
    scene.options.level0_tables_trigger = 1;
    scene.add_table("L0 1 a-m quarantined");
    scene.add_table("L0 2 k-z");
    scene.add_table("L0 3 n-z");
    let job = scene.picker().pick();
    assert!(job.is_none(), "3 overlaps 2, 2 overlaps 1, and 1 stays: {job:?}");

    let job = scene.picker().without(Rule::AgeContiguous).pick().unwrap();
    assert_eq!(passes_older(&scene.state, &job), Some((2, 1)));

    scene.add_table("L0 4 0-9");
    let job = scene.picker().pick().unwrap();
    assert_eq!(join(&job.inputs.iter().map(|it| it.number).collect::<Vec<_>>()), "4");
}

/// A step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Flush(u8, u8, u64),
    Start,
    Finish(prop::sample::Index),
    All,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..26, 0_u8..26, 1_u64..40)
            .prop_map(|(a, b, bytes)| Step::Flush(a.min(b), a.max(b), bytes)),
        3 => Just(Step::Start),
        2 => any::<prop::sample::Index>().prop_map(Step::Finish),
        1 => Just(Step::All),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// In any history of flushes and of jobs that start and finish in any order: no job passes an
    /// older record, no two share a table, every finished job gives a valid tree, and the work
    /// ends with level 0 below its trigger and no level beyond its target.
    #[test]
    fn jobs_keep_the_order(steps in prop::collection::vec(any_step(), 1..80)) {
        let mut scene = Scene::new();
        let key = |at: u8| char::from(b'a' + at).to_string();
        for step in steps {
            scene.now_ms += 7;
            match step {
                Step::Flush(smallest, largest, bytes) => {
                    let number = scene.state.file_next();
                    let (smallest, largest) = (key(smallest), key(largest));
                    let line = format!("L0 {number} {smallest}-{largest} bytes={bytes}");
                    scene.add_table(&line);
                }
                Step::Finish(index) if !scene.running.is_empty() => {
                    let job = scene.running.swap_remove(index.index(scene.running.len()));
                    scene.finish(&job);
                }
                Step::Finish(_) => {}
                Step::Start | Step::All => {
                    let picker = scene.picker();
                    let all = matches!(step, Step::All);
                    let job = if all { picker.pick_all(u64::MAX) } else { picker.pick() };
                    let Some(job) = job else { continue };
                    prop_assert_eq!(passes_older(&scene.state, &job), None, "{:?}", job);
                    for other in &scene.running {
                        prop_assert!(!job.inputs.iter().any(|it| other.has_input(it.number)));
                    }
                    scene.running.push(Arc::new(job));
                }
            }
        }
        for job in std::mem::take(&mut scene.running) {
            scene.finish(&job);
        }
        let mut jobs = 0;
        while let Some(job) = scene.picker().pick() {
            scene.finish(&job);
            jobs += 1;
            prop_assert!(jobs < 1_000, "it ends");
        }
        for level in 0..LAST {
            prop_assert!(scene.picker().score(level) < 1.0, "level {}", level);
        }
    }
}
