//! A connection between two nodes, as one of them sends: its messages are named, observed, and
//! befallen by what `tamper` draws.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Context;

use pairdb::cluster::peer::Request;
use pairdb::proto::{PeerReply, PeerRequest};
use prost::Message as _;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::frames::{Frames, Piece};
use crate::observer::Observer;
use crate::step::{Step, Topic};
use crate::tamper::{Fate, Tamper};

/// What a process has in common with its connections to other nodes.
#[derive(Clone)]
pub struct Peering {
    /// The number of its machine.
    pub node: usize,
    pub tamper: Tamper,
    pub observer: Observer,
}

/// Which end of the connection it is.
pub enum End {
    /// It connected, to this address, for a class of work that its hello names.
    Asks {
        to: String,
        class: u32,
        kept_sent: bool,
    },
    Answers,
}

impl End {
    pub fn asks(to: &str) -> Self {
        Self::Asks { to: to.to_owned(), class: 0, kept_sent: false }
    }
}

/// What is sent, read.
#[derive(Clone)]
pub enum Named {
    Nothing(Piece),
    Request { stream: u32, bytes: Vec<u8>, request: PeerRequest, topic: Topic },
    Reply { stream: u32, bytes: Vec<u8>, reply: PeerReply, step: Step },
}

impl Named {
    pub fn step(&self) -> Step {
        match self {
            Self::Nothing(_) => Step::Bytes,
            Self::Request { topic, .. } => Step::Ask(*topic),
            Self::Reply { step, .. } => *step,
        }
    }
}

/// See the module.
pub struct Line {
    peering: Peering,
    end: End,
    /// The asker's address: the name of the connection.
    asker: SocketAddr,
    frames: Frames,
    /// To be sent now.
    pub ready: Vec<u8>,
    /// To be sent later.
    held: Vec<(Instant, Named)>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Line {
    pub fn new(peering: Peering, end: End, asker: SocketAddr) -> Self {
        let frames = Frames::new(matches!(end, End::Asks { .. }));
        Self { peering, end, asker, frames, ready: Vec::new(), held: Vec::new(), alarm: None }
    }

    /// What these bytes make whole.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Named> {
        let pieces = self.frames.take(bytes);
        pieces.into_iter().map(|piece| self.name(piece)).collect()
    }

    fn name(&mut self, piece: Piece) -> Named {
        let Piece::Message { stream, bytes } = piece else { return Named::Nothing(piece) };
        match &mut self.end {
            End::Asks { class, .. } => match PeerRequest::decode(bytes.as_slice()) {
                Ok(request) => {
                    if let Some(Request::Hello(hello)) = &request.body {
                        *class = hello.class;
                    }
                    let topic = request.body.as_ref().map_or(Topic::Other, Topic::of_request);
                    Named::Request { stream, bytes, request, topic }
                }
                Err(_) => Named::Nothing(Piece::Message { stream, bytes }),
            },
            End::Answers => match PeerReply::decode(bytes.as_slice()) {
                Ok(reply) => {
                    let step = self.peering.observer.step_of_answer(self.asker, &reply);
                    Named::Reply { stream, bytes, reply, step }
                }
                Err(_) => Named::Nothing(Piece::Message { stream, bytes }),
            },
        }
    }

    /// Makes ready what is to be sent now, and holds the rest.
    pub fn put(&mut self, pieces: Vec<Named>) {
        for piece in pieces {
            match piece {
                Named::Request { stream, bytes, request, topic } => {
                    self.ask(stream, bytes, request, topic);
                }
                Named::Reply { ref reply, .. } if reply.id != 0 => {
                    let fate = self.peering.tamper.of_answer();
                    self.meet(fate, piece, None);
                }
                other => self.go(other),
            }
        }
    }

    fn ask(&mut self, stream: u32, bytes: Vec<u8>, request: PeerRequest, topic: Topic) {
        let End::Asks { to, class, kept_sent } = &mut self.end else { return };
        let Some(body) = &request.body else {
            return self.go(Named::Request { stream, bytes, request, topic });
        };
        let tamper = self.peering.tamper.clone();
        if topic != Topic::Hello && !std::mem::replace(kept_sent, true) {
            for (id, bytes) in tamper.kept(to, *class) {
                let Ok(kept) = PeerRequest::decode(bytes.as_slice()) else { continue };
                self.go(renamed(stream, kept, id));
            }
        }
        let fate = tamper.of_request(body);
        if let (Fate::AgainOverNext, End::Asks { to, class, .. }) = (fate, &self.end) {
            tamper.keep(to, *class, bytes.clone());
        }
        let again = renamed(stream, request.clone(), tamper.id_of_again(request.id));
        self.meet(fate, Named::Request { stream, bytes, request, topic }, Some(again));
    }

    fn meet(&mut self, fate: Fate, message: Named, again: Option<Named>) {
        let again = again.unwrap_or_else(|| message.clone());
        match fate {
            Fate::Arrives | Fate::AgainOverNext => self.go(message),
            Fate::Twice => {
                self.go(message);
                self.go(again);
            }
            Fate::Late(time) => self.hold(time, message),
            Fate::AgainLate(time) => {
                self.go(message);
                self.hold(time, again);
            }
            Fate::Lost => {}
        }
    }

    fn hold(&mut self, time: std::time::Duration, message: Named) {
        let at = Instant::now() + time;
        self.held.push((at, message));
        let first = self.held.iter().map(|(at, _)| *at).min().unwrap_or(at);
        self.alarm = Some(Box::pin(sleep_until(first)));
    }

    fn go(&mut self, message: Named) {
        let Peering { node, observer, .. } = &self.peering;
        let piece = match message {
            Named::Nothing(piece) => piece,
            Named::Request { stream, bytes, request, topic } => {
                observer.asked(*node, self.asker, &request, topic);
                Piece::Message { stream, bytes }
            }
            Named::Reply { stream, bytes, reply, .. } => {
                observer.answered(*node, self.asker, &reply);
                Piece::Message { stream, bytes }
            }
        };
        self.ready.extend(piece.into_bytes());
    }

    /// Makes ready what was held up until now.
    pub fn release(&mut self, context: &mut Context<'_>) {
        while let Some(alarm) = &mut self.alarm {
            if alarm.as_mut().poll(context).is_pending() {
                return;
            }
            let now = Instant::now();
            let (due, held) =
                std::mem::take(&mut self.held).into_iter().partition(|(at, _)| *at <= now);
            self.held = held;
            let due: Vec<(Instant, Named)> = due;
            due.into_iter().for_each(|(_, message)| self.go(message));
            let next = self.held.iter().map(|(at, _)| *at).min();
            self.alarm = next.map(|at| Box::pin(sleep_until(at)));
        }
    }
}

/// A request under another id.
fn renamed(stream: u32, request: PeerRequest, id: u64) -> Named {
    let request = PeerRequest { id, ..request };
    let topic = request.body.as_ref().map_or(Topic::Other, Topic::of_request);
    Named::Request { stream, bytes: request.encode_to_vec(), request, topic }
}
