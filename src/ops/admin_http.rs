//! HTTP for operators: `/metrics`, `/health`, `/health/live`, `/health/ready`, `/ready`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use super::VERSION;
use super::health::{Health, Report};
use super::metrics::{self, Exposition};
use crate::cluster::incoming::Incoming;
use crate::cluster::net::Stream;
use crate::cluster::work::Work;

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

/// [`Incoming`] as the HTTP library takes it.
struct Listener(Incoming);

impl axum::serve::Listener for Listener {
    type Io = Box<dyn Stream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        std::future::poll_fn(|context| self.0.poll_accept(context)).await
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Serves the pages until `closing`.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    incoming: Incoming,
    pages: Pages,
    closing: CancellationToken,
) -> std::io::Result<()> {
    let serving = axum::serve(Listener(incoming), router(pages));
    serving.with_graceful_shutdown(closing.cancelled_owned()).await
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
