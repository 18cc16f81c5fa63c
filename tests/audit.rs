//! `tocsin audit`: every record is accounted for, and one that is not is told.

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use support::{Daemon, require_balance, tocsin, wait_for};

const PIPELINE: &str = r#"
[sources.log]
type = "file"
paths = ["in/*.log"]
codec = "json"

[operators.loud]
type = "filter"
inputs = ["log"]
condition = '.n >= 0'

[sinks.out]
type = "file"
inputs = ["loud"]
path = "out/{{ host }}.ndjson"

[sinks.letters]
type = "file"
inputs = ["out.rejected", "log.rejected"]
path = "out/letters.ndjson"
"#;

/// A folder with the pipeline and `count` records, some of which cannot be read, and some of which cannot be written,
/// because a folder is in the place of their file.
fn prepare(count: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("pipeline.toml"), PIPELINE).unwrap();
    fs::create_dir(path("in")).unwrap();
    fs::create_dir_all(path("out/web-3.ndjson/in-the-way")).unwrap();
    fs::write(path("in/a.log"), records(0, count)).unwrap();
    folder
}

fn records(from: u64, to: u64) -> String {
    (from..to)
        .map(|n| match n % 100 {
            99 => "no JSON\n".to_owned(),
            _ => format!("{{\"n\":{},\"host\":\"web-{}\"}}\n", n as i64 - 10, n % 4),
        })
        .collect()
}

fn run(folder: &Path, arguments: &[&str], plant: Option<&str>) -> Output {
    let mut command = tocsin(arguments);
    command.current_dir(folder).envs(plant.map(|defect| ("TOCSIN_PLANT", defect)));
    command.output().unwrap()
}

const ONCE: &[&str] = &["run", "--once", "pipeline.toml", "--data-dir", "state"];
const AUDIT: &[&str] = &["audit", "--data-dir", "state"];

#[test]
fn every_record_is_told_with_where_it_ended() {
    let folder = prepare(5000);
    let output = run(folder.path(), ONCE, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = run(folder.path(), AUDIT, None);
    let told = String::from_utf8(output.stdout).unwrap();
    let (_, told) = told.split_once('\n').unwrap();
    expect_test::expect![[r#"

        log
          read          5000
          ended here      50  undecodable
          parsed        4950  handed on
            at letters  1248  delivered
            at loud       10  filtered
            at out      3742  delivered
            at out      1198  refused

        component  received  made  handed on  delivered  dropped  in flight
        letters        1248     0          0       1248        0          0
        log            5000    50       5000          0       50          0
        loud           4950     0       4940          0       10          0
        out            4940  1198       1198       3742     1198          0

        balanced
    "#]]
    .assert_eq(told);
    assert_eq!(output.status.code(), Some(0));
    let output = run(folder.path(), &["audit", "--data-dir", "state", "--format", "json"], None);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["balanced"], &told["components"]["log"]["received"]), (&true.into(), &5000.into()));
}

#[test]
fn what_is_started_and_finds_nothing_to_read_says_so() {
    let folder = prepare(0);
    fs::remove_file(folder.path().join("in/a.log")).unwrap();
    let output = tocsin(ONCE).env("TOCSIN_LOG", "info").current_dir(folder.path()).output().unwrap();
    assert!(output.status.success());
    let log = String::from_utf8_lossy(&output.stderr);
    let told: Vec<_> = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).collect();
    let told: Vec<_> = told.iter().filter_map(|line| line["message"].as_str()).take(2).collect();
    assert_eq!(
        told,
        [
            "starting 1 source, 1 operator, 2 sinks; state in state",
            "no file is called in/*.log; it has nothing to read",
        ]
    );
}

#[test]
fn what_cannot_be_said_any_more_keeps_nobody_from_stopping() {
    let folder = prepare(500);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = tocsin(&["run", "pipeline.toml", "--data-dir", "state"]);
    command.env("TOCSIN_LOG", "info").current_dir(folder.path()).stderr(full);
    let mut daemon = Daemon::start(&mut command);
    wait_for("records", || folder.path().join("out/web-0.ndjson").exists());
    daemon.signal("TERM");
    let mut ended = None;
    wait_for("its end", || {
        ended = daemon.ended();
        ended.is_some()
    });
    assert!(ended.is_some_and(|status| status.success()));
}

#[test]
fn records_that_are_dropped_without_being_counted_are_missed() {
    let folder = prepare(5000);
    let output = run(folder.path(), ONCE, Some("uncounted_drop"));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("records are not accounted for"), "{log}");
    let output = run(folder.path(), AUDIT, None);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("loud: received 4950, but handed on 4936"), "{told}");
    assert!(told.ends_with("NOT balanced: 1 of the equations does not hold\n"), "{told}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn dead_letters_of_a_sink_are_accounted_for_across_kills() {
    let folder = prepare(0);
    let state = folder.path().join("state");
    let epoch = || run(folder.path(), &["audit", "--data-dir", "state", "--format", "json"], None).stdout;
    let rounds = 6;
    for round in 0..rounds {
        let mut file = fs::OpenOptions::new().append(true).open(folder.path().join("in/a.log")).unwrap();
        std::io::Write::write_all(&mut file, records(round * 2000, (round + 1) * 2000).as_bytes()).unwrap();
        let mut command = tocsin(&["run", "pipeline.toml", "--data-dir", "state"]);
        command.args(["--set", "daemon.checkpoint_interval=10ms"]).current_dir(folder.path());
        let before = epoch();
        let daemon = Daemon::start(&mut command);
        wait_for("a checkpoint", || epoch() != before);
        daemon.kill();
        let output = run(folder.path(), AUDIT, None);
        assert!(output.status.success(), "killed in round {round}: {}", String::from_utf8_lossy(&output.stdout));
    }
    assert!(run(folder.path(), ONCE, None).status.success());
    require_balance(&state, "after all rounds");
    // Each record is in a file exactly once: that the counts agree is not all.
    let lines = |name: &str| fs::read_to_string(folder.path().join("out").join(name)).unwrap().lines().count() as u64;
    let read = rounds * 2000;
    let (unread, quiet) = (read / 100, 10);
    let written = lines("web-0.ndjson") + lines("web-1.ndjson") + lines("web-2.ndjson");
    assert_eq!(written + lines("letters.ndjson") + quiet, read);
    assert!(lines("letters.ndjson") > unread);
}

#[test]
fn positions_that_run_ahead_of_what_was_handed_on_lose_records() {
    // Enough for many blocks, whose work takes longer than a checkpoint does.
    let count = 400_000;
    for _ in 0..10 {
        let folder = prepare(count);
        let mut command = tocsin(ONCE);
        command.args(["--set", "daemon.checkpoint_interval=20ms"]).current_dir(folder.path());
        let daemon = Daemon::start(command.env("TOCSIN_PLANT", "positions_ahead"));
        wait_for("a checkpoint that holds something", || {
            let told = run(folder.path(), &["audit", "--data-dir", "state", "--format", "json"], None).stdout;
            let told: serde_json::Value = serde_json::from_slice(&told).unwrap_or_default();
            told["components"]["log"]["received"].as_u64() > Some(0)
        });
        daemon.kill();
        assert!(run(folder.path(), ONCE, None).status.success());
        require_balance(&folder.path().join("state"), "what was read is accounted for, though not all was read");
        let told = run(folder.path(), &["audit", "--data-dir", "state", "--format", "json"], None).stdout;
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        if told["components"]["log"]["received"].as_u64() < Some(count) {
            return;
        }
    }
    panic!("the planted defect was never noticed");
}

#[test]
fn what_holds_no_checkpoint_is_told_with_the_remedy() {
    let folder = prepare(1);
    let output = run(folder.path(), &["audit", "--data-dir", "in"], None);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told, "error: in holds no checkpoint; is it the `daemon.data_dir`?\n");
    let output = run(folder.path(), &["audit", "pipeline.toml"], None);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("neither `daemon.admin` nor `daemon.data_dir`"), "{told}");
    // Port 1 of the loopback: nobody listens there.
    let output = run(folder.path(), &["audit", "--admin", "127.0.0.1:1"], None);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("is it running, and is that its `daemon.admin`?"), "{told}");
    assert_eq!(output.status.code(), Some(1));
}
