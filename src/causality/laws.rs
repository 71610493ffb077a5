//! The laws of rows, checked against histories.
//!
//! Three replicas, three clients, messages that are lost, late and reordered, tokens that are
//! retried elsewhere. Every replica keeps, beside its row, the set of writes whose effect is in
//! it; that set knows by itself which writes are maximal.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::codec::{decode, encode, join_bytes};
use super::dot::{Dot, Token};
use super::forget::{contains, evict_tokens};
use super::write::{self, NewVersion, Outcome, mint_above};
use super::{Actor, Context, Mode, Payload, Row};

const REPLICAS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A client reads a set of replicas and keeps the context.
    Read { client: usize, replicas: Vec<bool> },
    /// A client writes through a replica; `delivered` says which others get the row.
    Write { client: usize, replica: usize, blind: bool, token: bool, delivered: Vec<bool> },
    /// A write with a token is sent again, perhaps through another replica.
    Retry { which: usize, replica: usize, delivered: Vec<bool> },
    /// One of the messages under way arrives; `again` keeps it under way.
    Deliver { which: usize, again: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let set = || prop::collection::vec(any::<bool>(), REPLICAS);
    prop_oneof![
        3 => (0..3usize, set()).prop_map(|(client, replicas)| Step::Read { client, replicas }),
        4 => (0..3usize, 0..REPLICAS, prop::bool::weighted(0.2), any::<bool>(), set()).prop_map(
            |(client, replica, blind, token, delivered)| Step::Write {
                client, replica, blind, token, delivered
            }
        ),
        1 => (any::<usize>(), 0..REPLICAS, set()).prop_map(
            |(which, replica, delivered)| Step::Retry { which, replica, delivered }
        ),
        3 => (any::<usize>(), any::<bool>()).prop_map(
            |(which, again)| Step::Deliver { which, again }
        ),
    ]
}

type Seen = BTreeSet<u32>;

#[derive(Clone)]
struct Pending {
    write: u32,
    context: Context,
    seen: Seen,
}

struct World {
    mode: Mode,
    /// Dead tokens that a row keeps, at most.
    tokens_max: usize,
    /// Every state that each replica's row was in.
    states: Vec<Vec<Vec<u8>>>,
    rows: Vec<Vec<u8>>,
    seen: Vec<Seen>,
    clocks: Vec<u64>,
    clients: Vec<(Context, Seen)>,
    messages: Vec<(usize, Vec<u8>, Seen)>,
    pending: Vec<Pending>,
    /// What each write had seen when its client sent it.
    past: BTreeMap<u32, Seen>,
}

fn bytes(row: &Row<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(row, &mut out);
    out
}

fn joined(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    join_bytes(a, b, &mut out).expect("rows of one mode");
    out
}

impl World {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            tokens_max: usize::MAX,
            states: vec![Vec::new(); REPLICAS],
            rows: vec![bytes(&Row::empty(mode)); REPLICAS],
            seen: vec![Seen::new(); REPLICAS],
            clocks: vec![0; REPLICAS],
            clients: vec![Default::default(); 3],
            messages: Vec::new(),
            pending: Vec::new(),
            past: BTreeMap::new(),
        }
    }

    fn run(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Read { client, replicas } => self.read(client, &replicas),
                Step::Write { client, replica, blind, token, delivered } => {
                    let (context, seen) = match blind {
                        true => Default::default(),
                        false => self.clients[client].clone(),
                    };
                    let write = self.past.len() as u32;
                    self.past.insert(write, seen.clone());
                    let pending = Pending { write, context, seen };
                    if token {
                        self.pending.push(pending.clone());
                    }
                    self.write(replica, &pending, token, &delivered);
                }
                Step::Retry { which, replica, delivered } => {
                    if !self.pending.is_empty() {
                        let pending = self.pending[which % self.pending.len()].clone();
                        self.write(replica, &pending, true, &delivered);
                    }
                }
                Step::Deliver { which, again } => {
                    if !self.messages.is_empty() {
                        let which = which % self.messages.len();
                        let (to, row, seen) = match again {
                            true => self.messages[which].clone(),
                            false => self.messages.swap_remove(which),
                        };
                        self.rows[to] = joined(&self.rows[to], &row);
                        self.states[to].push(self.rows[to].clone());
                        self.seen[to].extend(seen);
                    }
                }
            }
        }
    }

    fn read(&mut self, client: usize, replicas: &[bool]) {
        let mut row = bytes(&Row::empty(self.mode));
        let mut seen = Seen::new();
        for replica in (0..REPLICAS).filter(|&replica| replicas[replica]) {
            row = joined(&row, &self.rows[replica]);
            seen.extend(&self.seen[replica]);
        }
        self.clients[client] = (Context::of(&decode(&row).expect("own bytes")), seen);
    }

    fn write(&mut self, replica: usize, what: &Pending, token: bool, delivered: &[bool]) {
        let before = self.rows[replica].clone();
        let row = decode(&before).expect("own bytes");
        let time = self.clocks[replica].max(mint_above(&row, &what.context)) + 1;
        let value = what.write.to_be_bytes();
        let new = NewVersion {
            payload: Payload::Value { value: &value, content_type: "" },
            expires_at_ms: 0,
            token: token.then(|| Token::new(what.write.into())),
        };
        let actor = Actor::new(replica as u64);
        let Outcome::Written(mut after) = write::write(&row, &what.context, actor, time, new)
        else {
            return;
        };
        self.clocks[replica] = time;
        let whole = bytes(&after);
        assert_eq!(joined(&before, &whole), whole, "join(S, write(S)) == write(S)");
        let replaces = |token| {
            row.version_of_token(token).is_some() || what.context.has_seen(&Dot::Token(token))
        };
        evict_tokens(&mut after, self.tokens_max, replaces);
        let after = bytes(&after);
        self.check_forgetting(replica, &before, &what.context, &after);
        self.seen[replica].extend(&what.seen);
        self.seen[replica].insert(what.write);
        for other in (0..REPLICAS).filter(|&other| other != replica && delivered[other]) {
            self.messages.push((other, after.clone(), self.seen[replica].clone()));
        }
        self.states[replica].push(after.clone());
        self.rows[replica] = after;
    }

    /// What holds of a row that has just been written, however much it has forgotten.
    fn check_forgetting(&self, replica: usize, before: &[u8], context: &Context, after: &[u8]) {
        let row = decode(after).expect("own bytes");
        assert_eq!(writes_of(&joined(before, after)), writes_of(after), "nothing comes back");
        for older in &self.states[replica] {
            let older = decode(older).expect("own bytes");
            assert!(contains(&row, &older, self.tokens_max).expect("one mode"), "all its own past");
        }
        for other in &self.rows {
            let joined = joined(other, after);
            let joined = decode(&joined).expect("own bytes");
            let mut live = joined.live().iter().map(|(dot, _)| dot);
            let is_replaced = |dot: &Dot| context.has_seen(dot) && row.version(dot).is_none();
            assert!(!live.any(is_replaced), "what its client has seen goes wherever it is sent");
        }
    }

    /// The writes of a set that no other write in it had seen.
    fn maximal(&self, seen: &Seen) -> Vec<u32> {
        let replaced: Seen = seen.iter().flat_map(|write| &self.past[write]).copied().collect();
        seen.difference(&replaced).copied().collect()
    }
}

fn writes_of(row: &[u8]) -> Vec<u32> {
    let row = decode(row).expect("own bytes");
    let value = |payload| match payload {
        Payload::Value { value, .. } => u32::from_be_bytes(value.try_into().expect("four bytes")),
        other => panic!("nothing was deleted, yet {other:?}"),
    };
    let mut writes: Vec<u32> = row.live().iter().map(|(_, v)| value(v.payload())).collect();
    writes.sort_unstable();
    writes
}

fn check_lattice(rows: &[Vec<u8>]) {
    let [x, y, z] = rows else { panic!("three replicas") };
    assert_eq!(joined(x, x), *x, "idempotent");
    assert_eq!(joined(x, y), joined(y, x), "commutative");
    assert_eq!(joined(&joined(x, y), z), joined(x, &joined(y, z)), "associative");
    assert_eq!(joined(&joined(x, y), y), joined(x, y), "absorbing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    /// No write is lost, none comes back, a retried token is one write: at every replica and in
    /// their join the siblings are the maximal elements of what was seen there.
    #[test]
    fn siblings_are_the_maximal_elements_of_the_history(
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let mut world = World::new(Mode::Siblings);
        world.run(steps);
        check_lattice(&world.rows);
        let all = world.rows.iter().skip(1).fold(world.rows[0].clone(), |a, b| joined(&a, b));
        let seen: Seen = world.seen.iter().flatten().copied().collect();
        prop_assert_eq!(writes_of(&all), world.maximal(&seen));
    }

    /// The same holds at each replica alone, before it has met the others: a context names the
    /// tokens that were replaced too, so what a client has seen dead is dead where it writes next.
    #[test]
    fn each_replica_holds_the_maximal_elements_of_what_it_has_seen(
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let mut world = World::new(Mode::Siblings);
        world.run(steps);
        for (row, seen) in world.rows.iter().zip(&world.seen) {
            prop_assert_eq!(writes_of(row), world.maximal(seen));
        }
    }

    /// A last-write-wins row holds one version, and it is one that nobody who wrote had seen
    /// before: clocks decide only between truly concurrent writes.
    #[test]
    fn a_last_write_never_loses_to_what_its_client_had_seen(
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let mut world = World::new(Mode::LastWriteWins);
        world.run(steps.into_iter().filter(|s| !matches!(s, Step::Retry { .. })).collect());
        check_lattice(&world.rows);
        for (row, seen) in world.rows.iter().zip(&world.seen) {
            let live = writes_of(row);
            prop_assert_eq!(live.len(), usize::from(!seen.is_empty()));
            let maximal = world.maximal(seen);
            prop_assert!(live.iter().all(|write| maximal.contains(write)));
        }
    }

    /// With retries of tokens the laws hold as well, and nothing is ever left without a version.
    #[test]
    fn last_write_wins_is_a_lattice_with_retried_tokens(
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let mut world = World::new(Mode::LastWriteWins);
        world.run(steps);
        check_lattice(&world.rows);
        for (row, seen) in world.rows.iter().zip(&world.seen) {
            prop_assert_eq!(writes_of(row).len(), usize::from(!seen.is_empty()));
        }
    }

    /// Rows that forget tokens early are rows like any others, and forgetting loses no write. What
    /// it costs is a sibling that was replaced, if its write had a token.
    #[test]
    fn forgetting_tokens_loses_no_write_and_breaks_no_law(
        tokens_max in 1..4usize,
        lww in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mode = if lww { Mode::LastWriteWins } else { Mode::Siblings };
        let mut world = World { tokens_max, ..World::new(mode) };
        world.run(steps);
        check_lattice(&world.rows);
        if lww {
            return Ok(());
        }
        let tokened: Seen = world.pending.iter().map(|pending| pending.write).collect();
        for (row, seen) in world.rows.iter().zip(&world.seen) {
            let (live, maximal) = (writes_of(row), world.maximal(seen));
            prop_assert!(maximal.iter().all(|write| live.contains(write)));
            prop_assert!(live.iter().all(|w| maximal.contains(w) || tokened.contains(w)));
        }
    }
}
