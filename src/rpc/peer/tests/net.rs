//! A network in memory: addresses are names, connections can be cut, writes are counted.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::mpsc;
use tokio_util::io::InspectWriter;
use tokio_util::sync::CancellationToken;
use tonic::async_trait;

use crate::cluster::net::{Listener, Net, Stream};

/// Bytes on their way in one direction: room for all that a test sends, so that nobody who writes
/// has to write again.
const PIPE_BYTES: usize = 4 << 20;

#[derive(Default)]
pub struct MemNet {
    listeners: Mutex<BTreeMap<String, mpsc::UnboundedSender<End>>>,
    wires: Mutex<CancellationToken>,
    dials: AtomicU64,
    writes: Arc<AtomicU64>,
}

impl MemNet {
    /// Ends all connections there are.
    pub fn cut(&self) {
        std::mem::take(&mut *self.wires.lock()).cancel();
    }

    /// Connections tried so far.
    pub fn dials(&self) -> u64 {
        self.dials.load(Ordering::Relaxed)
    }

    /// Pieces that either end of a connection has written so far: the head of a frame and what is
    /// in it are two, in one call to a socket.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }
}

/// An end of a connection, which counts what it writes.
type End = InspectWriter<DuplexStream, Box<dyn FnMut(&[u8]) + Send>>;

struct MemListener {
    address: SocketAddr,
    accepted: mpsc::UnboundedReceiver<End>,
}

#[async_trait]
impl Net for MemNet {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let listeners = self.listeners.lock();
        let listener = listeners.get(address).ok_or(io::ErrorKind::ConnectionRefused)?;
        let (near, mut near_wire) = duplex(PIPE_BYTES);
        let (far, mut far_wire) = duplex(PIPE_BYTES);
        let end = |stream| {
            let writes = Arc::clone(&self.writes);
            let count = move |_: &[u8]| {
                writes.fetch_add(1, Ordering::Relaxed);
            };
            End::new(stream, Box::new(count))
        };
        listener.send(end(far)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        let cut = self.wires.lock().clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = copy_bidirectional(&mut near_wire, &mut far_wire) => {}
                () = cut.cancelled() => {}
            }
        });
        Ok(Box::new(end(near)))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let (sender, accepted) = mpsc::unbounded_channel();
        self.listeners.lock().insert(address.to_string(), sender);
        Ok(Box::new(MemListener { address, accepted }))
    }
}

impl Listener for MemListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(Box<dyn Stream>, SocketAddr)>> {
        self.accepted.poll_recv(context).map(|stream| {
            let stream = stream.ok_or(io::ErrorKind::BrokenPipe)?;
            Ok((Box::new(stream) as Box<dyn Stream>, self.address))
        })
    }
}
