//! A record that makes a component fail, in every way it can, at every kind of component: it becomes a dead letter or is
//! counted and told, everything else is as if it had not been there, and few restarts are needed.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::tocsin;

const PIPELINE: &str = r#"
[sources.log]
type = "file"
paths = ["log"]
codec = "json"
timestamp = { field = ".ts" }

[operators.kept]
type = "filter"
inputs = ["log"]
condition = ".n >= 0"

[operators.changed]
type = "remap"
inputs = ["kept"]
program = ".double = int!(.n) * 2"

[operators.once]
type = "dedupe"
inputs = ["changed"]
key = [".n"]

[operators.by_second]
type = "window"
inputs = ["kept"]
tumbling = "1s"
aggregates = { count = "count()" }

[sinks.out]
type = "file"
inputs = ["once"]
path = "out"

[sinks.windows]
type = "file"
inputs = ["by_second"]
path = "windows"

[sinks.letters]
type = "file"
inputs = ["log.rejected", "changed.rejected"]
path = "letters"
"#;

const RECORDS: u64 = 2_000;
const POISONED: u64 = 1_234;

fn record(n: u64) -> String {
    let mark = if n == POISONED { "poison" } else { "fine" };
    format!("{{\"ts\":\"2026-11-20T12:00:{:02}.{:03}Z\",\"n\":{n},\"mark\":\"{mark}\"}}\n", n / 100, n % 100 * 10)
}

fn run(folder: &Path) -> Command {
    let mut command = tocsin(&["run", "--once", "pipeline.toml", "--data-dir", "state"]);
    command.args(["--set", "daemon.checkpoint_interval=10ms"]).current_dir(folder);
    command
}

/// The numbers of the records that were written.
fn written(folder: &Path) -> Vec<u64> {
    let text = fs::read_to_string(folder.join("out")).unwrap();
    text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64().unwrap()).collect()
}

/// Has a component fail on one record; gives how many times the daemon had to be started.
fn survive(how: &str, component: &str) -> u32 {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pipeline.toml"), PIPELINE).unwrap();
    fs::write(folder.path().join("log"), (0..RECORDS).map(record).collect::<String>()).unwrap();
    let mut starts = 0;
    loop {
        starts += 1;
        assert!(starts < 6, "{how} at {component}: it never ends");
        let output = run(folder.path()).env("TOCSIN_POISON", format!("{how}@{component}:poison")).output().unwrap();
        if output.status.success() {
            break;
        }
        assert_ne!(how, "panic", "{component}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let all: Vec<u64> = (0..RECORDS).collect();
    let others: Vec<u64> = all.iter().copied().filter(|n| *n != POISONED).collect();
    let is_before = matches!(component, "log" | "kept" | "changed" | "once");
    assert_eq!(written(folder.path()), if is_before { others } else { all }, "{how} at {component}");
    let windows = fs::read_to_string(folder.path().join("windows")).unwrap();
    let counted: u64 = windows
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["count"].as_u64().unwrap())
        .sum();
    let is_counted = matches!(component, "changed" | "once");
    assert_eq!(counted, RECORDS - u64::from(!is_counted), "{how} at {component}");
    let letters = fs::read_to_string(folder.path().join("letters")).unwrap_or_default();
    assert_eq!(letters.lines().count(), usize::from(matches!(component, "log" | "changed")), "{how} at {component}");
    if !letters.is_empty() {
        let letter: serde_json::Value = serde_json::from_str(letters.trim()).unwrap();
        assert_eq!(letter["error"]["reason"], "poison");
        assert_eq!(letter["raw"], record(POISONED).trim());
    }
    let audit = tocsin(&["audit", "--data-dir", "state"]).current_dir(folder.path()).output().unwrap();
    assert!(audit.status.success(), "{how} at {component}: {}", String::from_utf8_lossy(&audit.stdout));
    starts
}

#[test]
fn a_panic_on_a_record_costs_that_record_alone_and_no_restart() {
    for component in ["log", "kept", "changed", "once", "by_second"] {
        assert_eq!(survive("panic", component), 1, "{component}");
    }
}

#[test]
fn a_record_that_ends_the_process_twice_is_passed_over() {
    for how in ["abort", "overflow"] {
        for component in ["kept", "changed", "once", "by_second"] {
            let starts = survive(how, component);
            assert!(starts <= 3, "{how} at {component}: {starts} starts");
        }
    }
}

#[test]
fn a_daemon_that_is_killed_from_outside_passes_nothing_over() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pipeline.toml"), PIPELINE).unwrap();
    fs::write(folder.path().join("log"), (0..RECORDS).map(record).collect::<String>()).unwrap();
    for visit in 1..6 {
        let killed = run(folder.path())
            .env("TOCSIN_FAULT_POINT", "checkpoint.barrier")
            .env("TOCSIN_FAULT_VISIT", visit.to_string())
            .status()
            .unwrap();
        if killed.success() {
            break;
        }
    }
    assert!(run(folder.path()).status().unwrap().success());
    assert_eq!(written(folder.path()), (0..RECORDS).collect::<Vec<_>>());
}
