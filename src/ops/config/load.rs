//! Reads settings from their sources, in order, and remembers where each came from.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use toml::{Table, Value as Toml};

use super::{Config, Error};

/// Read if no other file is named, and only if it exists.
const SYSTEM_FILE: &str = "/etc/pairdb/pairdb.toml";
/// Names a file.
const FILE_VARIABLE: &str = "PAIRDB_CONFIG";
/// Begins the name of a variable that sets a setting.
const PREFIX: &str = "PAIRDB__";

/// Where a value came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    #[default]
    Default,
    /// This file.
    File(PathBuf),
    /// This variable.
    Environment(String),
    /// This flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// What is outside of the program, given by its caller.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file of `--config`.
    pub file: Option<PathBuf>,
    /// The process environment.
    pub environment: Vec<(String, String)>,
    /// Flags: their name, the setting, the value.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

/// Settings and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Where a setting's value came from.
    pub fn origin(&self, name: &str) -> Origin {
        self.origins.get(name).cloned().unwrap_or_default()
    }

    /// All settings as a file that would give them again, each with its origin.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for setting in self.config.settings() {
            let (head, key) = setting.name.split_once('.').expect("names have a section");
            if head != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}[{head}]");
                section = head;
            }
            let value = match setting.bare {
                true => setting.value,
                false => Toml::String(setting.value).to_string(),
            };
            let line = format!("{key} = {value}");
            let _ = writeln!(text, "{line:<44} # {}", self.origin(setting.name));
        }
        text
    }

    fn set(&mut self, name: &str, text: &str, origin: Origin) -> Result<(), Error> {
        let known = Config::NAMES.iter().find(|known| **known == name);
        match (known, self.config.set(name, text)) {
            (Some(known), Some(Ok(()))) => {
                self.origins.insert(known, origin);
                Ok(())
            }
            (Some(key), Some(Err(expected))) => {
                Err(Error::Value { key, found: text.to_owned(), expected, origin })
            }
            _ => Err(Error::UnknownKey { key: name.to_owned(), origin, similar: similar(name) }),
        }
    }

    fn take_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| Error::Syntax {
            path: path.to_owned(),
            why: error.to_string().trim_end().to_owned(),
        })?;
        let origin = Origin::File(path.to_owned());
        for (section, keys) in table {
            let Toml::Table(keys) = keys else {
                let similar = similar(&section);
                return Err(Error::UnknownKey { key: section, origin, similar });
            };
            if !Config::NAMES
                .iter()
                .any(|name| name.split_once('.').is_some_and(|(head, _)| head == section))
            {
                return Err(Error::UnknownKey { key: section, origin, similar: None });
            }
            for (key, value) in keys {
                self.set(&format!("{section}.{key}"), &text_of(&value), origin.clone())?;
            }
        }
        Ok(())
    }
}

/// A TOML value as text; a table becomes text that no setting takes.
fn text_of(value: &Toml) -> String {
    match value {
        Toml::String(text) => text.clone(),
        Toml::Array(items) => items.iter().map(text_of).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// The setting whose name is nearest, if it is near.
fn similar(name: &str) -> Option<&'static str> {
    let key = |name: &'static str| name.split_once('.').map_or(name, |(_, key)| key);
    let given = name.split_once('.').map_or(name, |(_, key)| key);
    let nearest = Config::NAMES
        .iter()
        .map(|known| (distance(name, known).min(distance(given, key(known))), *known));
    nearest.min_by_key(|(far, _)| *far).filter(|(far, _)| *far <= 3).map(|(_, known)| known)
}

/// Edits (insert, remove, replace) from one text to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// Reads all sources. The result is validated.
///
/// # Errors
/// The first thing that is wrong, with its name and origin.
pub fn load(source: &Source) -> Result<Loaded, Error> {
    let mut loaded = Loaded { config: Config::default(), origins: BTreeMap::new() };
    let variable = source.environment.iter().find(|(name, _)| name == FILE_VARIABLE);
    let named = source.file.clone().or_else(|| variable.map(|(_, path)| PathBuf::from(path)));
    match named {
        Some(path) => loaded.take_file(&path)?,
        None if Path::new(SYSTEM_FILE).exists() => loaded.take_file(Path::new(SYSTEM_FILE))?,
        None => {}
    }
    for (name, value) in &source.environment {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        let setting = path.to_ascii_lowercase().replace("__", ".");
        loaded.set(&setting, value, Origin::Environment(name.clone()))?;
    }
    for (flag, setting, value) in &source.flags {
        loaded.set(setting, value, Origin::Flag(flag))?;
    }
    loaded.config.validate()?;
    Ok(loaded)
}
