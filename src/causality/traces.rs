//! The shortest histories that break when one rule is removed, by the name of the rule. Each test
//! runs the history with the rule, and shows that it does break without.

use super::floor::{Admission, admit, may_purge, prune, strip_expired};
use super::forget::{contains, evict_tokens, forgotten_below};
use super::join::{BelowBothFloors, join, join_with_floors};
use super::write::{self, NewVersion, Outcome, drop_expired, mint_above};
use super::{Actor, Context, Dot, Mode, Payload, Row, Token, Version, clock};

const A: Actor = Actor::new(1);
const B: Actor = Actor::new(2);

fn value(text: &'static str) -> NewVersion<'static> {
    let payload = Payload::Value { value: text.as_bytes(), content_type: "" };
    NewVersion { payload, expires_at_ms: 0, token: None }
}

fn delete() -> NewVersion<'static> {
    NewVersion { payload: Payload::Tombstone, expires_at_ms: 0, token: None }
}

fn tokened(text: &'static str, token: u128) -> NewVersion<'static> {
    NewVersion { token: Some(Token::new(token)), ..value(text) }
}

fn expiring(text: &'static str, expires_at_ms: u64) -> NewVersion<'static> {
    NewVersion { expires_at_ms, ..value(text) }
}

fn put(
    row: &Row<'static>,
    context: &Context,
    actor: Actor,
    time: u64,
    new: NewVersion<'static>,
) -> Row<'static> {
    match write::write(row, context, actor, time, new) {
        Outcome::Written(row) => row,
        Outcome::Duplicate => panic!("a duplicate"),
    }
}

fn siblings() -> Row<'static> {
    Row::empty(Mode::Siblings)
}

fn lww() -> Row<'static> {
    Row::empty(Mode::LastWriteWins)
}

fn blind() -> Context {
    Context::default()
}

fn values(row: &Row<'_>) -> Vec<String> {
    let text = |v: &Version<'_>| match v.payload() {
        Payload::Value { value, .. } => Some(String::from_utf8_lossy(value).into_owned()),
        Payload::Tombstone | Payload::Stripped => None,
    };
    row.live().iter().filter_map(|(_, version)| text(version)).collect()
}

/// A node loses its unsynced tail and writes on under its old actor: the new dot claims to have
/// seen the forgotten one. A fresh actor keeps both.
#[test]
fn rotate_on_unclean_start() {
    let sent_before_the_crash = put(&siblings(), &blind(), A, 5, value("x"));
    let same_actor = put(&siblings(), &blind(), A, 9, value("y"));
    let rotated = put(&siblings(), &blind(), B, 9, value("y"));
    let lost = join(&sent_before_the_crash, &same_actor).expect("one mode");
    assert_eq!(values(&lost), ["y"], "the reason for the rule");
    let kept = join(&sent_before_the_crash, &rotated).expect("one mode");
    assert_eq!(values(&kept), ["x", "y"]);
}

/// x, a delete, a safe point, a purge, a new y; then a late copy of x. The row is not absent, so a
/// guard that looked at absent rows only would take x back as a sibling.
#[test]
fn guard_per_dot() {
    let x = put(&siblings(), &blind(), A, 5, value("x"));
    let deleted = put(&x, &Context::of(&x), A, 6, delete());
    assert!(may_purge(&deleted, 10, 0));
    let y = put(&siblings(), &blind(), B, 20, value("y"));
    assert_eq!(values(&join(&y, &x).expect("one mode")), ["x", "y"], "the reason for the rule");
    assert_eq!(admit(&x, Some(&y), 10, 10), Admission::Refused);

    // Beside a newer version of its sender, x is taken out and the sender's clock stays.
    let both = put(&x, &blind(), A, 25, value("z"));
    let Admission::Stripped(taken) = admit(&both, Some(&y), 10, 10) else { panic!("stripped") };
    assert_eq!(values(&join(&y, &taken).expect("one mode")), ["z", "y"]);
    assert_eq!(taken.clock_entries(), both.clock_entries());
}

/// Between fence and floor nobody knows yet which versions are dead: what the guard covers is
/// refused whole, never stripped.
#[test]
fn refused_and_not_stripped_while_only_the_guard_covers() {
    let x = put(&siblings(), &blind(), A, 5, value("x"));
    let both = put(&x, &blind(), A, 25, value("z"));
    assert_eq!(admit(&both, None, 10, 0), Admission::Refused);
    assert!(matches!(admit(&both, None, 10, 10), Admission::Stripped(_)));
    assert_eq!(admit(&both, Some(&x), 10, 0), Admission::Whole, "held live here");
    let overwritten = put(&x, &Context::of(&x), B, 30, value("y"));
    assert_eq!(admit(&both, Some(&overwritten), 10, 0), Admission::Whole, "seen here");
    assert_eq!(admit(&both, None, 4, 0), Admission::Whole, "above the guard");
}

/// The same guard for last-write-wins rows: an old version that lost here is known, one that meets
/// a purged row is refused.
#[test]
fn guard_of_last_write_wins_rows() {
    let old = put(&lww(), &blind(), A, 5, value("x"));
    let newer = put(&lww(), &blind(), B, 20, value("y"));
    assert_eq!(admit(&old, None, 10, 10), Admission::Refused);
    assert_eq!(admit(&old, Some(&newer), 10, 10), Admission::Whole);
    assert_eq!(admit(&newer, None, 10, 10), Admission::Whole);
}

/// A replica was rolled back to before a delete that the others have purged. Adopting what it
/// holds would bring the deleted version back; the floor of the others calls it dead.
#[test]
fn floor_authority() {
    let rolled_back = put(&siblings(), &blind(), A, 5, value("x"));
    let purged = siblings();
    let mut alarms = Vec::new();
    let joined = join_with_floors(&rolled_back, 0, &purged, 10, &mut alarms).expect("one mode");
    assert_eq!(values(&joined), [""; 0]);
    let other_way = join_with_floors(&purged, 10, &rolled_back, 0, &mut alarms).expect("one mode");
    assert_eq!(other_way, joined);
    assert_eq!(alarms, []);
    assert_eq!(values(&join(&rolled_back, &purged).expect("one mode")), ["x"], "the reason");

    // Below both floors somebody has lost data silently: keep it and say so.
    let kept = join_with_floors(&rolled_back, 10, &purged, 10, &mut alarms).expect("one mode");
    assert_eq!(values(&kept), ["x"]);
    assert_eq!(alarms, [BelowBothFloors(Dot::Plain { actor: A, time: 5 })]);
    // Above the other's floor it is simply new there.
    let adopted = join_with_floors(&rolled_back, 0, &purged, 4, &mut alarms).expect("one mode");
    assert_eq!(values(&adopted), ["x"]);
}

/// The same for last-write-wins rows. There is no clock in them that could say that x is dead: if
/// the join merely left x out, joining it into the row that holds x would change nothing.
#[test]
fn floor_authority_of_last_write_wins_rows() {
    let x = put(&lww(), &blind(), A, 5, value("x"));
    let judged = |other: &Row<'static>| {
        join_with_floors(&x, 0, other, 10, &mut Vec::new()).expect("one mode")
    };
    let dead = judged(&lww());
    assert_eq!(values(&dead), [""; 0]);
    assert_eq!(values(&join(&x, &dead).expect("one mode")), [""; 0], "x dies where it was");
    assert!(may_purge(&dead, 5, 0));
    let older = put(&lww(), &blind(), B, 3, value("w"));
    assert_eq!(judged(&older), dead, "what had lost to x does not come back either");
    let newer = put(&lww(), &blind(), B, 12, value("y"));
    assert_eq!(values(&judged(&newer)), ["y"]);
    let without_rule = lww();
    assert_eq!(values(&join(&x, &without_rule).expect("one mode")), ["x"], "the reason");
}

/// x lies below the floor everywhere; y, having seen x, is acknowledged by two of three. If both
/// prune x's actor from the row of y, the third brings x back as a sibling.
#[test]
fn prune_whole_rows() {
    let x = put(&siblings(), &blind(), A, 5, value("x"));
    let y = put(&x, &Context::of(&x), B, 20, value("y"));
    let mut kept = y.clone();
    assert!(!prune(&mut kept, 10, 0), "a row with newer writes is left alone");
    assert_eq!(values(&join(&kept, &x).expect("one mode")), ["y"]);

    let mut without_rule = y.clone();
    without_rule.vv.retain(|entry| entry.1 > 10);
    assert_eq!(values(&join(&without_rule, &x).expect("one mode")), ["x", "y"], "the reason");

    assert!(prune(&mut kept, 20, 0), "once all of it is below the floor, x's entry goes");
    assert_eq!(kept.clock_entries(), [(B, 20)]);
}

/// Values are never purged, however old; tombstones and what has expired by the floor are.
#[test]
fn purge_tombstones_only() {
    let x = put(&siblings(), &blind(), A, 5, value("x"));
    assert!(!may_purge(&x, u64::MAX, 0));
    let deleted = put(&x, &Context::of(&x), A, 7, delete());
    assert!(may_purge(&deleted, 7, 0));
    assert!(!may_purge(&deleted, 6, 0), "the floor has not passed it");
    let beside = put(&deleted, &blind(), B, 8, value("y"));
    assert!(!may_purge(&beside, u64::MAX, 0), "a sibling is alive");
    assert!(may_purge(&put(&lww(), &blind(), A, 5, delete()), 5, 0));
}

/// Whether something has expired is judged by the floor. A row whose expiry lies above it stays,
/// although a clock may say otherwise.
#[test]
fn purge_judges_expiry_by_the_floor() {
    let x = put(&siblings(), &blind(), A, clock::time_of_ms(100), expiring("x", 200));
    assert!(!may_purge(&x, clock::time_of_ms(199), 0));
    assert!(may_purge(&x, clock::time_of_ms(200), 0));
}

/// A retry within the window must find its token, or the deleted write appears again.
#[test]
fn token_kept_for_window() {
    let start = clock::time_of_ms(1_000);
    let x = put(&siblings(), &blind(), A, start, tokened("x", 7));
    let deleted = put(&x, &Context::of(&x), A, start + 1, delete());
    let floor = clock::time_of_ms(1_400);
    assert!(!may_purge(&deleted, floor, 500));
    assert!(may_purge(&deleted, clock::time_of_ms(1_501), 500));
    let mut pruned = deleted.clone();
    prune(&mut pruned, floor, 500);
    let retry = write::write(&pruned, &blind(), B, floor, tokened("x", 7));
    assert_eq!(retry, Outcome::Duplicate);
    prune(&mut pruned, clock::time_of_ms(1_501), 500);
    assert_eq!(pruned.tokens(), []);
}

/// A token whose window is over goes with its row only. If a row that is written on forgot it, a
/// later write under it would have the dot of the first one, and die where any record (in a lower
/// table, in the log, at a replica) still knows that as dead.
#[test]
fn tokens_stay_while_the_row_is_written() {
    let start = clock::time_of_ms(1_000);
    let x = put(&siblings(), &blind(), A, start, tokened("x", 7));
    let y = put(&x, &Context::of(&x), A, start + 1, value("y"));
    let floor = clock::time_of_ms(9_000);
    let again = write::write(&y, &blind(), B, floor + 1, tokened("z", 7));
    assert_eq!(again, Outcome::Duplicate);

    let mut without_rule = y.clone();
    assert!(prune(&mut without_rule, floor, 500));
    let seen = Context::of(&without_rule);
    let z = put(&without_rule, &seen, B, floor + 1, tokened("z", 7));
    assert_eq!(values(&z), ["z"]);
    assert!(!contains(&z, &y, 1_024).expect("one mode"));
    assert!(values(&join(&z, &y).expect("one mode")).is_empty(), "the reason");
}

/// One token minted at 1 and, by a retry elsewhere, at 9; y in between. If the token named a dot,
/// keep-the-greatest and observed-remove together would lose both values in one order of joins.
/// With plain dots and the token beside them every order ends alike.
#[test]
fn lww_plain_dots() {
    let first = put(&lww(), &blind(), A, 1, tokened("T", 7));
    let y = put(&lww(), &blind(), B, 5, value("y"));
    let again = put(&lww(), &blind(), Actor::new(3), 9, tokened("T", 7));
    let j = |a: &Row<'static>, b: &Row<'static>| join(a, b).expect("one mode");
    let left = j(&j(&first, &y), &j(&again, &y));
    let right = j(&first, &j(&y, &again));
    assert_eq!(left, right);
    assert_eq!(values(&left), ["T"]);
    assert_eq!(left.token_time(Token::new(7)), Some(1));

    // The rule removed: observed-remove by token, then keep the greatest.
    let observed_remove = |x: &Row<'static>, y: &Row<'static>| -> Row<'static> {
        let seen = |row: &Row<'_>, v: &Version<'_>| match v.payload() {
            Payload::Value { value: b"T", .. } => row.token_time(Token::new(7)).is_some(),
            _ => false,
        };
        let mut joined = j(x, y);
        let live = x.live.iter().filter(|(_, v)| y.live == x.live || !seen(y, v));
        let live = live.chain(y.live.iter().filter(|(_, v)| y.live == x.live || !seen(x, v)));
        joined.live = live.max_by_key(|(_, v)| v.time()).copied().into_iter().collect();
        joined
    };
    let left = observed_remove(&observed_remove(&first, &y), &observed_remove(&again, &y));
    let right = observed_remove(&first, &observed_remove(&y, &again));
    assert_ne!(values(&left), values(&right), "the reason for the rule");
}

/// What is logged and shipped is the whole row: an increment that names only its own dot claims
/// its actor's past and kills an untouched sibling when it is joined.
#[test]
fn whole_row_in_log() {
    let x = put(&siblings(), &blind(), A, 1, value("x"));
    let xy = put(&x, &blind(), A, 2, value("y"));
    let increment = put(&siblings(), &blind(), A, 2, value("y"));
    assert_eq!(values(&join(&x, &increment).expect("one mode")), ["y"], "the reason");
    assert_eq!(values(&join(&x, &xy).expect("one mode")), ["x", "y"]);
}

/// Stripping an expired version is a step up the lattice: an old copy with the value bytes does
/// not undo it, in either mode.
#[test]
fn stripped_ranks_above_value() {
    for row in [siblings(), lww()] {
        let x = put(&row, &blind(), A, clock::time_of_ms(100), expiring("x", 200));
        let mut stripped = x.clone();
        assert!(!strip_expired(&mut stripped, clock::time_of_ms(199)));
        assert!(strip_expired(&mut stripped, clock::time_of_ms(200)));
        assert_eq!(join(&stripped, &x).expect("one mode"), stripped);
        assert_eq!(join(&x, &stripped).expect("one mode"), stripped);
    }
}

/// An expired version that a writer took out of the row stays out: the row has seen it.
#[test]
fn a_dropped_expired_version_does_not_come_back() {
    let x = put(&siblings(), &blind(), A, 5, expiring("x", 200));
    let mut dropped = x.clone();
    drop_expired(&mut dropped, 199);
    assert_eq!(dropped, x);
    drop_expired(&mut dropped, 200);
    assert_eq!(values(&join(&dropped, &x).expect("one mode")), [""; 0]);
}

/// Two payloads raced under one token: both replicas end with the same one, in any order.
#[test]
fn duplicate_dot_keeps_the_greater_everywhere() {
    let x = put(&siblings(), &blind(), A, 5, tokened("x", 7));
    let y = put(&siblings(), &blind(), B, 5, tokened("y", 7));
    let one = join(&x, &y).expect("one mode");
    assert_eq!(one, join(&y, &x).expect("one mode"));
    assert_eq!(values(&one).len(), 1);
    let later = put(&siblings(), &blind(), B, 6, tokened("w", 7));
    assert_eq!(values(&join(&one, &later).expect("one mode")), ["w"]);
}

/// Only dead tokens are forgotten, oldest first; a live one names its version's dot.
#[test]
fn eviction_spares_live_tokens() {
    let mut row = siblings();
    for n in 1..=5u64 {
        let context = if n == 2 { blind() } else { Context::of(&row) };
        row = put(&row, &context, A, n, tokened("v", n.into()));
    }
    assert_eq!(forgotten_below(&row, 5), None);
    assert_eq!(evict_tokens(&mut row, 2, |_| false), 2);
    let left: Vec<u64> = row.tokens().iter().map(|entry| entry.1).collect();
    assert_eq!(left, [3, 4, 5]);
    assert_eq!(evict_tokens(&mut row, 2, |_| false), 0);
    assert_eq!(forgotten_below(&row, 2), Some((3, Token::new(3))));
}

/// x is older than all tokens that the row may keep. The write that replaces it keeps the proof:
/// without it x would come back from the record that the write was made from, and in a replica.
#[test]
fn a_write_forgets_nothing_that_it_replaces() {
    let x = put(&siblings(), &blind(), A, 1, tokened("x", 1));
    let mut row = x.clone();
    let mut context = blind();
    for n in 2..=5u64 {
        row = put(&row, &context, A, n, tokened("y", n.into()));
        context = blind().with_write(Dot::Token(Token::new(n.into())), n);
    }
    let seen = Context::of(&row);
    let deleted = put(&row, &seen, A, 6, delete());
    let evicted = |spared: &dyn Fn(Token) -> bool| {
        let mut after = deleted.clone();
        evict_tokens(&mut after, 2, spared);
        after
    };
    let bare = evicted(&|_| false);
    assert_eq!(values(&join(&row, &bare).expect("one mode")), ["x"], "the reason for the rule");
    let after = evicted(&|token| seen.has_seen(&Dot::Token(token)));
    for older in [&row, &x] {
        assert_eq!(values(&join(older, &after).expect("one mode")), [""; 0]);
        assert!(contains(&after, older, 2).expect("one mode"));
    }
}

/// What a row has forgotten is not held against it, and everything else is.
#[test]
fn a_row_contains_what_it_has_not_forgotten() {
    let mut states = vec![put(&siblings(), &blind(), A, 1, tokened("v", 1))];
    for n in 2..=9u64 {
        let last = states.last().expect("a state");
        let mut row = put(last, &Context::of(last), A, n, tokened("v", n.into()));
        evict_tokens(&mut row, 2, |_| false);
        states.push(row);
    }
    let last = states.last().expect("a state");
    assert_ne!(join(last, &states[0]).expect("one mode"), *last, "the reason");
    assert!(states.iter().all(|older| contains(last, older, 2).expect("one mode")));
    assert!(!contains(&states[0], &states[1], 2).expect("one mode"), "nothing was forgotten yet");
    let other = put(&states[0], &blind(), B, 20, value("w"));
    assert!(!contains(last, &other, 2).expect("one mode"), "a write without a token");
    assert!(contains(last, &lww(), 2).is_err());
}

/// A mixed join is an error, not a guess.
#[test]
fn modes_do_not_mix() {
    assert!(join(&siblings(), &lww()).is_err());
    assert_eq!(mint_above(&siblings(), &blind()), 0);
}
