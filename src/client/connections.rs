//! Connections to a node or several, taken in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use super::{Error, Options};
use crate::cluster::net::Net;

/// Makes connections as the client's options say.
#[derive(Clone)]
pub(super) struct Connector {
    /// `None`: the operating system's.
    net: Option<Arc<dyn Net>>,
    connections: usize,
    connect_timeout: Duration,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("connections", &self.connections).finish_non_exhaustive()
    }
}

/// A connection, and where it goes.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub uri: Arc<str>,
    pub channel: Channel,
}

/// Connections that are alike.
#[derive(Debug)]
pub(super) struct Connections {
    /// To each node in turn, as often as there are connections to each.
    all: Vec<Connection>,
    nodes: usize,
    // Relaxed: only spreads load.
    next: AtomicUsize,
}

impl Connector {
    pub fn new(net: Option<Arc<dyn Net>>, options: &Options) -> Self {
        let connect_timeout = options.connect_timeout;
        Self { net, connections: options.channels.max(1), connect_timeout }
    }

    /// Connections to nodes, that are made when they are first used, and again whenever they must.
    pub fn to(&self, uris: &[String]) -> Result<Connections, Error> {
        let endpoints = uris.iter().map(|uri| Ok((Arc::from(&**uri), self.endpoint(uri)?)));
        let endpoints = endpoints.collect::<Result<Vec<(Arc<str>, Endpoint)>, Error>>()?;
        if endpoints.is_empty() {
            let why = "none is given".to_owned();
            return Err(Error::Endpoint { uri: String::new(), why });
        }
        let turns = (0..self.connections).flat_map(|_| &endpoints);
        let all = turns
            .map(|(uri, endpoint)| Connection {
                uri: Arc::clone(uri),
                channel: self.connect(endpoint),
            })
            .collect();
        Ok(Connections { all, nodes: endpoints.len(), next: AtomicUsize::new(0) })
    }

    fn endpoint(&self, uri: &str) -> Result<Endpoint, Error> {
        let invalid = |why: String| Error::Endpoint { uri: uri.to_owned(), why };
        if !uri.starts_with("http://") {
            return Err(invalid("it must begin with http://".to_owned()));
        }
        let endpoint =
            Endpoint::from_shared(uri.to_owned()).map_err(|error| invalid(error.to_string()))?;
        let endpoint = endpoint
            .user_agent(concat!("pairdb-client/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| invalid(error.to_string()))?;
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .tcp_nodelay(true))
    }

    fn connect(&self, endpoint: &Endpoint) -> Channel {
        let Some(net) = &self.net else { return endpoint.connect_lazy() };
        let net = Arc::clone(net);
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let net = Arc::clone(&net);
            async move {
                let address = uri.authority().map_or("", |authority| authority.as_str());
                net.connect(address).await.map(TokioIo::new)
            }
        }))
    }
}

impl Connections {
    /// The next one.
    pub fn next(&self) -> Connection {
        self.turn().0
    }

    /// The next one, and one to each other node.
    pub fn turn(&self) -> (Connection, impl Iterator<Item = Connection>) {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let at = |at: usize| self.all[at % self.all.len()].clone();
        (at(first), (1..self.nodes).map(move |behind| at(first + behind)))
    }
}
