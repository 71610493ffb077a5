//! Rows that differ: fetched, joined under the floors of both, put where the join is missing.
//!
//! Neither side's guard is asked: a round has to be able to bring a version at or below it from
//! one replica to another. What keeps dead versions out is that the join was made under the floors
//! of both, and that each side takes it only while its own is what it was.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::compare::Pair;
use super::{AntiEntropy, Error, Summary};
use crate::cluster::NodeId;
use crate::cluster::peer::Request;
use crate::proto;
use crate::replication::fence::Fence;
use crate::replication::messages::messages;
use crate::replication::reason::REPLY_TOO_LARGE;
use crate::store::{self, EngineKey, RawRow, Store, TenantId};

type Keys = Vec<(TenantId, Vec<u8>)>;

/// What is put where.
#[derive(Default)]
struct Joins {
    /// With the floor of this node that each was judged under.
    here: Vec<(TenantId, Vec<u8>, Vec<u8>)>,
    here_floors: Vec<u64>,
    there: Vec<proto::JudgedRow>,
    /// Why this node gives no word on some.
    refused: Vec<store::Error>,
}

impl AntiEntropy {
    /// Joins rows from both sides and puts the join where it is missing.
    pub(super) async fn repair_rows(
        &self,
        pair: Pair<'_>,
        engine_keys: &[Vec<u8>],
        summary: &mut Summary,
    ) -> Result<(), Error> {
        let decode = |key: &Vec<u8>| {
            let at = EngineKey::decode(key)?;
            Ok((at.tenant, at.key.to_vec()))
        };
        let mut keys: Keys = engine_keys.iter().map(decode).collect::<Result<_, Error>>()?;
        while !keys.is_empty() {
            let (words, later) = self.ask_rows(pair, keys, summary).await?;
            let (store, is_damaged) = (Arc::clone(&self.store), pair.is_damaged);
            let joins = self.work.run(move || join_with(&store, is_damaged, words)).await;
            let joins = joins.map_err(|_| Error::Stopping)?;
            self.refused(pair.peer, joins.refused.iter(), summary);
            summary.rows += joins.here.len().max(joins.there.len()) as u64;
            self.put_here(pair, joins.here, joins.here_floors, summary).await?;
            if !pair.from_damaged {
                self.put_there(pair, joins.there, summary).await?;
            }
            keys = later;
        }
        Ok(())
    }

    /// What the peer holds under some keys, and the keys it has no room to answer.
    async fn ask_rows(
        &self,
        pair: Pair<'_>,
        keys: Keys,
        summary: &mut Summary,
    ) -> Result<(Vec<(TenantId, Vec<u8>, RawRow)>, Keys), Error> {
        let row_keys = keys
            .iter()
            .map(|(tenant, key)| proto::RowKey { tenant_id: tenant.0, key: key.clone().into() });
        let of_damaged = pair.from_damaged;
        let keys_asked = row_keys.collect();
        let request = proto::ReadRows { keys: keys_asked, of_damaged, ..Default::default() };
        let request = Request::ReadRows(request);
        let answers = self.ask(pair.layout, pair.peer, request).await?.row_answers(keys.len())?;
        let (mut words, mut later) = (Vec::new(), Vec::new());
        for ((tenant, key), answer) in keys.into_iter().zip(answers) {
            match answer.failure {
                // The first row is always answered, so this comes to an end.
                Some(failure) if failure.reason == REPLY_TOO_LARGE && !words.is_empty() => {
                    later.push((tenant, key));
                }
                // It has no word on this row; the next comparison asks again.
                Some(failure) => {
                    self.refused(pair.peer, std::iter::once(&failure.message), summary);
                }
                None => {
                    let row = answer.row.map(|row| row.to_vec());
                    words.push((tenant, key, RawRow { row, floor: answer.floor }));
                }
            }
        }
        Ok((words, later))
    }

    async fn put_here(
        &self,
        pair: Pair<'_>,
        rows: Vec<(TenantId, Vec<u8>, Vec<u8>)>,
        floors: Vec<u64>,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
        let epoch = pair.layout.epoch();
        let (done, joined) = oneshot::channel();
        let submit = move || submit(&store, &*fence, epoch, &rows, &floors, done);
        if !self.work.run(submit).await.map_err(|_| Error::Stopping)? {
            self.still_under(epoch)?;
        }
        let results = joined.await.map_err(|_| Error::Stopping)?;
        self.refused(pair.peer, results.iter().filter_map(|one| one.as_ref().err()), summary);
        Ok(())
    }

    async fn put_there(
        &self,
        pair: Pair<'_>,
        rows: Vec<proto::JudgedRow>,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        let bytes = |row: &proto::JudgedRow| row.state.as_ref().map_or(0, |state| state.row.len());
        for some in messages(&rows, bytes) {
            let request = Request::RepairRows(proto::RepairRows { rows: some.to_vec() });
            let reply = self.ask(pair.layout, pair.peer, request).await?;
            let results = reply.row_results(some.len())?;
            let failures = results.iter().filter_map(|result| result.failure.as_ref());
            self.refused(pair.peer, failures.map(|failure| &failure.message), summary);
        }
        Ok(())
    }

    /// Counts rows that one of the sides did not give or take. They keep no other row from being
    /// repaired; as long as they differ, no safe point moves.
    fn refused<E: std::fmt::Display>(
        &self,
        peer: NodeId,
        errors: impl Iterator<Item = E>,
        summary: &mut Summary,
    ) {
        for error in errors {
            summary.refused += 1;
            tracing::debug!(%peer, %error, "a row was not taken");
        }
    }
}

/// Puts rows into this node's store under an epoch. `false`: it acts under another.
fn submit(
    store: &Store,
    fence: &dyn Fence,
    epoch: u64,
    rows: &[(TenantId, Vec<u8>, Vec<u8>)],
    floors: &[u64],
    done: oneshot::Sender<Vec<store::Result<()>>>,
) -> bool {
    let Ok(_pass) = fence.enter(epoch) else { return false };
    let told = Box::new(move |results| {
        // Nobody may wait any more; the rows are there all the same.
        let _ = done.send(results);
    });
    store.submit_repairs(rows, floors, told);
    true
}

fn join_with(store: &Store, is_damaged: bool, words: Vec<(TenantId, Vec<u8>, RawRow)>) -> Joins {
    let mut joins = Joins::default();
    for (tenant, key, theirs) in words {
        let own = match is_damaged {
            true => store.damaged_row(tenant, &key),
            false => store.raw_row(tenant, &key),
        };
        let joined = own.and_then(|own| Ok((store.join_raw(own.clone(), theirs.clone())?, own)));
        let (joined, own) = match joined {
            Ok((RawRow { row: Some(row), .. }, own)) => (row, own),
            Ok(_) => continue,
            Err(error) => {
                joins.refused.push(error);
                continue;
            }
        };
        if theirs.row.as_ref() != Some(&joined) {
            let (key, row) = (key.clone().into(), joined.clone().into());
            let state = Some(proto::RowState { tenant_id: tenant.0, key, row });
            joins.there.push(proto::JudgedRow { state, floor: theirs.floor });
        }
        if own.row.as_ref() != Some(&joined) {
            joins.here.push((tenant, key, joined));
            joins.here_floors.push(own.floor);
        }
    }
    joins
}
