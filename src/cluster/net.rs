//! Connections, handed in: [`TokioNet`] in the real world, the simulator's own in a simulation.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tonic::async_trait;

/// A connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// Takes connections.
pub trait Listener: Send + 'static {
    /// Where it listens, with the port it was given.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next connection and where it comes from. An error may be of one connection only: the
    /// caller goes on.
    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(Box<dyn Stream>, SocketAddr)>>;
}

/// A network.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Connects to `host:port`.
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>>;

    /// Listens. Port 0 takes any free port.
    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>>;
}

/// The network of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioNet;

#[async_trait]
impl Net for TokioNet {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpListener::bind(address).await?))
    }
}

impl Listener for TcpListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }

    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Pin::new(&*self).get_ref().poll_accept(context).map(|accepted| {
            let (stream, from) = accepted?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Box<dyn Stream>, from))
        })
    }
}
