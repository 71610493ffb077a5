//! Signals: the first SIGTERM or SIGINT asks for a graceful stop, the second for a fast one.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two requests to stop.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled when a graceful stop is asked for.
    pub graceful: CancellationToken,
    /// Cancelled when a fast stop is asked for.
    pub fast: CancellationToken,
}

impl Shutdown {
    /// Begins to listen for signals; call it within a runtime.
    ///
    /// # Errors
    /// The system gives no signal handler.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(shutdown.clone().listen(terminate, interrupt));
        Ok(shutdown)
    }

    async fn listen(self, mut terminate: Signal, mut interrupt: Signal) {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            self.request();
        }
    }

    /// What one more signal does.
    pub fn request(&self) {
        if self.graceful.is_cancelled() {
            tracing::warn!("asked again to stop: stopping fast");
            self.fast.cancel();
        } else {
            tracing::info!("asked to stop");
            self.graceful.cancel();
        }
    }
}
