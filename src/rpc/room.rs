//! Room for the answers of one pipeline that its client has not taken yet, in bytes.
//!
//! The number of operations in flight says little about memory: a row may be as small as its key,
//! or have megabytes. Small answers are bounded by that number all the same, and pay nothing else.
//! A larger one takes room for its bytes, and gives it back when the connection takes it.
//!
//! A read that is answered by others has no size before it ends. It is begun with room for as much
//! as such reads came to lately. What turns out to be larger than there is room for is dropped, not
//! kept, and read again once there is.
//!
//! # Invariants
//! 1. Large answers that wait have [`BYTES_MAX`] together, and as many the small ones. One that is
//!    larger than that waits alone: it takes all the room there is.
//! 2. Nobody waits for room while he holds some, and it is given in the order of asking: every wait
//!    ends as soon as the client has taken what is before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of the large answers that wait.
const BYTES_MAX: usize = 8 << 20;

/// The room. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// A permit is a byte.
    free: Arc<Semaphore>,
    /// An answer of so many bytes is small.
    small: usize,
    /// What a read of unknown size is likely to come to. Relaxed: it guards no other memory.
    expected: Arc<AtomicUsize>,
}

/// Room that was taken; given back when it is dropped. Small answers take none.
#[derive(Debug, Default)]
#[must_use = "dropped, it gives its room back"]
pub(super) struct Taken(Option<OwnedSemaphorePermit>);

/// The client is gone: nobody will take an answer.
#[derive(Debug)]
pub(super) struct Gone;

impl Room {
    /// Room for the answers to `in_flight_max` operations.
    pub fn new(in_flight_max: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(BYTES_MAX)),
            small: BYTES_MAX / in_flight_max.max(1),
            expected: Arc::default(),
        }
    }

    /// Room for an answer of `bytes`, unless that has to be waited for.
    pub fn try_take(&self, bytes: usize) -> Option<Taken> {
        let permits = self.permits(bytes);
        if permits == 0 {
            return Some(Taken(None));
        }
        let permit = Arc::clone(&self.free).try_acquire_many_owned(permits);
        permit.ok().map(|permit| Taken(Some(permit)))
    }

    /// The same, whenever there is some.
    pub async fn take(&self, bytes: usize) -> Result<Taken, Gone> {
        match self.permits(bytes) {
            0 => Ok(Taken(None)),
            permits => {
                let permit = Arc::clone(&self.free).acquire_many_owned(permits).await;
                permit.map(|permit| Taken(Some(permit))).map_err(|_closed| Gone)
            }
        }
    }

    /// What a read of unknown size takes to begin with.
    pub fn expected(&self) -> usize {
        self.expected.load(Ordering::Relaxed)
    }

    /// What is read, with room for it; `taken` is what it began with, `wait` waits for more.
    pub async fn fit<T, E, R: Future<Output = T>, W: Future<Output = Result<Taken, E>>>(
        &self,
        mut taken: Taken,
        read: impl Fn() -> R,
        bytes_of: impl Fn(&T) -> usize,
        wait: impl Fn(usize) -> W,
    ) -> Result<(T, Taken), E> {
        loop {
            let found = read().await;
            let bytes = bytes_of(&found);
            self.expect(bytes);
            if let Some(taken) = self.resize(taken, bytes) {
                return Ok((found, taken));
            }
            // Kept, it would wait in memory without being counted.
            drop(found);
            taken = wait(bytes).await?;
        }
    }

    /// Nobody takes answers any more: who waits for room is told.
    pub fn close(&self) {
        self.free.close();
    }

    /// Room for `bytes` in place of what was taken.
    fn resize(&self, taken: Taken, bytes: usize) -> Option<Taken> {
        let permits = self.permits(bytes) as usize;
        match taken.0 {
            Some(mut permit) if permit.num_permits() >= permits => {
                drop(permit.split(permit.num_permits() - permits));
                Some(Taken(Some(permit)))
            }
            less => {
                drop(less);
                self.try_take(bytes)
            }
        }
    }

    /// Follows what reads come to: up at once, and down by halves. What is large now and then is
    /// expected a little longer.
    fn expect(&self, bytes: usize) {
        let expected = self.expected();
        let next = bytes.max(expected / 2);
        if next != expected {
            self.expected.store(next, Ordering::Relaxed);
        }
    }

    fn permits(&self, bytes: usize) -> u32 {
        if bytes <= self.small { 0 } else { bytes.min(BYTES_MAX) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;
    use std::future::ready;
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    const HALF: usize = BYTES_MAX / 2;

    fn free(room: &Room) -> usize {
        room.free.available_permits()
    }

    #[test]
    fn small_answers_take_no_room_and_large_ones_theirs() {
        let room = Room::new(1024);
        let all = room.try_take(BYTES_MAX).expect("room");
        assert!(room.try_take(BYTES_MAX / 1024).is_some(), "it is small");
        assert!(room.try_take(BYTES_MAX / 1024 + 1).is_none());
        drop(all);
        let two = [HALF, HALF].map(|bytes| room.try_take(bytes).expect("room"));
        assert!(room.try_take(10_000).is_none());
        drop(two);
        assert_eq!(free(&room), BYTES_MAX);
    }

    #[test]
    fn one_that_is_larger_than_all_room_waits_until_it_is_alone() {
        let room = Room::new(1024);
        let half = room.try_take(HALF).expect("room");
        let mut large = pin!(room.take(5 * BYTES_MAX));
        assert!(large.as_mut().now_or_never().is_none());
        // Those who ask later do not pass it.
        let mut later = pin!(room.take(HALF));
        assert!(later.as_mut().now_or_never().is_none());
        drop(half);
        let large = large.as_mut().now_or_never().expect("it is alone").expect("open");
        assert!(later.as_mut().now_or_never().is_none());
        drop(large);
        assert!(later.as_mut().now_or_never().expect("room").is_ok());
    }

    #[test]
    fn who_waits_is_told_that_the_client_is_gone() {
        let room = Room::new(1024);
        let all = room.try_take(BYTES_MAX).expect("room");
        let mut more = pin!(room.take(HALF));
        assert!(more.as_mut().now_or_never().is_none());
        room.close();
        assert!(more.as_mut().now_or_never().expect("told").is_err());
        drop(all);
    }

    /// A read turns out to be larger than there is room for: it is not kept, and read again when
    /// there is room. What reads come to is expected of the next ones.
    #[test]
    fn what_is_larger_than_was_expected_is_read_again_when_there_is_room() {
        let room = Room::new(1024);
        let all = room.try_take(BYTES_MAX).expect("room");
        let (begun, kept) = (RefCell::new(0), std::rc::Rc::new(()));
        let read = || {
            *begun.borrow_mut() += 1;
            ready((vec![0; HALF], std::rc::Rc::clone(&kept)))
        };
        let wait = |bytes| {
            let taken = room.take(bytes);
            async { Ok::<_, Infallible>(taken.await.expect("open")) }
        };
        assert_eq!(room.expected(), 0);
        let taken = room.try_take(room.expected()).expect("nothing is expected");
        let mut one = pin!(room.fit(taken, read, |(found, _)| found.len(), wait));
        assert!(one.as_mut().now_or_never().is_none());
        assert_eq!((*begun.borrow(), std::rc::Rc::strong_count(&kept)), (1, 1), "it is not kept");
        drop(all);
        let Ok((found, taken)) = one.as_mut().now_or_never().expect("there is room");
        assert_eq!((found.0.len(), *begun.borrow(), free(&room)), (HALF, 2, HALF));
        drop(taken);

        // The next one begins with as much, and gives back what it does not need.
        let taken = room.try_take(room.expected()).expect("room");
        assert_eq!(free(&room), HALF);
        let read = || ready(100_000);
        let next = room.fit(taken, read, |bytes| *bytes, wait).now_or_never().expect("room");
        let Ok((_, taken)) = next;
        assert_eq!(free(&room), BYTES_MAX - 100_000);
        drop(taken);
        assert_eq!(room.expected(), HALF / 2);
    }
}
