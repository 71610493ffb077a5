//! turmoil's network behind the node's own trait.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pairdb::cluster::net::{Listener, Net, Stream};
use turmoil::net::{TcpListener, TcpStream};

/// The simulated network, as the host sees it that calls.
pub struct SimNet;

#[tonic::async_trait]
impl Net for SimNet {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(TcpStream::connect(address).await?))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let listener = Arc::new(TcpListener::bind(address).await?);
        Ok(Box::new(SimListener { listener, accepting: None }))
    }
}

type Accepting = Pin<Box<dyn Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send>>;

/// turmoil can only be awaited: the future is kept until it is ready.
struct SimListener {
    listener: Arc<TcpListener>,
    accepting: Option<Accepting>,
}

impl Listener for SimListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(Box<dyn Stream>, SocketAddr)>> {
        let listener = &self.listener;
        let accepting = self.accepting.get_or_insert_with(|| {
            let listener = Arc::clone(listener);
            Box::pin(async move { listener.accept().await })
        });
        let accepted = std::task::ready!(accepting.as_mut().poll(context));
        self.accepting = None;
        Poll::Ready(accepted.map(|(stream, from)| (Box::new(stream) as Box<dyn Stream>, from)))
    }
}
