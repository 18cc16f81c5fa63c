//! Memory under attack: a million distinct keys in a window and in `dedupe`, a line of 1 GiB, a receiver that never answers,
//! and little address space. Nothing grows without bound, and what a bound keeps out is counted.

use std::fs;
use std::io::{BufWriter, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::scene::Scene;
use crate::support::Daemon;
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::receiver::{Manner, Receiver};

pub const MEMORY: Campaign =
    Campaign { name: "memory", variable: "TOCSIN_KEYS", sizes: (1_000_000, 10_000_000), body: memory };

/// How many keys the window holds at most: fewer than there are.
const WINDOW_KEYS: u64 = 300_000;

/// Of memory in all, whatever there is to read.
const RESIDENT_MAX: u64 = 1 << 30;

/// Of address space: threads and the allocator reserve much that they never touch.
const ADDRESSES_MAX: u64 = 3 << 30;

const PIPELINE: &str = r#"
[daemon]
checkpoint_interval = "1s"
shutdown_timeout = "5s"
memory = "64MiB"

[sources.log]
type = "file"
paths = ["${IN}/app.log"]
codec = "json"
timestamp = { field = ".ts" }
idle_timeout = "1h"

[operators.once]
type = "dedupe"
inputs = ["log"]
key = [".key"]
within = "10h"
max_keys = 200000

[operators.by_key]
type = "window"
inputs = ["once"]
tumbling = "1h"
group_by = [".key"]
aggregates = { count = "count()" }
max_keys = 300000

[operators.failed]
type = "alert"
inputs = ["once"]
condition = '.bad == true'
group_by = [".key"]
max_alerts = 100000

[sinks.windows_out]
type = "file"
inputs = ["by_key"]
path = "${OUT}/windows.ndjson"

[sinks.refused_out]
type = "file"
inputs = ["log.rejected"]
path = "${OUT}/refused.ndjson"

[sinks.told]
type = "webhook"
inputs = ["failed"]
url = "http://127.0.0.1:${PORT}/alerts"
allow_private = true
timeout = "1s"
"#;

/// Why the campaign cannot be run here.
pub fn obstacle() -> Option<String> {
    let output = Command::new("prlimit").args(["--as=1073741824", "true"]).output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(format!("prlimit: {error}")),
    }
}

fn memory(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let receiver = Receiver::start(order.seed);
    receiver.set(Manner::Hang);
    let scene = Scene::new(order, PIPELINE, vec![("PORT", receiver.port().to_string())]);
    write_input(&scene, order.size)?;
    let plain = scene.command(&[]);
    let mut command = Command::new("prlimit");
    command.arg(format!("--as={ADDRESSES_MAX}")).arg(plain.get_program()).args(plain.get_args());
    scene.dress(&mut command);
    let mut daemon = Daemon::start(&mut command);
    let begun = Instant::now();
    let patience = Duration::from_secs(120 + order.size / 2_000);
    let mut resident = 0;
    // The last record closes the window.
    while scene.count("windows.ndjson") < WINDOW_KEYS.min(order.size) {
        if let Some(status) = daemon.ended() {
            anyhow::bail!("it ended: {status}\n{}", scene.told());
        }
        resident = resident.max(most_resident(daemon.id())?);
        ensure!(begun.elapsed() < patience, "the window does not close\n{}", scene.told());
        std::thread::sleep(Duration::from_millis(100));
    }
    resident = resident.max(most_resident(daemon.id())?);
    outcome.runs += 1;
    outcome.note("resident_bytes", resident);
    if resident > RESIDENT_MAX {
        outcome.violations.push(format!("it took {resident} bytes of memory"));
    }
    // Not one key twice, and of the long line one dead letter.
    let windows = scene.records("windows.ndjson", outcome);
    let counts: u64 = windows.iter().filter_map(|record| record["count"].as_u64()).sum();
    outcome.compare("keys of the window", [WINDOW_KEYS.min(order.size)], [counts]);
    let refused: Vec<String> =
        scene.records("refused.ndjson", outcome).iter().map(|letter| letter["error"]["reason"].to_string()).collect();
    outcome.compare("dead letters", ["\"too_long\"".to_owned()], refused);
    let status = daemon.terminate();
    ensure!(status.success(), "it ended badly: {status}\n{}", scene.told());
    scene.audit(outcome);
    Ok(())
}

fn write_input(scene: &Scene, keys: u64) -> anyhow::Result<()> {
    let file = fs::File::create(scene.log())?;
    // A line of 1 GiB, which takes no room on most file systems.
    file.set_len(1 << 30)?;
    let mut file = BufWriter::new(fs::OpenOptions::new().append(true).open(scene.log())?);
    file.write_all(b"\n")?;
    for key in 0..keys {
        let is_bad = key.is_multiple_of(100);
        writeln!(file, "{{\"ts\":\"2026-11-20T12:{:02}:00Z\",\"key\":{key},\"bad\":{is_bad}}}", key * 50 / keys)?;
    }
    writeln!(file, "{{\"ts\":\"2026-11-20T14:00:00Z\",\"key\":{keys}}}")?;
    Ok(file.flush()?)
}

/// The most memory that a process has had.
fn most_resident(id: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
