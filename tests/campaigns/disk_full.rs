//! A disk that is full: the data directory's, then that of the output. The daemon stays up, goes on telling alerts, and
//! recovers by itself as soon as there is room.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::scene::{Keeper, Scene, Writer, alerts, both, judge_alerts, numbers, windows};
use crate::sigterm;
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::receiver::Receiver;

pub const DISK_FULL: Campaign =
    Campaign { name: "disk_full", variable: "TOCSIN_DISK_ROUNDS", sizes: (1, 20), body: disk_full };

/// A small file system in memory; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(path).output()?;
        ensure!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self(path.to_owned()))
    }

    /// Writes until there is no room.
    fn fill(&self) -> anyhow::Result<()> {
        let mut file = fs::File::create(self.0.join("filler"))?;
        for size in [64 << 10, 4096, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Why the campaign cannot be run here.
pub fn obstacle() -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    Small::mount(&folder.path().join("small")).err().map(|error| format!("{error:#}"))
}

fn disk_full(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let hold = std::env::var("TOCSIN_FULL_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    for _ in 0..order.size {
        data_dir(order, Duration::from_secs(hold), outcome)?;
        output(order, outcome)?;
        outcome.runs += 1;
        if !outcome.is_clean() {
            break;
        }
    }
    Ok(())
}

fn data_dir(order: &Order, hold: Duration, outcome: &mut Outcome) -> anyhow::Result<()> {
    let receiver = Receiver::start(order.seed);
    let scene = Scene::new(order, sigterm::PIPELINE, vec![("PORT", receiver.port().to_string())]);
    let disk = Small::mount(&scene.state())?;
    let mut keeper = Keeper::new(&scene);
    let mut writer = Writer::default();
    writer.append(&scene.log(), 500);
    keeper.start(&[]);
    let before = scene.newest_checkpoint();
    keeper.wait("the first checkpoint", || scene.newest_checkpoint() > before && scene.count("kept.ndjson") == 400)?;
    disk.fill()?;
    let begun = Instant::now();
    while begun.elapsed() < hold {
        writer.append(&scene.log(), 100);
        let (kept, fired) = (writer.kept().len() as u64, writer.failed().len());
        keeper.wait("output while the disk is full", || scene.count("kept.ndjson") == kept)?;
        keeper.wait("alerts while the disk is full", || receiver.accepted("/alerts").len() >= fired)?;
        std::thread::sleep(Duration::from_millis(500));
    }
    let full = scene.newest_checkpoint();
    disk.free()?;
    let freed = Instant::now();
    writer.append(&scene.log(), 5);
    keeper.wait("a checkpoint when there is room", || scene.newest_checkpoint() > full)?;
    let took = freed.elapsed();
    outcome.note("checkpoint_after_ms", took.as_millis() as u64);
    if took > Duration::from_secs(5) {
        outcome.violations.push(format!("the first checkpoint came {took:?} after there was room"));
    }
    keeper.kill();
    writer.append(&scene.log(), 200);
    keeper.finish()?;
    judge(&scene, &writer, &receiver, outcome);
    Ok(())
}

/// The output waits for room; a stop does not.
fn output(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let receiver = Receiver::start(order.seed);
    let scene = Scene::new(order, sigterm::PIPELINE, vec![("PORT", receiver.port().to_string())]);
    let disk = Small::mount(&scene.out())?;
    let mut keeper = Keeper::new(&scene);
    let mut writer = Writer::default();
    writer.append(&scene.log(), 500);
    keeper.start(&[]);
    keeper.wait("the first records", || scene.count("kept.ndjson") == 400)?;
    disk.fill()?;
    writer.append(&scene.log(), 4000);
    std::thread::sleep(Duration::from_secs(1));
    let begun = Instant::now();
    keeper.until_it_listens()?;
    keeper.signal("TERM");
    keeper.end()?;
    if begun.elapsed() > sigterm::IN_TIME {
        outcome.violations.push(format!("with a full disk it took {:?} to stop", begun.elapsed()));
    }
    keeper.start(&[]);
    std::thread::sleep(Duration::from_secs(1));
    disk.free()?;
    let kept = writer.kept().len() as u64;
    keeper.wait("all output when there is room", || scene.count("kept.ndjson") == kept)?;
    keeper.kill();
    keeper.finish()?;
    judge(&scene, &writer, &receiver, outcome);
    Ok(())
}

fn judge(scene: &Scene, writer: &Writer, receiver: &Receiver, outcome: &mut Outcome) {
    let found = scene.records("kept.ndjson", outcome);
    outcome.compare("kept.ndjson", writer.kept(), numbers(&found));
    let found = scene.records("windows.ndjson", outcome);
    outcome.compare("windows.ndjson", writer.windows(), windows(&found));
    let found = scene.records("alerts.ndjson", outcome);
    outcome.compare("alerts.ndjson", both(&writer.failed()), alerts(&found));
    judge_alerts(&receiver.accepted("/alerts"), &both(&writer.failed()), outcome);
    scene.audit(outcome);
}
