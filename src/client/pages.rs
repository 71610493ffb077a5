//! The pages of a scan, up to the last.
//!
//! 1. That there is no other page is said only behind the last one: a stream that ends before it
//!    has broken, and the last cursor goes on.

use std::sync::Arc;

use tonic::Streaming;

use super::Error;
use crate::proto;

/// Pages as they come. After an error there are no others.
#[derive(Debug)]
pub struct Pages {
    stream: Streaming<proto::ScanResponse>,
    /// Where it comes from.
    uri: Arc<str>,
    /// Of a limit.
    rows_left: Option<u64>,
    is_over: bool,
}

impl Pages {
    pub(super) fn new(stream: Streaming<proto::ScanResponse>, uri: Arc<str>, limit: u64) -> Self {
        Self { stream, uri, rows_left: (limit > 0).then_some(limit), is_over: false }
    }

    /// The next page; none after the last.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::ended_early`] if the stream ends before the last page.
    pub async fn next(&mut self) -> Result<Option<proto::ScanResponse>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let page = self.stream.message().await;
        let at = |error: Error| error.at(std::slice::from_ref(&self.uri));
        let page = page.map_err(|status| at(Error::of(&status, false)))?;
        let page = page.ok_or_else(Error::ended_early)?;
        let rows = page.rows.len() as u64;
        self.rows_left = self.rows_left.map(|left| left.saturating_sub(rows));
        // A limit may end a scan before the rows do.
        self.is_over = page.cursor.is_empty() || self.rows_left == Some(0);
        Ok(Some(page))
    }

    /// Whether the last page was given.
    pub fn is_over(&self) -> bool {
        self.is_over
    }
}
