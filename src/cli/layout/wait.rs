//! Following a change of the layout to its end.

use std::time::Duration;

use tokio::time::Instant;

use super::show::phase_name;
use super::status;
use crate::cli::args::Connect;
use crate::cli::failure::Failure;
use crate::cli::progress::share_bar;
use crate::client::Client;
use crate::proto;

/// The exit code where a change goes on without being waited for any longer.
pub(crate) const UNDER_WAY: u8 = 7;
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);

/// Waits until the change that began in `epoch` has ended: the owners have changed, and nobody
/// holds rows of others any more. A node that does not answer is asked again.
pub(crate) async fn wait_until_stable(
    client: &Client,
    connect: &Connect,
    epoch: u64,
) -> Result<(), Failure> {
    let bar = share_bar();
    let end = Instant::now() + connect.patience();
    let mut said = String::new();
    loop {
        match status(client).await {
            Err(failure) if !failure.may_pass() => return Err(failure),
            Err(_) => {}
            Ok(status) => {
                let state = status.layout.unwrap_or_default().state.unwrap_or_default();
                if state.phase() == proto::TransitionPhase::Stable && state.epoch >= epoch {
                    bar.finish_and_clear();
                    return Ok(());
                }
                bar.set_position((share(&state) * 1000.0) as u64);
                let mut message = phase_name(state.phase()).to_owned();
                for one in &state.waits_for {
                    message += &format!("; waits for {one}");
                }
                if message != said {
                    // Said once to who has no terminal to show the bar on.
                    if bar.is_hidden() {
                        eprintln!("pairdb: {message}");
                    }
                    bar.set_message(message.clone());
                    said = message;
                }
            }
        }
        if Instant::now() + LOOK > end {
            bar.finish_and_clear();
            let message = format!("the change goes on without being waited for ({said})");
            return Err(Failure::with_code(UNDER_WAY, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How much is done of what is told, 0 to 1.
fn share(state: &proto::TransitionState) -> f64 {
    let all: u64 = state.progress.iter().map(|one| one.partitions).sum();
    let done: u64 = state.progress.iter().map(|one| one.partitions_done).sum();
    if all == 0 { 0.0 } else { (done as f64 / all as f64).min(1.0) }
}
