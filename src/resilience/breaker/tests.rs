//! A breaker through all its states, in a time of its own.

use super::*;

fn breaker() -> Breaker {
    let settings = Settings { ready_to_trip: Settings::by_ratio(10, 0.5), ..Settings::default() };
    Breaker::new("test", settings).expect("valid")
}

fn succeed(breaker: &Breaker) {
    breaker.enter().expect("closed").succeeded();
}

fn fail(breaker: &Breaker) {
    breaker.enter().expect("closed").failed();
}

fn trip(breaker: &Breaker) {
    (0..10).for_each(|_| fail(breaker));
    assert_eq!(breaker.state(), State::Open);
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn it_opens_at_the_share_of_failures_and_not_before_there_are_enough_calls() {
    let some = breaker();
    (0..9).for_each(|_| fail(&some));
    assert_eq!(some.state(), State::Closed, "nine calls say nothing");
    fail(&some);
    assert_eq!((some.state(), some.enter().err()), (State::Open, Some(Rejected)));
    let few = breaker();
    (0..6).for_each(|_| succeed(&few));
    (0..5).for_each(|_| fail(&few));
    assert_eq!(few.state(), State::Closed, "five of eleven");
    fail(&few);
    assert_eq!(few.state(), State::Open, "six of twelve");
    assert_eq!(few.totals().opened.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_the_interval_is_forgotten() {
    let breaker = breaker();
    (0..9).for_each(|_| fail(&breaker));
    assert_eq!(breaker.counts(), Counts { calls: 9, failures: 9 });
    pass(11).await;
    assert_eq!(breaker.counts(), Counts::default());
    (0..9).for_each(|_| fail(&breaker));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn slow_calls_open_it_too() {
    let breaker = breaker();
    let permits: Vec<_> = (0..10).map(|_| breaker.enter().expect("closed")).collect();
    pass(3).await;
    permits.into_iter().for_each(Permit::succeeded);
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.totals().slow.load(Ordering::Relaxed), 10);
}

#[tokio::test(start_paused = true)]
async fn half_open_it_lets_so_many_probes_through_and_closes_when_all_succeed() {
    let breaker = breaker();
    trip(&breaker);
    pass(1).await;
    let probes: Vec<_> = (0..3).map(|_| breaker.enter().expect("a probe")).collect();
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(breaker.enter().err(), Some(Rejected), "enough are under way");
    for probe in probes {
        assert_eq!(breaker.state(), State::HalfOpen);
        probe.succeeded();
    }
    assert_eq!((breaker.state(), breaker.counts()), (State::Closed, Counts::default()));
    assert_eq!(breaker.totals().rejected.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_opens_it_again_and_one_that_is_given_up_makes_room() {
    let breaker = breaker();
    trip(&breaker);
    pass(1).await;
    let probes: Vec<_> = (0..3).map(|_| breaker.enter().expect("a probe")).collect();
    drop(probes);
    breaker.enter().expect("their places are free").failed();
    assert_eq!(breaker.state(), State::Open);
    assert!(breaker.enter().is_err(), "for the whole timeout");
    pass(1).await;
    (0..3).for_each(|_| breaker.enter().expect("a probe").succeeded());
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_before_it_opened_says_nothing_afterwards() {
    let breaker = breaker();
    let (early, late) = (breaker.enter().expect("closed"), breaker.enter().expect("closed"));
    trip(&breaker);
    pass(1).await;
    let probe = breaker.enter().expect("a probe");
    early.failed();
    late.succeeded();
    assert_eq!(breaker.state(), State::HalfOpen);
    probe.succeeded();
    (0..2).for_each(|_| breaker.enter().expect("a probe").succeeded());
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn settings_that_make_no_sense_are_refused_by_name() {
    let refused = |settings| Breaker::new("test", settings).expect_err("refused").setting;
    let valid = Settings::default;
    let zero = Duration::ZERO;
    assert_eq!(refused(Settings { interval: zero, ..valid() }), "interval");
    assert_eq!(refused(Settings { timeout: zero, ..valid() }), "timeout");
    assert_eq!(refused(Settings { max_requests: 0, ..valid() }), "max_requests");
    assert_eq!(refused(Settings { slow_after: zero, ..valid() }), "slow_after");
}

/// A full slot halves its counts instead of running over into its number.
#[test]
fn a_slot_that_is_full_keeps_its_share() {
    let full = pack(5, Counts { calls: COUNT_MASK, failures: COUNT_MASK }, true);
    let (number, counts) = unpack(full);
    assert_eq!((number, counts.calls), (5, COUNT_MASK / 2 + 1));
    assert_eq!(counts.failures, counts.calls);
}
