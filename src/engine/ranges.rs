//! Sets of keys, as ranges.
//!
//! # Invariants
//! 1. No range is empty, they ascend, and between two of them there is a key that is in neither: a
//!    set has one form. [`KeyRanges::unchecked`] is for bytes from outside, which
//!    [`KeyRanges::is_sound`] judges.

use std::sync::Arc;

/// A range of keys: the first, and the first behind it (`None`: to the last key).
pub type Range = (Vec<u8>, Option<Vec<u8>>);

/// See the module page. A clone shares the ranges; the empty set has none to share, and costs who
/// asks it one comparison with zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRanges(Arc<[Range]>);

impl KeyRanges {
    /// The keys of `ranges`, which may come in any order and overlap.
    pub fn of(ranges: impl IntoIterator<Item = Range>) -> Self {
        let mut ranges: Vec<Range> =
            ranges.into_iter().filter(|(start, end)| is_above(end.as_deref(), start)).collect();
        ranges.sort();
        let mut apart: Vec<Range> = Vec::with_capacity(ranges.len());
        for (start, end) in ranges {
            match apart.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| start <= *last) => {
                    let further = end.as_deref().is_none_or(|end| !is_above(last.as_deref(), end));
                    if further {
                        *last = end;
                    }
                }
                _ => apart.push((start, end)),
            }
        }
        Self(apart.into())
    }

    /// These ranges as they are.
    pub fn unchecked(ranges: Vec<Range>) -> Self {
        Self(ranges.into())
    }

    /// Whether the first invariant holds.
    pub fn is_sound(&self) -> bool {
        let full = |(start, end): &Range| is_above(end.as_deref(), start);
        self.0.iter().all(full)
            && self
                .0
                .is_sorted_by(|(_, end), (start, _)| end.as_ref().is_some_and(|end| end < start))
    }

    /// Whether no key is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// How many of the ranges end at or below `key`.
    pub fn before(&self, key: &[u8]) -> usize {
        self.0.partition_point(|(_, end)| !is_above(end.as_deref(), key))
    }

    /// Whether `key` is in it.
    #[inline]
    pub fn contains(&self, key: &[u8]) -> bool {
        !self.is_empty() && self.holding(key).is_some()
    }

    /// Whether all keys from `first` to `last`, both included, are in it.
    pub fn contains_all(&self, first: &[u8], last: &[u8]) -> bool {
        self.holding(first).is_some_and(|(_, end)| is_above(end.as_deref(), last))
    }

    /// Whether all keys from `first` to `behind`, excluded, are in it.
    pub fn contains_until(&self, first: &[u8], behind: &[u8]) -> bool {
        self.holding(first).is_some_and(|(_, end)| end.as_ref().is_none_or(|end| **end >= *behind))
    }

    /// The range that holds `key`.
    pub fn holding(&self, key: &[u8]) -> Option<&Range> {
        self.0.get(self.before(key)).filter(|(start, _)| **start <= *key)
    }

    /// The ranges that hold a key from `first` to `last`, both included, as they are.
    #[must_use]
    pub fn touching(&self, first: &[u8], last: &[u8]) -> Self {
        let end = self.0.partition_point(|(start, _)| **start <= *last);
        Self(self.0.get(self.before(first)..end).unwrap_or_default().into())
    }

    /// The keys that are also in `range`.
    #[must_use]
    pub fn within(&self, range: &Range) -> Self {
        Self::of(self.0.iter().map(|(start, end)| {
            let least = match (end, &range.1) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.as_ref().or(other.as_ref()),
            };
            (start.max(&range.0).clone(), least.cloned())
        }))
    }

    /// All other keys.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut from = Some(Vec::new());
        let mut others = Vec::with_capacity(self.0.len() + 1);
        for (start, end) in self.0.iter() {
            let before = std::mem::replace(&mut from, end.clone());
            others.extend(before.map(|before| (before, Some(start.clone()))));
        }
        others.extend(from.map(|from| (from, None)));
        Self::of(others)
    }

    /// The keys that are in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(other.ranges()).cloned())
    }
}

/// Whether the end of a range is above `key`: whether `key` may be in it.
fn is_above(end: Option<&[u8]>, key: &[u8]) -> bool {
    end.is_none_or(|end| *end > *key)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn any_range() -> impl Strategy<Value = Range> {
        (vec(0_u8..4, 0..3), proptest::option::weighted(0.8, vec(0_u8..4, 0..3)))
    }

    /// All keys that the ranges above can tell apart, and some.
    fn keys() -> Vec<Vec<u8>> {
        let digits = || (0_u8..5).map(Some).chain([None]);
        let key = |a: Option<u8>, b: Option<u8>, c: Option<u8>| {
            [a, b, c].into_iter().map_while(|digit| digit).collect()
        };
        digits()
            .flat_map(|a| digits().flat_map(move |b| digits().map(move |c| key(a, b, c))))
            .collect()
    }

    fn is_in(ranges: &[Range], key: &[u8]) -> bool {
        ranges.iter().any(|(start, end)| **start <= *key && is_above(end.as_deref(), key))
    }

    proptest! {
        /// A set answers as the ranges it was made of, whatever their order and overlap; so do
        /// unions and cuts, and each has the one form.
        #[test]
        fn a_set_of_keys_is_that_of_its_ranges(
            one in vec(any_range(), 0..5),
            other in vec(any_range(), 0..5),
            cut in any_range(),
        ) {
            let (set, more) = (KeyRanges::of(one.clone()), KeyRanges::of(other.clone()));
            let (both, within) = (set.union(&more), set.within(&cut));
            let others = set.complement();
            prop_assert!([&set, &more, &both, &within, &others].iter().all(|it| it.is_sound()));
            prop_assert_eq!(&others.complement(), &set);
            prop_assert_eq!(&both, &more.union(&set));
            prop_assert_eq!(&set.union(&set), &set);
            for key in keys() {
                prop_assert_eq!(set.contains(&key), is_in(&one, &key), "{:?}", key);
                prop_assert_eq!(both.contains(&key), is_in(&one, &key) || is_in(&other, &key));
                let is_within = is_in(&one, &key) && is_in(std::slice::from_ref(&cut), &key);
                prop_assert_eq!(within.contains(&key), is_within);
                prop_assert_eq!(others.contains(&key), !set.contains(&key));
            }
        }

        /// What touches a span is what can matter to a table of it.
        #[test]
        fn touching_ranges_are_those_with_a_key_in_the_span(
            ranges in vec(any_range(), 0..5),
            mut span in (vec(0_u8..4, 0..3), vec(0_u8..4, 0..3)),
        ) {
            if span.0 > span.1 {
                std::mem::swap(&mut span.0, &mut span.1);
            }
            let (set, (first, last)) = (KeyRanges::of(ranges), span);
            let touching = set.touching(&first, &last);
            let mut all = true;
            for key in keys().into_iter().filter(|key| first <= *key && *key <= last) {
                prop_assert_eq!(touching.contains(&key), set.contains(&key));
                all &= set.contains(&key);
            }
            prop_assert!(all || !set.contains_all(&first, &last));
            for range in touching.ranges() {
                prop_assert!(range.0 <= last && is_above(range.1.as_deref(), &first));
            }
        }
    }
}
