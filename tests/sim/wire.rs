//! turmoil's network behind the node's own trait, with the machine's switch in its wires.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pairdb::cluster::net::{Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use crate::switch::Switch;

/// The simulated network, as the host sees it that calls.
#[derive(Clone, Default)]
pub struct SimNet {
    /// Of the machine; one that nobody arms does nothing.
    pub switch: Switch,
}

impl SimNet {
    fn wire(&self, stream: TcpStream) -> Box<dyn Stream> {
        Box::new(Wire { stream, switch: self.switch.clone() })
    }
}

#[tonic::async_trait]
impl Net for SimNet {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        if !self.switch.step() {
            return std::future::pending().await;
        }
        Ok(self.wire(TcpStream::connect(address).await?))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let listener = Arc::new(TcpListener::bind(address).await?);
        Ok(Box::new(SimListener { listener, net: self.clone(), accepting: None }))
    }
}

/// A connection of a machine: silent once that has stopped.
struct Wire {
    stream: TcpStream,
    switch: Switch,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.switch.is_stopped() {
            true => Poll::Pending,
            false => Pin::new(&mut self.stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.switch.step() {
            true => Pin::new(&mut self.stream).poll_write(context, bytes),
            false => Poll::Pending,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.switch.step() {
            true => Pin::new(&mut self.stream).poll_shutdown(context),
            false => Poll::Pending,
        }
    }
}

type Accepting = Pin<Box<dyn Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send>>;

/// turmoil can only be awaited: the future is kept until it is ready.
struct SimListener {
    listener: Arc<TcpListener>,
    net: SimNet,
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
        Poll::Ready(accepted.map(|(stream, from)| (self.net.wire(stream), from)))
    }
}
