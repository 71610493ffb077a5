//! The smallest history that still shows a violation: delta debugging (Zeller, Hildebrandt 2002).
//!
//! An operation that is left out could be what excused another. So it is not enough that the
//! smaller history shows some violation: it must show the very one that the whole history shows,
//! which no operation of the whole one excuses.

use super::{Violation, check};
use crate::verify::history::Event;

/// Leaves out of `events` what is not needed to show `violation`; none can be left out of the
/// answer.
pub fn smallest(events: &[Event], violation: &Violation) -> Vec<Event> {
    let shows = |events: &[Event]| check(events).iter().any(|found| found.is(violation));
    let is_there =
        |tenant: &str, key: &str| (tenant, key) == (&*violation.place.0, &*violation.place.1);
    let of_key = |event: &&Event| match event {
        Event::Op(op) => is_there(&op.tenant, &op.key),
        Event::Row { tenant, key, .. } => is_there(tenant, key),
        _ => true,
    };
    let mut kept: Vec<Event> = events.iter().filter(of_key).cloned().collect();
    if !shows(&kept) {
        kept = events.to_vec();
    }
    let mut pieces = 2;
    while kept.len() >= 2 {
        let size = kept.len().div_ceil(pieces);
        let smaller = (0..kept.len()).step_by(size).find_map(|begin| {
            let end = (begin + size).min(kept.len());
            let without = [&kept[..begin], &kept[end..]].concat();
            shows(&without).then_some(without)
        });
        match smaller {
            Some(smaller) => {
                kept = smaller;
                pieces = pieces.saturating_sub(1).max(2);
            }
            None if size == 1 => break,
            None => pieces = (pieces * 2).min(kept.len()),
        }
    }
    kept
}
