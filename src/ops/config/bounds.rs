//! Bounds of the engine and of the store, told by the names and in the units of the settings.

use std::time::Duration;

use super::{Config, Error, Size, Value as _};
use crate::engine;
use crate::store::limits::OutOfRange;

/// Settings that the engine or the store calls otherwise.
const NAMES: [(&str, &str); 5] = [
    ("sync_interval_ms", "engine.sync_interval"),
    ("batch_items_max", "limits.batch_max"),
    ("ttl_ms_max", "limits.ttl_max"),
    ("clock_skew_ms_max", "limits.clock_skew_max"),
    ("token_window_ms", "limits.idempotency_window"),
];

impl Config {
    /// Checks the bounds that the engine and the store set.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first setting that is out of them.
    pub(super) fn check_bounds(&self) -> Result<(), Error> {
        match self.engine_options()?.validate() {
            Ok(()) => {}
            Err(engine::Error::OutOfBounds { what, found, limit }) => {
                let (least, most) = if found < limit { (limit, u64::MAX) } else { (0, limit) };
                return Err(self.out_of("engine", what, found, least, most));
            }
            Err(error) => return Err(Error::Invalid(format!("[engine] {error}"))),
        }
        match self.store_limits().out_of_range() {
            None => Ok(()),
            Some(OutOfRange { what, found, least, most }) => {
                Err(self.out_of("limits", what, found, least, most))
            }
        }
    }

    fn out_of(&self, section: &str, field: &str, found: u64, least: u64, most: u64) -> Error {
        let other = NAMES.iter().find(|(known, _)| *known == field).map(|(_, name)| *name);
        let name = other.map_or_else(|| format!("{section}.{field}"), ToOwned::to_owned);
        let shown = |figure: u64| match field {
            field if field.contains("_ms") => Duration::from_millis(figure).show(),
            field if field.contains("bytes") => Size(figure).show(),
            _ => figure.to_string(),
        };
        let setting = self.settings().into_iter().find(|setting| setting.name == name);
        let value = setting.map_or_else(|| shown(found), |setting| setting.value);
        let bound = match found < least {
            true => format!("at least {}", shown(least)),
            false => format!("at most {}", shown(most)),
        };
        Error::Invalid(format!("{name} = {value} must be {bound}"))
    }
}
