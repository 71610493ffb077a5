//! The rows of a tenant, part of the ring after part, in pages.
//!
//! ```text
//! given out | ready | parts being read, in order          | rest
//!           ^ the place that a cursor names
//! ```
//!
//! Parts are read ahead while they turn out to be short, so that a ring of a thousand nearly empty
//! partitions is not walked one round trip after the other; a part that fills a page is read alone.
//!
//! 1. Every row that was there all the time is shown once. A cursor is a place in the order of the
//!    engine's keys: it is good on any node, under any layout.
//! 2. Memory is bounded: the parts being read, each with a page. Nothing is read unless a page is
//!    asked for.
//! 3. On a word of a later epoch what was being read is dropped, and read again under that epoch.
//! 4. What was begun ahead for an earlier page has that page's deadline. Where it has less than
//!    half the time of the page at hand it is begun anew: a reader may pause for as long as he
//!    likes.
//! 5. A part that cannot be read ends the walk there with an error that names the partition. What
//!    was read before it is given out first; a later page tries again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::time::Instant;

use super::part::{Failed, Part, PartPage, ScannedRow, Want, partition_of};
use super::read::{ReadOptions, Stale};
use super::{Coordinator, count};
use crate::replication::error::{Error, Result};
use crate::replication::level::Level;
use crate::store::{KeyRange, PageBounds, ScanPlan, ScanRequest};

/// Parts read at the same time at most.
const AHEAD_MAX: usize = 8;
/// Rows asked of a part at least: many of them may be dead.
const PART_ROWS_MIN: usize = 32;
/// A page that takes longer is given out as it is, for the caller to see that it goes on.
const PATIENCE: Duration = Duration::from_secs(1);

/// Rows of a walk, and where it goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalkPage {
    /// In the order of the engine's keys.
    pub rows: Vec<ScannedRow>,
    /// For a walk that goes on behind them, on any node; `None`: there is nothing behind them.
    pub cursor: Option<Vec<u8>>,
}

type Reading = BoxFuture<'static, Result<PartPage, Failed>>;

/// A scan under way. Dropping it ends it.
pub struct Walk {
    coordinator: Arc<Coordinator>,
    plan: ScanPlan,
    want: Want,
    level: Level,
    ready: VecDeque<ScannedRow>,
    /// What is being read: one for each of `reading`, in the same order.
    parts: VecDeque<Part>,
    reading: FuturesOrdered<Reading>,
    /// The earliest deadline of `reading`.
    reading_until: Option<Instant>,
    /// What is not being read yet.
    rest: Option<KeyRange>,
    window: usize,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Coordinator {
    /// Begins a scan, or goes on where the cursor of the request says. Its limits are the pages'.
    ///
    /// # Errors
    /// The tenant is not known; the cursor belongs to another scan.
    pub fn walk(
        self: &Arc<Self>,
        tenant: &str,
        request: &ScanRequest,
        want: Want,
        level: Level,
    ) -> Result<Walk> {
        let plan = self.store.plan_scan(tenant, request)?;
        let rest = (!plan.range.is_empty()).then(|| plan.range.clone());
        Ok(Walk {
            coordinator: Arc::clone(self),
            plan,
            want,
            level,
            ready: VecDeque::new(),
            parts: VecDeque::new(),
            reading: FuturesOrdered::new(),
            reading_until: None,
            rest,
            window: 1,
        })
    }
}

impl Walk {
    /// The next page: up to `bounds`, or shorter. May be dropped half way and asked for again.
    ///
    /// # Errors
    /// The next part of the ring cannot be read: [`Error::Partition`].
    pub async fn page(&mut self, bounds: PageBounds, deadline: Instant) -> Result<WalkPage> {
        let began = Instant::now();
        if let Some(until) = self.reading_until
            && until.saturating_duration_since(began)
                < deadline.saturating_duration_since(began) / 2
        {
            self.forget_ahead();
        }
        let store = &self.coordinator.store;
        let (rows_max, bytes_max) =
            (store.limits().scan_rows(bounds.rows), store.limits().scan_bytes(bounds.bytes));
        loop {
            let has = self.has(rows_max, bytes_max);
            if has.is_full || self.place().is_none() || began.elapsed() >= PATIENCE {
                return Ok(self.give(has.rows));
            }
            let left = PageBounds {
                rows: (rows_max - has.rows).max(PART_ROWS_MIN),
                bytes: bytes_max - has.bytes,
            };
            match self.read(left, deadline).await {
                Ok(()) => {}
                Err(Failed::Stale(stale)) => self.start_over(stale, deadline).await?,
                Err(Failed::Error(_)) if has.rows > 0 => return Ok(self.give(has.rows)),
                Err(Failed::Error(error)) => return Err(self.named(error)),
            }
        }
    }

    /// Where reading goes on: behind everything that is ready. `None`: at the end.
    fn place(&self) -> Option<&[u8]> {
        let next = self.parts.front().map(|part| &part.range);
        next.or(self.rest.as_ref()).map(|range| &range.start[..])
    }

    /// How much of a page is ready.
    fn has(&self, rows_max: usize, bytes_max: usize) -> Has {
        let mut has = Has { rows: 0, bytes: 0, is_full: false };
        for row in &self.ready {
            has.rows += 1;
            has.bytes += row.bytes();
            has.is_full = has.rows >= rows_max || has.bytes >= bytes_max;
            if has.is_full {
                break;
            }
        }
        has
    }

    fn give(&mut self, rows: usize) -> WalkPage {
        let rows: Vec<ScannedRow> = self.ready.drain(..rows).collect();
        let cursor = match (self.ready.is_empty(), rows.last()) {
            (false, Some(last)) => Some(self.plan.cursor_behind(&last.key)),
            _ => self.place().map(|place| self.plan.cursor(place)),
        };
        WalkPage { rows, cursor }
    }

    /// Reads the next part, and others ahead of it.
    async fn read(&mut self, bounds: PageBounds, deadline: Instant) -> Result<(), Failed> {
        self.look_ahead(bounds, deadline);
        let Some(page) = self.reading.next().await else { return Ok(()) };
        let part = self.parts.pop_front();
        if self.reading.is_empty() {
            self.reading_until = None;
        }
        let page = match page {
            Ok(page) => page,
            Err(failed) => {
                // All of it is read again: what lies behind it cannot be given out before it.
                self.parts.extend(part);
                self.parts.rotate_right(1);
                self.forget_ahead();
                return Err(failed);
            }
        };
        self.ready.extend(page.rows);
        match (page.next, part) {
            (Some(next), Some(part)) => {
                self.window = 1;
                let rest = part.from(next);
                let reading = self.begin(&rest, bounds, deadline);
                self.reading.push_front(reading);
                self.parts.push_front(rest);
            }
            _ => self.window = (self.window * 2).min(AHEAD_MAX),
        }
        Ok(())
    }

    fn look_ahead(&mut self, bounds: PageBounds, deadline: Instant) {
        let layout = self.coordinator.layout();
        let filter = Arc::clone(&self.plan.filter);
        while self.parts.len() < self.window
            && let Some(KeyRange { start, end }) = self.rest.take()
        {
            let part = Part::at(&layout, &filter.tenant, start, end.as_deref());
            let behind = part.behind(end.as_deref().unwrap_or_default());
            self.rest = behind.map(|start| KeyRange { start, end });
            let reading = self.begin(&part, bounds, deadline);
            self.reading.push_back(reading);
            self.parts.push_back(part);
        }
    }

    fn begin(&mut self, part: &Part, bounds: PageBounds, deadline: Instant) -> Reading {
        self.reading_until = Some(self.reading_until.map_or(deadline, |until| until.min(deadline)));
        let options = ReadOptions { level: self.level, deadline };
        let filter = Arc::clone(&self.plan.filter);
        Arc::clone(&self.coordinator)
            .read_part(filter, part.clone(), self.want, bounds, options)
            .boxed()
    }

    /// Takes back what is being read.
    fn forget_ahead(&mut self) {
        let Some(first) = self.parts.front() else { return };
        self.rest = Some(KeyRange { start: first.range.start.clone(), end: self.end() });
        self.parts.clear();
        self.reading.clear();
        self.reading_until = None;
        self.window = 1;
    }

    fn end(&self) -> Option<Vec<u8>> {
        self.plan.range.end.clone()
    }

    async fn start_over(&mut self, stale: Stale, deadline: Instant) -> Result<()> {
        let Stale { from, epoch } = stale;
        count(&self.coordinator.counters.restarts, 1);
        if self.coordinator.wait_for_layout(epoch - 1, from, deadline).await {
            return Ok(());
        }
        Err(self.named(Error::LayoutUnknown))
    }

    /// An error with the partition that it is about.
    fn named(&self, error: Error) -> Error {
        let place = self.place().unwrap_or_default();
        let partition = partition_of(&self.coordinator.layout(), place);
        Error::Partition { partition, source: Box::new(error) }
    }
}

/// How much of a page is ready.
struct Has {
    rows: usize,
    bytes: usize,
    is_full: bool,
}
