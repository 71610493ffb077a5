//! Settings from their sources.

use std::io::Write as _;

use super::*;

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn source(file: &tempfile::NamedTempFile) -> Source {
    Source { file: Some(file.path().to_owned()), ..Source::default() }
}

#[test]
fn a_later_source_wins_and_the_origin_says_which() {
    let file = file("[engine]\nsync_mode = \"os\"\nlevel_ratio = 8\nmemtable_bytes = \"8MiB\"\n");
    let mut source = source(&file);
    source.environment = vec![
        ("PAIRDB__ENGINE__SYNC_MODE".into(), "interval".into()),
        ("PAIRDB__LISTEN__CLIENT".into(), "127.0.0.1:1".into()),
        ("PATH".into(), "/bin".into()),
    ];
    source.flags = vec![("--listen", "listen.client", "127.0.0.1:2".into())];
    let loaded = load(&source).expect("valid");
    assert_eq!(loaded.config.engine.sync_mode, SyncMode::Interval);
    assert_eq!(loaded.config.engine.level_ratio, 8);
    assert_eq!(loaded.config.listen.client.port(), 2);
    assert_eq!(loaded.origin("listen.client"), Origin::Flag("--listen"));
    assert_eq!(
        loaded.origin("engine.sync_mode"),
        Origin::Environment("PAIRDB__ENGINE__SYNC_MODE".into())
    );
    assert_eq!(loaded.origin("engine.memtable_bytes"), Origin::File(file.path().to_owned()));
    assert_eq!(loaded.origin("log.level"), Origin::Default);
}

#[test]
fn an_unknown_key_is_refused_by_name_wherever_it_stands() {
    for text in ["[engine]\nsync_mod = \"os\"\n", "[motor]\nx = 1\n", "sync_mode = \"os\"\n"] {
        let file = file(text);
        let error = load(&source(&file)).expect_err(text);
        assert!(matches!(error, Error::UnknownKey { .. }), "{error}");
    }
    let typo = file("[engine]\nsync_mod = \"os\"\n");
    let message = load(&source(&typo)).expect_err("a typo").to_string();
    assert!(message.contains("engine.sync_mod"), "{message}");
    assert!(message.contains("did you mean \"engine.sync_mode\""), "{message}");

    let environment = vec![("PAIRDB__ENGIN__X".to_owned(), "1".to_owned())];
    let error = load(&Source { environment, ..Source::default() }).expect_err("unknown");
    assert!(error.to_string().contains("PAIRDB__ENGIN__X"), "{error}");
}

#[test]
fn a_value_of_a_wrong_form_is_refused_with_what_is_expected() {
    for (text, expected) in [
        ("[engine]\nmemtable_bytes = 64\n", "size with a unit"),
        ("[engine]\nsync_interval = \"10\"\n", "duration with a unit"),
        ("[engine]\nlevel_ratio = -1\n", "whole number"),
        ("[engine.sync_mode]\nx = 1\n", "always, interval or os"),
        ("[listen]\nclient = \"localhost\"\n", "IP address and a port"),
    ] {
        let file = file(text);
        let message = load(&source(&file)).expect_err(text).to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn what_is_not_toml_or_not_there_is_named() {
    let bad = file("[engine\n");
    let message = load(&source(&bad)).expect_err("not TOML").to_string();
    assert!(message.contains(&bad.path().display().to_string()), "{message}");
    let missing = Source { file: Some("/nonexistent/p.toml".into()), ..Source::default() };
    assert!(matches!(load(&missing), Err(Error::Read { .. })));
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    for (text, named) in [
        ("[limits]\nvalue_bytes_max = \"8MiB\"\n", "row_bytes_max"),
        ("[limits]\nbatch_max = 0\n", "limits.batch_max = 0 must be at least 1"),
        ("[limits]\nttl_max = 0\n", "limits.ttl_max = 0 must be at least 1ms"),
        ("[limits]\nttl_max = \"40000d\"\n", "limits.ttl_max = 40000d must be at most 36500d"),
        (
            "[limits]\nidempotency_window = \"1s\"\n",
            "limits.idempotency_window = 1s must be at least 1m",
        ),
        ("[engine]\nsync_interval = 0\n", "engine.sync_interval = 0 must be at least 1ms"),
        ("[engine]\nlevel0_tables_stop = 1\n", "engine.level0_tables_stop = 1 must be at least 7"),
        ("[engine]\nblock_bytes = \"2MiB\"\n", "engine.block_bytes = 2MiB must be at most 1MiB"),
        (
            "[node]\nworker_threads = 1000000\n",
            "node.worker_threads = 1000000 must be at most 1024",
        ),
        ("[node]\ndata_dir = \"\"\n", "node.data_dir is empty"),
        ("[log]\nlevel = \"verbose\"\n", "\"verbose\" is no level: off, error, warn, info, "),
        ("[log]\nlevel = \"\"\n", "log.level"),
        ("[log]\nlevel = \"info,pairdb\"\n", "\"pairdb\" is no level"),
        ("[limits]\nstreams_per_connection_max = 0\n", "limits.streams_per_connection_max"),
        ("[limits]\ndeadline_max = 0\n", "limits.deadline_max"),
        ("[node]\nshutdown_timeout = 0\n", "node.shutdown_timeout"),
        ("[engine]\nlevel_ratio = 1\n", "level_ratio"),
        ("[listen]\nclient = \"0.0.0.0:8080\"\n", "0.0.0.0:8080"),
        ("[listen]\nclient = \"127.0.0.1:9091\"\n", "127.0.0.1:9091"),
        ("[cluster]\njoin_timeout = 0\n", "cluster.join_timeout"),
        ("[cluster]\nadvertise = \"node-1:7946\"\n", "\"node-1:7946\""),
        ("[cluster]\nadvertise = \"0.0.0.0:7946\"\n", "\"0.0.0.0:7946\""),
        ("[cluster]\nadvertise = \"[::]:7946\"\n", "\"[::]:7946\""),
        ("[cluster]\nadvertise = \"10.0.0.1:0\"\n", "\"10.0.0.1:0\""),
        ("[cluster]\nseeds = \"node-1:7946,node-2\"\n", "\"node-2\""),
        ("[cluster]\nseeds = \":7946\"\n", "\":7946\""),
        ("[cluster]\nseeds = \"node-1:0\"\n", "\"node-1:0\""),
        ("[cluster]\nseeds = \"fd00::1:7946\"\n", "\"fd00::1:7946\""),
        ("[log]\nlevel = \"pairdb=loud\"\n", "\"pairdb=loud\""),
        ("[kubernetes]\nenabled = true\ntimeout = 0\n", "kubernetes.timeout"),
        ("[kubernetes]\nenabled = true\napi = \"http://10.0.0.1\"\n", "http://10.0.0.1"),
        ("[kubernetes]\nenabled = true\napi = \"no url\"\n", "\"no url\""),
        ("[kubernetes]\nenabled = true\npod_name = \"pairdb\"\n", "\"pairdb\""),
    ] {
        let file = file(text);
        let error = load(&source(&file)).expect_err(text);
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    for text in [
        "[cluster]\nadvertise = \"[fd00::1]:7946\"\n",
        "[cluster]\nseeds = \"node-1:7946,10.0.0.1:7946,[fd00::1]:7946\"\n",
        "[kubernetes]\nenabled = true\napi = \"https://10.0.0.1\"\npod_name = \"pairdb-0\"\n",
        "[kubernetes]\ntimeout = 0\npod_name = \"pairdb\"\n",
        "[log]\nlevel = \"WARN,pairdb::rpc=debug\"\n",
        "[log]\nlevel = \"info,\"\n",
        "[log]\nlevel = \"info,[scan{tenant}]=trace\"\n",
    ] {
        load(&source(&file(text))).expect(text);
    }
    let open = file("[listen]\nclient = \"0.0.0.0:8080\"\n[security]\ninsecure = true\n");
    load(&source(&open)).expect("allowed on purpose");
}

#[test]
fn what_is_shown_reads_back_as_the_same_settings() {
    let loaded = load(&Source::default()).expect("the defaults are valid");
    let shown = file(&loaded.to_toml());
    let again = load(&source(&shown)).expect("what is shown is valid");
    let values = |loaded: &Loaded| {
        let settings = loaded.config.settings().into_iter();
        settings.map(|setting| (setting.name, setting.value)).collect::<Vec<_>>()
    };
    assert_eq!(values(&loaded), values(&again));
    assert!(again.config.settings().iter().all(|setting| !setting.doc.is_empty()));
}

#[test]
fn the_defaults_are_those_of_the_engine() {
    let ours = Config::default().engine_options().expect("fits");
    assert_eq!(format!("{ours:?}"), format!("{:?}", EngineOptions::default()));
}

/// What the layout document would refuse must not get as far as a formation: a promise keeps it.
#[test]
fn a_member_that_no_layout_takes_is_refused_by_its_setting() {
    let long = "z".repeat(256);
    for (text, name) in [
        (format!("[node]\nname = \"{long}\"\n"), "node.name"),
        (format!("[node]\nzone = \"{long}\"\n"), "node.zone"),
        ("[cluster]\nbootstrap_expect = 257\n".to_owned(), "cluster.bootstrap_expect"),
    ] {
        let error = load(&source(&file(&text))).expect_err(name).to_string();
        assert!(error.contains(name), "{error}");
    }
}
