//! What `tocsin state` tells of a data directory, whole or damaged, and what `tocsin recover` does about it.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use support::{Daemon, Receiver, copy_folder, tocsin, wait_for};

/// A copy of the directory of a released format, with the pipeline and its input beside it.
fn released() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/v1"), folder.path());
    folder
}

/// What a command says, on both streams, with its exit status.
fn said(folder: &Path, arguments: &[&str], status: i32) -> String {
    let output = tocsin(arguments).current_dir(folder).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
    text
}

fn check(said: &str, expected: Expect) {
    // When it was, seen from today, is no part of it.
    let line = |line: &str| match (line.rfind("Z, "), line.rfind(" s ago")) {
        (Some(from), Some(to)) => format!("{}{}\n", &line[..=from], &line[to + 6..]),
        _ => format!("{line}\n"),
    };
    expected.assert_eq(&said.lines().map(line).collect::<String>());
}

fn flip(path: &Path, at: usize) {
    let mut content = fs::read(path).unwrap();
    content[at] ^= 0x10;
    fs::write(path, content).unwrap();
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

#[test]
fn epochs_and_components_are_told() {
    let folder = released();
    check(
        &said(folder.path(), &["state", "data"], 0),
        expect![[r#"
        epoch 3, written 2026-11-20T18:52:40.059419601Z, 14226 bytes in 3 segments
          source    events: type not told, 1 positions
          operator  by_minute: type not told, version 1, 676 bytes in 4 key groups
          operator  crashed: type not told, version 1, 909 bytes in 2 key groups
          operator  limited: type not told, version 1, 51 bytes in 3 key groups
          operator  many_errors: type not told, version 1, 5713 bytes in 4 key groups
          operator  once: type not told, version 1, 1950 bytes in 55 key groups
          operator  overlapping: type not told, version 1, 124 bytes in 2 key groups
          sink      hook: type not told, 4735 bytes
          sink      limited_out: type not told, 34 bytes
          sink      windows_out: type not told, 34 bytes
        epoch 2, written 2026-11-20T18:52:25.054743851Z, 14226 bytes in 2 segments
          source    events: type not told, 1 positions
          operator  by_minute: type not told, version 1, 676 bytes in 4 key groups
          operator  crashed: type not told, version 1, 909 bytes in 2 key groups
          operator  limited: type not told, version 1, 51 bytes in 3 key groups
          operator  many_errors: type not told, version 1, 5713 bytes in 4 key groups
          operator  once: type not told, version 1, 1950 bytes in 55 key groups
          operator  overlapping: type not told, version 1, 124 bytes in 2 key groups
          sink      hook: type not told, 4735 bytes
          sink      limited_out: type not told, 34 bytes
          sink      windows_out: type not told, 34 bytes
        epoch 1, written 2026-11-20T18:52:22.885192325Z, 14670 bytes in 1 segments
          source    events: type not told, 1 positions
          operator  by_minute: type not told, version 1, 676 bytes in 4 key groups
          operator  crashed: type not told, version 1, 909 bytes in 2 key groups
          operator  limited: type not told, version 1, 51 bytes in 3 key groups
          operator  many_errors: type not told, version 1, 5713 bytes in 4 key groups
          operator  once: type not told, version 1, 1950 bytes in 55 key groups
          operator  overlapping: type not told, version 1, 124 bytes in 2 key groups
          sink      hook: type not told, 4735 bytes
          sink      limited_out: type not told, 126 bytes
          sink      windows_out: type not told, 386 bytes
    "#]],
    );
    check(
        &said(folder.path(), &["state", "data", "--component", "events"], 0),
        expect![[r#"
        {
          "epoch": 3,
          "name": "events",
          "positions": {
            "": {
              "position": {
                "offset": 8417
              },
              "seen": 1795176234536000000
            }
          },
          "role": "source",
          "shape": null,
          "type": null
        }
    "#]],
    );
    check(
        &said(folder.path(), &["state", "data", "--epoch", "1", "--component", "windows_out", "--format", "json"], 0),
        expect![[r#"
            {"bytes":386,"epoch":1,"name":"windows_out","role":"sink","shape":null,"state":{"epoch":1,"files":[{"dev":65024,"ino":5791807,"length":731,"path":"_.ndjson","period":null,"sequence":0},{"dev":65024,"ino":5791808,"length":769,"path":"db.ndjson","period":null,"sequence":0},{"dev":65024,"ino":5791809,"length":746,"path":"web-1.ndjson","period":null,"sequence":0},{"dev":65024,"ino":5791810,"length":760,"path":"web-2.ndjson","period":null,"sequence":0}],"version":1},"type":null,"undelivered":null}
        "#]],
    );
    check(
        &said(folder.path(), &["state", "data", "--component", "event"], 1),
        expect![[r#"
        error: there is no `event` in it; `tocsin state data` lists what there is
    "#]],
    );
    check(
        &said(folder.path(), &["state", "data", "--epoch", "9"], 1),
        expect![[r#"
        error: data holds no epoch 9; `tocsin state data` lists them
    "#]],
    );
    check(
        &said(folder.path(), &["state", "out"], 0),
        expect![[r#"
        out holds no checkpoint
    "#]],
    );
    check(
        &said(folder.path(), &["state", "gone"], 1),
        expect![[r#"
        error: listing gone/checkpoints: No such file or directory (os error 2)
    "#]],
    );
}

#[test]
fn every_byte_is_read_and_damage_told_with_its_place() {
    let folder = released();
    let data = folder.path().join("data");
    assert!(said(folder.path(), &["state", "data", "--verify"], 0).contains("all of it is whole"));
    let mut flips = 0;
    for file in files(&data) {
        let length = fs::read(&file).unwrap().len();
        for at in (0..length).step_by(length.div_ceil(12)) {
            flip(&file, at);
            let output = tocsin(&["state", "data", "--verify"]).current_dir(folder.path()).output().unwrap();
            let told = String::from_utf8(output.stdout).unwrap();
            let name = file.strip_prefix(folder.path()).unwrap().display().to_string();
            let is_told = output.status.code() == Some(1) && told.contains(&format!("{name}: damaged at byte "));
            // The end of a journal may be what was being written when the machine stopped.
            let may_be_torn = name.contains("sinks/") && output.status.success();
            assert!(is_told || may_be_torn, "{name}, byte {at}: {told}");
            flip(&file, at);
            flips += 1;
        }
    }
    println!("{flips} flipped bits");
    assert!(said(folder.path(), &["state", "data", "--verify"], 0).contains("all of it is whole"));
    fs::remove_file(data.join("checkpoints/segment-000000000001")).unwrap();
    check(
        &said(folder.path(), &["state", "data", "--verify"], 1),
        expect![[r#"
        data/checkpoints/manifest-000000000003: damaged at byte 0: segment-000000000001: No such file or directory (os error 2)
        data/checkpoints/manifest-000000000002: damaged at byte 0: segment-000000000001: No such file or directory (os error 2)
        data/checkpoints/manifest-000000000001: damaged at byte 0: segment-000000000001: No such file or directory (os error 2)
        8 files, 26410 bytes read: 3 are damaged; `tocsin recover` tells what can be done
    "#]],
    );
}

#[test]
fn a_damaged_outbox_stops_the_daemon_until_someone_accepts_that_notifications_repeat() {
    let folder = released();
    let folder = folder.path();
    flip(&folder.join("data/sinks/hook/outbox.log"), 3);
    let receiver = Receiver::start();
    let run = || {
        let mut command = tocsin(&["run", "--once", "pipeline.toml", "--data-dir", "data"]);
        command.current_dir(folder).env("OUT", "out").env("HOOK", receiver.url());
        command.stdin(File::open(folder.join("rest.ndjson")).unwrap()).output().unwrap()
    };
    let refused = run();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("`tocsin recover`"), "{refused:?}");
    check(
        &said(folder, &["recover", "data"], 1),
        expect![[r#"
        would go on without sinks/hook/outbox.log, which is damaged at byte 0: what was done since the last checkpoint may be done again
        nothing is done yet; to do it: --accept duplicates
    "#]],
    );
    said(folder, &["recover", "data", "--accept", "loss"], 1);
    assert!(!folder.join("data/damaged").exists(), "nothing is done before it is accepted");
    check(
        &said(folder, &["recover", "data", "--accept", "duplicates"], 0),
        expect![[r#"
        go on without sinks/hook/outbox.log, which is damaged at byte 0: what was done since the last checkpoint may be done again
        what was in the way is in data/damaged/1
    "#]],
    );
    assert!(folder.join("data/damaged/1/sinks/hook/outbox.log").exists());
    assert!(fs::read_to_string(folder.join("data/recover.log")).unwrap().contains("outbox.log"));
    check(
        &said(folder, &["recover", "data"], 0),
        expect![[r#"
        nothing needs a decision: the daemon goes on by itself
    "#]],
    );
    let output = run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The checkpoint held what was still to be told, so nothing is missing.
    let told: BTreeSet<String> = receiver.bodies().into_iter().collect();
    let expected = fs::read_to_string(folder.join("expected/told.ndjson")).unwrap();
    assert_eq!(told, expected.lines().map(str::to_owned).collect());
}

const PIPELINE: &str = r#"
[daemon]
checkpoint_interval = "10ms"

[sources.log]
type = "file"
paths = ["app.log"]
codec = "json"
timestamp = { field = ".ts" }
idle_timeout = "1000h"

[operators.by_minute]
type = "window"
inputs = ["log"]
tumbling = "1m"
aggregates = { n = "count()", sum = "sum(.n)" }

[sinks.windows]
type = "file"
inputs = ["by_minute"]
path = "windows.ndjson"

[sinks.lines]
type = "file"
inputs = ["log"]
path = "lines.ndjson"
"#;

fn lines(from: u32, to: u32) -> String {
    (from..to).map(|n| format!("{{\"ts\":\"2026-11-20T12:{:02}:{:02}Z\",\"n\":{n}}}\n", n / 60, n % 60)).collect()
}

/// A daemon that took several checkpoints over the first half of its input and was killed.
fn stopped_in_the_middle() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pipeline.toml"), PIPELINE).unwrap();
    let log = folder.path().join("app.log");
    fs::write(&log, "").unwrap();
    let daemon = Daemon::start(tocsin(&["run", "pipeline.toml", "--data-dir", "state"]).current_dir(folder.path()));
    let written = || fs::read_to_string(folder.path().join("lines.ndjson")).unwrap_or_default().lines().count();
    for part in 0..5 {
        let before = epochs(folder.path()).last().copied();
        support::append(&log, &lines(part * 100, part * 100 + 100));
        wait_for("the lines and a checkpoint", || {
            written() == (part as usize + 1) * 100 && epochs(folder.path()).last().copied() > before
        });
    }
    daemon.kill();
    support::append(&log, &lines(500, 1000));
    folder
}

fn epochs(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder.join("state/checkpoints")).into_iter().flatten();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut epochs: Vec<u64> =
        entries.filter_map(|entry| name(entry).strip_prefix("manifest-")?.parse().ok()).collect();
    epochs.sort_unstable();
    epochs
}

fn run_to_the_end(folder: &Path) {
    said(folder, &["run", "--once", "pipeline.toml", "--data-dir", "state"], 0);
}

/// The minutes and what they sum up to, from the input alone.
fn expected_sums() -> Vec<(String, u64)> {
    let minutes = (0..1000u64).fold(std::collections::BTreeMap::<u64, u64>::new(), |mut minutes, n| {
        *minutes.entry(n / 60).or_default() += n;
        minutes
    });
    minutes.into_iter().map(|(minute, sum)| (format!("2026-11-20T12:{minute:02}:00Z"), sum)).collect()
}

fn sums(folder: &Path) -> Vec<(String, u64)> {
    let text = fs::read_to_string(folder.join("windows.ndjson")).unwrap();
    let window = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        (record["window_start"].as_str().unwrap().to_owned(), record["sum"].as_u64().unwrap())
    };
    text.lines().map(window).collect()
}

#[test]
fn going_back_to_an_older_epoch_reads_again_and_writes_everything_once() {
    let folder = stopped_in_the_middle();
    let folder = folder.path();
    let oldest = epochs(folder)[0];
    let (from, all) = (oldest.to_string(), epochs(folder));
    assert!(all.len() > 1, "{all:?}");
    said(folder, &["recover", "state", "--from", "4000"], 1);
    assert!(said(folder, &["recover", "state", "--from", &from], 1).contains("--accept duplicates"));
    assert_eq!(epochs(folder), all);
    said(folder, &["recover", "state", "--from", &from, "--accept", "duplicates"], 0);
    assert_eq!(epochs(folder), [oldest]);
    run_to_the_end(folder);
    assert_eq!(sums(folder), expected_sums());
    assert_eq!(fs::read_to_string(folder.join("lines.ndjson")).unwrap(), lines(0, 1000));
}

#[test]
fn without_any_epoch_the_daemon_stops_until_someone_accepts_to_begin_anew() {
    let folder = stopped_in_the_middle();
    let folder = folder.path();
    for epoch in epochs(folder) {
        flip(&folder.join(format!("state/checkpoints/manifest-{epoch:012}")), 40);
    }
    let refused = said(folder, &["run", "--once", "pipeline.toml", "--data-dir", "state"], 1);
    assert!(refused.contains("`tocsin recover`"), "{refused}");
    said(folder, &["recover", "state", "--accept", "duplicates"], 1);
    said(folder, &["recover", "state", "--accept", "loss"], 0);
    run_to_the_end(folder);
    // All is read again, and the windows hold all of it; those that had been written before stand in the file once more.
    let written: BTreeSet<_> = sums(folder).into_iter().collect();
    assert_eq!(written, expected_sums().into_iter().collect());
}

#[test]
fn a_running_daemon_is_looked_at_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("pipeline.toml"), PIPELINE).unwrap();
    fs::write(folder.join("app.log"), lines(0, 100)).unwrap();
    let daemon = Daemon::start(tocsin(&["run", "pipeline.toml", "--data-dir", "state"]).current_dir(folder));
    wait_for("a checkpoint", || !epochs(folder).is_empty());
    for round in 0..10 {
        support::append(&folder.join("app.log"), &lines(100 + round, 101 + round));
        said(folder, &["state", "state", "--verify"], 0);
        assert!(said(folder, &["state", "state"], 0).contains("by_minute"));
    }
    let refused = said(folder, &["recover", "state", "--from", "1"], 1);
    assert!(refused.contains("in use by another tocsin"), "{refused}");
    assert!(daemon.terminate().success());
}
