//! What import and export remember, so that an interrupted one goes on where it was, and the bar
//! that is shown on a terminal.
//!
//! A place is one in one cluster: what was done there is not done in another.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::failure::Failure;

/// At most so often is the file written.
const EVERY: Duration = Duration::from_millis(200);

/// A file with the place reached. It is there only while the work is not done.
pub(super) struct Checkpoint {
    path: Option<PathBuf>,
    written: Option<Instant>,
}

impl Checkpoint {
    /// At `explicit`, else beside `subject`; none if there is neither.
    pub fn beside(explicit: Option<&Path>, subject: Option<&Path>) -> Self {
        let path = explicit.map(Path::to_owned).or_else(|| {
            subject.map(|subject| {
                let mut name = subject.as_os_str().to_owned();
                name.push(".pairdb-progress");
                PathBuf::from(name)
            })
        });
        Self { path, written: None }
    }

    /// What an earlier run left.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, Failure> {
        let Some(path) = &self.path else { return Ok(None) };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Failure::error(format!("cannot read {}: {error}", path.display())));
            }
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            Failure::error(format!(
                "{} is no progress of this command ({error}); remove it to begin anew",
                path.display()
            ))
        })
    }

    /// Refuses what was begun with one cluster to go on with another one.
    pub fn belongs(&self, began: &str, now: &str) -> Result<(), Failure> {
        if began == now {
            return Ok(());
        }
        let path = self.path.as_deref().unwrap_or(Path::new("the progress file")).display();
        Err(Failure::error(format!(
            "{path} belongs to another cluster: {began}, and this is {now}; remove it to begin anew"
        )))
    }

    /// Whether the last time that a place was remembered is long enough ago.
    pub fn is_due(&self) -> bool {
        self.path.is_some() && self.written.is_none_or(|at| at.elapsed() >= EVERY)
    }

    /// Remembers a place, if the last time is long enough ago or `now` is set.
    pub fn save(&mut self, place: &impl Serialize, now: bool) -> Result<(), Failure> {
        if !now && !self.is_due() {
            return Ok(());
        }
        let Some(path) = &self.path else { return Ok(()) };
        self.written = Some(Instant::now());
        let aside = path.with_extension("pairdb-progress.new");
        let text = serde_json::to_vec(place).expect("plain fields always serialize");
        let saved = fs::File::create(&aside)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&aside, path));
        saved.map_err(|error| {
            Failure::error(format!("cannot write the progress to {}: {error}", path.display()))
        })
    }

    /// Forgets it: the work is done.
    pub fn done(&self) {
        if let Some(path) = &self.path {
            // It may never have been written.
            let _ = fs::remove_file(path);
        }
    }

    /// Where it is.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

/// A bar of a thousand steps, for work whose share that is done is known.
pub(super) fn share_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:32} {percent}% {elapsed}, {eta} left, {msg}");
    ProgressBar::new(1000).with_style(style.expect("the template is well-formed"))
}

/// A number of bytes for people: three digits and a unit.
pub(super) fn volume(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut number = bytes as f64;
    while number >= 999.5 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || number >= 99.5 { 0 } else { 1 };
    format!("{number:.digits$} {}", UNITS[unit])
}

/// A time for people: its two greatest units.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0) => format!("{} ms", time.as_millis()),
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A bar of bytes, or a spinner if their number is not known. Hidden unless standard error is a
/// terminal.
pub(super) fn bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => {
            (ProgressBar::new(bytes), "{bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}")
        }
        None => (ProgressBar::no_length(), "{spinner} {bytes} {bytes_per_sec} {msg}"),
    };
    let style = ProgressStyle::with_template(template).expect("the template is well-formed");
    bar.with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        let volumes = [0, 999, 1000, 1024, 10 << 20, 1023 << 20, 5 << 40].map(volume);
        assert_eq!(
            volumes,
            ["0 B", "999 B", "1.0 KiB", "1.0 KiB", "10.0 MiB", "1.0 GiB", "5.0 TiB"]
        );
        let spans = [0, 900, 1000, 61_000, 7_260_000].map(|ms| span(Duration::from_millis(ms)));
        assert_eq!(spans, ["0 ms", "900 ms", "1 s", "1 min 1 s", "2 h 1 min"]);
    }
}
