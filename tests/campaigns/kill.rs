//! SIGKILL at random times: a window, alerts and files, whose output must be byte for byte that of a run that nobody
//! disturbed; and how soon a daemon with much state reads again after it was killed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::scene::{Keeper, Scene};
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::random::Random;
use crate::support::{Daemon, imbalance, tocsin, wait_for};

pub const KILL: Campaign = Campaign { name: "kill", variable: "TOCSIN_KILLS", sizes: (100, 5000), body: kill };

pub const RECOVERY: Campaign =
    Campaign { name: "recovery", variable: "TOCSIN_RECOVERIES", sizes: (20, 500), body: recovery };

const PIPELINE: &str = r#"
[sources.log]
type = "file"
paths = ["${IN}/*.log"]
codec = "json"
timestamp = { field = ".ts" }
out_of_order = "1s"

[operators.kept]
type = "filter"
inputs = ["log"]
condition = '.level != "DEBUG"'

[operators.by_service]
type = "window"
inputs = ["kept"]
tumbling = "10s"
group_by = [".service", ".host"]
aggregates = { count = "count()", mean = "mean(.latency_ms)", max = "max(.latency_ms)", p99 = "quantile(.latency_ms, 0.99)" }

[operators.slow]
type = "alert"
inputs = ["by_service"]
condition = ".max > 399.9"
labels = { severity = "warning" }

[sinks.windows_out]
type = "file"
inputs = ["by_service"]
path = "${OUT}/windows.ndjson"

[sinks.kept_out]
type = "file"
inputs = ["kept"]
path = "${OUT}/kept.ndjson"

[sinks.packed_out]
type = "file"
inputs = ["kept"]
path = "${OUT}/kept.ndjson.gz"
compression = "gzip"

[sinks.alerts_out]
type = "file"
inputs = ["slow"]
path = "${OUT}/alerts.ndjson"
"#;

/// How large the input is.
const BYTES: u64 = 20_000_000;

fn kill(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut random = order.random();
    let scene = Scene::new(order, PIPELINE, Vec::new());
    write_input(&scene.log(), BYTES, &mut random)?;
    let start = |name: &str| {
        let (out, state) = (scene.path(name).join("out"), scene.path(name).join("state"));
        fs::create_dir_all(&out).unwrap();
        let mut command = tocsin(&["run", "--once", "--set", "daemon.checkpoint_interval=20ms"]);
        command.arg(scene.path("pipeline.toml")).arg("--data-dir").arg(state);
        scene.dress(&mut command);
        command.env("OUT", out);
        Daemon::start(&mut command)
    };
    let ended = |daemon: &mut Daemon| loop {
        if let Some(status) = daemon.ended() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    ensure!(ended(&mut start("undisturbed")).success(), "{}", scene.told());
    let expected = outputs(&scene.path("undisturbed/out"))?;
    ensure!(expected.iter().all(|(_, content)| !content.is_empty()), "every sink wrote something");
    let mut round = 0;
    while outcome.runs < order.size {
        let name = format!("round-{round}");
        loop {
            let mut daemon = start(&name);
            // How long the daemon lives is what this is about.
            std::thread::sleep(Duration::from_millis(10 + random.below(400)));
            let status = match daemon.ended() {
                None if outcome.runs < order.size => {
                    daemon.kill();
                    outcome.runs += 1;
                    continue;
                }
                Some(status) => status,
                None => ended(&mut daemon),
            };
            ensure!(status.success(), "it stopped by itself: {status}\n{}", scene.told());
            break;
        }
        let got = outputs(&scene.path(&name).join("out"))?;
        let names = |outputs: &[(String, Vec<u8>)]| -> Vec<String> { outputs.iter().map(|it| it.0.clone()).collect() };
        outcome.compare("files", names(&expected), names(&got));
        for ((name, want), (_, got)) in expected.iter().zip(&got).filter(|(want, got)| want.1 != got.1) {
            let lines = |content: &[u8]| -> Vec<String> {
                String::from_utf8_lossy(content).lines().map(str::to_owned).collect()
            };
            outcome.compare(name, lines(want), lines(got));
            outcome.violations.push(format!("{name} differs after {} kills", outcome.runs));
        }
        outcome.violations.extend(imbalance(&scene.path(&name).join("state")));
        if !outcome.is_clean() {
            return Ok(());
        }
        fs::remove_dir_all(scene.path(&name))?;
        round += 1;
    }
    Ok(())
}

fn write_input(path: &Path, size: u64, random: &mut Random) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let (mut bytes, mut millis, mut seq) = (0, 0u64, 0u64);
    while bytes < size {
        millis += random.below(4);
        let (second, milli) = (millis / 1000, millis % 1000);
        let line = format!(
            "{{\"ts\":\"2026-11-{:02}T{:02}:{:02}:{:02}.{milli:03}Z\",\"level\":\"{}\",\"service\":\"s{}\",\"host\":\"web-{}\",\
             \"latency_ms\":{}.{:03},\"seq\":{seq},\"msg\":\"request {} of customer {} completed\"}}\n",
            20 + second / 86_400,
            second / 3600 % 24,
            second / 60 % 60,
            second % 60,
            ["DEBUG", "INFO", "INFO", "WARN", "ERROR"][random.below(5) as usize],
            random.below(8),
            random.below(20),
            random.below(400),
            random.below(1000),
            random.below(1_000_000),
            random.below(10_000),
        );
        file.write_all(line.as_bytes())?;
        bytes += line.len() as u64;
        seq += 1;
    }
    Ok(file.flush()?)
}

/// The files of a folder with their content, those that are compressed unpacked: where members of a gzip file end depends on
/// when checkpoints were taken, what they hold does not.
fn outputs(folder: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut outputs = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut content = fs::read(entry.path())?;
        if name.ends_with(".gz") {
            let mut unpacked = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&content[..]), &mut unpacked)?;
            content = unpacked;
        }
        outputs.push((name, content));
    }
    outputs.sort();
    Ok(outputs)
}

/// Remembers every record for an hour of event time: state that grows with the input.
const MUCH_STATE: &str = r#"
[sources.log]
type = "file"
paths = ["${IN}/*.log"]
codec = "json"
timestamp = { field = ".ts" }

[operators.once]
type = "dedupe"
inputs = ["log"]
key = [".seq"]
within = "10h"

[sinks.out]
type = "file"
inputs = ["once"]
path = "${OUT}/out.ndjson"
"#;

/// How much state there is when the daemon is killed.
const STATE_BYTES: u64 = 10_000_000;

/// From the start of the process to the first records handed to the pipeline, with 10 MB of state.
fn recovery(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let scene = Scene::new(order, MUCH_STATE, Vec::new());
    let mut random = order.random();
    let state = || -> u64 {
        let entries = fs::read_dir(scene.state().join("checkpoints")).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
    };
    write_input(&scene.log(), 60_000_000, &mut random)?;
    let mut keeper = Keeper::new(&scene);
    let often = ["--set", "daemon.checkpoint_interval=100ms"];
    keeper.start(&often);
    keeper.wait("10 MB of state", || state() >= STATE_BYTES)?;
    keeper.kill();
    let bytes = state();
    let list = scene.path("points");
    let mut took = Vec::new();
    for _ in 0..order.size {
        let _ = fs::remove_file(&list);
        let mut command = scene.command(&often);
        command.env("TOCSIN_FAULT_LIST", &list);
        let begun = Instant::now();
        let daemon = Daemon::start(&mut command);
        let has_read = || fs::read_to_string(&list).is_ok_and(|points| points.contains("input.handed\n"));
        wait_for("the first records", has_read);
        took.push(begun.elapsed().as_millis() as u64);
        daemon.kill();
        outcome.runs += 1;
        // So that the next has something to read.
        write_more(&scene.log())?;
    }
    took.sort_unstable();
    let of = |part: usize| took[(took.len() * part / 100).min(took.len() - 1)];
    outcome.note("state_bytes", bytes);
    outcome.note("p50_ms", of(50));
    outcome.note("p99_ms", of(99));
    println!("{bytes} bytes of state: first records after {} ms, p99 {} ms", of(50), of(99));
    // Without optimisation nothing is promised.
    ensure!(cfg!(debug_assertions) || of(99) <= 300, "it took {} ms until the first records", of(99));
    Ok(())
}

fn write_more(path: &Path) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).open(path)?;
    Ok(file.write_all(b"{\"ts\":\"2026-11-20T01:00:00Z\",\"level\":\"INFO\",\"seq\":0}\n")?)
}
