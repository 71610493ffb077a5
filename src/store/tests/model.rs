//! The store against a model in memory: any mix of clients, restarts and power losses.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const KEYS: [&str; 4] = ["a", "b", "list:1", "list:2"];
const CLIENTS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Read { client: usize, key: usize },
    Write { client: usize, key: usize, what: What, blind: bool, token: bool },
    Retry { which: usize },
    Pass { ms: u64 },
    SetBack { ms: u64 },
    Flush,
    Forget,
    Restart,
    Crash { seed: u64 },
}

#[derive(Clone, Copy, Debug)]
enum What {
    Value,
    Brief,
    Delete,
}

fn step() -> impl Strategy<Value = Step> {
    let (client, key) = (0..CLIENTS, 0..KEYS.len());
    let what = prop_oneof![4 => Just(What::Value), 1 => Just(What::Brief), 2 => Just(What::Delete)];
    prop_oneof![
        6 => (client.clone(), key.clone()).prop_map(|(client, key)| Step::Read { client, key }),
        10 => (client, key, what, prop::bool::weighted(0.3), prop::bool::weighted(0.3)).prop_map(
            |(client, key, what, blind, token)| Step::Write { client, key, what, blind, token }
        ),
        2 => any::<usize>().prop_map(|which| Step::Retry { which }),
        2 => (0..3_000u64).prop_map(|ms| Step::Pass { ms }),
        1 => (0..60_000u64).prop_map(|ms| Step::SetBack { ms }),
        2 => Just(Step::Flush),
        1 => Just(Step::Forget),
        1 => Just(Step::Restart),
        1 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
    ]
}

/// A write that the model holds live.
#[derive(Clone, Debug)]
struct Live {
    /// `None` is a delete.
    value: Option<String>,
    expires_at_ms: u64,
}

#[derive(Clone, Debug)]
struct Sent {
    key: usize,
    mutation: Mutation,
}

struct World {
    tenant: &'static str,
    node: Node,
    rows: [BTreeMap<u32, Live>; KEYS.len()],
    /// What each client has seen of each key, and the context that says so.
    clients: Vec<[(Vec<u8>, BTreeSet<u32>); KEYS.len()]>,
    sent: Vec<Sent>,
    writes: u32,
    now_ms: u64,
    /// The latest the clock has ever shown.
    latest_ms: u64,
    forgotten: bool,
}

impl World {
    fn new(tenant: &'static str) -> Self {
        let limits = Limits { siblings_max: 100, ..Limits::default() };
        let node = Node::with(StoreOptions { limits, ..StoreOptions::default() });
        let unread: [(Vec<u8>, BTreeSet<u32>); KEYS.len()] = Default::default();
        let clients = vec![unread; CLIENTS];
        let rows = Default::default();
        Self {
            tenant,
            node,
            rows,
            clients,
            sent: Vec::new(),
            writes: 0,
            now_ms: T0_MS,
            latest_ms: T0_MS,
            forgotten: false,
        }
    }

    fn run(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Read { client, key } => {
                    let context = self.check(key);
                    let seen = self.rows[key].keys().copied().collect();
                    self.clients[client][key] = (context, seen);
                }
                Step::Write { client, key, what, blind, token } => {
                    self.write(client, key, what, blind, token);
                }
                Step::Retry { which } => self.retry(which),
                Step::Pass { ms } => self.pass(ms),
                Step::SetBack { ms } => {
                    self.now_ms -= ms;
                    self.node.clock.set_ms(self.now_ms);
                }
                Step::Flush => {
                    self.node.store().flush().unwrap();
                    self.node.settle();
                }
                Step::Forget => {
                    self.pass(100_000);
                    self.forgotten = true;
                    self.node.store().advance_safe_points().unwrap();
                    self.node.store().compact().unwrap();
                    self.node.settle();
                }
                Step::Restart => self.node.restart(),
                Step::Crash { seed } => self.node.crash(seed),
            }
        }
        for key in 0..KEYS.len() {
            self.check(key);
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.latest_ms = self.latest_ms.max(self.now_ms);
        self.node.clock.advance_ms(ms);
    }

    fn write(&mut self, client: usize, key: usize, what: What, blind: bool, token: bool) {
        let write = self.writes;
        self.writes += 1;
        let (context, seen) = self.clients[client][key].clone();
        let blind = blind || context.is_empty();
        let text = format!("{write}");
        let value = (!matches!(what, What::Delete)).then_some(text);
        let ttl_ms = matches!(what, What::Brief).then_some(1_500);
        let mutation = Mutation {
            key: KEYS[key].into(),
            value: value.clone().map(String::into_bytes),
            context: (!blind).then_some(context),
            ttl_ms,
            idempotency_key: token.then(|| format!("token {write}").into_bytes()),
            ..Mutation::default()
        };
        if token {
            self.sent.push(Sent { key, mutation: mutation.clone() });
        }
        let written = self.node.store().write(self.tenant, mutation).unwrap();
        assert!(!written.duplicate);
        let row = &mut self.rows[key];
        match (self.tenant, blind, &value) {
            // The last write replaces everything; so does a delete without a context.
            ("lww", ..) | (_, true, None) => row.clear(),
            (_, true, Some(_)) => {}
            (_, false, _) => row.retain(|write, _| !seen.contains(write)),
        }
        let expires_at_ms = ttl_ms.map_or(0, |ttl_ms| self.now_ms + ttl_ms);
        row.insert(write, Live { value, expires_at_ms });
    }

    /// The same write again changes nothing, whatever has happened since.
    fn retry(&mut self, which: usize) {
        if self.sent.is_empty() {
            return;
        }
        let sent = self.sent[which % self.sent.len()].clone();
        let written = self.node.store().write(self.tenant, sent.mutation).unwrap();
        assert!(written.duplicate);
        self.check(sent.key);
    }

    /// Reads a key and compares; returns the context.
    fn check(&self, key: usize) -> Vec<u8> {
        let row = self.node.store().read(self.tenant, KEYS[key].as_bytes()).unwrap();
        let found = values(&row);
        for live in self.rows[key].values() {
            let Some(value) = &live.value else { continue };
            let lives_at = |ms| live.expires_at_ms == 0 || live.expires_at_ms > ms;
            match found.contains(value) {
                true => assert!(lives_at(self.now_ms), "{value} has expired"),
                // What has expired once may be shown or not after the clock was set back.
                false => assert!(!lives_at(self.latest_ms), "{value} is missing"),
            }
        }
        let known = |value| self.rows[key].values().any(|live| live.value.as_ref() == Some(value));
        assert!(found.iter().all(known), "{found:?}: more than there should be");
        let deleted = self.rows[key].values().any(|live| live.value.is_none());
        if self.forgotten {
            // A delete alone with its key may be forgotten, and then stands beside nothing.
            assert!(deleted || !row.deleted_concurrently);
        } else {
            assert_eq!(row.deleted_concurrently, deleted && row.found());
        }
        row.context
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Siblings are exactly the writes that no later write had seen, across expiry, restarts,
    /// crashes and forgetting.
    #[test]
    fn siblings_follow_the_model(steps in prop::collection::vec(step(), 1..60)) {
        World::new("default").run(steps);
    }

    /// The same in a tenant whose keys share partitions.
    #[test]
    fn siblings_in_lists_follow_the_model(steps in prop::collection::vec(step(), 1..40)) {
        World::new("lists").run(steps);
    }

    /// On one node the last write is what is read, whatever the wall clock did.
    #[test]
    fn the_last_write_is_what_is_read(steps in prop::collection::vec(step(), 1..60)) {
        World::new("lww").run(steps);
    }
}
