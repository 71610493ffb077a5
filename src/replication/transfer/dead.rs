//! What a newcomer holds and its source has forgotten.
//!
//! A newcomer takes whatever comes, until it knows where its sources are fenced. So it may have
//! been given a late copy of a value that was deleted, of which the sources hold nothing any more,
//! not even that it was: the floor of a source says so. It forgets it before it says that it has
//! merged.

use std::sync::Arc;

use bytes::Bytes;

use super::merge::{From, own_row, word};
use super::{Error, Transfer};
use crate::cluster::peer::Request;
use crate::engine::Position;
use crate::proto;
use crate::replication::messages::messages;
use crate::store::{self, EngineKey, RawRow, Store, TenantId};

/// A row of this node, as it was when it was looked at.
type Own = (TenantId, Bytes, Vec<u8>);

impl Transfer {
    /// Forgets what is dead by the floor of a source: what it does not hold live at or below it.
    pub(super) async fn forget(&self, from: &From<'_>, floor: u64) -> Result<(), Error> {
        if floor == 0 {
            // It calls nothing dead.
            return Ok(());
        }
        let mut cursor = None;
        loop {
            let (store, range) = (Arc::clone(&self.store), from.tokens());
            let bytes = self.settings.page_bytes as usize;
            let page = self.work.run(move || old_rows(&store, range, cursor, bytes, floor)).await;
            let (rows, next) = page.map_err(|_| Error::Stopping)??;
            for some in messages(&rows, |(_, key, _)| key.len()) {
                for own in self.differing(from, some).await? {
                    self.join_by_floors(from, own).await?;
                }
            }
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Those of some rows that the source holds otherwise, or not at all.
    async fn differing(&self, from: &From<'_>, rows: &[Own]) -> Result<Vec<Own>, Error> {
        let mut differing = Vec::new();
        for (own, answer) in rows.iter().zip(self.answers(from, rows, true).await?) {
            let Some(answer) = word(answer)? else { continue };
            let raw = RawRow { row: Some(own.2.clone()), floor: answer.floor };
            if self.store.digest(&raw)? != answer.digest {
                differing.push(own.clone());
            }
        }
        Ok(differing)
    }

    async fn answers(
        &self,
        from: &From<'_>,
        rows: &[Own],
        digest_only: bool,
    ) -> Result<Vec<proto::RowAnswer>, Error> {
        let key = |(tenant, key, _): &Own| proto::RowKey { tenant_id: tenant.0, key: key.clone() };
        let keys = rows.iter().map(key).collect();
        let request =
            Request::ReadRows(proto::ReadRows { keys, digest_only, ..Default::default() });
        Ok(self.ask(from, request).await?.row_answers(rows.len())?)
    }

    /// Takes over what the floors of both leave of a row.
    async fn join_by_floors(&self, from: &From<'_>, own: Own) -> Result<(), Error> {
        for answer in self.answers(from, std::slice::from_ref(&own), false).await? {
            let Some(answer) = word(answer)? else { continue };
            let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
            let (epoch, (tenant, key, _)) = (from.layout.epoch(), own.clone());
            let work = self.work.run(move || {
                // Anew: it may have been written to since.
                let own = own_row(&store, tenant, &key)?;
                let theirs = RawRow { row: answer.row.map(Into::into), floor: answer.floor };
                let joined = store.join_raw(own.clone(), theirs)?;
                let Some(row) = joined.row.filter(|row| Some(row) != own.row.as_ref()) else {
                    return Ok::<_, Error>(Position::ZERO);
                };
                let _pass = fence.enter(epoch).map_err(|_| Error::Layout)?;
                let rows = [(tenant, key.to_vec(), row)];
                let (results, joined) = store.join_repairs(&rows, &[own.floor]);
                results.into_iter().try_for_each(|result| result)?;
                Ok(joined)
            });
            let joined = work.await.map_err(|_| Error::Stopping)??;
            self.wait_durable(joined).await?;
        }
        Ok(())
    }
}

/// Rows of this node with a version at or below a floor, and where to go on.
fn old_rows(
    store: &Store,
    range: store::TokenRange,
    cursor: Option<Vec<u8>>,
    bytes: usize,
    floor: u64,
) -> store::Result<(Vec<Own>, Option<Vec<u8>>)> {
    let mut rows = Vec::new();
    let next = store.visit_by_token(range, cursor.as_deref(), bytes, |engine_key, row| {
        if store.has_version_below(row, floor)? {
            let at = EngineKey::decode(engine_key)?;
            rows.push((at.tenant, Bytes::copy_from_slice(at.key), row.to_vec()));
        }
        Ok(true)
    })?;
    Ok((rows, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::reason::NOT_A_REPLICA;

    /// One that cannot read its row, say: what is dead by its word would stay for good.
    #[test]
    fn only_who_is_no_replica_has_no_word() {
        let answer = |reason: &str| {
            let failure = proto::Failure { reason: reason.to_owned(), ..Default::default() };
            proto::RowAnswer { failure: Some(failure), ..Default::default() }
        };
        assert!(word(proto::RowAnswer::default()).is_ok_and(|word| word.is_some()));
        assert!(word(answer(NOT_A_REPLICA)).is_ok_and(|word| word.is_none()));
        assert!(word(answer("DAMAGED")).is_err());
    }
}
