//! turmoil's network behind the node's own trait, with the machine's switch in its wires, and with
//! what befalls messages between nodes.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pairdb::cluster::net::{Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use crate::line::{End, Line, Peering};
use crate::machine::PEER_PORT;
use crate::step::Step;
use crate::switch::Switch;

/// The simulated network, as the host sees it that calls.
#[derive(Clone, Default)]
pub struct SimNet {
    /// Of the machine; one that nobody arms does nothing.
    pub switch: Switch,
    /// Of a node.
    pub peering: Option<Peering>,
}

impl SimNet {
    fn wire(&self, stream: TcpStream, end: Option<End>) -> io::Result<Box<dyn Stream>> {
        let line = match (&self.peering, end) {
            (Some(peering), Some(end)) => {
                let asker = match &end {
                    End::Asks { .. } => stream.local_addr()?,
                    End::Answers => stream.peer_addr()?,
                };
                Some(Line::new(peering.clone(), end, asker))
            }
            _ => None,
        };
        Ok(Box::new(Wire { stream, line, switch: self.switch.clone() }))
    }
}

#[tonic::async_trait]
impl Net for SimNet {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        if !self.switch.step(Step::Bytes) {
            return std::future::pending().await;
        }
        let stream = TcpStream::connect(address).await?;
        let is_peer = stream.peer_addr()?.port() == PEER_PORT;
        self.wire(stream, is_peer.then(|| End::asks(address)))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let listener = Arc::new(TcpListener::bind(address).await?);
        Ok(Box::new(SimListener { listener, net: self.clone(), accepting: None }))
    }
}

/// A connection of a machine: silent once that has stopped.
struct Wire {
    stream: TcpStream,
    line: Option<Line>,
    switch: Switch,
}

impl Wire {
    /// Sends what the line has ready.
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(line) = &mut self.line else { return Poll::Ready(Ok(())) };
        line.release(context);
        while !line.ready.is_empty() {
            let sent = Pin::new(&mut self.stream).poll_write(context, &line.ready);
            let sent = ready!(sent)?;
            line.ready.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }

    fn has_stopped(&self) -> bool {
        self.switch.stopped().is_some()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.has_stopped() {
            return Poll::Pending;
        }
        // What was held up goes when its time has come, also when nothing else is sent.
        if let Poll::Ready(Err(error)) = self.send(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.has_stopped() {
            return Poll::Pending;
        }
        ready!(self.send(context))?;
        let this = &mut *self;
        let Some(line) = &mut this.line else {
            return match this.switch.step(Step::Bytes) {
                true => Pin::new(&mut this.stream).poll_write(context, bytes),
                false => Poll::Pending,
            };
        };
        let pieces = line.read(bytes);
        let steps: Vec<Step> = pieces.iter().map(|piece| piece.step()).collect();
        if !this.switch.steps(&steps) {
            return Poll::Pending;
        }
        line.put(pieces);
        if let Poll::Ready(Err(error)) = self.send(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_stopped() {
            return Poll::Pending;
        }
        ready!(self.send(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        match self.switch.step(Step::Bytes) {
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
        let accepted = ready!(accepting.as_mut().poll(context));
        self.accepting = None;
        let (stream, from) = accepted?;
        let is_peer = stream.local_addr()?.port() == PEER_PORT;
        let wire = self.net.wire(stream, is_peer.then_some(End::Answers))?;
        Poll::Ready(Ok((wire, from)))
    }
}
