//! What pages of several replicas say together. No waiting, no network.
//!
//! A page is a replica's word on a stretch of the ring: a row that is not in it is not held. Pages
//! of the same stretch are laid side by side, as far as the shortest of them reaches.
//!
//! 1. A row is agreed on if every page has it with the same digest, or does not have it where its
//!    digest is that of no row. Digests are compared under the floor of the replica that gave them.
//! 2. What is not agreed on is disputed, and left to the read of that key: it joins under floors
//!    and repairs. So whatever a page gives out as agreed, all its replicas hold.

use bytes::Bytes;

use super::part::Seen;
use crate::store::{self, EngineKey, Tenant};

/// A replica's word on a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::replication) struct PageRow {
    pub token: u64,
    pub key: Bytes,
    /// The row itself, if it was asked for.
    pub row: Option<Bytes>,
    /// What is shown of it, where nobody else's word is needed.
    pub seen: Option<Seen>,
    /// Its digest under its floor, if it was asked for.
    pub digest: Option<u64>,
    pub floor: u64,
    /// Whether it has a value; known where the row was not asked for.
    pub has_value: bool,
}

/// A replica's word on a stretch of the ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::replication) struct Page {
    /// In the order of the engine's keys.
    pub rows: Vec<PageRow>,
    /// The place behind what it speaks of; `None`: it speaks of all that was asked.
    pub next: Option<Vec<u8>>,
}

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// All replicas hold this.
    Agreed(PageRow),
    /// It has to be read.
    Disputed(Bytes),
}

/// Pages laid side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Together {
    pub places: Vec<Place>,
    /// The place behind; `None`: all that was asked for.
    pub next: Option<Vec<u8>>,
}

/// Lays pages side by side. The first one has the rows, if they were asked for. `digest` gives the
/// digest of a row under a floor.
///
/// # Errors
/// What `digest` fails with.
pub(super) fn together(
    tenant: &Tenant,
    mut pages: Vec<Page>,
    digest: impl Fn(&[u8], u64) -> store::Result<u64>,
) -> store::Result<Together> {
    let next = pages.iter().filter_map(|page| page.next.as_ref()).min().cloned();
    for page in pages.iter_mut().filter(|page| page.next != next) {
        let Some(next) = &next else { continue };
        let is_before = |row: &PageRow| {
            EngineKey { token: row.token, tenant: tenant.id, key: &row.key }.encode() < *next
        };
        page.rows.truncate(page.rows.partition_point(is_before));
    }
    if let [page] = &mut pages[..] {
        let places = std::mem::take(&mut page.rows).into_iter().map(Place::Agreed).collect();
        return Ok(Together { places, next });
    }
    let mut heads: Vec<_> =
        pages.into_iter().map(|page| page.rows.into_iter().peekable()).collect();
    let mut places = Vec::new();
    loop {
        let least = heads
            .iter_mut()
            .filter_map(|head| head.peek())
            .min_by(|one, other| (one.token, &one.key).cmp(&(other.token, &other.key)));
        let Some(place) = least.map(|row| (row.token, row.key.clone())) else { break };
        let is_it = |row: &PageRow| (row.token, &row.key) == (place.0, &place.1);
        let words: Vec<Option<PageRow>> =
            heads.iter_mut().map(|head| head.next_if(|row| is_it(row))).collect();
        match agreed(words, &digest)? {
            Ok(row) => places.extend(row.map(Place::Agreed)),
            Err(Disputed) => places.push(Place::Disputed(place.1)),
        }
    }
    Ok(Together { places, next })
}

/// Replicas differ.
struct Disputed;

/// What all replicas say of a key; `None`: that there is no row, or none that counts.
fn agreed(
    words: Vec<Option<PageRow>>,
    digest: &impl Fn(&[u8], u64) -> store::Result<u64>,
) -> store::Result<Result<Option<PageRow>, Disputed>> {
    let digest_at = |word: &PageRow, floor: u64| match (&word.row, word.digest) {
        (_, Some(known)) if floor == word.floor => Ok(Some(known)),
        (Some(row), _) => digest(row, floor).map(Some),
        (None, _) => Ok(None),
    };
    // The one with the row, if any: only it can be looked at under another's floor.
    let whole = words.iter().flatten().find(|word| word.row.is_some());
    let Some(first) = whole.or_else(|| words.iter().flatten().next()).cloned() else {
        return Ok(Ok(None));
    };
    let own = digest_at(&first, first.floor)?;
    let first = PageRow { digest: own, ..first };
    for word in &words {
        let (theirs, mine) = match word {
            None => (Some(0), own),
            Some(word) => (digest_at(word, word.floor)?, digest_at(&first, word.floor)?),
        };
        if theirs.is_none() || theirs != mine {
            return Ok(Err(Disputed));
        }
    }
    Ok(Ok(words[0].clone().filter(|_| own != Some(0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Mode, TenantId};

    fn tenant() -> Tenant {
        Tenant {
            id: TenantId(1),
            name: "t".to_owned(),
            created_at_ms: 0,
            mode: Mode::Siblings,
            partition_delimiter: None,
            default_ttl_ms: None,
            max_ttl_ms: None,
            replication_factor: 3,
            retention: crate::store::Retention::default(),
        }
    }

    /// A row whose bytes say its digest: dead below the floor that is its second byte.
    fn digest(row: &[u8], floor: u64) -> store::Result<u64> {
        Ok(if floor >= u64::from(row[1]) { 0 } else { u64::from(row[0]) })
    }

    fn whole(token: u64, digest: u8, dead_at: u8) -> PageRow {
        PageRow { row: Some(vec![digest, dead_at].into()), digest: None, ..told(token, 0) }
    }

    fn told(token: u64, digest: u64) -> PageRow {
        PageRow {
            token,
            key: vec![b'k'].into(),
            row: None,
            seen: None,
            digest: Some(digest),
            floor: 0,
            has_value: true,
        }
    }

    fn page(rows: Vec<PageRow>, next: Option<u64>) -> Page {
        Page { rows, next: next.map(|token| token.to_be_bytes().to_vec()) }
    }

    fn shape(pages: Vec<Page>) -> (Vec<String>, Option<Vec<u8>>) {
        let together = together(&tenant(), pages, digest).expect("digests");
        let text = |place: &Place| match place {
            Place::Agreed(row) => format!("agreed {}", row.token),
            Place::Disputed(_) => "disputed".to_owned(),
        };
        (together.places.iter().map(text).collect(), together.next)
    }

    #[test]
    fn rows_of_equal_digests_are_agreed_on_and_others_are_read() {
        let first = page(vec![whole(1, 5, 9), whole(2, 6, 9), whole(3, 7, 9)], None);
        let second = page(vec![told(1, 5), told(2, 8), told(4, 4)], None);
        let expected = ["agreed 1", "disputed", "disputed", "disputed"].map(str::to_owned);
        assert_eq!(shape(vec![first, second]).0, expected);
    }

    /// The shorter page says nothing of what lies behind it: not even that it is not there.
    #[test]
    fn nothing_is_said_beyond_the_shortest_page() {
        let first = page(vec![whole(1, 5, 9), whole(2, 6, 9), whole(3, 7, 9)], Some(4));
        let second = page(vec![told(1, 5)], Some(2));
        let (places, next) = shape(vec![first, second]);
        assert_eq!(places, ["agreed 1"]);
        assert_eq!(next, Some(2u64.to_be_bytes().to_vec()));
    }

    /// A row that is dead under the floor is no row: one replica has purged it, the other not yet.
    #[test]
    fn a_row_that_is_dead_below_the_floor_is_agreed_to_be_none() {
        let dead = PageRow { floor: 9, ..whole(1, 5, 9) };
        assert!(shape(vec![page(vec![dead], None), page(vec![], None)]).0.is_empty());
        let gone = PageRow { floor: 9, ..told(1, 0) };
        assert!(shape(vec![page(vec![], None), page(vec![gone], None)]).0.is_empty());
    }

    /// While a floor is being installed replicas have different ones for a while.
    #[test]
    fn a_row_is_compared_under_the_floor_of_the_replica_that_gave_the_digest() {
        let lower = PageRow { floor: 3, ..told(1, 5) };
        let first = PageRow { floor: 4, ..whole(1, 5, 9) };
        let pages = vec![page(vec![first.clone()], None), page(vec![lower], None)];
        assert_eq!(shape(pages).0, ["agreed 1"]);
        let higher = PageRow { floor: 9, ..told(1, 5) };
        let pages = vec![page(vec![first], None), page(vec![higher], None)];
        assert_eq!(shape(pages).0, ["disputed"]);
    }

    /// Where no rows were asked for there is nothing to look at under another floor.
    #[test]
    fn digests_alone_agree_only_under_equal_floors() {
        let pages = |floor| {
            let other = PageRow { floor, ..told(1, 5) };
            vec![page(vec![told(1, 5)], None), page(vec![other], None)]
        };
        assert_eq!(shape(pages(0)).0, ["agreed 1"]);
        assert_eq!(shape(pages(2)).0, ["disputed"]);
    }
}
