//! Batches: to one node, or, where it is known who holds what, to the few that hold all of it.
//!
//! A batch is no transaction, so it may fall apart. Each item keeps its place in the answer; where
//! the request to one of the nodes fails its items fail, each with that error, and no others.
//!
//! Rows that an answer had no room for are asked for again, as long as each answer brings some and
//! there is time: that of the call, which they are part of.

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use tonic::transport::Channel;

use super::{Client, Error, Kind, To};
use crate::proto;
use crate::proto::key_value_client::KeyValueClient;
use crate::replication::reason::REPLY_TOO_LARGE;
use crate::resilience::deadline::Deadline;

/// A batch that may fall apart.
trait Batch: Sized {
    type Answer;

    fn tenant(&self) -> &str;

    fn keys(&self) -> impl Iterator<Item = &[u8]>;

    /// The items at these places, as a batch of its own.
    fn part(&self, places: &[usize]) -> Self;

    /// The answer to an item of which nothing else is known.
    fn failed(error: &Error) -> Self::Answer;

    /// Sends it on its way, and ends with the deadline.
    fn send<'c>(
        self,
        client: &'c Client,
        to: To<'c>,
        deadline: Deadline,
    ) -> Sending<'c, Self::Answer>;
}

type Sending<'c, A> = BoxFuture<'c, Result<Vec<A>, Error>>;

impl Batch for proto::BatchReadRequest {
    type Answer = proto::BatchReadResult;

    fn tenant(&self) -> &str {
        &self.tenant
    }

    fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.iter().map(|key| &key[..])
    }

    fn part(&self, places: &[usize]) -> Self {
        let min_contexts = places.iter().filter_map(|place| self.min_contexts.get(*place).cloned());
        Self {
            tenant: self.tenant.clone(),
            keys: places.iter().map(|place| self.keys[*place].clone()).collect(),
            consistency: self.consistency,
            min_contexts: min_contexts.collect(),
        }
    }

    fn failed(error: &Error) -> Self::Answer {
        let failure = proto::batch_read_result::Result::Failure(error.to_item());
        proto::BatchReadResult { result: Some(failure) }
    }

    fn send<'c>(
        self,
        client: &'c Client,
        to: To<'c>,
        deadline: Deadline,
    ) -> Sending<'c, Self::Answer> {
        let call =
            async |client: &mut KeyValueClient<Channel>, request| client.batch_read(request).await;
        let answer =
            async move { Ok(client.call_by(deadline, to, self, Kind::Read, call).await?.results) };
        answer.boxed()
    }
}

impl Batch for proto::BatchWriteRequest {
    type Answer = proto::BatchWriteResult;

    fn tenant(&self) -> &str {
        &self.tenant
    }

    fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.mutations.iter().map(|mutation| &mutation.key[..])
    }

    fn part(&self, places: &[usize]) -> Self {
        Self {
            tenant: self.tenant.clone(),
            mutations: places.iter().map(|place| self.mutations[*place].clone()).collect(),
            consistency: self.consistency,
        }
    }

    fn failed(error: &Error) -> Self::Answer {
        let failure = proto::batch_write_result::Result::Failure(error.to_item());
        proto::BatchWriteResult { result: Some(failure) }
    }

    fn send<'c>(
        self,
        client: &'c Client,
        to: To<'c>,
        deadline: Deadline,
    ) -> Sending<'c, Self::Answer> {
        let call =
            async |client: &mut KeyValueClient<Channel>, request| client.batch_write(request).await;
        let answer =
            async move { Ok(client.call_by(deadline, to, self, Kind::Write, call).await?.results) };
        answer.boxed()
    }
}

/// Whether the rows before it had filled the answer.
fn is_left_out(result: &proto::BatchReadResult) -> bool {
    use proto::batch_read_result::Result as Item;
    matches!(&result.result, Some(Item::Failure(failure)) if failure.reason == REPLY_TOO_LARGE)
}

impl Client {
    /// Reads many rows.
    ///
    /// # Errors
    /// See [`Error`]; a row that cannot be read fails alone, in the answer.
    pub async fn batch_read(
        &self,
        tenant: &str,
        keys: Vec<Bytes>,
    ) -> Result<Vec<proto::BatchReadResult>, Error> {
        let (tenant, consistency) = (tenant.to_owned(), self.options.consistency.into());
        let message = proto::BatchReadRequest { tenant, keys, consistency, ..Default::default() };
        let deadline = Deadline::after(self.options.timeout);
        let mut results = self.send_batch(message.clone(), deadline).await?;
        let mut left: Vec<usize> = (0..results.len()).collect();
        loop {
            let before = left.len();
            left.retain(|place| is_left_out(&results[*place]));
            if left.is_empty() || left.len() == before {
                return Ok(results);
            }
            match self.send_batch(message.part(&left), deadline).await {
                Ok(more) if more.len() == left.len() => {
                    left.iter().zip(more).for_each(|(place, one)| results[*place] = one);
                }
                Ok(_) => return Ok(results),
                Err(error) => {
                    let failed = proto::BatchReadRequest::failed;
                    left.iter().for_each(|place| results[*place] = failed(&error));
                }
            }
        }
    }

    /// Writes and deletes many keys.
    ///
    /// # Errors
    /// See [`Error`]; a mutation that fails does so alone, in the answer.
    pub async fn batch_write(
        &self,
        tenant: &str,
        mut mutations: Vec<proto::Mutation>,
    ) -> Result<Vec<proto::BatchWriteResult>, Error> {
        for mutation in &mut mutations {
            self.name_write(&mut mutation.idempotency_key);
        }
        let tenant = tenant.to_owned();
        let consistency = self.options.consistency.into();
        let message = proto::BatchWriteRequest { tenant, mutations, consistency };
        self.send_batch(message, Deadline::after(self.options.timeout)).await
    }

    async fn send_batch<B: Batch>(
        &self,
        batch: B,
        deadline: Deadline,
    ) -> Result<Vec<B::Answer>, Error> {
        let ring = match &self.routes {
            Some(routes) => routes.ring(batch.tenant()).await,
            None => None,
        };
        let (Some(routes), Some(ring)) = (&self.routes, ring) else {
            return batch.send(self, To::Any, deadline).await;
        };
        let (groups, over) = ring.groups(batch.keys(), |uri| routes.cost(uri));
        let tenant = batch.tenant().to_owned();
        let parts = groups.iter().map(|(node, places)| (To::Node(&tenant, &ring, node), places));
        let over = (!over.is_empty()).then_some((To::Any, &over));
        let mut parts: Vec<_> = parts.chain(over).collect();
        if parts.len() <= 1 {
            let to = parts.pop().map_or(To::Any, |(to, _)| to);
            return batch.send(self, to, deadline).await;
        }
        let sending: Vec<_> =
            parts.iter().map(|(to, places)| batch.part(places).send(self, *to, deadline)).collect();
        let mut answers: Vec<Option<B::Answer>> = batch.keys().map(|_| None).collect();
        for ((_, places), answered) in parts.iter().zip(join_all(sending).await) {
            match answered {
                Ok(some) if some.len() == places.len() => {
                    places.iter().zip(some).for_each(|(place, one)| answers[*place] = Some(one));
                }
                Ok(_) => {}
                Err(error) => {
                    places.iter().for_each(|place| answers[*place] = Some(B::failed(&error)));
                }
            }
        }
        // An answer that does not fit its part is told as one that does not fit the batch.
        Ok(answers.into_iter().flatten().collect())
    }
}
