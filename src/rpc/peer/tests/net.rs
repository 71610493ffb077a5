//! A network in memory: addresses are names, connections can be cut.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::async_trait;

use crate::cluster::net::{Listener, Net, Stream};

/// Bytes on their way in one direction.
const PIPE_BYTES: usize = 64 << 10;

#[derive(Default)]
pub struct MemNet {
    listeners: Mutex<BTreeMap<String, mpsc::UnboundedSender<DuplexStream>>>,
    wires: Mutex<CancellationToken>,
    dials: AtomicU64,
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
}

struct MemListener {
    address: SocketAddr,
    accepted: mpsc::UnboundedReceiver<DuplexStream>,
}

#[async_trait]
impl Net for MemNet {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let listeners = self.listeners.lock();
        let listener = listeners.get(address).ok_or(io::ErrorKind::ConnectionRefused)?;
        let (near, mut near_wire) = duplex(PIPE_BYTES);
        let (far, mut far_wire) = duplex(PIPE_BYTES);
        listener.send(far).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        let cut = self.wires.lock().clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = copy_bidirectional(&mut near_wire, &mut far_wire) => {}
                () = cut.cancelled() => {}
            }
        });
        Ok(Box::new(near))
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
