//! Turns of work that is done every so often, until the node ends. The first is at once; after a
//! turn that took too long the next one comes a whole period later.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// See the module page.
pub(super) struct Ticks {
    interval: Interval,
    closing: CancellationToken,
}

impl Ticks {
    /// A turn each `period`, until `closing`.
    pub fn every(period: Duration, closing: CancellationToken) -> Self {
        let mut interval = interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, closing }
    }

    /// Waits for the next turn. `false`: there is none.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.interval.tick() => true,
            () = self.closing.cancelled() => false,
        }
    }
}
