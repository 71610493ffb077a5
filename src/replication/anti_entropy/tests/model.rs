//! Three replicas and one key, in random histories: late, repeated and reordered messages and
//! repairs, crashes that lose tails, one loss of data, clocks that differ, rounds in pieces with all
//! of that in between.
//!
//! What a row does is the product's own code (`write`, `join_with_floors`, `admit`, `canonical`,
//! `may_purge`); what the stores and the round do around it is told here in steps, so that thousands
//! of histories take seconds. After each the promises are looked at: an acknowledged write is there
//! or was overwritten by one that somebody knows of (I1, I3), nothing that an acknowledged write
//! replaced is back (I5), all replicas end alike (I2), and no alarm was raised unless data was lost.
//!
//! Without the count of news no history of these breaks: with floors that are equal but for a late
//! install, whoever lacks a delete has not forgotten it. It matters where a replica begins with no
//! floor beside others that have one (`a_replica_that_got_news_after_it_held_does_not_install`).
//!
//! Writing and applying are one step here; a pause between them is the engine's matter
//! (`guard_at_pick`, `fence_waits`, `judged_by_floor_in_force`).

mod dice;
mod replica;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use crate::causality::clock::time_of_ms;
use crate::causality::floor::canonical;
use crate::causality::{
    Actor, Context, Dot, Mode, NewVersion, Outcome, Payload, Row, Token, join_with_floors, write,
};
use dice::Dice;
use replica::{Replica, Taken};
use steps::Step;

/// How long a token is kept, and how far clocks may differ, in milliseconds.
const WINDOW_MS: u64 = 60;
const SKEW_MS: u64 = 12;

type Writes = BTreeSet<usize>;

/// One client's write.
struct Written {
    /// What it has seen, and what that has seen.
    after: Writes,
    is_value: bool,
    acks: BTreeSet<usize>,
    /// Decides between last-write-wins versions.
    order: (u64, u64),
}

/// A row on its way to a replica; `None`: the writer's own acknowledgement.
#[derive(Clone)]
struct Message {
    to: usize,
    row: Option<Row<'static>>,
    known: Writes,
    write: usize,
    dot: Dot,
}

/// A join on its way to a replica, with the floor it was judged under.
#[derive(Clone)]
struct Repair {
    to: usize,
    row: Row<'static>,
    known: Writes,
    floor: u64,
}

/// A write under a token, to be sent again.
#[derive(Clone)]
struct Tokened {
    write: usize,
    context: Context,
    born_ms: u64,
}

/// What a replica was: its incarnation, and how much news repairs had brought it.
type Was = (u64, u64);

#[derive(Default)]
struct Round {
    time: u64,
    were: [Option<Was>; 3],
    pairs: BTreeSet<(usize, usize)>,
    are: [Option<Was>; 3],
}

struct World {
    mode: Mode,
    removed: &'static [&'static str],
    now_ms: u64,
    skews_ms: [i64; 3],
    replicas: [Replica; 3],
    writes: Vec<Written>,
    dots: BTreeMap<Dot, usize>,
    clients: [(Context, Writes); 3],
    tokened: Vec<Tokened>,
    messages: Vec<Message>,
    sent: Vec<Message>,
    repairs: Vec<Repair>,
    round: Option<Round>,
    /// Proven: the time, and what each replica was when it held.
    proven: Vec<(u64, [Was; 3])>,
    actors: u64,
    was_damaged: bool,
    alarms: usize,
    purges: usize,
    installs: usize,
}

fn time_of(row: &Row<'_>, dot: &Dot) -> u64 {
    match dot {
        Dot::Plain { time, .. } => *time,
        Dot::Token(token) => row.token_time(*token).unwrap_or(0),
    }
}

fn is_value(payload: Payload<'_>) -> bool {
    matches!(payload, Payload::Value { .. })
}

impl World {
    fn new(mode: Mode, removed: &'static [&'static str], skews_ms: [i64; 3]) -> Self {
        let replica = |at| Replica::new(mode, Actor::new(at as u64 + 1));
        Self {
            mode,
            removed,
            now_ms: 200,
            skews_ms,
            replicas: [replica(0), replica(1), replica(2)],
            writes: Vec::new(),
            dots: BTreeMap::new(),
            clients: Default::default(),
            tokened: Vec::new(),
            messages: Vec::new(),
            sent: Vec::new(),
            repairs: Vec::new(),
            round: None,
            proven: Vec::new(),
            actors: 3,
            was_damaged: false,
            alarms: 0,
            purges: 0,
            installs: 0,
        }
    }

    fn keeps(&self, rule: &str) -> bool {
        !self.removed.contains(&rule)
    }

    fn rotate(&mut self, at: usize) {
        self.actors += 1;
        self.replicas[at].actor = Actor::new(self.actors);
    }

    /// The floor a replica vouches for.
    fn floor(&self, at: usize) -> u64 {
        let replica = &self.replicas[at];
        let is_damaged = !replica.damaged.is_empty() && self.keeps("damaged_state");
        if is_damaged { 0 } else { replica.floor }
    }

    fn guard(&self, at: usize) -> u64 {
        let replica = &self.replicas[at];
        let is_damaged = !replica.damaged.is_empty() && self.keeps("damaged_strips_nothing");
        if is_damaged { 0 } else { replica.guard }
    }

    fn acked(&self) -> Writes {
        let acked = |write: &usize| self.writes[*write].acks.len() >= 2;
        (0..self.writes.len()).filter(acked).collect()
    }

    fn write(&mut self, client: usize, at: usize, blind: bool, is_value: bool, token: bool) {
        if !self.replicas[at].is_up {
            return;
        }
        let (context, seen) = match blind {
            true => Default::default(),
            false => self.clients[client].clone(),
        };
        let write = self.writes.len();
        let mut after = seen.clone();
        seen.iter().for_each(|seen| after.extend(&self.writes[*seen].after));
        self.writes.push(Written { after, is_value, acks: BTreeSet::new(), order: (0, 0) });
        let token = token && self.mode == Mode::Siblings;
        if token {
            let (context, born_ms) = (context.clone(), self.now_ms);
            self.tokened.push(Tokened { write, context, born_ms });
        }
        self.coordinate(at, write, &context, token);
    }

    fn retry(&mut self, index: usize, at: usize) {
        let Some(Tokened { write, context, born_ms }) =
            self.tokened.get(index % self.tokened.len().max(1)).cloned()
        else {
            return;
        };
        let age_ms = self.clock_ms(at).saturating_sub(born_ms);
        let is_old = age_ms > WINDOW_MS - 2 * SKEW_MS && self.keeps("token_refused_after_window");
        if self.replicas[at].is_up && !is_old {
            self.coordinate(at, write, &context, true);
        }
    }

    fn clock_ms(&self, at: usize) -> u64 {
        self.now_ms.saturating_add_signed(self.skews_ms[at])
    }

    fn coordinate(&mut self, at: usize, write: usize, context: &Context, token: bool) {
        let clock = time_of_ms(self.clock_ms(at));
        let guard = self.guard(at);
        let replica = &mut self.replicas[at];
        let base = match self.mode {
            Mode::Siblings => replica.row.clone(),
            Mode::LastWriteWins => Row::empty(self.mode),
        };
        let above = write::mint_above(&base, context).max(guard).max(replica.last);
        let time = clock.max(above + 1);
        let payload = match self.writes[write].is_value {
            true => Payload::Value { value: b"v", content_type: "" },
            false => Payload::Tombstone,
        };
        let token = token.then(|| Token::new(write as u128));
        let new = NewVersion { payload, expires_at_ms: 0, token };
        let written = write::write(&base, context, replica.actor, time, new);
        let Outcome::Written(row) = written else { return };
        replica.last = time;
        let dot = match token {
            Some(token) => Dot::Token(token),
            None => Dot::Plain { actor: replica.actor, time },
        };
        replica.join(&row);
        replica.known.extend(&self.writes[write].after);
        replica.known.insert(write);
        let known = replica.known.clone();
        self.writes[write].order = (time, replica.actor.to_u64());
        self.dots.insert(dot, write);
        for to in (0..3).filter(|to| *to != at) {
            let (row, known) = (Some(row.clone()), known.clone());
            self.messages.push(Message { to, row, known, write, dot });
            self.sent.extend(self.messages.last().cloned());
        }
        self.messages.push(Message { to: at, row: None, known: Writes::new(), write, dot });
    }

    /// A message arrives: taken, it is durable and acknowledged.
    fn receive(&mut self, message: &Message) {
        let Message { to, row, known, write, dot } = message;
        let guard = self.guard(*to);
        let replica = &mut self.replicas[*to];
        let is_taken = match row {
            None => replica.row.has_seen(dot),
            Some(row) => replica.take(row, known, guard) == Taken::Yes,
        };
        if is_taken {
            replica.sync();
            self.writes[*write].acks.insert(*to);
        }
    }

    fn deliver(&mut self, index: usize, again: bool) {
        if self.messages.is_empty() {
            return;
        }
        let index = index % self.messages.len();
        if !self.replicas[self.messages[index].to].is_up {
            return;
        }
        let message = self.messages[index].clone();
        if !again {
            self.messages.remove(index);
        }
        self.receive(&message);
    }

    fn deliver_all(&mut self) {
        for message in std::mem::take(&mut self.messages) {
            match self.replicas[message.to].is_up {
                true => self.receive(&message),
                false => self.messages.push(message),
            }
        }
    }

    fn late(&mut self, index: usize) {
        let Some(message) = self.sent.get(index % self.sent.len().max(1)).cloned() else { return };
        if self.replicas[message.to].is_up {
            self.receive(&message);
        }
    }

    /// The join of two replicas' words, and what both know.
    fn joined(&mut self, a: usize, b: usize) -> (Row<'static>, Writes) {
        let (x, y) = (&self.replicas[a], &self.replicas[b]);
        let mut alarms = Vec::new();
        let row = match self.keeps("floor_authority") {
            true => join_with_floors(&x.row, self.floor(a), &y.row, self.floor(b), &mut alarms),
            false => join_with_floors(&x.row, 0, &y.row, 0, &mut alarms),
        };
        let row = row.expect("one mode");
        self.alarms += alarms
            .iter()
            .filter(|alarm| row.version(&alarm.0).is_some_and(|it| is_value(it.payload())))
            .count();
        (row, x.known.union(&y.known).copied().collect())
    }

    fn read(&mut self, client: usize, a: usize, b: usize) -> Result<(), String> {
        let answers = |at: usize| {
            let replica = &self.replicas[at];
            replica.is_up && (replica.damaged.is_empty() || !self.keeps("damaged_state"))
        };
        if a == b || !answers(a) || !answers(b) {
            return Ok(());
        }
        let acked = self.acked();
        let (row, known) = self.joined(a, b);
        for at in [a, b] {
            let guard = self.guard(at);
            if self.replicas[at].take(&row, &known, guard) == Taken::No {
                // It counts as one that did not answer.
                return Ok(());
            }
        }
        self.check(&row, &acked)?;
        let seen =
            |write: &usize| self.dots.iter().any(|(dot, of)| of == write && row.has_seen(dot));
        let known = known.into_iter().filter(seen).collect();
        self.clients[client] = (Context::of(&row), known);
        Ok(())
    }

    /// Compares two replicas; what each should take, if they differ.
    fn compare(&mut self, a: usize, b: usize) -> Vec<Repair> {
        let floor = self.floor(a).max(self.floor(b));
        let held = |at: usize| canonical(&self.replicas[at].row, floor, WINDOW_MS);
        if held(a) == held(b) {
            return Vec::new();
        }
        let (row, known) = self.joined(a, b);
        let repair = |to: usize| {
            let (row, known, floor) = (row.clone(), known.clone(), self.floor(to));
            Repair { to, row, known, floor }
        };
        let is_behind = |at: &usize| self.replicas[*at].row != row;
        [a, b].into_iter().filter(is_behind).map(repair).collect()
    }

    /// Whether the replica took it.
    fn repair(&mut self, repair: &Repair) -> bool {
        let Repair { to, row, known, floor } = repair;
        if !self.replicas[*to].is_up {
            return false;
        }
        if self.floor(*to) != *floor && self.keeps("judged_by_floor_in_force") {
            return false;
        }
        let guard = self.guard(*to);
        let replica = &mut self.replicas[*to];
        replica.news += u64::from(replica.is_news(row, guard));
        replica.join(row);
        replica.known.extend(known);
        true
    }

    /// Compares and repairs at once; `lost`: which of the two repairs does not arrive. Whether both
    /// were equal at some moment.
    fn make_equal(&mut self, a: usize, b: usize, lost: u8) -> bool {
        if a == b || !self.replicas[a].is_up || !self.replicas[b].is_up {
            return false;
        }
        let repairs = self.compare(a, b);
        let mut all = true;
        for (index, repair) in repairs.iter().enumerate() {
            self.repairs.push(repair.clone());
            all &= lost & 1 << index == 0 && self.repair(repair);
        }
        all
    }

    fn begin(&mut self, margin_ms: u64) {
        let all_up = self.replicas.iter().all(|replica| replica.is_up);
        if !all_up && self.keeps("all_replicas") {
            return;
        }
        let time = time_of_ms(self.now_ms.saturating_sub(margin_ms));
        self.round = Some(Round { time, ..Round::default() });
    }

    fn was(&self, at: usize) -> Was {
        (self.replicas[at].incarnation, self.replicas[at].news)
    }

    fn fence(&mut self, at: usize) {
        let keeps = self.keeps("fence");
        let Some(round) = &mut self.round else { return };
        let replica = &mut self.replicas[at];
        if !replica.is_up || !replica.damaged.is_empty() {
            return;
        }
        if keeps {
            replica.guard = replica.guard.max(round.time);
            replica.last = replica.last.max(round.time);
        }
        // A round does not go on with another life of a replica.
        let was = (replica.incarnation, replica.news);
        round.were[at].get_or_insert(was);
    }

    /// Who takes part in the round: all, or without the rule those that are up.
    fn participants(&self) -> Vec<usize> {
        let all = self.keeps("all_replicas");
        (0..3).filter(|at| all || self.replicas[*at].is_up).collect()
    }

    fn pair(&mut self, a: usize, b: usize, lost: u8) {
        let participants = self.participants();
        let Some(round) = &self.round else { return };
        if participants.iter().any(|at| round.were[*at].is_none()) || a == b {
            return;
        }
        let sound = |at: usize| self.replicas[at].is_up && self.replicas[at].damaged.is_empty();
        let done = sound(a) && sound(b) && self.make_equal(a, b, lost);
        let round = self.round.as_mut().expect("there");
        match done {
            true => drop(round.pairs.insert((a.min(b), a.max(b)))),
            false => self.round = None,
        }
    }

    fn hold(&mut self, at: usize) {
        let (participants, was) = (self.participants(), self.was(at));
        let (barrier, news, incarnation) =
            (self.keeps("durable_barrier"), self.keeps("news"), self.keeps("incarnation"));
        let pairs = participants.len() * participants.len().saturating_sub(1) / 2;
        let Some(round) = &mut self.round else { return };
        let replica = &mut self.replicas[at];
        if round.pairs.len() < pairs || !replica.is_up || !replica.damaged.is_empty() {
            return;
        }
        if barrier {
            replica.sync();
        }
        round.are[at] = Some(was);
        if participants.iter().any(|at| round.are[*at].is_none()) {
            return;
        }
        let same = |part: fn(Was) -> u64| {
            participants.iter().all(|at| round.were[*at].map(part) == round.are[*at].map(part))
        };
        if !same(|was| was.0) && incarnation {
            self.round = None;
        } else if same(|was| was.1) || !news {
            let Round { time, are, .. } = self.round.take().expect("there");
            self.proven.push((time, are.map(Option::unwrap_or_default)));
        } else {
            round.were = std::mem::take(&mut round.are);
            round.pairs.clear();
        }
    }

    /// A replica is told to install, perhaps long after.
    fn install(&mut self, which: usize, at: usize) {
        let was = self.was(at);
        let (news, incarnation) = (self.keeps("news"), self.keeps("incarnation"));
        let (durable, fence) = (self.keeps("durable_barrier"), self.keeps("fence"));
        let from_last = self.proven.len().checked_sub(1 + which % 2);
        let Some((time, weres)) = from_last.map(|index| self.proven[index]) else { return };
        let replica = &mut self.replicas[at];
        let is_same = (was.0 == weres[at].0 || !incarnation) && (was.1 == weres[at].1 || !news);
        if !replica.is_up || !replica.damaged.is_empty() || !is_same || replica.floor >= time {
            return;
        }
        if !fence {
            replica.guard = replica.guard.max(time);
        }
        if replica.guard >= time {
            if durable {
                replica.sync();
            }
            replica.floor = time;
            self.installs += 1;
        }
    }

    fn crash(&mut self, at: usize) {
        self.replicas[at].crash();
    }

    fn start(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        if !std::mem::replace(&mut replica.is_up, true) {
            replica.incarnation += 1;
            if self.keeps("rotate_on_unclean_start") {
                self.rotate(at);
            }
        }
    }

    fn lose(&mut self, at: usize) {
        self.was_damaged = true;
        self.replicas[at].incarnation += 1;
        if self.keeps("damaged_state") {
            self.replicas[at].damaged = (0..3).filter(|other| *other != at).collect();
        }
        if self.keeps("rotate_on_loss") {
            self.rotate(at);
        }
    }

    fn exchange(&mut self, at: usize, peer: usize, lost: u8) {
        let is_one = self.replicas[at].damaged.contains(&peer);
        if is_one && self.make_equal(at, peer, lost) {
            // Durable before the mark is cleared.
            self.replicas[at].sync();
            self.replicas[peer].sync();
            self.replicas[at].damaged.remove(&peer);
        }
    }

    fn check(&self, row: &Row<'_>, acked: &Writes) -> Result<(), String> {
        match self.mode {
            Mode::Siblings => self.check_siblings(row, acked),
            Mode::LastWriteWins => self.check_winner(row, acked),
        }
    }

    fn check_siblings(&self, row: &Row<'_>, acked: &Writes) -> Result<(), String> {
        let live: Writes = row.live().iter().map(|(dot, _)| self.dots[dot]).collect();
        let overwrites = |known: &dyn Fn(usize) -> bool, write: usize| {
            let mut all = (0..self.writes.len()).filter(|later| known(*later));
            all.any(|later| self.writes[later].after.contains(&write))
        };
        for write in acked.iter().filter(|write| self.writes[**write].is_value) {
            let somewhere = |later| self.replicas.iter().any(|it| it.known.contains(&later));
            if !live.contains(write) && !overwrites(&somewhere, *write) {
                return Err(format!("acknowledged write {write} is lost"));
            }
        }
        for (dot, version) in row.live() {
            let write = self.dots[dot];
            if is_value(version.payload()) && overwrites(&|later| acked.contains(&later), write) {
                return Err(format!("write {write} is back"));
            }
        }
        Ok(())
    }

    fn check_winner(&self, row: &Row<'_>, acked: &Writes) -> Result<(), String> {
        // A dead winner says nothing: a floor may have buried it.
        let winner = row.live().first().filter(|(_, version)| is_value(version.payload()));
        let winner = winner.map(|(dot, _)| &self.writes[self.dots[dot]]);
        for write in acked {
            let acknowledged = &self.writes[*write];
            let replaced = match winner {
                Some(winner) => winner.order >= acknowledged.order,
                None => self.writes.iter().any(|it| !it.is_value && it.order >= acknowledged.order),
            };
            if !replaced {
                return Err(format!("acknowledged write {write} lost to an older one"));
            }
        }
        Ok(())
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.step(step)?;
        }
        (0..3).for_each(|at| self.start(at));
        let pairs = [(0, 1), (0, 2), (1, 2)];
        for _ in 0..3 {
            for (a, b) in pairs {
                self.exchange(a, b, 0);
                self.exchange(b, a, 0);
            }
        }
        for (a, b) in pairs.into_iter().cycle().take(9) {
            self.make_equal(a, b, 0);
        }
        let acked = self.acked();
        for at in 0..3 {
            self.check(&self.replicas[at].row, &acked)?;
        }
        let values = |at: usize| {
            let live = self.replicas[at].row.live().iter();
            let live = live.filter(|(_, version)| is_value(version.payload()));
            live.map(|(dot, _)| *dot).collect::<Vec<_>>()
        };
        if values(0) != values(1) || values(0) != values(2) {
            return Err("the replicas differ".to_owned());
        }
        if self.alarms > 0 && !self.was_damaged && self.removed.is_empty() {
            return Err("an alarm was raised though no data was lost".to_owned());
        }
        Ok(())
    }
}

/// What the search found.
struct Found {
    purges: usize,
    installs: usize,
    broken: Option<(String, Vec<Step>)>,
}

fn search(removed: &'static [&'static str], histories: u64) -> Found {
    let (mut purges, mut installs) = (0, 0);
    for seed in 0..histories {
        let dice = Dice::new(seed);
        let mode = if dice.percent(30) { Mode::LastWriteWins } else { Mode::Siblings };
        let by_clocks = ["fence", "all_replicas"];
        let is_by_clocks = removed.iter().any(|rule| by_clocks.contains(rule));
        let behind = if is_by_clocks { 50 } else { SKEW_MS as i64 };
        let skew = || *dice.pick(&[-behind, 0, 0, SKEW_MS as i64]);
        let skews = if dice.percent(50) { [0; 3] } else { [skew(), skew(), skew()] };
        let steps = steps::history(&dice, seed);
        let run = |steps: &[Step]| {
            let mut world = World::new(mode, removed, skews);
            let result = world.run(steps);
            (result, world.purges, world.installs)
        };
        let (result, some, more) = run(&steps);
        (purges, installs) = (purges + some, installs + more);
        if result.is_err() {
            let steps = shrink(steps, |steps| run(steps).0.is_err());
            let why = run(&steps).0.expect_err("it still breaks");
            let broken = Some((format!("{mode:?}, clocks {skews:?}, seed {seed}: {why}"), steps));
            return Found { purges, installs, broken };
        }
    }
    Found { purges, installs, broken: None }
}

/// Takes out steps as long as it breaks without them.
fn shrink(mut steps: Vec<Step>, breaks: impl Fn(&[Step]) -> bool) -> Vec<Step> {
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < steps.len() {
            let end = (at + size).min(steps.len());
            let without: Vec<Step> = [&steps[..at], &steps[end..]].concat();
            match breaks(&without) {
                true => steps = without,
                false => at = end,
            }
        }
        size /= 2;
    }
    steps
}

/// `PAIRDB_TEST_EFFORT` times as many.
fn effort(histories: u64) -> u64 {
    let factor = std::env::var("PAIRDB_TEST_EFFORT").ok().and_then(|it| it.parse::<u64>().ok());
    histories * factor.unwrap_or(1)
}

#[test]
fn no_history_loses_an_acknowledged_write_or_brings_a_dead_one_back() {
    let found = search(&[], effort(3_000));
    assert!(found.broken.is_none(), "{:#?}", found.broken);
    assert!(found.purges > 100 && found.installs > 1_000, "and deletes were forgotten");
}

/// A search that finds nothing without a rule would find nothing with it either.
fn must_break(removed: &'static [&'static str]) {
    let found = search(removed, effort(20_000));
    let (_, steps) = found.broken.expect("without the rule a promise breaks");
    assert!(steps.len() < 40, "{steps:?}");
}

#[test]
fn without_the_fence_a_promise_breaks() {
    must_break(&["fence"]);
}

#[test]
fn without_all_replicas_a_promise_breaks() {
    must_break(&["all_replicas"]);
}

#[test]
fn without_repairs_held_to_the_floor_they_were_judged_under_a_promise_breaks() {
    must_break(&["judged_by_floor_in_force"]);
}

#[test]
fn without_the_authority_of_floors_a_promise_breaks() {
    must_break(&["floor_authority"]);
}

#[test]
fn without_the_damaged_state_a_promise_breaks() {
    must_break(&["damaged_state"]);
}

#[test]
fn without_damaged_replicas_that_strip_nothing_a_promise_breaks() {
    must_break(&["damaged_strips_nothing"]);
}

#[test]
fn without_a_new_actor_after_an_unclean_start_a_promise_breaks() {
    must_break(&["rotate_on_unclean_start"]);
}

#[test]
fn without_a_new_actor_after_a_loss_a_promise_breaks() {
    must_break(&["rotate_on_loss"]);
}

#[test]
fn without_a_window_for_retries_a_promise_breaks() {
    must_break(&["token_refused_after_window"]);
}

#[test]
fn without_the_durable_barrier_and_the_belt_behind_it_a_promise_breaks() {
    must_break(&["durable_barrier", "incarnation"]);
}
