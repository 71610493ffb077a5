//! A server that answers as no node should, or not at all: what commands make of that.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::{BodyExt as _, Full};
use pairdb::proto;
use prost::Message;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What a call is answered by.
pub enum Answer {
    /// These messages, each encoded, and then a status.
    Messages(Vec<Vec<u8>>, Status),
    /// Nothing, ever.
    Silence,
}

impl Answer {
    /// One message, and that all is well.
    pub fn one(message: &impl Message) -> Self {
        Self::Messages(vec![message.encode_to_vec()], Status::new(Code::Ok, ""))
    }

    /// A refusal as a node puts it.
    pub fn refusal(code: Code, reason: &str) -> Self {
        Self::Messages(Vec::new(), refusal(code, reason))
    }

    /// Adds messages before those that are there.
    pub fn after(self, message: &impl Message) -> Self {
        match self {
            Self::Silence => Self::Silence,
            Self::Messages(mut messages, status) => {
                messages.insert(0, message.encode_to_vec());
                Self::Messages(messages, status)
            }
        }
    }
}

fn refusal(code: Code, reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, "pairdb", HashMap::new());
    Status::with_error_details(code, "the fake refuses", details)
}

/// Answers a call by its method's name and its message.
type Script = dyn Fn(&str, &[u8]) -> Answer + Send + Sync;

/// The server, for as long as it is held.
pub struct Fake {
    pub endpoint: String,
    _runtime: Runtime,
}

impl Fake {
    /// One that says that it is a cluster with the tenant `default`; `script` answers the rest.
    pub fn cluster(script: impl Fn(&str, &[u8]) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(move |method, message| match method {
            "ClusterStatus" => Answer::one(&proto::ClusterStatusResponse {
                cluster_id: "the-fake".to_owned(),
                ..Default::default()
            }),
            "ListTenants" => Answer::one(&proto::ListTenantsResponse {
                tenants: vec![proto::Tenant {
                    name: "default".to_owned(),
                    mode: proto::TenantMode::Siblings.into(),
                    ..Default::default()
                }],
            }),
            _ => script(method, message),
        })
    }

    pub fn start(script: impl Fn(&str, &[u8]) -> Answer + Send + Sync + 'static) -> Self {
        let runtime = Runtime::new().expect("threads");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let script: Arc<Script> = Arc::new(script);
        let server = Server::builder()
            .add_service(Scripted::<true>(Arc::clone(&script)))
            .add_service(Scripted::<false>(script))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(server);
        Self { endpoint, _runtime: runtime }
    }
}

/// A service: that of operators, or that of clients.
#[derive(Clone)]
struct Scripted<const ADMIN: bool>(Arc<Script>);

impl NamedService for Scripted<true> {
    const NAME: &'static str = "pairdb.v1.Admin";
}

impl NamedService for Scripted<false> {
    const NAME: &'static str = "pairdb.v1.KeyValue";
}

impl<const ADMIN: bool> Service<http::Request<Body>> for Scripted<ADMIN> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let script = Arc::clone(&self.0);
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            // Before the message there are a flag and its length.
            match script(&method, body.get(5..).unwrap_or_default()) {
                Answer::Messages(messages, status) => Ok(response(&messages, &status)),
                Answer::Silence => pending().await,
            }
        })
    }
}

fn response(messages: &[Vec<u8>], status: &Status) -> http::Response<Body> {
    let mut bytes = Vec::new();
    for message in messages {
        let length = u32::try_from(message.len()).expect("a short message");
        bytes.push(0);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(message);
    }
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers).expect("plain text");
    let body = Full::new(bytes::Bytes::from(bytes));
    let body = body.with_trailers(async move { Some(Ok::<_, Infallible>(trailers)) });
    let response = http::Response::builder().header("content-type", "application/grpc");
    response.body(Body::new(body)).expect("a response")
}
