//! UUIDs as text: 32 lower-case hex digits in groups of 8, 4, 4, 4 and 12.

use crate::store::environment::Random;
use crate::store::error::Result;

const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

/// A new random one (version 4).
pub fn mint(random: &dyn Random) -> Result<u128> {
    let mut bytes = [0; 16];
    random.fill(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(u128::from_be_bytes(bytes))
}

/// The text form of `id`.
pub fn to_text(id: u128) -> String {
    let digits = format!("{id:032x}");
    let mut rest = digits.as_str();
    let groups = GROUPS.map(|len| {
        let (group, behind) = rest.split_at(len);
        rest = behind;
        group
    });
    groups.join("-")
}

/// The inverse of [`to_text`]; capital digits pass too. `None` if `text` is something else.
pub fn from_text(text: &str) -> Option<u128> {
    parse(text.as_bytes())
}

/// [`from_text`] of bytes.
pub fn parse(text: &[u8]) -> Option<u128> {
    let mut groups = text.split(|byte| *byte == b'-');
    let mut uuid = 0;
    for len in GROUPS {
        let group = groups.next().filter(|group| group.len() == len)?;
        for byte in group {
            uuid = uuid << 4 | u128::from(char::from(*byte).to_digit(16)?);
        }
    }
    groups.next().is_none().then_some(uuid)
}

#[cfg(test)]
mod tests {
    use crate::store::environment::SeededRandom;

    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        let id = 0x0123_4567_89ab_4def_8000_0000_0000_0001;
        assert_eq!(to_text(id), "01234567-89ab-4def-8000-000000000001");
        for id in [id, 0, u128::MAX] {
            assert_eq!(from_text(&to_text(id)), Some(id));
            assert_eq!(from_text(&to_text(id).to_uppercase()), Some(id));
        }
    }

    /// `from_str_radix` alone would take a sign, and groups may not wander.
    #[test]
    fn what_is_not_a_uuid_is_not_read_as_one() {
        let id = to_text(7);
        let others = [
            String::new(),
            id.replace('-', ""),
            id.replacen('0', "+", 1),
            id.replacen('0', "g", 1),
            format!("{id}-"),
            format!("{id}-00"),
            id[1..].to_owned(),
            format!("0{}", &id[..35]),
            "\u{e9}".repeat(18),
        ];
        for other in others {
            assert_eq!(from_text(&other), None, "{other}");
        }
    }

    #[test]
    fn a_minted_one_says_that_it_is_random() {
        let text = to_text(mint(&SeededRandom::new(1)).unwrap());
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]), "{text}");
    }
}
