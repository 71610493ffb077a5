//! Random histories: clients that read, write and retry through any node, over a network that
//! drops, delays and repeats, with nodes cut off and layouts that begin to change and are taken
//! back. Then everything heals, and the laws are asked for by their names.
//!
//! Every write has a value of its own, so a value names its write. What a write *covers* is what
//! its context came from a read of, and what those cover.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::*;
use super::cluster::*;
use crate::store::Outcome;

const KEYS: [&str; 3] = ["a", "b", "c"];
const CLIENTS: u64 = 4;
const STEPS: u64 = 40;
const NODES: usize = 4;
const OWNERS: [usize; 3] = [0, 1, 2];

type Values = BTreeSet<String>;

#[derive(Default)]
struct History {
    clock: u64,
    writes: BTreeMap<String, Write>,
    reads: Vec<Read>,
}

#[derive(Clone, Debug)]
struct Write {
    key: &'static str,
    covers: Values,
    /// When a QUORUM write was acknowledged.
    quorum_at: Option<u64>,
    acknowledged: bool,
    /// No attempt can have been applied.
    refused: bool,
    /// It may be told apart from its copies only by its token.
    token: bool,
}

#[derive(Clone, Debug)]
struct Read {
    key: &'static str,
    began: u64,
    ended: u64,
    quorum: bool,
    values: Values,
    min_seen: Values,
}

impl History {
    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whether `values` show `value`, or what replaced it.
    fn shows(&self, values: &Values, value: &String) -> bool {
        values.contains(value)
            || values.iter().any(|other| {
                self.writes.get(other).is_some_and(|write| write.covers.contains(value))
            })
    }

    /// What a context from a read of `values` has seen.
    fn closure(&self, values: &Values) -> Values {
        let mut seen = values.clone();
        for value in values {
            seen.extend(self.writes.get(value).into_iter().flat_map(|write| write.covers.clone()));
        }
        seen
    }
}

/// What a client remembers of a key: a context, and the values it came with.
type Memory = BTreeMap<&'static str, (Vec<u8>, Values)>;

async fn client(cluster: Arc<Cluster>, history: Arc<Mutex<History>>, name: u64) {
    let world = &cluster.world;
    let mut memory = Memory::new();
    for step in 0..STEPS {
        world.clock.advance_ms(1);
        tokio::time::sleep(std::time::Duration::from_millis(world.below(40))).await;
        let key = KEYS[world.below(KEYS.len() as u64) as usize];
        let at = world.below(NODES as u64) as usize;
        let level = if world.below(4) == 0 { Level::One } else { Level::Quorum };
        match world.below(2) {
            0 => read(&cluster, &history, &mut memory, key, at, level).await,
            _ => write(&cluster, &history, &memory, key, at, level, (name, step)).await,
        }
    }
}

async fn read(
    cluster: &Cluster,
    history: &Mutex<History>,
    memory: &mut Memory,
    key: &'static str,
    at: usize,
    level: Level,
) {
    let min = memory.get(key).filter(|_| cluster.world.below(2) == 0).cloned();
    let (context, min_seen) = min.map_or((None, Values::new()), |(c, seen)| (Some(c), seen));
    let began = history.lock().now();
    let row = cluster.read(at, "default", level, key, context).await;
    let Ok(row) = row else { return };
    let shown = values(&row);
    let distinct: Values = shown.iter().cloned().collect();
    assert_eq!(distinct.len(), shown.len(), "I10: a write is there once");
    memory.insert(key, (row.context, distinct.clone()));
    let mut history = history.lock();
    let ended = history.now();
    let quorum = level == Level::Quorum;
    history.reads.push(Read { key, began, ended, quorum, values: distinct, min_seen });
}

async fn write(
    cluster: &Cluster,
    history: &Mutex<History>,
    memory: &Memory,
    key: &'static str,
    at: usize,
    level: Level,
    name: (u64, u64),
) {
    let value = format!("{}.{}", name.0, name.1);
    let token = cluster.world.below(2) == 0;
    let seen = memory.get(key).filter(|_| cluster.world.below(4) > 0);
    let mut mutation = if token { once(key, &value, &value) } else { put(key, &value) };
    mutation.context = seen.map(|(context, _)| context.clone());
    let covers = {
        let mut history = history.lock();
        let covers = history.closure(&seen.map(|(_, seen)| seen.clone()).unwrap_or_default());
        let acknowledged = false;
        let write = Write { key, covers, quorum_at: None, acknowledged, refused: false, token };
        history.writes.insert(value.clone(), write.clone());
        write.covers
    };
    let mut outcome = cluster.put(at, level, mutation.clone()).await;
    let mut maybe = matches!(&outcome, Err(error) if error.outcome() == Outcome::Unknown);
    if token && outcome.is_err() {
        let elsewhere = cluster.world.below(NODES as u64) as usize;
        outcome = cluster.put(elsewhere, level, mutation).await;
        maybe |= matches!(&outcome, Err(error) if error.outcome() == Outcome::Unknown);
    }
    let mut history = history.lock();
    let now = history.now();
    let Some(write) = history.writes.get_mut(&value) else { return };
    write.acknowledged = outcome.is_ok();
    write.quorum_at = (outcome.is_ok() && level == Level::Quorum).then_some(now);
    write.refused = outcome.is_err() && !maybe;
    assert_eq!(write.covers, covers);
}

/// Cuts nodes off, one at a time, and begins changes of the layout that are taken back.
async fn trouble(cluster: Arc<Cluster>) {
    let world = &cluster.world;
    let mut epoch = 1;
    for _ in 0..12 {
        tokio::time::sleep(std::time::Duration::from_millis(100 + world.below(900))).await;
        let node = id(world.below(3) as usize);
        match world.below(4) {
            0 => world.isolate(node, &cluster.ids()),
            1 => world.take_down(node),
            2 => {
                epoch += 1;
                let next = (epoch % 2 == 0).then_some(&[0, 1, 3][..]);
                let told = world.below(NODES as u64) as usize;
                cluster.commit(layout(epoch, &OWNERS, next), &[told]);
            }
            _ => {
                world.heal();
                *world.mood.lock() = Mood { drop: 30, repeat: 50, delay_ms: 15 };
            }
        }
    }
    world.heal();
    if epoch % 2 == 0 {
        cluster.commit(layout(epoch + 1, &OWNERS, None), &[0]);
    }
}

async fn run(seed: u64) -> (Arc<Cluster>, History) {
    let cluster = Arc::new(Cluster::with_owners(NODES, &OWNERS, seed));
    *cluster.world.mood.lock() = Mood { drop: 30, repeat: 50, delay_ms: 15 };
    let history = Arc::new(Mutex::new(History::default()));
    let mut tasks = tokio::task::JoinSet::new();
    for name in 0..CLIENTS {
        tasks.spawn(client(Arc::clone(&cluster), Arc::clone(&history), name));
    }
    tasks.spawn(trouble(Arc::clone(&cluster)));
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
    cluster.world.heal();
    tokio::time::sleep(60 * SECOND).await;
    let history = std::mem::take(&mut *history.lock());
    (cluster, history)
}

/// The laws that must hold of what was answered on the way.
fn check_answers(history: &History) {
    for read in &history.reads {
        for value in &read.values {
            let write = history.writes.get(value).expect("I11: nobody wrote it");
            assert_eq!(write.key, read.key);
            assert!(!write.refused, "I11: {value} was refused and is read");
        }
        for seen in &read.min_seen {
            assert!(history.shows(&read.values, seen), "I6: {seen} was seen before {read:?}");
        }
        if !read.quorum {
            continue;
        }
        let of_key = history.writes.iter().filter(|(_, write)| write.key == read.key);
        for (value, write) in of_key {
            let before = write.quorum_at.is_some_and(|at| at < read.began);
            assert!(!before || history.shows(&read.values, value), "I7: {value}, {read:?}");
        }
        let earlier = history.reads.iter().filter(|one| one.quorum && one.key == read.key);
        for earlier in earlier.filter(|one| one.ended < read.began) {
            for value in &earlier.values {
                assert!(history.shows(&read.values, value), "I8: {earlier:?} then {read:?}");
            }
        }
    }
}

/// The laws that must hold when everything is quiet.
async fn check_end(cluster: &Cluster, history: &History) {
    for key in KEYS {
        let row = cluster.get(0, Level::All, key).await.expect("I16: all are up");
        let digests = &cluster.digests("default", key)[..OWNERS.len()];
        assert!(digests.iter().all(|digest| *digest == digests[0]), "I2: {key} {digests:?}");
        let live: Values = values(&row).into_iter().collect();
        for (value, write) in history.writes.iter().filter(|(_, write)| write.key == key) {
            let replaced = |write: &Write| write.covers.contains(value);
            let may_be_gone = history.writes.values().any(replaced);
            if write.acknowledged {
                assert!(live.contains(value) || may_be_gone, "I1, I3: {value} is lost");
            }
            assert!(!(write.refused && live.contains(value)), "I11: {value}");
            if live.contains(value) {
                let covered = live.iter().any(|other| replaced(&history.writes[other]));
                assert!(!covered, "I4: {value} beside what replaced it (token {})", write.token);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn random_histories_keep_the_laws() {
    let (mut reads, mut acknowledged) = (0, 0);
    for seed in 0..25 {
        // Where a law breaks this is the line above it in the output.
        println!("seed {seed}");
        let (cluster, history) = run(seed).await;
        check_answers(&history);
        check_end(&cluster, &history).await;
        reads += history.reads.len();
        acknowledged += history.writes.values().filter(|write| write.acknowledged).count();
    }
    // A network so bad that nothing goes through would keep every law.
    assert!(reads > 500 && acknowledged > 500, "{reads} reads, {acknowledged} writes");
}
