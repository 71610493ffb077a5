//! Many writes: in parts that fit, and again what is refused for the moment.

use std::time::Duration;

use tonic::Code;

use crate::client::{Client, Error, Outcome};
use crate::proto;

/// Times that a write is sent again when the node is overloaded.
const ATTEMPTS: u32 = 8;

/// Of a write if it was sent alone, else of the batch: its parts may fit.
const BAD_BATCH: [&str; 2] = ["MESSAGE_TOO_LARGE", "BATCH_TOO_LARGE"];

/// Why a write is not acknowledged.
#[derive(Clone, Debug)]
pub(super) enum Unwritten {
    /// It was refused or failed; others of its batch may be written.
    Itself(Error),
    /// The call failed that it was in.
    Call(Error),
}

impl Unwritten {
    pub fn into_error(self) -> Error {
        match self {
            Self::Itself(error) | Self::Call(error) => error,
        }
    }
}

/// What became of a write.
pub(super) type Written = Result<proto::WriteResponse, Unwritten>;

/// Whether too much was sent at once.
pub(super) fn is_too_large(error: &Error) -> bool {
    BAD_BATCH.contains(&error.reason())
}

/// Writes, and says for each write what became of it. What is too large is sent in halves.
pub(super) async fn write(
    client: &Client,
    tenant: &str,
    mutations: &[proto::Mutation],
) -> Vec<Written> {
    let mut done: Vec<Option<Written>> = vec![None; mutations.len()];
    let mut parts: Vec<Vec<usize>> = vec![(0..mutations.len()).collect()];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let mut half = write_part(client, tenant, mutations, part, &mut done).await;
        let rest = half.split_off(half.len() / 2);
        parts.extend([rest, half]);
    }
    let unknown = || Err(Unwritten::Call(broken("the answer does not fit the batch")));
    done.into_iter().map(|one| one.unwrap_or_else(unknown)).collect()
}

/// Writes those at these places. Gives back, of several, those that may fit into smaller parts.
async fn write_part(
    client: &Client,
    tenant: &str,
    mutations: &[proto::Mutation],
    mut part: Vec<usize>,
    done: &mut [Option<Written>],
) -> Vec<usize> {
    let is_alone = part.len() == 1;
    let mut too_large = Vec::new();
    for attempt in 1.. {
        let batch = part.iter().map(|at| mutations[*at].clone()).collect();
        let failed = match client.batch_write(tenant, batch).await {
            Ok(answers) if answers.len() == part.len() => {
                let mut wait = Duration::ZERO;
                let mut again = Vec::new();
                for (at, answer) in std::mem::take(&mut part).into_iter().zip(answers) {
                    let result = outcome(answer);
                    let error = result.as_ref().err();
                    match error.and_then(Error::retry_after) {
                        Some(after) if attempt <= ATTEMPTS => {
                            wait = wait.max(after * attempt);
                            again.push(at);
                        }
                        _ if !is_alone && error.is_some_and(is_too_large) => too_large.push(at),
                        _ => done[at] = Some(result.map_err(Unwritten::Itself)),
                    }
                }
                if again.is_empty() {
                    break;
                }
                part = again;
                tokio::time::sleep(wait).await;
                continue;
            }
            Ok(_) => broken("the answer does not fit the batch"),
            Err(error) if is_too_large(&error) && !is_alone => {
                too_large.append(&mut part);
                break;
            }
            Err(error) => error,
        };
        part.iter().for_each(|at| done[*at] = Some(Err(Unwritten::Call(failed.clone()))));
        break;
    }
    too_large
}

fn outcome(answer: proto::BatchWriteResult) -> Result<proto::WriteResponse, Error> {
    use proto::batch_write_result::Result as Item;
    match answer.result {
        Some(Item::Written(written)) => Ok(written),
        Some(Item::Failure(failure)) => Err(Error::of_item(&failure)),
        None => Err(broken("an empty result")),
    }
}

/// No node should answer like that: what it did is not known.
pub(super) fn broken(message: &str) -> Error {
    Error::Call {
        code: Code::Internal,
        reason: "MALFORMED_ANSWER".to_owned(),
        message: message.to_owned(),
        outcome: Some(Outcome::Unknown),
        retry_after: None,
    }
}
