//! The layer before every call: it names the call, bounds how many run, sets the deadline, counts
//! the answer, and completes statuses that the gRPC library made by itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::{Code, Status, body::Body};
use tower::Layer;

use super::deadline::Deadline;
use super::limits::Gate;
use super::method::{Class, Method};
use super::metrics::{Metrics, code_name};
use super::receipt::Receipt;
use super::request_id::{self, RequestId};
use super::status::{self, Problem};
use crate::cluster::layout::Layout;
use crate::store::Outcome;

/// By which a client says under which layout's epoch it chose this node, and is told of another.
pub const LAYOUT_HEADER: &str = "pairdb-layout";

/// What all connections of a listener share.
#[derive(Debug)]
pub struct Front {
    /// Bounds reads and writes of all connections together.
    pub gate: Gate,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Cap on the time of a unary call.
    pub deadline_max: Duration,
    /// Calls that take longer are logged.
    pub slow: Duration,
    /// Reads and writes are refused until it is set; for peers it is set from the start.
    pub serving: Arc<AtomicBool>,
    /// The layout this node acts under.
    pub layout: watch::Receiver<Arc<Layout>>,
}

/// Puts [`Front`] before a service.
#[derive(Clone, Debug)]
pub struct FrontLayer(pub Arc<Front>);

impl<S> Layer<S> for FrontLayer {
    type Service = FrontService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FrontService { front: Arc::clone(&self.0), inner }
    }
}

/// A service behind a [`Front`].
#[derive(Clone, Debug)]
pub struct FrontService<S> {
    front: Arc<Front>,
    inner: S,
}

impl<S> Service<http::Request<Body>> for FrontService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // The clone may not be ready; the one that was polled is.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let front = Arc::clone(&self.front);
        let method = Method::of_path(request.uri().path());
        // From here on, as the library's own timeout: it must not be ahead by what this one waits
        // for its turn on the worker.
        let began = Instant::now();
        let deadline = front.deadline_of(method, request.headers());
        Box::pin(async move {
            let id = RequestId::accept_or_make(request.headers());
            let stale = front.stale_layout(request.headers());
            let _counted = InFlight::enter(&front.metrics);
            let answer = front.serve(method, deadline, &mut inner, request).await;
            let mut response = match answer {
                Ok(response) => complete(response, method),
                Err(problem) => refuse(problem, method.class()).into_http(),
            };
            let code = code_of(&response);
            let took = began.elapsed();
            front.metrics.answered(method, code, took);
            front.log(method, code, took, &id);
            response.headers_mut().insert(request_id::HEADER, id.into_header());
            if let Some(epoch) = stale {
                response.headers_mut().insert(LAYOUT_HEADER, epoch.into());
            }
            Ok(response)
        })
    }
}

impl Front {
    async fn serve<S>(
        &self,
        method: Method,
        deadline: Result<Deadline, Problem>,
        inner: &mut S,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Problem>
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    {
        let class = method.class();
        let is_upkeep = matches!(class, Class::Admin | Class::Other);
        if !is_upkeep && !self.serving.load(Ordering::Acquire) {
            return Err(Problem::starting());
        }
        let deadline = deadline?;
        let _place = match class {
            Class::Read | Class::Write => Some(self.gate.enter(deadline).await?),
            Class::Stream | Class::Admin | Class::Other => None,
        };
        // A handler answers its own deadline, since only it knows whether a write was submitted. A
        // call that never comes to its handler (headers without a body) ends with its receipt.
        let mut request = match deadline.instant() {
            None => request,
            Some(end) => request.map(|body| Body::new(Receipt::new(body, end, class))),
        };
        request.extensions_mut().insert(deadline);
        Ok(inner.call(request).await.unwrap_or_else(|never| match never {}))
    }

    /// When a call must be answered, if it says so well.
    fn deadline_of(&self, method: Method, headers: &http::HeaderMap) -> Result<Deadline, Problem> {
        let is_capped = matches!(method.class(), Class::Read | Class::Write);
        Deadline::from_headers(headers, is_capped.then_some(self.deadline_max))
    }

    /// This node's epoch, if the request names another one.
    fn stale_layout(&self, headers: &http::HeaderMap) -> Option<u64> {
        let named = headers.get(LAYOUT_HEADER)?.to_str().ok()?.parse::<u64>().ok();
        let own = self.layout.borrow().epoch();
        (named != Some(own)).then_some(own)
    }

    fn log(&self, method: Method, code: Code, took: Duration, id: &RequestId) {
        let (service, name) = method.names();
        let (code, id) = (code_name(code), id.as_str());
        let took_ms = took.as_secs_f64() * 1e3;
        if took >= self.slow && method.class() != Class::Admin {
            tracing::warn!(service, method = name, code, request_id = id, took_ms, "slow request");
        } else {
            tracing::debug!(service, method = name, code, request_id = id, took_ms, "request");
        }
    }
}

/// Counts a call while it lives, also when its client goes away.
struct InFlight<'a>(&'a Metrics);

impl<'a> InFlight<'a> {
    fn enter(metrics: &'a Metrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

/// The status of a call that its handler never saw.
pub(super) fn refuse(problem: Problem, class: Class) -> Status {
    match class {
        Class::Write => problem.of_write(Outcome::NotApplied).into(),
        _ => problem.into(),
    }
}

/// The code in the head; a head without one begins an answer.
fn code_of(response: &http::Response<Body>) -> Code {
    let status = response.headers().get(Status::GRPC_STATUS);
    status.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

/// Gives an error without details the details every error has.
fn complete(response: http::Response<Body>, method: Method) -> http::Response<Body> {
    if code_of(&response) == Code::Ok {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(bare) if bare.details().is_empty() => {
            status::complete(bare, method.class() == Class::Write).into_http()
        }
        _ => response,
    }
}
