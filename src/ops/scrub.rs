//! Reads all tables again every so often, slowly, to find damage while other replicas are whole.
//!
//! The commit log is not read: its records are in memory until they are in tables, minutes later,
//! and its checksums are looked at when it is replayed.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ticks::Ticks;
use crate::cluster::work::Work;
use crate::store::{ScrubPass, Store};

/// The first pass begins so long after a start, if passes are further apart than that: a node that
/// is started anew more often than passes are due has some all the same.
const FIRST: Duration = Duration::from_secs(3600);
/// How often a piece is read.
const TURN: Duration = Duration::from_millis(250);

/// When and how fast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From the end of a pass to the begin of the next; zero: there are none.
    pub interval: Duration,
    /// While there is one.
    pub bytes_per_second: u64,
}

/// Until the node ends.
pub(super) async fn run(store: Arc<Store>, work: Work, pace: Pace, closing: CancellationToken) {
    if pace.interval.is_zero() {
        return;
    }
    let mut wait = pace.interval.min(FIRST);
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = closing.cancelled() => return,
        }
        wait = pace.interval;
        if !pass(&store, &work, pace, closing.clone()).await {
            return;
        }
    }
}

/// One pass. `false`: the node ends.
async fn pass(store: &Arc<Store>, work: &Work, pace: Pace, closing: CancellationToken) -> bool {
    let mut pass = store.begin_scrub();
    let mut ticks = Ticks::every(TURN, closing);
    // What a piece reads beyond its share, the next ones wait for.
    let mut allowed = 0_i64;
    let share = pace.bytes_per_second.saturating_mul(TURN.as_millis() as u64) / 1000;
    let share = i64::try_from(share).unwrap_or(i64::MAX);
    while ticks.next().await {
        allowed = share.saturating_add(allowed).min(share);
        if allowed <= 0 {
            continue;
        }
        let of = Arc::clone(store);
        let read = work.run(move || {
            let read = of.scrub_some(&mut pass, allowed.unsigned_abs());
            (pass, read)
        });
        let Ok((given_back, read)) = read.await else { return true };
        pass = given_back;
        match read {
            Ok(Some(read)) => allowed = allowed.saturating_sub_unsigned(read),
            Ok(None) => {
                tell(&pass);
                return true;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot note what a scrub found");
                return true;
            }
        }
    }
    false
}

fn tell(pass: &ScrubPass) {
    let (tables, bytes, damaged) =
        (pass.report.tables, pass.report.bytes, pass.report.damaged.len());
    tracing::info!(tables, bytes, damaged, "all tables were read again");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::vfs::Vfs;
    use crate::engine::vfs::mem::MemVfs;
    use crate::store::environment::ManualClock;
    use crate::store::{Environment, Mutation, StoreOptions};

    /// A bit that flips in a table which nobody reads is found, at a bounded rate, without help.
    #[tokio::test(start_paused = true)]
    async fn what_rots_unread_is_found_slowly_and_by_itself() {
        let (vfs, clock) = (MemVfs::new(), ManualClock::new(1_700_000_000_000));
        let open = || {
            let mut options = StoreOptions::default();
            options.engine.compaction_threads = 0;
            let environment = Environment::simulated(Arc::new(vfs.clone()), &clock, 1);
            Arc::new(Store::open_in(Path::new("/node"), options, environment).expect("opens"))
        };
        let store = open();
        for n in 0..200 {
            let key = format!("k{n}").into_bytes();
            let value = Some(vec![7; 1000]);
            let write = Mutation { key, value, ..Mutation::default() };
            store.write("default", write).expect("written");
        }
        store.close().expect("closed");
        drop(store);
        let dir = Path::new("/node/engine");
        let names = vfs.list(dir).expect("lists");
        let is_table = |name: &&std::path::PathBuf| name.extension().is_some_and(|e| e == "sst");
        let table = dir.join(names.iter().find(is_table).expect("a table"));
        let file = vfs.open(&table).expect("opens");
        let mut byte = [0];
        let at = file.len().expect("measured") / 2;
        file.read_at(at, &mut byte).expect("reads");
        file.write_at(at, &[byte[0] ^ 1]).expect("writes");

        let store = open();
        let closing = CancellationToken::new();
        let pace = Pace { interval: Duration::from_secs(60), bytes_per_second: 10_000 };
        let running = tokio::spawn(run(store.clone(), Work::Inline, pace, closing.clone()));
        tokio::time::sleep(Duration::from_secs(63)).await;
        let read = store.stats().engine.scrubbed_bytes;
        assert!((20_000..40_000).contains(&read), "{read} bytes in three seconds");
        assert_eq!(store.unreadable(), []);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(store.unreadable().len(), 1);
        let read = store.stats().engine.scrubbed_bytes;
        assert!(read > 200_000, "{read} bytes in a pass");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(store.stats().engine.scrubbed_bytes, read, "not yet again");
        closing.cancel();
        running.await.expect("it ends");
    }
}
