//! HTTP for operators: `/metrics`, `/health`, `/health/live`, `/health/ready`, `/ready`.
//!
//! 1. So many connections are served at once, more wait to be accepted. While all places are taken
//!    none is kept after its answer: who asks now and then does not keep others out.
//! 2. None holds its place for longer than `SILENCE_MAX` without an answer in that time: neither
//!    one that asks nothing nor one that takes for ever to ask.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::VERSION;
use super::health::{Health, Report};
use super::metrics::{self, Exposition};
use crate::cluster::incoming::Incoming;
use crate::cluster::net::Stream;
use crate::cluster::work::Work;

/// A connection on which nothing was answered for so long ends.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// The node's state.
    pub health: Health,
    /// The figures; none while the store is being opened.
    pub exposition: Arc<std::sync::OnceLock<Exposition>>,
    /// The node's id, once known.
    pub node_id: Arc<std::sync::OnceLock<String>>,
    /// Where figures are gathered.
    pub work: Work,
}

/// Connections as they come, so many at once.
pub struct Listener {
    incoming: Incoming,
    places: Arc<Semaphore>,
    /// All places are taken. Relaxed: it guards no other memory.
    is_full: Arc<AtomicBool>,
}

impl Listener {
    /// Takes what comes in, `connections_max` at once.
    pub fn new(incoming: Incoming, connections_max: usize) -> Self {
        let places = Arc::new(Semaphore::new(connections_max));
        Self { incoming, places, is_full: Arc::default() }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let places = Arc::clone(&self.places);
        self.is_full.store(places.available_permits() == 0, Ordering::Relaxed);
        let place = places.acquire_owned().await;
        self.is_full.store(false, Ordering::Relaxed);
        let _place = place.expect("nobody closes it");
        let (stream, from) =
            std::future::poll_fn(|context| self.incoming.poll_accept(context)).await;
        let silence = Box::pin(sleep(SILENCE_MAX));
        (Connection { stream, silence, _place }, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.incoming.local_addr()
    }
}

/// A connection that ends when it is silent for too long, and then gives its place back.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// Since the last bytes of an answer.
    silence: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.silence.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut *self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.silence.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let written = std::task::ready!(Pin::new(&mut *self.stream).poll_write(context, bytes));
        self.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}

/// Serves the pages until `closing`.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: Listener, pages: Pages, closing: CancellationToken) -> io::Result<()> {
    let is_full = Arc::clone(&listener.is_full);
    let router = router(pages).layer(map_response_with_state(is_full, keep_none_while_full));
    let serving = axum::serve(listener, router);
    serving.with_graceful_shutdown(closing.cancelled_owned()).await
}

/// Ends a connection after its answer while all places are taken: others may wait for its own.
async fn keep_none_while_full(
    Shared(is_full): Shared<Arc<AtomicBool>>,
    mut response: Response,
) -> Response {
    if is_full.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/health", get(show_health))
        .route("/health/live", get(show_live))
        .route("/health/ready", get(show_ready))
        .route("/ready", get(show_ready))
        .with_state(pages)
}

async fn show_metrics(Shared(pages): Shared<Pages>) -> Response {
    let Some(exposition) = pages.exposition.get().cloned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the node is starting\n").into_response();
    };
    // Gathering reads statistics of the store and of the disk: off the async worker.
    match pages.work.run(move || exposition.text()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Ok(Err(error)) => {
            tracing::error!(%error, "cannot write the metrics");
            (StatusCode::INTERNAL_SERVER_ERROR, "cannot write the metrics\n").into_response()
        }
        Err(_panicked) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "cannot read the metrics\n").into_response()
        }
    }
}

async fn show_live(Shared(pages): Shared<Pages>) -> Response {
    report(&pages.health.live())
}

async fn show_ready(Shared(pages): Shared<Pages>) -> Response {
    report(&pages.health.ready())
}

async fn show_health(Shared(pages): Shared<Pages>) -> Response {
    let ready = pages.health.ready();
    let body = serde_json::json!({
        "live": pages.health.live().ok,
        "ready": ready.ok,
        "state": ready.state,
        "reasons": ready.reasons,
        "disk": pages.health.disk().name(),
        "node_id": pages.node_id.get(),
        "version": VERSION,
    });
    json(StatusCode::OK, body.to_string())
}

fn report(report: &Report) -> Response {
    let code = if report.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_string(report).expect("plain fields always serialize");
    json(code, body)
}

fn json(code: StatusCode, body: String) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body + "\n").into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::mpsc;

    use super::*;
    use crate::cluster::net;

    const CONNECTIONS_MAX: usize = 4;

    /// Connections in memory.
    struct Calls(mpsc::UnboundedReceiver<DuplexStream>);

    impl net::Listener for Calls {
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
        }

        fn poll_accept(
            &mut self,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<(Box<dyn Stream>, SocketAddr)>> {
            match std::task::ready!(self.0.poll_recv(context)) {
                Some(stream) => Poll::Ready(Ok((Box::new(stream), self.local_addr()?))),
                None => Poll::Pending,
            }
        }
    }

    /// Serves; who connects sends the other end.
    fn start() -> impl Fn() -> DuplexStream {
        let (calls, incoming) = mpsc::unbounded_channel();
        let pages = Pages {
            health: Health::default(),
            exposition: Arc::default(),
            node_id: Arc::default(),
            work: Work::Inline,
        };
        let listener = Listener::new(Incoming::new(Box::new(Calls(incoming))), CONNECTIONS_MAX);
        tokio::spawn(serve(listener, pages, CancellationToken::new()));
        move || {
            let (near, far) = duplex(1 << 16);
            calls.send(far).expect("it serves");
            near
        }
    }

    /// Asks on a connection that stays open.
    async fn ask(stream: &mut DuplexStream) {
        let request = b"GET /health HTTP/1.1\r\nHost: node\r\n\r\n";
        stream.write_all(request).await.expect("it is open");
        let mut answer = Vec::new();
        while !answer.ends_with(b"}\n") {
            assert!(stream.read_buf(&mut answer).await.expect("it is open") > 0, "it has ended");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{answer:?}");
    }

    /// Law: whoever opens connections takes so many, not all of the node's files, and keeps none
    /// from one that waits: the next one is served when one of them is answered, or ends.
    #[tokio::test(start_paused = true)]
    async fn one_connection_more_than_may_be_waits_until_another_one_is_answered_or_ends() {
        let connect = start();
        let mut first = connect();
        ask(&mut first).await;
        ask(&mut first).await;
        let mut open: Vec<DuplexStream> = (1..CONNECTIONS_MAX).map(|_| connect()).collect();
        let mut late = connect();
        let mut answer = Box::pin(ask(&mut late));
        let early = tokio::time::timeout(SILENCE_MAX / 4, &mut answer).await;
        assert!(early.is_err(), "it is not accepted");
        let began = Instant::now();
        ask(&mut first).await;
        assert!(matches!(first.read(&mut [0]).await, Ok(0)), "its place is wanted");
        answer.await;
        assert_eq!(began.elapsed(), Duration::ZERO);

        drop(late);
        open.push(connect());
        let mut late = connect();
        let mut answer = Box::pin(ask(&mut late));
        let early = tokio::time::timeout(SILENCE_MAX / 4, &mut answer).await;
        assert!(early.is_err(), "it is not accepted");
        let began = Instant::now();
        drop(open.pop());
        answer.await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    /// Places are held neither by who asks nothing nor by who never comes to the end of asking.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_not_answered_for_too_long_ends() {
        let connect = start();
        let (mut silent, mut slow, mut used) = (connect(), connect(), connect());
        for _ in 0..3 {
            ask(&mut used).await;
            // It may have ended already.
            let _ = slow.write_all(b"G").await;
            sleep(SILENCE_MAX / 2).await;
        }
        for stream in [&mut silent, &mut slow] {
            assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)), "it is open");
        }
        ask(&mut used).await;
        ask(&mut connect()).await;
    }
}
