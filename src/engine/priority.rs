//! Threads that others go before.
//!
//! What a node does for itself, flushing, compacting, moving rows, comes in bursts that take every
//! core. A client's request crosses several threads of several processes, and in each it would wait
//! its turn among the burst's. With a lower priority the burst has what is left, which is nearly
//! all on most days, and never nothing: the scheduler gives every thread a share by its weight.
//!
//! A share says nothing of when. A thread that wakes up waits until the turn of the one that runs
//! is over, some milliseconds, whatever their priorities, unless its own turns are shorter: then
//! it goes before at once (Linux 6.12; sched_setattr(2), `sched_runtime`). Threads that serve
//! clients ask for that.
#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "two calls to the system that rustix does not have")
)]

/// For a flush: writers wait for it when memory is full.
pub const FLUSH: i32 = 5;
/// For all that can wait longer.
pub const BACKGROUND: i32 = 10;

/// A short turn, in nanoseconds: what most pieces of a request take. The system's least is 100,000.
const SHORT_TURN_NS: u64 = 200_000;
/// As long as the system thinks best.
const USUAL_TURN: u64 = 0;

/// Gives the calling thread this niceness (0 is usual, 19 the most), and turns as the system has
/// them, whatever those of the thread are that started it. Where the system has no niceness for
/// single threads, or refuses, it stays as it is: all that is lost is the order.
pub fn lower(nice: i32) {
    #[cfg(target_os = "linux")]
    {
        // On Linux the "process" 0 is the calling thread: setpriority(2), at its end.
        let _ = rustix::process::setpriority_process(None, nice);
        set_turn(USUAL_TURN);
    }
}

/// Gives the calling thread, and those that it starts from now on, short turns. Where the system
/// has none it stays as it is.
pub fn take_short_turns() {
    #[cfg(target_os = "linux")]
    set_turn(SHORT_TURN_NS);
}

/// How the system schedules the calling thread, if it is one of the usual kind and the system lets
/// such threads have turns of their own length.
#[cfg(target_os = "linux")]
fn scheduling() -> Option<libc::sched_attr> {
    // SAFETY: a struct of integers, for which zero is a value.
    let mut found: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of_val(&found) as libc::c_uint;
    // SAFETY: the system writes at most `size` bytes to `found`, which has as many.
    let asked = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, size, 0) };
    let is_usual = found.sched_policy == libc::SCHED_OTHER as u32;
    (asked == 0 && is_usual && found.sched_runtime > 0).then_some(found)
}

/// Errors are ignored: all that is lost is the order.
#[cfg(target_os = "linux")]
fn set_turn(ns: u64) {
    if let Some(found) = scheduling() {
        let wanted = libc::sched_attr { sched_runtime: ns, ..found };
        // SAFETY: the system reads `wanted.size` bytes, by its own word at most the struct's.
        let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_is_lowered_and_no_other() {
        let own = || rustix::process::getpriority_process(None).expect("it can be asked");
        let before = own();
        let lowered = std::thread::spawn(move || {
            lower(before + 3);
            own()
        });
        assert_eq!(lowered.join().expect("it does not panic"), before + 3);
        assert_eq!(own(), before);
    }

    /// Read back from the system; one that gives threads no turns of their own length says so.
    #[cfg(target_os = "linux")]
    #[test]
    fn short_turns_are_inherited_until_a_thread_is_lowered() {
        let turn = || scheduling().map(|found| (found.sched_runtime, found.sched_nice));
        let Some((usual, nice)) = turn() else { return };
        let started = std::thread::spawn(move || {
            take_short_turns();
            let inherits = move || {
                let inherited = turn();
                lower(nice + 3);
                (inherited, turn())
            };
            (turn(), std::thread::spawn(inherits).join().expect("it does not panic"))
        });
        let (own, (inherited, lowered)) = started.join().expect("it does not panic");
        assert_eq!((own, inherited), (Some((SHORT_TURN_NS, nice)), own));
        assert_eq!(lowered, Some((usual, nice + 3)));
        assert_eq!(turn(), Some((usual, nice)), "no other thread is changed");
    }
}
