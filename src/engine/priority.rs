//! Threads that others go before.
//!
//! What a node does for itself, flushing, compacting, moving rows, comes in bursts that take every
//! core. A client's request crosses several threads of several processes, and in each it would wait
//! its turn among the burst's. With a lower priority the burst has what is left, which is nearly
//! all on most days, and never nothing: the scheduler gives every thread a share by its weight.

/// For a flush: writers wait for it when memory is full.
pub const FLUSH: i32 = 5;
/// For all that can wait longer.
pub const BACKGROUND: i32 = 10;

/// Gives the calling thread this niceness (0 is usual, 19 the most). Where the system has none for
/// single threads, or refuses, it stays as it is: all that is lost is the order.
pub fn lower(nice: i32) {
    // On Linux the "process" 0 is the calling thread: setpriority(2), at its end.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, nice);
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
}
