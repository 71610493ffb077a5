//! Values of settings as text: durations and sizes have units, everything can be shown again.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::engine::options::{Compression, SyncMode};
use crate::store::identity::uuid;

/// A type of setting.
pub trait Value: Sized {
    /// What a value looks like, for messages.
    const EXPECTED: &'static str;
    /// The value that `text` stands for.
    fn parse(text: &str) -> Option<Self>;
    /// The text that stands for the value.
    fn show(&self) -> String;
    /// Whether TOML writes it without quotes.
    const BARE: bool = false;
}

/// A size in bytes, written "64MiB" or "1GB" or "4096B".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A list, written comma-separated, or as an array in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(pub Vec<String>);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Whole or decimal number and unit; the unit may be left out only for zero.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    if text == "0" {
        return Some(0);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(*scale),
        Some((whole, part)) => {
            let whole = whole.parse::<u64>().ok()?.checked_mul(*scale)?;
            // Six digits are enough for any unit, and cannot overflow with the largest of them.
            let digits = u32::try_from(part.len()).ok().filter(|len| (1..=6).contains(len))?;
            let part = part.parse::<u64>().ok()?.checked_mul(*scale)? / 10_u64.pow(digits);
            whole.checked_add(part)
        }
    }
}

/// The shortest whole number with a unit.
fn show_with_unit(value: u64, units: &[(&'static str, u64)]) -> String {
    let fits = units.iter().filter(|(_, scale)| value != 0 && value.is_multiple_of(*scale));
    match fits.max_by_key(|(_, scale)| *scale) {
        Some((unit, scale)) => format!("{}{unit}", value / scale),
        None => "0".to_owned(),
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = &SIZES[..4];
        match show_with_unit(self.0, binary).as_str() {
            "0" if self.0 != 0 => write!(f, "{}B", self.0),
            text => f.write_str(text),
        }
    }
}

impl Value for Size {
    const EXPECTED: &'static str = "a size with a unit, such as \"64MiB\"";
    fn parse(text: &str) -> Option<Self> {
        with_unit(text, &SIZES).map(Self)
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

/// The id of a cluster, or any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterId(pub Option<u128>);

impl Value for ClusterId {
    const EXPECTED: &'static str = "a UUID, or nothing";
    fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "" => Some(Self(None)),
            text => uuid::from_text(text).map(|id| Self(Some(id))),
        }
    }
    fn show(&self) -> String {
        self.0.map(uuid::to_text).unwrap_or_default()
    }
}

impl Value for Duration {
    const EXPECTED: &'static str = "a duration with a unit, such as \"10s\" or \"250ms\"";
    fn parse(text: &str) -> Option<Self> {
        with_unit(text, &DURATIONS).map(Self::from_millis)
    }
    fn show(&self) -> String {
        show_with_unit(u64::try_from(self.as_millis()).unwrap_or(u64::MAX), &DURATIONS)
    }
}

impl Value for u64 {
    const EXPECTED: &'static str = "a whole number";
    const BARE: bool = true;
    fn parse(text: &str) -> Option<Self> {
        text.trim().replace('_', "").parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";
    const BARE: bool = true;
    fn parse(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    const EXPECTED: &'static str = "a text";
    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "a path";
    fn parse(text: &str) -> Option<Self> {
        Some(Self::from(text))
    }
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an IP address and a port, such as \"127.0.0.1:8080\"";
    fn parse(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for List {
    const EXPECTED: &'static str = "a list";
    fn parse(text: &str) -> Option<Self> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        Some(Self(items.map(ToOwned::to_owned).collect()))
    }
    fn show(&self) -> String {
        self.0.join(",")
    }
}

macro_rules! words {
    ($type:ty, $expected:literal, $($word:literal => $value:path),*) => {
        impl Value for $type {
            const EXPECTED: &'static str = $expected;
            fn parse(text: &str) -> Option<Self> {
                match text.trim() {
                    $($word => Some($value),)*
                    _ => None,
                }
            }
            fn show(&self) -> String {
                match self {
                    $($value => $word,)*
                }
                .to_owned()
            }
        }
    };
}

words!(LogFormat, "auto, json or pretty",
    "auto" => LogFormat::Auto, "json" => LogFormat::Json, "pretty" => LogFormat::Pretty);
words!(SyncMode, "always, interval or os",
    "always" => SyncMode::Always, "interval" => SyncMode::Interval, "os" => SyncMode::Os);
words!(Compression, "none or lz4", "none" => Compression::None, "lz4" => Compression::Lz4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_need_a_unit() {
        assert_eq!(Duration::parse("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(Duration::parse("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(Duration::parse("2h"), Some(Duration::from_secs(7200)));
        assert_eq!(Size::parse("64MiB"), Some(Size(64 << 20)));
        assert_eq!(Size::parse("1 GB"), Some(Size(1_000_000_000)));
        assert_eq!(Size::parse("0"), Some(Size(0)));
        for bad in ["", "10", "s", "-1s", "1.s", "ten s", "1w", "99999999999999999999s", "1.2.3s"] {
            assert_eq!(Duration::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Size::parse("18446744073709551615TiB"), None);
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for ms in [0, 1, 999, 1000, 1500, 60_000, 90_000, 86_400_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(Duration::parse(&duration.show()), Some(duration));
        }
        for bytes in [0, 1, 1000, 1024, 4097, 50 << 20, 256 << 20, 1 << 40, u64::MAX] {
            assert_eq!(Size::parse(&Size(bytes).show()), Some(Size(bytes)), "{bytes}");
        }
    }
}
