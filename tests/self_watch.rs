//! A daemon whose data directory takes nothing tells so, by a path that needs no disk, and tells when it is over.

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value as Json;
use support::receiver::Receiver;
use support::{Daemon, tocsin, wait_for};

const PIPELINE: &str = r#"
[daemon]
checkpoint_interval = "50ms"

[sources.self]
type = "internal"
repeat = "100ms"
idle_timeout = "100ms"

[operators.unwell]
type = "alert"
inputs = ["self"]
condition = '.state == "raised"'
group_by = [".event", ".component"]
resolve_after = "1s"

[sinks.hook]
type = "webhook"
inputs = ["unwell"]
url = "${HOOK}"
allow_private = true
"#;

/// The transitions of the alert on this event that were told, in order.
fn told(receiver: &Receiver, event: &str) -> Vec<String> {
    let bodies = receiver.requests().into_iter().map(|request| serde_json::from_slice::<Json>(&request.body).unwrap());
    let ours = bodies.filter(|alert| alert["labels"]["event"] == event);
    ours.map(|alert| alert["state"].as_str().unwrap().to_owned()).collect()
}

fn start(folder: &Path, receiver: &Receiver) -> Daemon {
    start_with("", folder, receiver)
}

/// With more in the configuration.
fn start_with(more: &str, folder: &Path, receiver: &Receiver) -> Daemon {
    let pipeline = folder.join("pipeline.toml");
    fs::write(&pipeline, format!("{PIPELINE}{more}")).unwrap();
    let mut command = tocsin(&["run"]);
    command.arg(&pipeline).arg("--data-dir").arg(folder.join("state"));
    Daemon::start(command.env("HOOK", format!("http://127.0.0.1:{}/hook", receiver.port())))
}

#[test]
fn a_data_directory_that_takes_nothing_is_told_and_later_that_it_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(1);
    let daemon = start(folder.path(), &receiver);
    let checkpoints = folder.path().join("state/checkpoints");
    let epochs = || fs::read_dir(&checkpoints).map_or(0, Iterator::count);
    wait_for("the first checkpoint", || epochs() > 0);
    // A file in the place of the folder: nothing can be written there, whoever tries.
    fs::rename(&checkpoints, folder.path().join("away")).unwrap();
    fs::write(&checkpoints, "in the way").unwrap();
    wait_for("firing", || told(&receiver, "checkpoint_failed") == ["firing"]);
    fs::remove_file(&checkpoints).unwrap();
    fs::rename(folder.path().join("away"), &checkpoints).unwrap();
    wait_for("resolved", || told(&receiver, "checkpoint_failed") == ["firing", "resolved"]);
    assert!(daemon.terminate().success());
    assert_eq!(told(&receiver, "checkpoint_failed"), ["firing", "resolved"]);
}

#[test]
fn a_damaged_checkpoint_that_was_passed_over_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(2);
    let daemon = start(folder.path(), &receiver);
    let checkpoints = folder.path().join("state/checkpoints");
    let manifests = || {
        let names = fs::read_dir(&checkpoints).into_iter().flatten().map(|entry| entry.unwrap().path());
        let mut names: Vec<_> = names.filter(|path| path.to_string_lossy().contains("manifest-")).collect();
        names.sort();
        names
    };
    wait_for("three checkpoints", || manifests().len() >= 3);
    daemon.kill();
    let last = manifests().pop().unwrap();
    let mut content = fs::read(&last).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&last, content).unwrap();
    let daemon = start(folder.path(), &receiver);
    wait_for("firing and resolved", || told(&receiver, "checkpoint_damaged") == ["firing", "resolved"]);
    assert!(daemon.terminate().success());
}

#[test]
fn an_operator_whose_state_is_full_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(3);
    let more = r#"
[sources.services]
type = "demo"
format = "json"
rate = 200

[operators.crowded]
type = "alert"
inputs = ["services"]
condition = "true"
group_by = [".service"]
max_alerts = 1

[sinks.nowhere]
type = "blackhole"
inputs = ["crowded"]
"#;
    let daemon = start_with(more, folder.path(), &receiver);
    wait_for("firing", || told(&receiver, "state_full") == ["firing"]);
    assert!(daemon.terminate().success());
    let bodies = receiver.requests().into_iter().map(|request| serde_json::from_slice::<Json>(&request.body).unwrap());
    let of: Vec<_> = bodies.filter(|alert| alert["labels"]["event"] == "state_full").collect();
    assert_eq!(of[0]["labels"]["component"], "crowded", "{of:?}");
}
