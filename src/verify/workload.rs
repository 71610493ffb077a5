//! Clients that write, read and delete at all levels, give contexts back or not, with writes and
//! with reads, and send writes again under their tokens, to any node.
//!
//! Every write has a value of its own, so that a read tells which writes it returns. Keys are few:
//! clients meet.
//!
//! # Invariants
//! 1. A worker has one operation at a time, and every operation it sends ends up in the history.
//! 2. What a worker does depends on its dice and the answers it gets, on nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::dice::Dice;
use super::history::{Action, Level, Mode, Op, Outcome, Version, context_name};
use super::recorder::Recorder;
use crate::client::{self, Client};
use crate::proto;

/// What the workers of a run have in common.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Tenants to use; they exist.
    pub tenants: Vec<(String, Mode)>,
    /// Begins every key and value, so that runs do not meet.
    pub prefix: String,
    /// Keys of each tenant.
    pub keys: u64,
    /// Levels to choose from.
    pub levels: Vec<Level>,
    /// The longest pause between two operations of a worker.
    pub pause_max: Duration,
    /// The longest lifetime of a write; zero: none has one.
    pub ttl_max: Duration,
    /// Deletes among the operations.
    pub deletes_percent: u64,
    /// Writes and deletes with an idempotency key.
    pub tokens_percent: u64,
}

/// How often the last read of a key at a node is tried.
const LAST_READS_MAX: usize = 3;

/// Makes a client of a node.
pub type Connect = Box<dyn Fn() -> Client + Send>;

/// A node as a worker sees it.
pub struct Target {
    /// Its name in the history.
    pub name: String,
    connect: Connect,
    client: Client,
}

impl Target {
    /// A node that `connect` makes clients of: without retries, or the history would not show them.
    pub fn new(name: String, connect: Connect) -> Self {
        let client = connect();
        Self { name, connect, client }
    }
}

/// A client of the history.
pub struct Worker {
    number: u32,
    plan: Arc<Plan>,
    targets: Vec<Target>,
    recorder: Arc<Recorder>,
    dice: Dice,
    /// The latest context of each tenant and key.
    contexts: BTreeMap<(usize, u64), Bytes>,
    written: u64,
    /// A write that is to be sent again.
    again: Option<Step>,
}

/// An operation to be sent.
#[derive(Clone, Debug)]
struct Step {
    tenant: usize,
    key: u64,
    level: Level,
    action: Action,
    /// What the client has seen of the key.
    context: Bytes,
}

/// The answer to an operation.
#[derive(Default)]
struct Answer {
    context: Bytes,
    hlc: Option<u64>,
    siblings: Option<u32>,
    seen: Vec<Version>,
}

impl Worker {
    /// The worker `number`, which asks `targets`.
    pub fn new(
        number: u32,
        plan: Arc<Plan>,
        targets: Vec<Target>,
        recorder: Arc<Recorder>,
        seed: u64,
    ) -> Self {
        let dice = Dice::new(seed, u64::from(number));
        let contexts = BTreeMap::new();
        Self { number, plan, targets, recorder, dice, contexts, written: 0, again: None }
    }

    /// Asks these from here on: others have come, or gone. Not none.
    pub fn ask(&mut self, targets: Vec<Target>) {
        self.targets = targets;
    }

    /// Does one operation after a pause.
    pub async fn step(&mut self) {
        let pause_us = self.dice.below(self.plan.pause_max.as_micros() as u64);
        tokio::time::sleep(Duration::from_micros(pause_us)).await;
        let step = self.again.take().unwrap_or_else(|| self.choose());
        let target = self.dice.below(self.targets.len() as u64) as usize;
        let outcome = self.send(target, &step).await;
        // A write may be sent again whatever became of it; where that is not known it should be.
        let again = match outcome {
            Outcome::Ok => 5,
            Outcome::NotApplied => 20,
            Outcome::Unknown => 70,
        };
        let has_token = matches!(
            step.action,
            Action::Write { token: Some(_), .. } | Action::Delete { token: Some(_) }
        );
        if has_token && self.dice.percent(again) {
            self.again = Some(step);
        }
    }

    /// Reads every key at every node, at level ONE: what each node says when all is over.
    pub async fn read_all(&mut self) {
        for tenant in 0..self.plan.tenants.len() {
            for key in 0..self.plan.keys {
                for target in 0..self.targets.len() {
                    let action = Action::Read { min_context: None, last: true };
                    let context = Bytes::new();
                    let step = Step { tenant, key, level: Level::One, action, context };
                    for _ in 0..LAST_READS_MAX {
                        if self.send(target, &step).await == Outcome::Ok {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Deletes every key. What cannot be deleted stays, under the prefix of the run.
    pub async fn remove_all(&mut self) {
        for tenant in 0..self.plan.tenants.len() {
            for key in 0..self.plan.keys {
                let action = Action::Delete { token: None };
                let step = Step { tenant, key, level: Level::All, action, context: Bytes::new() };
                let (tenant, key) = self.names(&step);
                let _ = call(&self.targets[0].client, &tenant, &key, &step).await;
            }
        }
    }

    fn names(&self, step: &Step) -> (String, String) {
        let (tenant, _) = &self.plan.tenants[step.tenant];
        (tenant.clone(), format!("{}k{}", self.plan.prefix, step.key))
    }

    fn choose(&mut self) -> Step {
        let tenant = self.dice.below(self.plan.tenants.len() as u64) as usize;
        let key = self.dice.below(self.plan.keys);
        let level = *self.dice.pick(&self.plan.levels);
        let known = self.contexts.get(&(tenant, key)).cloned().unwrap_or_default();
        let context = if self.dice.percent(80) { known } else { Bytes::new() };
        let action = if self.dice.percent(45) {
            Action::Read { min_context: context_name(&context), last: false }
        } else {
            self.written += 1;
            // Of all operations; these are the others.
            match self.dice.below(55) < self.plan.deletes_percent {
                true => Action::Delete { token: self.token() },
                false => {
                    let value = format!("{}{}.{}", self.plan.prefix, self.number, self.written);
                    Action::Write { value, token: self.token(), ttl_ms: self.ttl_ms() }
                }
            }
        };
        Step { tenant, key, level, action, context }
    }

    /// A lifetime for some of the writes, if there are any.
    fn ttl_ms(&self) -> Option<u64> {
        let ttl_max_ms = self.plan.ttl_max.as_millis() as u64;
        (ttl_max_ms > 0 && self.dice.percent(30)).then(|| 1 + self.dice.below(ttl_max_ms))
    }

    /// A token of the write that is being made, for some.
    fn token(&self) -> Option<String> {
        let name = || format!("{}t{}.{}", self.plan.prefix, self.number, self.written);
        self.dice.percent(self.plan.tokens_percent).then(name)
    }

    /// Sends an operation and writes down what became of it.
    async fn send(&mut self, target: usize, step: &Step) -> Outcome {
        let id = self.recorder.next_op();
        let (tenant, key) = self.names(step);
        let invoked_us = self.recorder.now_us();
        let answer = call(&self.targets[target].client, &tenant, &key, step).await;
        let (outcome, reason, answer) = match answer {
            Ok(answer) => (Outcome::Ok, String::new(), answer),
            Err(error) => {
                let outcome = match error.outcome() {
                    Some(client::Outcome::Unknown) => Outcome::Unknown,
                    Some(client::Outcome::NotApplied) | None => Outcome::NotApplied,
                };
                (outcome, error.reason().to_owned(), Answer::default())
            }
        };
        if matches!(reason.as_str(), "TIMEOUT" | "CONNECTION_LOST") {
            // The connection may be to a machine that is no more.
            let target = &mut self.targets[target];
            target.client = (target.connect)();
        }
        let answered = outcome != Outcome::Unknown;
        self.recorder.op(Op {
            id,
            client: self.number,
            node: self.targets[target].name.clone(),
            tenant,
            key,
            level: step.level,
            action: step.action.clone(),
            // That of a read is in its action.
            context_in: context_name(&step.context).filter(|_| !step.action.is_read()),
            invoked_us,
            returned_us: answered.then(|| self.recorder.now_us()),
            outcome,
            reason,
            context_out: context_name(&answer.context),
            hlc: answer.hlc,
            siblings: answer.siblings,
            seen: answer.seen,
        });
        if !answer.context.is_empty() {
            self.contexts.insert((step.tenant, step.key), answer.context);
        }
        outcome
    }
}

fn consistency(level: Level) -> i32 {
    match level {
        Level::One => proto::ConsistencyLevel::One as i32,
        Level::Quorum => proto::ConsistencyLevel::Quorum as i32,
        Level::All => proto::ConsistencyLevel::All as i32,
    }
}

async fn call(
    client: &Client,
    tenant: &str,
    key: &str,
    step: &Step,
) -> Result<Answer, client::Error> {
    let (tenant, key) = (tenant.to_owned(), Bytes::from(key.to_owned()));
    let (context, consistency) = (step.context.clone(), consistency(step.level));
    let token = |token: &Option<String>| Bytes::from(token.clone().unwrap_or_default());
    match &step.action {
        Action::Read { .. } => {
            let read = proto::ReadRequest { tenant, key, consistency, min_context: context };
            let row = client.read_as(read).await?;
            let seen = row.siblings.iter().map(|sibling| Version {
                value: String::from_utf8_lossy(&sibling.value).into_owned(),
                hlc: sibling.hlc,
                dot: None,
            });
            let seen = seen.collect();
            Ok(Answer { context: row.context, seen, ..Answer::default() })
        }
        Action::Write { value, token: name, ttl_ms } => {
            let write = proto::WriteRequest {
                tenant,
                key,
                value: Bytes::from(value.clone()),
                context,
                ttl_ms: *ttl_ms,
                idempotency_key: token(name),
                consistency,
                ..proto::WriteRequest::default()
            };
            let answer = client.write(write).await?;
            Ok(Answer {
                context: answer.context,
                hlc: Some(answer.hlc),
                siblings: Some(answer.siblings),
                seen: Vec::new(),
            })
        }
        Action::Delete { token: name } => {
            let idempotency_key = token(name);
            let delete =
                proto::DeleteRequest { tenant, key, context, idempotency_key, consistency };
            let answer = client.delete(delete).await?;
            Ok(Answer {
                context: answer.context,
                hlc: Some(answer.hlc),
                siblings: Some(answer.siblings),
                seen: Vec::new(),
            })
        }
    }
}
