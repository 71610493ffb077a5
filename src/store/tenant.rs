//! A tenant: a name for a set of rows and the rules they live by.
//!
//! The name, the mode and the partition delimiter never change: the mode decides how rows are
//! joined and the delimiter where they lie, and both are part of what is stored. The rest may be
//! altered at any time ([`TenantChange`]). Nothing here is stored or looked up: see
//! [`catalog`](super::catalog).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::key::EngineKey;
use super::limits::{Limits, TTL_MS_CEILING, check_ttl};

/// Longest tenant name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest partition delimiter, in bytes.
pub const DELIMITER_BYTES_MAX: usize = 16;
/// Most replicas of a row.
pub const REPLICATION_FACTOR_MAX: u8 = 15;
/// The tenant that every store has from its first start.
pub const DEFAULT_TENANT: &str = "default";

/// A tenant's number: part of every engine key, never used for another tenant again.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct TenantId(pub u32);

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What becomes of concurrent writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All are kept until a write that has seen them replaces them.
    #[default]
    Siblings,
    /// The one with the greatest time is kept.
    LastWriteWins,
}

/// When rows may go although nobody deleted them. Oldest go first; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Oldest a version may become, in milliseconds.
    pub age_ms_max: Option<u64>,
    /// Most keys of the tenant.
    pub keys_max: Option<u64>,
    /// Most bytes of keys and values of the tenant.
    pub bytes_max: Option<u64>,
}

/// What a tenant is created from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantSpec {
    /// 1 to 63 bytes of `a-z`, `0-9` and `-`.
    pub name: String,
    /// What becomes of concurrent writes. Never changes.
    pub mode: Mode,
    /// Ends the partition key within a key, 1 to 16 bytes; `None` makes every key its own
    /// partition. Never changes.
    pub partition_delimiter: Option<Vec<u8>>,
    /// Time to live of writes that name none, in milliseconds; `None` is for ever.
    pub default_ttl_ms: Option<u64>,
    /// Longest time to live a write may name, in milliseconds. With one, no version lives for ever.
    pub max_ttl_ms: Option<u64>,
    /// Replicas of each row.
    pub replication_factor: u8,
    /// When rows may go although nobody deleted them.
    pub retention: Retention,
}

/// A tenant as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Its number.
    pub id: TenantId,
    /// Its name.
    pub name: String,
    /// When it was created, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// See [`TenantSpec::mode`].
    pub mode: Mode,
    /// See [`TenantSpec::partition_delimiter`].
    pub partition_delimiter: Option<Vec<u8>>,
    /// See [`TenantSpec::default_ttl_ms`].
    pub default_ttl_ms: Option<u64>,
    /// See [`TenantSpec::max_ttl_ms`].
    pub max_ttl_ms: Option<u64>,
    /// See [`TenantSpec::replication_factor`].
    pub replication_factor: u8,
    /// See [`TenantSpec::retention`].
    pub retention: Retention,
}

/// What to alter. `None` leaves it as it is; for a limit, `Some(None)` takes it away.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantChange {
    /// See [`TenantSpec::default_ttl_ms`].
    #[serde(with = "limit_change")]
    pub default_ttl_ms: Option<Option<u64>>,
    /// See [`TenantSpec::max_ttl_ms`]. Versions written before keep their time.
    #[serde(with = "limit_change")]
    pub max_ttl_ms: Option<Option<u64>>,
    /// See [`TenantSpec::replication_factor`].
    pub replication_factor: Option<u8>,
    /// See [`TenantSpec::retention`]; replaced as a whole.
    pub retention: Option<Retention>,
}

/// How a change to a limit is stored: as `"keep"`, `"remove"` or `{"set": 5}`. An option in an
/// option would read back as "keep" what was written as "remove".
mod limit_change {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Stored {
        Keep,
        Remove,
        Set(u64),
    }

    pub(super) fn serialize<S: Serializer>(
        change: &Option<Option<u64>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let stored = match *change {
            None => Stored::Keep,
            Some(None) => Stored::Remove,
            Some(Some(limit)) => Stored::Set(limit),
        };
        stored.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<u64>>, D::Error> {
        Ok(match Stored::deserialize(deserializer)? {
            Stored::Keep => None,
            Stored::Remove => Some(None),
            Stored::Set(limit) => Some(Some(limit)),
        })
    }
}

impl TenantSpec {
    /// A tenant of this name that keeps siblings for ever, on three replicas.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            mode: Mode::default(),
            partition_delimiter: None,
            default_ttl_ms: None,
            max_ttl_ms: None,
            replication_factor: 3,
            retention: Retention::default(),
        }
    }
}

impl Tenant {
    /// The tenant `spec` describes, if it may be.
    pub(crate) fn create(id: TenantId, created_at_ms: u64, spec: TenantSpec) -> Result<Self> {
        let TenantSpec {
            name,
            mode,
            partition_delimiter,
            default_ttl_ms,
            max_ttl_ms,
            replication_factor,
            retention,
        } = spec;
        let tenant = Self {
            id,
            name,
            created_at_ms,
            mode,
            partition_delimiter,
            default_ttl_ms,
            max_ttl_ms,
            replication_factor,
            retention,
        };
        tenant.validate()?;
        Ok(tenant)
    }

    /// The tenant after `change`, if it may be so.
    pub(crate) fn altered(&self, change: TenantChange) -> Result<Self> {
        let tenant = Self {
            default_ttl_ms: change.default_ttl_ms.unwrap_or(self.default_ttl_ms),
            max_ttl_ms: change.max_ttl_ms.unwrap_or(self.max_ttl_ms),
            replication_factor: change.replication_factor.unwrap_or(self.replication_factor),
            retention: change.retention.unwrap_or(self.retention),
            ..self.clone()
        };
        tenant.validate()?;
        Ok(tenant)
    }

    /// Whether all rules of this file hold; also for what was read from a disk.
    pub(crate) fn validate(&self) -> Result<()> {
        validate_name(&self.name)?;
        if let Some(delimiter) = &self.partition_delimiter {
            between("partition_delimiter", delimiter.len() as u64, DELIMITER_BYTES_MAX as u64)?;
        }
        between(
            "replication_factor",
            u64::from(self.replication_factor),
            u64::from(REPLICATION_FACTOR_MAX),
        )?;
        if let Some(max_ttl_ms) = self.max_ttl_ms {
            check_ttl(max_ttl_ms, TTL_MS_CEILING)?;
        }
        if let Some(default_ttl_ms) = self.default_ttl_ms {
            check_ttl(default_ttl_ms, self.max_ttl_ms.unwrap_or(TTL_MS_CEILING))?;
        }
        let Retention { age_ms_max, keys_max, bytes_max } = self.retention;
        let limits = [
            ("retention.age_ms_max", age_ms_max, TTL_MS_CEILING),
            ("retention.keys_max", keys_max, u64::MAX),
            ("retention.bytes_max", bytes_max, u64::MAX),
        ];
        for (what, found, limit) in limits {
            found.map_or(Ok(()), |found| between(what, found, limit))?;
        }
        Ok(())
    }

    /// The bytes the engine stores `key` of this tenant under.
    pub fn engine_key(&self, key: &[u8]) -> Vec<u8> {
        EngineKey::of(self.id, self.delimiter(), key).encode()
    }

    /// The place of `key` of this tenant on the ring.
    pub fn token(&self, key: &[u8]) -> u64 {
        EngineKey::of(self.id, self.delimiter(), key).token
    }

    /// What ends the partition key within a key.
    pub fn delimiter(&self) -> Option<&[u8]> {
        self.partition_delimiter.as_deref()
    }

    /// The time to live of a write that asks for `asked`, in milliseconds; `None` is for ever. A
    /// write that names none gets the default, or else the maximum: a tenant with a maximum holds
    /// nothing for longer.
    pub fn ttl_ms(&self, asked: Option<u64>, limits: &Limits) -> Result<Option<u64>> {
        let max = self.max_ttl_ms.unwrap_or(u64::MAX).min(limits.ttl_ms_max);
        match asked {
            Some(asked) => check_ttl(asked, max).map(|()| Some(asked)),
            // A node whose own limit was lowered later cuts the default; it does not refuse writes.
            None => Ok(self.default_ttl_ms.or(self.max_ttl_ms).map(|ttl_ms| ttl_ms.min(max))),
        }
    }
}

/// The rule of tenant names.
pub fn validate_name(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > NAME_BYTES_MAX {
        format!("it has {} bytes, the limit is {NAME_BYTES_MAX}", name.len())
    } else if let Some(found) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        format!("it has {found:?}, only a-z, 0-9 and - may be in it")
    } else {
        return Ok(());
    };
    // An error must not carry a megabyte that somebody sent as a name.
    let name = name.chars().take(NAME_BYTES_MAX).collect();
    Err(Error::InvalidTenantName { name, why })
}

fn between(what: &'static str, found: u64, max: u64) -> Result<()> {
    if found == 0 || found > max {
        let why = format!("it is {found}, it must be 1 to {max}");
        return Err(Error::InvalidArgument { what, why });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(edit: impl FnOnce(&mut TenantSpec)) -> Result<Tenant> {
        let mut spec = TenantSpec::new("t");
        edit(&mut spec);
        Tenant::create(TenantId(7), 1, spec)
    }

    /// Names travel in metrics, paths and URLs, so they are what is harmless in all of them.
    #[test]
    fn a_name_is_harmless_wherever_it_is_put() {
        for name in ["a", "0", "-", "default", "team-7", &"x".repeat(63)] {
            validate_name(name).unwrap();
        }
        for name in ["", "A", "a_b", "a.b", "a/b", "a b", "\u{e9}", "a\0", &"x".repeat(64)] {
            let error = validate_name(name).unwrap_err();
            assert_eq!(error.reason(), "INVALID_TENANT_NAME", "{name:?}");
        }
        let long = validate_name(&"x".repeat(1 << 20)).unwrap_err().to_string();
        assert!(long.len() < 300 && long.contains("1048576"), "{long}");
    }

    #[test]
    fn a_setting_out_of_bounds_is_refused_by_its_name() {
        type Edit = fn(&mut TenantSpec);
        let cases: [(Edit, &str); 7] = [
            (|spec| spec.partition_delimiter = Some(Vec::new()), "partition_delimiter"),
            (|spec| spec.partition_delimiter = Some(vec![0; 17]), "partition_delimiter"),
            (|spec| spec.replication_factor = 0, "replication_factor"),
            (|spec| spec.replication_factor = 16, "replication_factor"),
            (|spec| spec.retention.age_ms_max = Some(0), "retention.age_ms_max"),
            (|spec| spec.retention.keys_max = Some(0), "retention.keys_max"),
            (|spec| spec.retention.bytes_max = Some(0), "retention.bytes_max"),
        ];
        for (edit, name) in cases {
            let error = tenant(edit).unwrap_err();
            assert!(
                matches!(error, Error::InvalidArgument { what, .. } if what == name),
                "{error}"
            );
        }
        for ttl_ms in [0, TTL_MS_CEILING + 1] {
            let default = tenant(|spec| spec.default_ttl_ms = Some(ttl_ms));
            let max = tenant(|spec| spec.max_ttl_ms = Some(ttl_ms));
            assert!(matches!(default, Err(Error::InvalidTtl { .. })));
            assert!(matches!(max, Err(Error::InvalidTtl { .. })));
        }
        tenant(|spec| spec.partition_delimiter = Some(vec![0; 16])).unwrap();
    }

    /// A tenant that promises "nothing older than an hour" must not keep what names no time.
    #[test]
    fn a_maximum_holds_for_writes_that_name_no_time() {
        let limits = Limits { ttl_ms_max: 1000, ..Limits::default() };
        let plain = tenant(|_| {}).unwrap();
        assert_eq!(plain.ttl_ms(None, &limits).unwrap(), None);
        assert_eq!(plain.ttl_ms(Some(1000), &limits).unwrap(), Some(1000));
        assert_eq!(plain.ttl_ms(Some(1001), &limits).unwrap_err().reason(), "INVALID_TTL");

        let capped = tenant(|spec| spec.max_ttl_ms = Some(60)).unwrap();
        assert_eq!(capped.ttl_ms(None, &limits).unwrap(), Some(60));
        let error = capped.ttl_ms(Some(61), &limits).unwrap_err();
        assert!(matches!(error, Error::InvalidTtl { found: 61, limit: 60 }));

        let both = tenant(|spec| {
            spec.default_ttl_ms = Some(5000);
            spec.max_ttl_ms = Some(9000);
        });
        let both = both.unwrap();
        assert_eq!(both.ttl_ms(None, &limits).unwrap(), Some(1000), "the node's limit cuts it");
        assert_eq!(both.ttl_ms(None, &Limits::default()).unwrap(), Some(5000));
    }

    /// A change is agreed upon as bytes; "take the limit away" read back as "leave it" would be
    /// lost, and differently on the node that proposed it.
    #[test]
    fn a_change_means_the_same_after_it_was_stored() {
        for ttl_ms in [None, Some(None), Some(Some(0)), Some(Some(u64::MAX))] {
            let change = TenantChange {
                default_ttl_ms: ttl_ms,
                max_ttl_ms: Some(None),
                retention: Some(Retention::default()),
                ..TenantChange::default()
            };
            let json = serde_json::to_string(&change).unwrap();
            assert_eq!(serde_json::from_str::<TenantChange>(&json).unwrap(), change, "{json}");
        }
        let stored = serde_json::to_string(&TenantChange::default()).unwrap();
        let expected = concat!(
            r#"{"default_ttl_ms":"keep","max_ttl_ms":"keep","#,
            r#""replication_factor":null,"retention":null}"#
        );
        assert_eq!(stored, expected);
    }

    /// An alteration is judged by what comes out of it, not by its own parts.
    #[test]
    fn a_default_cannot_be_left_above_a_lowered_maximum() {
        let before = tenant(|spec| spec.default_ttl_ms = Some(100)).unwrap();
        let lower = TenantChange { max_ttl_ms: Some(Some(50)), ..TenantChange::default() };
        let error = before.altered(lower.clone()).unwrap_err();
        assert!(matches!(error, Error::InvalidTtl { found: 100, limit: 50 }), "{error}");
        let after = before
            .altered(TenantChange { default_ttl_ms: Some(None), ..lower })
            .expect("the default goes away in the same change");
        assert_eq!((after.default_ttl_ms, after.max_ttl_ms), (None, Some(50)));
        assert_eq!(after.altered(TenantChange::default()).unwrap(), after);
    }
}
