//! The body of a call that has a deadline: it is received by then, or not at all.
//!
//! A handler begins when its request was received, so one that is given up here has not begun.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use super::front::refuse;
use super::method::Class;
use super::status::Problem;

/// A body that fails when it is not received by its end.
pub(super) struct Receipt {
    body: Body,
    end: Instant,
    /// Made when something has to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// Of the call.
    class: Class,
}

impl Receipt {
    /// `body`, which must have come by `end`.
    pub fn new(body: Body, end: Instant, class: Class) -> Self {
        Self { body, end, timer: None, class }
    }
}

impl hyper::body::Body for Receipt {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        // What has come is taken, however late it is looked at.
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(this.end)));
        ready!(timer.as_mut().poll(context));
        let late = Problem::deadline("the request has not come to its end");
        Poll::Ready(Some(Err(refuse(late, this.class))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
