//! Histories of a store that keeps its promises, with clients that overlap, attempts whose outcome
//! they do not learn, and answers that come late: none of them is accused.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// A store of one copy that takes operations one at a time. Rows mean what `docs/consistency.md`
/// says.
#[derive(Default)]
struct Model {
    /// For each key what lives, and what the row has seen.
    rows: BTreeMap<u8, (BTreeSet<String>, BTreeSet<String>)>,
    time: u64,
    /// In a last-write-wins tenant.
    latest: BTreeMap<u8, (u64, Option<String>)>,
}

/// A step of a client, as drawn.
#[derive(Clone, Debug)]
struct Drawn {
    client: u8,
    key: u8,
    what: u8,
    /// Whether the last context is given.
    with_context: bool,
    /// 0: fails before it happens; 1: happens, and the answer is lost; 2: never happens, and that
    /// is not learnt; else it is answered.
    luck: u8,
    /// How far its interval reaches to both sides of its moment.
    slack_us: (u64, u64),
    repeat: bool,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let part = (0..4_u8, 0..3_u8, 0..10_u8, any::<bool>());
    let rest = (0..16_u8, (0..3_000_u64, 0..3_000_u64), any::<bool>());
    (part, rest).prop_map(|((client, key, what, with_context), (luck, slack_us, repeat))| Drawn {
        client,
        key,
        what,
        with_context,
        luck,
        slack_us,
        repeat,
    })
}

impl Model {
    fn name(seen: &BTreeSet<String>) -> String {
        format!("{seen:?}")
    }

    /// What takes effect at one moment; the answer's parts go into `op`.
    fn apply(&mut self, mode: Mode, key: u8, context: &BTreeSet<String>, op: &mut Op) {
        self.time += 1;
        let row = self.rows.entry(key).or_default();
        let id = op.value().map_or(format!("delete {}", op.id), str::to_owned);
        if op.is_read() {
            op.seen = row.0.iter().map(|value| version(value)).collect();
            if mode == Mode::LastWriteWins {
                op.seen = match self.latest.get(&key) {
                    Some((hlc, Some(value))) => vec![Version { hlc: *hlc, ..version(value) }],
                    _ => Vec::new(),
                };
            }
            op.context_out = Some(Self::name(&row.1));
            return;
        }
        let repeated = op.value().is_some() && row.1.contains(&id);
        if !repeated {
            row.0.retain(|value| !context.contains(value));
            row.1.extend(context.iter().cloned());
            row.1.insert(id.clone());
            row.0.extend(op.value().map(str::to_owned));
            self.latest.insert(key, (self.time, op.value().map(str::to_owned)));
            op.hlc = Some(self.time);
        }
        let mut known = context.clone();
        known.insert(id);
        op.context_out = Some(Self::name(&known));
    }
}

fn version(value: &str) -> Version {
    Version { value: value.to_owned(), hlc: 0, dot: None }
}

/// Runs the drawn steps one after the other on the model, and tells it as clients would.
fn tell(mode: Mode, steps: &[Drawn]) -> Vec<Event> {
    let mut model = Model::default();
    let mut story = Story::new(mode, 3);
    let mut contexts: BTreeMap<(u8, u8), BTreeSet<String>> = BTreeMap::new();
    let mut before: Option<(u8, Action, BTreeSet<String>)> = None;
    for (at, step) in steps.iter().enumerate() {
        let held = contexts.get(&(step.client, step.key)).cloned();
        let mut context = held.filter(|_| step.with_context).unwrap_or_default();
        let mut key = step.key;
        let mut action = match step.what {
            0..4 => Action::Read { min_context: None, last: false },
            4..9 => Action::Write {
                value: format!("v{at}"),
                token: step.repeat.then(|| format!("t{at}")),
                ttl_ms: None,
            },
            _ => Action::Delete { token: None },
        };
        if let Some((of, again, with)) = before.take().filter(|_| step.repeat && step.luck % 3 == 0)
        {
            (key, action, context) = (of, again, with);
        }
        let op = story.op(action.clone());
        op.key = format!("k{key}");
        op.client = u32::from(step.client);
        if !op.is_read() && !context.is_empty() {
            op.context_in = Some(Model::name(&context));
        }
        // Its moment is in the middle of its interval; intervals of neighbours overlap.
        let moment_us = 10_000 + at as u64 * 1_000;
        op.invoked_us = moment_us - step.slack_us.0;
        op.returned_us = Some(moment_us + step.slack_us.1);
        // A delete without a context covers what the row holds.
        let covered = match (&action, context.is_empty()) {
            (Action::Delete { .. }, true) => model.rows.entry(key).or_default().1.clone(),
            _ => context.clone(),
        };
        if step.luck != 0 && step.luck != 2 {
            model.apply(mode, key, &covered, op);
        }
        if step.luck < 3 {
            let unknown = step.luck > 0 && !op.is_read();
            op.outcome = if unknown { Outcome::Unknown } else { Outcome::NotApplied };
            (op.context_out, op.hlc) = (None, None);
            op.seen.clear();
            op.returned_us = op.returned_us.filter(|_| !unknown);
        } else if let Some(name) = &op.context_out {
            let known = match op.is_read() {
                true => model.rows.entry(key).or_default().1.clone(),
                false => {
                    let id = op.value().map_or(format!("delete {}", op.id), str::to_owned);
                    covered.iter().cloned().chain([id]).collect()
                }
            };
            assert_eq!(&Model::name(&known), name, "a context is named after what it has seen");
            contexts.insert((step.client, key), known);
        }
        if matches!(action, Action::Write { token: Some(_), .. }) {
            before = Some((key, action, context));
        }
    }
    for key in 0..3 {
        for node in ["n0", "n1", "n2"] {
            let mut op = story.last(node, &[]).clone();
            story.events.pop();
            op.key = format!("k{key}");
            op.invoked_us = 1_000_000 + 10_000 * steps.len() as u64;
            op.returned_us = Some(op.invoked_us + 1);
            model.apply(mode, key, &BTreeSet::new(), &mut op);
            story.events.push(Event::Op(op));
        }
    }
    story.events
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_a_store_of_siblings_may_do_is_not_accused(
        steps in prop::collection::vec(drawn(), 0..60)
    ) {
        let found = check(&tell(Mode::Siblings, &steps));
        prop_assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn what_a_last_write_wins_store_may_do_is_not_accused(
        steps in prop::collection::vec(drawn(), 0..60)
    ) {
        let found = check(&tell(Mode::LastWriteWins, &steps));
        prop_assert!(found.is_empty(), "{found:#?}");
    }

    /// The same histories with one last answer emptied: where something was there, it is missed.
    #[test]
    fn what_such_a_store_loses_is_missed(steps in prop::collection::vec(drawn(), 20..60)) {
        let mut events = tell(Mode::Siblings, &steps);
        let robbed = events.iter_mut().rev().find_map(|event| match event {
            Event::Op(op) if op.is_last_read() && !op.seen.is_empty() => Some(op),
            _ => None,
        });
        if let Some(op) = robbed {
            op.seen.clear();
            prop_assert!(!check(&events).is_empty());
        }
    }
}
