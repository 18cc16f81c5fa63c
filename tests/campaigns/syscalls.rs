//! SIGKILL, EIO and ENOSPC at the n-th call of the system, with strace.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::ensure;

use crate::scene::{Keeper, Scene, Writer, numbers, windows};
use crate::support::campaign::{Campaign, Order, Outcome};

pub const SYSCALLS: Campaign =
    Campaign { name: "syscalls", variable: "TOCSIN_SYSCALLS", sizes: (30, 500), body: syscalls };

const PIPELINE: &str = r#"
[daemon]
checkpoint_interval = "10ms"
shutdown_timeout = "5s"

[sources.log]
type = "file"
paths = ["${IN}/app.log*"]
codec = "json"
timestamp = { field = ".ts" }

[operators.kept]
type = "filter"
inputs = ["log"]
condition = '.level != "DEBUG"'

[operators.by_second]
type = "window"
inputs = ["kept"]
tumbling = "1s"
aggregates = { count = "count()", sum = "sum(.seq)" }

[sinks.kept_out]
type = "file"
inputs = ["kept"]
path = "${OUT}/kept.ndjson"

[sinks.windows_out]
type = "file"
inputs = ["by_second"]
path = "${OUT}/windows.ndjson"
"#;

/// The calls, by what they are to the daemon.
const CALLS: [&str; 5] = ["write", "fdatasync", "fsync", "rename,renameat,renameat2", "ftruncate"];

/// Why the campaign cannot be run here.
pub fn obstacle() -> Option<String> {
    let output = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(format!("strace: {error}")),
    }
}

fn syscalls(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut done: BTreeMap<String, u64> = BTreeMap::new();
    for fault in ["signal=SIGKILL", "error=EIO", "error=ENOSPC"] {
        for call in CALLS {
            for n in 1..=order.size {
                let name = format!("{fault} {call}");
                if !one(order, call, fault, n, outcome)? {
                    // There is no n-th.
                    break;
                }
                outcome.runs += 1;
                *done.entry(name).or_default() += 1;
                if !outcome.is_clean() {
                    outcome.violations.push(format!("{fault} at {call} number {n}"));
                    return Ok(());
                }
            }
        }
    }
    println!("injected: {done:?}");
    Ok(())
}

/// Runs to a half, on to the end with a fault, and again without; `false` where the fault did not come.
fn one(order: &Order, call: &str, fault: &str, n: u64, outcome: &mut Outcome) -> anyhow::Result<bool> {
    let scene = Scene::new(order, PIPELINE, Vec::new());
    let mut writer = Writer::default();
    writer.append(&scene.log(), 150);
    let mut keeper = Keeper::new(&scene);
    keeper.start(&[]);
    keeper.wait("the first half", || scene.count("kept.ndjson") == 120 && scene.newest_checkpoint() > 0)?;
    keeper.kill();
    writer.append(&scene.log(), 250);
    let trace = scene.path("trace");
    let plain = scene.command(&["--once"]);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-y", "-qq", "-e", &format!("trace={call},fsync,fdatasync,close"), "-o"]).arg(&trace);
    traced.args(["-e", &format!("inject={call}:{fault}:when={n}")]);
    // Errors only where files are: the runtime's own descriptors are not on any disk.
    if call == "write" && fault.starts_with("error") {
        for path in files(&scene) {
            traced.arg("-P").arg(path);
        }
    }
    traced.arg(plain.get_program()).args(plain.get_args());
    scene.dress(&mut traced);
    let status = traced.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let text = fs::read_to_string(&trace).unwrap_or_default();
    let was_killed = status.signal().is_some() || text.contains("killed by SIGKILL");
    let was_injected = was_killed || text.contains("(INJECTED)");
    // A bug ends a process like this, and a disk must not.
    ensure!(status.code() != Some(101), "it panicked at {fault} {call} {n}\n{}", scene.told());
    again(&text, outcome);
    if !was_injected {
        return Ok(false);
    }
    if !was_killed && !status.success() {
        // An output that may be lost is written again from the checkpoint by the next start.
        let count = outcome.notes.get("ended").and_then(serde_json::Value::as_u64).unwrap_or(0);
        outcome.note("ended", count + 1);
    }
    keeper.finish()?;
    let found = scene.records("kept.ndjson", outcome);
    outcome.compare("kept.ndjson", writer.kept(), numbers(&found));
    let found = scene.records("windows.ndjson", outcome);
    outcome.compare("windows.ndjson", writer.windows(), windows(&found));
    scene.audit(outcome);
    Ok(true)
}

/// The files that the daemon may write.
fn files(scene: &Scene) -> Vec<PathBuf> {
    let checkpoints = scene.state().join("checkpoints");
    let mut files = vec![scene.out().join("kept.ndjson"), scene.out().join("windows.ndjson")];
    for number in 1..60 {
        for name in ["segment", "manifest"] {
            files.push(checkpoints.join(format!("{name}-{number:012}")));
            files.push(checkpoints.join(format!("{name}-{number:012}.tmp")));
        }
    }
    files.push(checkpoints.join("manifest.tmp"));
    for sink in ["kept_out", "windows_out"] {
        for name in ["opened", "opened.new"] {
            files.push(scene.state().join("sinks").join(sink).join(name));
        }
    }
    files
}

/// An fsync that failed is final for its descriptor: the system may have forgotten what it could not write.
fn again(trace: &str, outcome: &mut Outcome) {
    let mut failed: Vec<String> = Vec::new();
    for line in trace.lines() {
        // `1234 fdatasync(7</path>) = -1 EIO (…) (INJECTED)`
        let Some((_, rest)) = line.split_once(' ') else { continue };
        let Some((call, rest)) = rest.trim_start().split_once('(') else { continue };
        let Some((descriptor, result)) = rest.split_once('<').map(|(descriptor, _)| (descriptor, rest)) else {
            continue;
        };
        match call {
            "close" => failed.retain(|known| known != descriptor),
            "fsync" | "fdatasync" if failed.iter().any(|known| known == descriptor) => {
                outcome.violations.push(format!("synced again after it had failed: {line}"));
            }
            "fsync" | "fdatasync" if result.contains("= -1") => failed.push(descriptor.to_owned()),
            _ => {}
        }
    }
}
