//! Connections as they come, whatever becomes of single ones.

use std::future::Future as _;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::net::{Listener, Stream};

/// The pause after an error that is not of one connection only, such as too many open files: the
/// next call would fail at once, again and again.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener that goes on after errors.
pub struct Incoming {
    listener: Box<dyn Listener>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// Takes what comes in at `listener`.
    pub fn new(listener: Box<dyn Listener>) -> Self {
        Self { listener, pause: None }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The listener does not know.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection and where it comes from. Call it within a runtime.
    pub fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<(Box<dyn Stream>, SocketAddr)> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(context)) {
                Ok(accepted) => return Poll::Ready(accepted),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                }
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Gives errors, then a connection.
    struct Failing(VecDeque<ErrorKind>);

    impl Listener for Failing {
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
        }

        fn poll_accept(
            &mut self,
            _context: &mut Context<'_>,
        ) -> Poll<io::Result<(Box<dyn Stream>, SocketAddr)>> {
            Poll::Ready(match self.0.pop_front() {
                Some(kind) => Err(kind.into()),
                None => Ok((Box::new(tokio::io::empty()), self.local_addr()?)),
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_out_of_files_pauses_and_one_lost_connection_does_not_hold_up_the_next() {
        let began = tokio::time::Instant::now();
        let kinds = [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset];
        let mut incoming = Incoming::new(Box::new(Failing(kinds.into())));
        std::future::poll_fn(|context| incoming.poll_accept(context)).await;
        assert_eq!(began.elapsed(), Duration::ZERO);

        let mut incoming = Incoming::new(Box::new(Failing([ErrorKind::Other; 2].into())));
        std::future::poll_fn(|context| incoming.poll_accept(context)).await;
        assert_eq!(began.elapsed(), 2 * PAUSE);
    }
}
