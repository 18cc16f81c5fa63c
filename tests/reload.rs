//! Reloads of the real binary: under load, with wrong configurations, with changes that state cannot follow, and with what cannot
//! be opened.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use support::{Daemon, Receiver, append, tocsin, wait_for};

/// A folder with a configuration, and a daemon in it with an admin address.
struct Place {
    folder: tempfile::TempDir,
    admin: SocketAddr,
}

impl Place {
    fn new(pipeline: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Self { folder, admin: free_address() };
        fs::create_dir(place.path().join("out")).unwrap();
        fs::write(place.path().join("app.log"), "").unwrap();
        place.configure(pipeline);
        place
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn configure(&self, pipeline: &str) {
        let daemon = format!("[daemon]\nadmin = \"{}\"\ncheckpoint_interval = \"20ms\"\n", self.admin);
        // As an editor does it: the daemon must never read half a file.
        fs::write(self.path().join("pipeline.new"), daemon + pipeline).unwrap();
        fs::rename(self.path().join("pipeline.new"), self.path().join("pipeline.toml")).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tocsin(&["run", "pipeline.toml"]);
        command.args(arguments).current_dir(self.path());
        command
    }

    fn start(&self, arguments: &[&str]) -> Daemon {
        let daemon = Daemon::start(&mut self.command(arguments));
        wait_for("the daemon to be ready", || self.get("/readyz").starts_with("HTTP/1.1 200"));
        daemon
    }

    fn get(&self, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(self.admin) else { return String::new() };
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        answer
    }

    fn reloads(&self, result: &str) -> u64 {
        let name = format!("tocsin_reloads_total{{result=\"{result}\"}} ");
        let metrics = self.get("/metrics");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
    }

    /// `tocsin reload`: whether it was done, and what is told.
    fn reload(&self) -> (bool, String) {
        let output = tocsin(&["reload", "--admin", &self.admin.to_string()]).output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success(), told)
    }

    fn append(&self, text: &str) {
        append(&self.path().join("app.log"), text);
    }

    fn out(&self, name: &str) -> String {
        fs::read_to_string(self.path().join("out").join(name)).unwrap_or_default()
    }
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

const PIPELINE: &str = r#"
[sources.log]
type = "file"
paths = ["app.log"]
codec = "json"
timestamp = { field = ".ts" }
idle_timeout = "1000h"
poll_interval = "20ms"

[operators.by_minute]
type = "window"
inputs = ["log"]
tumbling = "1m"
group_by = [".host"]
aggregates = { n = "count()", sum = "sum(.n)", p90 = "quantile(.n, 0.9)" }

[operators.many]
type = "alert"
inputs = ["by_minute"]
condition = ".sum > 100000"
labels = { severity = "critical" }

[sinks.lines]
type = "file"
inputs = ["log"]
path = "out/lines.ndjson"

[sinks.windows]
type = "file"
inputs = ["by_minute"]
path = "out/windows.ndjson"

[sinks.alerts]
type = "file"
inputs = ["many"]
path = "out/alerts.ndjson"
"#;

fn line(n: u64) -> String {
    let (minute, second) = (n / 60, n % 60);
    format!(
        "{{\"ts\":\"2026-11-20T{:02}:{:02}:{second:02}Z\",\"n\":{n},\"host\":\"h{}\"}}\n",
        minute / 60,
        minute % 60,
        n % 3
    )
}

fn lines(from: u64, to: u64) -> String {
    (from..to).map(line).collect()
}

const ALL: u64 = 12_000;

/// Runs `PIPELINE` to the end of its input, with reloads while it is written if there are to be any.
fn output_with(reloads: u64, arguments: &[&str]) -> [String; 3] {
    let place = Place::new(PIPELINE);
    let daemon = place.start(arguments);
    let parts = reloads.max(1);
    for part in 0..parts {
        place.append(&lines(ALL * part / parts, ALL * (part + 1) / parts));
        if reloads > 0 {
            // A change that state does not depend on, each time another.
            place.configure(&PIPELINE.replace("group_by", &format!("max_keys = {}\ngroup_by", 1000 + part)));
            let status = Command::new("kill").args(["-HUP", &daemon.id().to_string()]).status().unwrap();
            assert!(status.success());
            // A storm, which is answered together, and then one after the other.
            if part >= reloads / 3 {
                let before = place.reloads("reloaded");
                wait_for("a reload", || place.reloads("reloaded") > before);
            }
        }
    }
    wait_for("all lines", || place.out("lines.ndjson").lines().count() == ALL as usize);
    if reloads > 0 {
        assert!(place.reload().0);
        assert!(place.reloads("reloaded") >= reloads * 2 / 3, "{}", place.get("/metrics"));
        assert_eq!(place.reloads("refused") + place.reloads("failed"), 0);
        println!("{} reloads for {reloads} signals", place.reloads("reloaded"));
    }
    // One last line closes the windows before it, in both.
    place.append(&line(ALL + 600));
    wait_for("the windows", || place.out("windows.ndjson").lines().count() == 3 * ALL as usize / 60);
    assert!(daemon.terminate().success());
    ["lines.ndjson", "windows.ndjson", "alerts.ndjson"].map(|name| place.out(name))
}

#[test]
fn output_after_many_reloads_under_load_is_that_of_an_undisturbed_run() {
    let expected = output_with(0, &["--data-dir", "state"]);
    assert!(expected.iter().all(|output| !output.is_empty()));
    for arguments in [&["--data-dir", "state"][..], &[]] {
        let got = output_with(30, arguments);
        for (expected, got) in expected.iter().zip(&got) {
            assert!(expected == got, "{arguments:?}: {} lines, not {}", got.lines().count(), expected.lines().count());
        }
    }
}

#[test]
fn a_wrong_configuration_leaves_the_running_one_alone() {
    let place = Place::new(PIPELINE);
    let daemon = place.start(&["--data-dir", "state"]);
    place.append(&lines(0, 90));
    place.configure(&PIPELINE.replace("tumbling = \"1m\"", "tumbling = \"1 minute\"\ntumblign = 3"));
    let (is_done, told) = place.reload();
    assert!(!is_done && told.contains("pipeline.toml:17") && told.contains("tumblign"), "{told}");
    fs::remove_file(place.path().join("pipeline.toml")).unwrap();
    let (is_done, told) = place.reload();
    assert!(!is_done && told.contains("no such file"), "{told}");
    assert_eq!((place.reloads("refused"), place.reloads("reloaded")), (2, 0));
    place.append(&lines(90, 700));
    wait_for("all lines", || place.out("lines.ndjson") == lines(0, 700));
    assert!(daemon.terminate().success());
}

#[test]
fn state_that_cannot_follow_is_told_and_can_be_a_reason_not_to_reload() {
    let changed = PIPELINE.replace("tumbling = \"1m\"", "tumbling = \"5m\"");
    let place = Place::new(PIPELINE);
    let daemon = place.start(&["--data-dir", "state", "--no-state-loss"]);
    place.append(&lines(0, 30));
    wait_for("the lines", || place.out("lines.ndjson") == lines(0, 30));
    place.configure(&changed);
    let (is_done, told) = place.reload();
    assert!(!is_done && told.contains("operator `by_minute`: lost: tumbling 1m → 5m"), "{told}");
    assert!(daemon.terminate().success());
    let daemon = place.start(&["--data-dir", "other"]);
    let (is_done, told) = place.reload();
    assert!(is_done && told == "reloaded\n", "{told}");
    place.configure(PIPELINE);
    let (is_done, told) = place.reload();
    assert!(is_done && told == "reloaded\noperator `by_minute`: lost: tumbling 5m → 1m\n", "{told}");
    assert!(daemon.terminate().success());
}

#[test]
fn what_a_sink_has_not_delivered_keeps_it_from_being_removed() {
    let hook = |address: &str| {
        format!(
            "[sinks.hook]\ntype = \"webhook\"\ninputs = [\"log\"]\nurl = \"{address}\"\nallow_private = true\n\
             allow_http = true\nretry = {{ initial = \"10ms\", max = \"20ms\" }}\n"
        )
    };
    let place = Place::new(&(PIPELINE.to_owned() + &hook("http://127.0.0.1:9/")));
    let daemon = place.start(&["--data-dir", "state"]);
    place.append(&lines(0, 20));
    wait_for("the lines", || place.out("lines.ndjson") == lines(0, 20));
    place.configure(PIPELINE);
    let (is_done, told) = place.reload();
    assert!(!is_done && told.contains("20 of what it was given are not delivered"), "{told}");
    // It goes on with what it had, to another address too.
    let receiver = Receiver::start();
    place.configure(&(PIPELINE.to_owned() + &hook(&receiver.url())));
    assert!(place.reload().0);
    wait_for("the notifications", || receiver.bodies().len() == 20);
    place.configure(PIPELINE);
    wait_for("its removal", || place.reload().0);
    assert!(daemon.terminate().success());
    let mut told = receiver.bodies();
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 20);
}

#[test]
fn what_cannot_be_opened_leaves_the_old_pipeline_running_and_a_listener_is_never_gone() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = free_address();
    let source = |name: &str, address: &SocketAddr| {
        format!("[sources.{name}]\ntype = \"socket\"\nmode = \"tcp\"\naddress = \"{address}\"\n")
    };
    let sink = "[sinks.net]\ntype = \"file\"\ninputs = [\"net*\"]\npath = \"out/net.txt\"\n";
    let before = PIPELINE.to_owned() + &source("net_one", &ours) + sink;
    let place = Place::new(&before);
    let daemon = place.start(&["--data-dir", "state"]);
    let mut sent = 0;
    let mut say = |place: &Place| {
        sent += 1;
        let mut client = TcpStream::connect(ours).expect("somebody listens at any time");
        client.write_all(format!("line {sent}\n").as_bytes()).unwrap();
        drop(client);
        wait_for("the line", || place.out("net.txt").lines().count() == sent);
    };
    say(&place);
    place.append(&lines(0, 100));
    place.configure(&(before.clone() + &source("net_two", &taken.local_addr().unwrap())));
    let (is_done, told) = place.reload();
    assert!(!is_done && told.contains("net_two") && told.contains("it is in use"), "{told}");
    assert_eq!((place.reloads("failed"), place.reloads("reloaded")), (1, 0));
    say(&place);
    for _ in 0..5 {
        place.configure(&before);
        let status = Command::new("kill").args(["-HUP", &daemon.id().to_string()]).status().unwrap();
        assert!(status.success());
        say(&place);
    }
    drop(taken);
    place.configure(PIPELINE);
    assert!(place.reload().0);
    assert!(TcpStream::connect(ours).is_err(), "nobody is to listen any more");
    place.append(&lines(100, 200));
    wait_for("all lines", || place.out("lines.ndjson") == lines(0, 200));
    assert!(daemon.terminate().success());
}

#[test]
fn a_rule_that_is_removed_while_it_fires_says_nothing_and_the_others_go_on() {
    let more = r#"
[operators.seen]
type = "alert"
inputs = ["log"]
condition = ".n >= 0"
group_by = [".host"]
resolve_after = "1h"

[sinks.seen_out]
type = "file"
inputs = ["seen"]
path = "out/seen.ndjson"
"#;
    let place = Place::new(&(PIPELINE.to_owned() + more));
    let daemon = place.start(&["--data-dir", "state"]);
    place.append(&lines(0, 9000));
    wait_for("alerts of both", || {
        place.out("seen.ndjson").lines().count() == 3 && place.out("alerts.ndjson").lines().count() >= 3
    });
    let before = place.out("alerts.ndjson");
    place.configure(PIPELINE);
    let (is_done, told) = place.reload();
    assert!(is_done && told.contains("operator `seen`: lost: it is no longer configured"), "{told}");
    place.append(&lines(9000, 9600));
    wait_for("all lines", || place.out("lines.ndjson").lines().count() == 9600);
    assert!(place.reload().0);
    assert_eq!(place.out("alerts.ndjson"), before, "nothing is told again, nothing is over");
    assert_eq!(place.out("seen.ndjson").lines().count(), 3);
    assert!(daemon.terminate().success());
}

#[test]
fn a_change_of_the_file_reloads_where_it_is_watched() {
    let place = Place::new(PIPELINE);
    let daemon = place.start(&["--watch"]);
    place.configure(&PIPELINE.replace("out/lines", "out/other"));
    wait_for("the reload", || place.reloads("reloaded") == 1);
    place.append(&lines(0, 10));
    wait_for("the lines", || place.out("other.ndjson") == lines(0, 10));
    place.configure("nonsense");
    wait_for("the refusal", || place.reloads("refused") == 1);
    assert!(daemon.terminate().success());
}
