//! The engine as an embedded library: write, read, scan, delete, reopen.
//!
//! `cargo run --example embedded` uses a temporary directory; a path as the first argument keeps
//! the data.

use std::path::PathBuf;
use std::sync::Arc;

use pairdb::engine::newest::Newest;
use pairdb::engine::{Engine, Options, SyncMode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = std::env::args().nth(1).map_or_else(|| temporary.path().into(), PathBuf::from);
    let options = Options { sync_mode: SyncMode::Always, ..Options::default() };

    let engine = Engine::open(&dir, options.clone(), Arc::new(Newest))?;
    // `Newest` keeps the state with the greatest time, so the caller brings an ascending clock.
    // The batch is one unit for recovery.
    let position = engine.apply(&[
        (b"fruit/apple", &Newest::value(1, b"red")),
        (b"fruit/banana", &Newest::value(1, b"yellow")),
        (b"fruit/cherry", &Newest::value(1, b"dark red")),
    ])?;
    // Visible already; acknowledged only when the log is as durable as `sync_mode` says.
    engine.wait_durable(position)?;

    let position = engine.apply(&[(b"fruit/banana", &Newest::tombstone(2))])?;
    engine.wait_durable(position)?;

    // A read-modify-write: nobody else writes the key between the read and the write.
    let position = engine.update(&[b"fruit/apple"], |_, row, _| {
        let old = row.map(Newest::decode).transpose()?.flatten().unwrap_or_default();
        Ok::<_, pairdb::engine::Error>(Some(Newest::value(3, &[b"very ", old].concat())))
    })?;
    engine.wait_durable(position)?;
    engine.close()?;
    drop(engine);

    let engine = Engine::open(&dir, options, Arc::new(Newest))?;
    let mut scan = engine.scan(b"fruit/", Some(b"fruit0"))?;
    while let Some((key, row)) = scan.next()? {
        if let Some(value) = Newest::decode(row)? {
            println!("{} = {}", String::from_utf8_lossy(key), String::from_utf8_lossy(value));
        }
    }
    Ok(())
}
