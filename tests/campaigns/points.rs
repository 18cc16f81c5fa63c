//! SIGKILL at every named point: the daemon is killed where something is about to become true or just has, and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use tocsin_pipeline::fault::POINTS;

use crate::scene::{Keeper, Scene, Writer, alerts, both, judge_alerts, numbers, records, windows};
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::receiver::{Lines, Manner, Receiver};

/// Each point so many times, at a later visit each time.
pub const POINTS_CAMPAIGN: Campaign =
    Campaign { name: "points", variable: "TOCSIN_POINTS", sizes: (1, 20), body: every_point };

/// Everything that has points, in one pipeline.
const PIPELINE: &str = r#"
[sources.log]
type = "file"
paths = ["${IN}/app.log*"]
codec = "json"
timestamp = { field = ".ts" }
idle_timeout = "1h"
rotate_wait = "50ms"
poll_interval = "20ms"

[operators.kept]
type = "filter"
inputs = ["log"]
condition = '.level != "DEBUG" && !exists(.large)'

[operators.large]
type = "filter"
inputs = ["log"]
condition = 'exists(.large)'

[operators.by_second]
type = "window"
inputs = ["kept"]
tumbling = "1s"
aggregates = { count = "count()", sum = "sum(.seq)" }

[operators.failed]
type = "alert"
inputs = ["kept"]
condition = '.level == "ERROR"'
group_by = [".job"]
resolve_after = "1s"

[operators.oncall]
type = "notify"
inputs = ["failed"]
group_by = ["job"]
group_interval = "500ms"

[sinks.kept_out]
type = "file"
inputs = ["kept"]
path = "${OUT}/kept.ndjson"

[sinks.parts_out]
type = "file"
inputs = ["kept"]
path = "${OUT}/parts.ndjson"
rotate = { size = "4KiB", keep = 1 }

[sinks.packed_out]
type = "file"
inputs = ["kept"]
path = "${OUT}/kept.ndjson.gz"
compression = "gzip"

[sinks.windows_out]
type = "file"
inputs = ["by_second"]
path = "${OUT}/windows.ndjson"

[sinks.alerts_out]
type = "file"
inputs = ["failed"]
path = "${OUT}/alerts.ndjson"

[sinks.alerts_told]
type = "webhook"
inputs = ["failed"]
url = "http://127.0.0.1:${PORT}/alerts"
allow_private = true
retry = { initial = "10ms", max = "50ms" }

[sinks.oncall_told]
type = "webhook"
inputs = ["oncall"]
url = "http://127.0.0.1:${PORT}/oncall"
allow_private = true
retry = { initial = "10ms", max = "50ms" }

[sinks.large_told]
type = "webhook"
inputs = ["large"]
url = "http://127.0.0.1:${PORT}/large"
allow_private = true
retry = { initial = "10ms", max = "50ms" }

[sinks.kept_posted]
type = "http"
inputs = ["kept"]
url = "http://127.0.0.1:${PORT}/kept"
encoding = "ndjson"
batch = { timeout = "10ms" }

[sinks.kept_sent]
type = "socket"
mode = "tcp"
inputs = ["kept"]
address = "127.0.0.1:${LINES}"
retry = { initial = "10ms", max = "50ms" }
"#;

/// Records that are pushed stand in a journal until a checkpoint has them.
const PUSHED: &str = r#"
[sources.pushed]
type = "http"
address = "${ADDRESS}"
acknowledge = true
codec = "json"

[sinks.pushed_out]
type = "file"
inputs = ["pushed"]
path = "${OUT}/pushed.ndjson"
"#;

/// A receiver that takes nothing for a while, with a buffer that soon continues on disk.
const BUFFERED: &str = r#"
[sources.log]
type = "file"
paths = ["${IN}/app.log"]
codec = "json"
poll_interval = "20ms"

[sinks.kept_out]
type = "file"
inputs = ["log"]
path = "${OUT}/kept.ndjson"
buffer = { max = "8KiB", when_full = "spill" }

[sinks.posted]
type = "http"
inputs = ["log"]
url = "http://127.0.0.1:${PORT}/posted"
encoding = "ndjson"
batch = { timeout = "10ms" }
retry = { initial = "10ms", max = "50ms" }
buffer = { max = "8KiB", when_full = "spill" }
"#;

/// What a reload adds to it.
const ADDED: &str = "[sinks.added]\ntype = \"blackhole\"\ninputs = [\"failed\"]\n";

/// How many large records there are: their notifications make the outbox's journal long enough to be written anew.
const LARGE: u64 = 20;

/// So many times a story tries to have a file of a buffer deleted.
const TRIMMED_WITHIN: usize = 50;

/// The point to die at, and at which visit.
type Fault = Option<(&'static str, u64)>;

/// What is told of groups of alerts when nothing dies, by identity: whoever dies tells the same. `None` before it is known.
type Undisturbed = Option<BTreeMap<String, String>>;

/// All points but those that take a Kafka: `tests/kafka_campaigns` comes to these.
fn here() -> impl Iterator<Item = &'static &'static str> {
    POINTS.iter().filter(|point| !point.starts_with("kafka.") && !point.starts_with("decider."))
}

fn every_point(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let list = tempfile::NamedTempFile::new()?;
    let mut undisturbed = None;
    story(order, None, Some(list.path()), &mut undisturbed, outcome)?;
    pushed(order, None, Some(list.path()), outcome)?;
    buffered(order, None, Some(list.path()), outcome)?;
    let hit: BTreeSet<String> = fs::read_to_string(list.path())?.lines().map(str::to_owned).collect();
    println!("{} points are come to: {hit:?}", hit.len());
    let missed: Vec<_> = here().filter(|point| !hit.contains(**point)).collect();
    ensure!(missed.is_empty(), "no story comes to {missed:?}");
    let mut random = order.random();
    let mut deaths: BTreeMap<&str, u64> = BTreeMap::new();
    // To look into one.
    let wanted = std::env::var("TOCSIN_POINT").ok();
    let points = || here().filter(|point| wanted.as_deref().is_none_or(|wanted| wanted == **point));
    for round in 0..order.size {
        for point in points() {
            // The first visit is one that there is; later ones may not be.
            let visit = if round == 0 { 1 } else { random.between(2, 2 + 2 * round) };
            let fault = Some((*point, visit));
            let died = match point.split('.').next() {
                Some("journal") => pushed(order, fault, None, outcome)?,
                Some("buffer") => buffered(order, fault, None, outcome)?,
                _ => story(order, fault, None, &mut undisturbed, outcome)?,
            };
            *deaths.entry(point).or_default() += died;
            outcome.runs += 1;
            if !outcome.is_clean() {
                outcome.violations.push(format!("killed at {point}, visit {visit}"));
                return Ok(());
            }
        }
    }
    println!("killed at: {deaths:?}");
    let survived: Vec<_> = deaths.iter().filter(|(_, count)| **count == 0).map(|(point, _)| point).collect();
    ensure!(survived.is_empty(), "nothing was killed at {survived:?}");
    outcome.note("points", here().count());
    outcome.note("kills", deaths.values().sum::<u64>());
    Ok(())
}

/// A log that grows, is rotated, copied and truncated, and a daemon that is killed from outside, stopped and started again.
/// Gives how often it died at its point.
fn story(
    order: &Order,
    fault: Fault,
    list: Option<&Path>,
    undisturbed: &mut Undisturbed,
    outcome: &mut Outcome,
) -> anyhow::Result<u64> {
    let (receiver, lines) = (Receiver::start(order.seed), Lines::start());
    let variables = vec![("PORT", receiver.port().to_string()), ("LINES", lines.port().to_string())];
    let scene = Scene::new(order, PIPELINE, variables);
    let mut keeper = keeper(&scene, fault, list);
    let mut writer = Writer::default();
    let is_written = |writer: &Writer| {
        let count = writer.kept().len() as u64;
        let scene = &scene;
        move || scene.count("kept.ndjson") == count
    };
    // What is written without a checkpoint after the first is taken back after a kill.
    writer.append(&scene.log(), 120);
    keeper.start(&["--set", "daemon.checkpoint_interval=10s"]);
    keeper.wait("the first records", is_written(&writer))?;
    keeper.kill();
    let often = ["--set", "daemon.checkpoint_interval=20ms"];
    let before = scene.newest_checkpoint();
    keeper.start(&often);
    keeper.wait("them again", || scene.newest_checkpoint() > before)?;
    // Reloaded while it is written: the new sink has a folder as soon as the new pipeline is opened.
    fs::write(scene.path("pipeline.toml"), format!("{PIPELINE}{ADDED}"))?;
    keeper.until_it_listens()?;
    keeper.signal("HUP");
    writer.append(&scene.log(), 60);
    let added = scene.state().join("sinks/added");
    keeper.wait("a reload", || added.exists())?;
    keeper.wait("what was written meanwhile", is_written(&writer))?;
    // Renamed while it is read.
    writer.append(&scene.log(), 80);
    fs::rename(scene.log(), scene.input().join("app.log.2"))?;
    writer.append(&scene.log(), 100);
    keeper.wait("what was written before and after a rename", is_written(&writer))?;
    // Copied and truncated, when a checkpoint knows something of it: a file that was truncated between two checkpoints, and
    // of which the first holds nothing, is taken for one file, and records that are no alerts are named by their file.
    for _ in 0..2 {
        // The first may have been under way.
        let before = scene.newest_checkpoint();
        writer.append(&scene.log(), 10);
        keeper.wait("a checkpoint of it", || is_written(&writer)() && scene.newest_checkpoint() > before)?;
    }
    fs::copy(scene.log(), scene.input().join("app.log.1"))?;
    fs::OpenOptions::new().write(true).open(scene.log())?.set_len(0)?;
    writer.append(&scene.log(), 90);
    keeper.wait("what was written before and after a truncation", is_written(&writer))?;
    let large: String = (0..LARGE).map(|number| large(number, writer.next)).collect();
    append(&scene.log(), &large)?;
    keeper.wait("the large ones", || receiver.accepted("/large").len() as u64 >= LARGE)?;
    // Some checkpoints later the journal has been written anew, and old files are deleted.
    let before = scene.newest_checkpoint();
    for _ in 0..5 {
        let newest = scene.newest_checkpoint();
        writer.append(&scene.log(), 25);
        keeper.wait("another checkpoint", || scene.newest_checkpoint() > newest)?;
    }
    ensure!(scene.newest_checkpoint() > before, "checkpoints are taken");
    keeper.wait("what came meanwhile", is_written(&writer))?;
    keeper.terminate()?;
    writer.append(&scene.log(), 55);
    keeper.start(&often);
    keeper.wait("what was written while it was stopped", is_written(&writer))?;
    keeper.terminate()?;
    keeper.finish()?;
    judge(&scene, &writer, &receiver, &lines, outcome);
    judge_notifications(&receiver, undisturbed, outcome);
    scene.audit(outcome);
    if !outcome.is_clean() {
        println!("what the daemons said last:\n{}", scene.told());
    }
    Ok(keeper.deaths)
}

fn keeper<'s>(scene: &'s Scene, fault: Fault, list: Option<&Path>) -> Keeper<'s> {
    let mut keeper = Keeper::new(scene);
    if let Some((point, visit)) = fault {
        keeper = keeper.with_fault(point, visit);
    }
    if let Some(list) = list {
        keeper = keeper.listing(list.to_owned());
    }
    keeper
}

/// Clients push records until they are acknowledged, while the daemon is killed and started again.
fn pushed(order: &Order, fault: Fault, list: Option<&Path>, outcome: &mut Outcome) -> anyhow::Result<u64> {
    let mut client = Client::new()?;
    let scene = Scene::new(order, PUSHED, vec![("ADDRESS", client.address.to_string())]);
    let mut keeper = keeper(&scene, fault, list);
    // What is acknowledged without a checkpoint comes from the journal after a kill.
    keeper.start(&["--set", "daemon.checkpoint_interval=10s"]);
    client.post(&mut keeper, 5)?;
    keeper.kill();
    keeper.start(&["--set", "daemon.checkpoint_interval=20ms"]);
    for _ in 0..6 {
        let newest = scene.newest_checkpoint();
        client.post(&mut keeper, 3)?;
        keeper.wait("another checkpoint", || scene.newest_checkpoint() > newest)?;
    }
    keeper.terminate()?;
    keeper.restart();
    client.post(&mut keeper, 3)?;
    keeper.terminate()?;
    client.judge(&scene, outcome);
    scene.audit(outcome);
    Ok(keeper.deaths)
}

/// A receiver is broken while records come, the daemon is killed and started again, and then it takes them all.
fn buffered(order: &Order, fault: Fault, list: Option<&Path>, outcome: &mut Outcome) -> anyhow::Result<u64> {
    let receiver = Receiver::start(order.seed);
    receiver.set(Manner::Broken);
    let scene = Scene::new(order, BUFFERED, vec![("PORT", receiver.port().to_string())]);
    let own = tempfile::NamedTempFile::new()?;
    let list = list.unwrap_or_else(|| own.path());
    let mut keeper = keeper(&scene, fault, Some(list));
    let mut writer = Writer::default();
    let often = ["--set", "daemon.checkpoint_interval=20ms"];
    for _ in 0..2 {
        keeper.start(&often);
        fill(&scene, &mut keeper, &mut writer)?;
        keeper.wait("a file of the buffer", || !segments(&scene).is_empty())?;
        keeper.kill();
    }
    receiver.set(Manner::Well);
    keeper.start(&often);
    let posted = || -> BTreeSet<u64> {
        let bodies = receiver.accepted("/posted").into_iter().map(|request| request.body);
        let text: String = bodies.map(|body| String::from_utf8_lossy(&body).into_owned()).collect();
        numbers(&records(&text, "/posted", &mut Outcome::default())).into_iter().collect()
    };
    keeper.wait("everything at the receiver", || posted().len() as u64 == writer.next)?;
    // A file of the buffer is deleted when the epochs that are kept all begin behind it and another file has begun.
    for _ in 0..TRIMMED_WITHIN {
        if fs::read_to_string(list)?.lines().any(|point| point == "buffer.trimmed") {
            break;
        }
        receiver.set(Manner::Broken);
        fill(&scene, &mut keeper, &mut writer)?;
        receiver.set(Manner::Well);
        keeper.wait("them at the receiver", || posted().len() as u64 == writer.next)?;
        for _ in 0..3 {
            let newest = scene.newest_checkpoint();
            writer.append(&scene.log(), 5);
            keeper.wait("another checkpoint", || scene.newest_checkpoint() > newest)?;
        }
    }
    keeper.wait("the last ones at the receiver", || posted().len() as u64 == writer.next)?;
    keeper.terminate()?;
    keeper.finish()?;
    let kept = numbers(&scene.records("kept.ndjson", outcome));
    outcome.compare("kept.ndjson", 0..writer.next, kept);
    outcome.compare("posted", 0..writer.next, posted());
    scene.audit(outcome);
    Ok(keeper.deaths)
}

/// Writes more than the buffer holds in memory while the receiver is broken, and waits for a checkpoint.
fn fill(scene: &Scene, keeper: &mut Keeper<'_>, writer: &mut Writer) -> anyhow::Result<()> {
    let newest = scene.newest_checkpoint();
    for _ in 0..4 {
        writer.append(&scene.log(), 40);
        keeper.wait("what the other sink writes", || scene.count("kept.ndjson") == writer.next)?;
    }
    keeper.wait("a checkpoint, though the receiver is broken", || scene.newest_checkpoint() > newest)
}

/// The files of the buffer of the sink `posted`, the oldest first.
fn segments(scene: &Scene) -> Vec<String> {
    let entries = fs::read_dir(scene.state().join("sinks/posted/buffer")).into_iter().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Posts numbered records to the daemon, each until it is acknowledged.
struct Client {
    address: SocketAddr,
    next: u64,
    /// What was sent again since no answer came: it may have been taken each time.
    again: BTreeSet<u64>,
}

impl Client {
    fn new() -> anyhow::Result<Self> {
        // Free a moment ago; each daemon must be at the same one.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Ok(Self { address, next: 0, again: BTreeSet::new() })
    }

    fn post(&mut self, keeper: &mut Keeper<'_>, count: u64) -> anyhow::Result<()> {
        for seq in self.next..self.next + count {
            let mut attempts = 0;
            keeper.wait("an acknowledgement", || {
                attempts += 1;
                self.exchange(seq).unwrap_or(false)
            })?;
            if attempts > 1 {
                self.again.insert(seq);
            }
        }
        self.next += count;
        Ok(())
    }

    fn exchange(&self, seq: u64) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let body = format!("{{\"seq\":{seq}}}");
        let head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close";
        stream.write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    }

    fn judge(&self, scene: &Scene, outcome: &mut Outcome) {
        let mut seen = numbers(&scene.records("pushed.ndjson", outcome));
        seen.sort_unstable();
        seen.dedup_by(|later, earlier| later == earlier && self.again.contains(earlier));
        outcome.compare("pushed.ndjson", 0..self.next, seen);
    }
}

fn large(number: u64, seq: u64) -> String {
    // At a time that has come already, so that it changes no window.
    let line = Writer { padding: 60_000, ..Writer::default() }.line(seq - 1);
    line.replacen(&format!("\"seq\":{}", seq - 1), &format!("\"large\":{number}"), 1)
}

fn append(path: &Path, text: &str) -> std::io::Result<()> {
    fs::OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes())
}

fn judge(scene: &Scene, writer: &Writer, receiver: &Receiver, lines: &Lines, outcome: &mut Outcome) {
    let kept = writer.kept();
    let read = scene.records("kept.ndjson", outcome);
    outcome.compare("kept.ndjson", kept.clone(), numbers(&read));
    let packed = fs::read(scene.out().join("kept.ndjson.gz")).unwrap_or_default();
    let mut text = String::new();
    match flate2::read::MultiGzDecoder::new(&packed[..]).read_to_string(&mut text) {
        Ok(_) => {
            let unpacked = records(&text, "kept.ndjson.gz", outcome);
            outcome.compare("kept.ndjson.gz", kept.clone(), numbers(&unpacked));
        }
        Err(error) => outcome.violations.push(format!("kept.ndjson.gz: {error}")),
    }
    let found = scene.records("windows.ndjson", outcome);
    outcome.compare("windows.ndjson", writer.windows(), windows(&found));
    let found = scene.records("alerts.ndjson", outcome);
    outcome.compare("alerts.ndjson", both(&writer.failed()), alerts(&found));
    judge_parts(scene, &kept, outcome);
    // To receivers: everything at least once, alerts under one identity each.
    let repeats = judge_alerts(&receiver.accepted("/alerts"), &both(&writer.failed()), outcome);
    if repeats > 8 {
        outcome.violations.push(format!("{repeats} alerts were told again after one kill"));
    }
    let large: BTreeSet<(String, Option<u64>)> = receiver
        .accepted("/large")
        .into_iter()
        .map(|request| {
            (request.id, serde_json::from_slice::<serde_json::Value>(&request.body).unwrap()["large"].as_u64())
        })
        .collect();
    outcome.compare("large ones by identity", (0..LARGE).map(Some), large.into_iter().map(|(_, number)| number));
    let posted: String =
        receiver.accepted("/kept").iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    let posted: BTreeSet<u64> = numbers(&records(&posted, "/kept", outcome)).into_iter().collect();
    outcome.compare("posted", kept.clone(), posted);
    let sent: String = lines.all().iter().map(|line| format!("{line}\n")).collect();
    let sent: BTreeSet<u64> = numbers(&records(&sent, "lines", outcome)).into_iter().collect();
    outcome.compare("sent", kept, sent);
}

/// Each notification has one identity and tells one thing, and all are told that are told when nothing dies.
fn judge_notifications(receiver: &Receiver, undisturbed: &mut Undisturbed, outcome: &mut Outcome) {
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    for request in receiver.accepted("/oncall") {
        let record: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let alerts = record["alerts"].as_array().into_iter().flatten();
        let alerts: Vec<_> = alerts.map(|alert| format!("{} {}", alert["state"], alert["id"])).collect();
        let text = format!("{} {} {} {alerts:?}", record["reason"], record["group_key"], record["time"]);
        if let Some(before) = told.insert(request.id.clone(), text.clone()).filter(|before| *before != text) {
            outcome.violations.push(format!("{} told two things: {before} and {text}", request.id));
        }
    }
    match undisturbed {
        None if told.len() < 5 => outcome.violations.push(format!("{} notifications show nothing", told.len())),
        None => *undisturbed = Some(told),
        Some(undisturbed) => outcome.compare("notifications", undisturbed.clone(), told),
    }
}

/// Of the rotated files the last two are there: whole, in order, and up to the last record.
fn judge_parts(scene: &Scene, kept: &[u64], outcome: &mut Outcome) {
    let mut parts: Vec<(u64, String)> = fs::read_dir(scene.out())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| Some((name.strip_prefix("parts.ndjson.")?.parse().ok()?, name)))
        .collect();
    parts.sort();
    let mut found = Vec::new();
    for (_, name) in &parts {
        found.extend(numbers(&scene.records(name, outcome)));
    }
    let tail = &kept[kept.len().saturating_sub(found.len())..];
    outcome.compare("parts.ndjson", tail.iter().copied(), found.iter().copied());
    if !found.is_sorted() || parts.len() > 4 {
        outcome.violations.push(format!("parts.ndjson: {} files, sorted: {}", parts.len(), found.is_sorted()));
    }
}
