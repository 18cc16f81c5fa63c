//! A place where a daemon is run, killed and started again, the numbered records it reads, and what must come of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value as Json;
use tocsin_pipeline::fault::Defect;

use crate::support::campaign::{Order, Outcome};
use crate::support::receiver::Request;
use crate::support::{Daemon, imbalance, tocsin};

/// So long something may take that must come to pass, on a busy machine and in a build without optimisation.
pub const PATIENCE: Duration = Duration::from_secs(60);

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGHUP: i32 = 1;

/// A folder with a configuration, input, output and state, for one daemon after the other.
pub struct Scene {
    pub folder: tempfile::TempDir,
    planted: Option<Defect>,
    variables: Vec<(&'static str, String)>,
}

impl Scene {
    /// `${IN}` and `${OUT}` are folders of its own; `variables` are the others that the configuration needs.
    pub fn new(order: &Order, pipeline: &str, variables: Vec<(&'static str, String)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let scene = Self { folder, planted: order.planted, variables };
        for folder in [scene.input(), scene.out()] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(scene.path("pipeline.toml"), pipeline).unwrap();
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn input(&self) -> PathBuf {
        self.path("in")
    }

    pub fn out(&self) -> PathBuf {
        self.path("out")
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn log(&self) -> PathBuf {
        self.input().join("app.log")
    }

    /// The environment of a daemon that runs here.
    pub fn dress(&self, command: &mut Command) {
        command.env("IN", self.input()).env("OUT", self.out()).envs(self.variables.iter().cloned());
        // What a panic says must not be missed.
        command.env("TOCSIN_LOG", std::env::var("TOCSIN_LOG").unwrap_or_else(|_| "warn".to_owned()));
        if let Some(defect) = self.planted {
            command.env("TOCSIN_PLANT", defect.as_str());
        }
        let told = fs::OpenOptions::new().create(true).append(true).open(self.path("told")).unwrap();
        command.stderr(told);
    }

    /// `tocsin run` with further arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tocsin(&["run"]);
        command.args(arguments).arg(self.path("pipeline.toml")).arg("--data-dir").arg(self.state());
        self.dress(&mut command);
        command
    }

    /// What daemons said, the end of it.
    pub fn told(&self) -> String {
        let told = fs::read(self.path("told")).unwrap_or_default();
        String::from_utf8_lossy(&told[told.len().saturating_sub(4000)..]).into_owned()
    }

    /// The number of the newest checkpoint; 0 if there is none.
    pub fn newest_checkpoint(&self) -> u64 {
        let Ok(entries) = fs::read_dir(self.state().join("checkpoints")) else { return 0 };
        let number = |name: &str| name.strip_prefix("manifest-")?.parse().ok();
        entries.filter_map(|entry| number(entry.ok()?.file_name().to_str()?)).max().unwrap_or(0)
    }

    /// The records of an output; a line that is not whole yet is left out, one that is no record is a violation.
    pub fn records(&self, name: &str, outcome: &mut Outcome) -> Vec<Json> {
        records(&fs::read_to_string(self.out().join(name)).unwrap_or_default(), name, outcome)
    }

    /// How many whole lines an output has.
    pub fn count(&self, name: &str) -> u64 {
        let text = fs::read(self.out().join(name)).unwrap_or_default();
        memchr::memchr_iter(b'\n', &text).count() as u64
    }

    /// What the daemon itself says of what came in and went out.
    pub fn audit(&self, outcome: &mut Outcome) {
        outcome.violations.extend(imbalance(&self.state()));
    }
}

/// The records of a text, a line each.
pub fn records(text: &str, name: &str, outcome: &mut Outcome) -> Vec<Json> {
    let mut records = Vec::new();
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        match serde_json::from_str(line) {
            Ok(record) => records.push(record),
            Err(error) => outcome.violations.push(format!("{name}: {error} in {line:?}")),
        }
    }
    records
}

/// The numbers in records.
pub fn numbers(records: &[Json]) -> Vec<u64> {
    records.iter().filter_map(|record| record["seq"].as_u64()).collect()
}

/// Runs a daemon, and again when it dies of the fault that it was told to die of.
pub struct Keeper<'s> {
    scene: &'s Scene,
    arguments: Vec<String>,
    /// The point it is to die at, and at which visit; taken away once that has happened.
    fault: Option<(&'static str, u64)>,
    daemon: Option<Daemon>,
    /// How often it died of its fault.
    pub deaths: u64,
    /// Where the points that it came to are written.
    list: Option<PathBuf>,
}

impl<'s> Keeper<'s> {
    pub fn new(scene: &'s Scene) -> Self {
        Self { scene, arguments: Vec::new(), fault: None, daemon: None, deaths: 0, list: None }
    }

    pub fn with_fault(mut self, point: &'static str, visit: u64) -> Self {
        self.fault = Some((point, visit));
        self
    }

    pub fn listing(mut self, list: PathBuf) -> Self {
        self.list = Some(list);
        self
    }

    /// Starts a daemon with arguments, which hold for its restarts too.
    pub fn start(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self.restart();
    }

    /// Starts the daemon as before.
    pub fn restart(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut command = self.scene.command(&arguments);
        if let Some((point, visit)) = self.fault {
            command.env("TOCSIN_FAULT_POINT", point).env("TOCSIN_FAULT_VISIT", visit.to_string());
        }
        if let Some(list) = &self.list {
            command.env("TOCSIN_FAULT_LIST", list);
        }
        self.daemon = Some(Daemon::start(&mut command));
    }

    /// Waits until something is so, and keeps the daemon running meanwhile.
    pub fn wait(&mut self, what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !is_so() {
            // With a defect planted it is expected to be in vain.
            let patience = if self.scene.planted.is_some() { PATIENCE / 6 } else { PATIENCE };
            ensure!(begun.elapsed() < patience, "waited in vain for {what}\n{}", self.scene.told());
            if let Some(status) = self.ended() {
                ensure!(self.died(status), "it ended ({status}) before {what}\n{}", self.scene.told());
                self.restart();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.daemon.as_mut()?.ended()
    }

    /// Whether the daemon ended by its fault, which it does once.
    fn died(&mut self, status: ExitStatus) -> bool {
        let is_so = status.signal() == Some(SIGKILL) && self.fault.is_some();
        if is_so {
            self.fault = None;
            self.deaths += 1;
        }
        is_so
    }

    /// SIGKILL from outside.
    pub fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    pub fn signal(&self, name: &str) {
        if let Some(daemon) = &self.daemon {
            daemon.signal(name);
        }
    }

    /// Waits until SIGTERM and SIGHUP are answered: before, they end a process as a crash does.
    pub fn until_it_listens(&mut self) -> anyhow::Result<()> {
        loop {
            let daemon = self.daemon.as_ref().context("no daemon runs")?;
            let status = fs::read_to_string(format!("/proc/{}/status", daemon.id()))?;
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            let caught = u64::from_str_radix(caught.unwrap_or_default().trim(), 16).unwrap_or(0);
            if [SIGHUP, SIGTERM].iter().all(|signal| caught >> (signal - 1) & 1 == 1) || status.contains("State:\tZ") {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGTERM; it must end well, once it did not die of its fault.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        loop {
            self.until_it_listens()?;
            self.signal("TERM");
            match self.end()? {
                status if status.success() => return Ok(()),
                status if self.died(status) => self.restart(),
                status => bail!("it ended badly after SIGTERM: {status}\n{}", self.scene.told()),
            }
        }
    }

    /// Waits for the end of the daemon.
    pub fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.daemon.as_mut().context("no daemon runs")?.ended() {
                self.daemon = None;
                return Ok(status);
            }
            ensure!(begun.elapsed() < PATIENCE, "it does not end\n{}", self.scene.told());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Runs to the end of all input.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        let interval = self.arguments.clone();
        let mut arguments: Vec<&str> = interval.iter().map(String::as_str).collect();
        arguments.push("--once");
        self.start(&arguments);
        loop {
            match self.end()? {
                status if status.success() => return Ok(()),
                status if self.died(status) => self.restart(),
                status => bail!("it ended badly: {status}\n{}", self.scene.told()),
            }
        }
    }
}

/// Appends numbered records to a log and knows what must come of them.
///
/// Every fifth is of level DEBUG, of every fifty (a job) one is an ERROR. They are 10 ms of event time apart.
#[derive(Default)]
pub struct Writer {
    pub next: u64,
    /// So long each record is beside its fields.
    pub padding: usize,
}

impl Writer {
    pub fn line(&self, seq: u64) -> String {
        let millis = seq * 10;
        let level = match seq {
            _ if is_error(seq) => "ERROR",
            _ if !is_kept(seq) => "DEBUG",
            _ => "INFO",
        };
        format!(
            "{{\"seq\":{seq},\"ts\":\"2026-11-{:02}T{:02}:{:02}:{:02}.{:03}Z\",\"level\":\"{level}\",\"job\":{},\"msg\":\"{}\"}}\n",
            20 + millis / 86_400_000,
            millis / 3_600_000 % 24,
            millis / 60_000 % 60,
            millis / 1000 % 60,
            millis % 1000,
            job(seq),
            "x".repeat(self.padding),
        )
    }

    /// The text of the next `count` records.
    pub fn text(&mut self, count: u64) -> String {
        let first = self.next;
        self.next += count;
        (first..self.next).map(|seq| self.line(seq)).collect()
    }

    /// Appends the next `count` records to a file.
    pub fn append(&mut self, path: &Path, count: u64) {
        let text = self.text(count);
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// The numbers of the records that are kept.
    pub fn kept(&self) -> Vec<u64> {
        (0..self.next).filter(|seq| is_kept(*seq)).collect()
    }

    /// Count and sum of the kept records of each second.
    pub fn windows(&self) -> Vec<(String, u64, u64)> {
        let mut windows: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for seq in self.kept() {
            let window = windows.entry(seq / 100).or_default();
            window.0 += 1;
            window.1 += seq;
        }
        let start = |second: u64| {
            let (hour, minute) = (second / 3600 % 24, second / 60 % 60);
            format!("2026-11-{:02}T{hour:02}:{minute:02}:{:02}Z", 20 + second / 86_400, second % 60)
        };
        windows.into_iter().map(|(second, (count, sum))| (start(second), count, sum)).collect()
    }

    /// The jobs with an error: each fires an alert.
    pub fn failed(&self) -> Vec<u64> {
        (0..self.next).filter(|seq| is_error(*seq)).map(job).collect()
    }
}

fn is_kept(seq: u64) -> bool {
    !seq.is_multiple_of(5)
}

fn is_error(seq: u64) -> bool {
    seq % 50 == 7
}

fn job(seq: u64) -> u64 {
    seq / 50
}

/// What the records of `windows` say, as [`Writer::windows`] puts it.
pub fn windows(records: &[Json]) -> Vec<(String, u64, u64)> {
    let number = |value: &Json| value.as_f64().map_or(u64::MAX, |number| number as u64);
    let start = |record: &Json| record["window_start"].as_str().unwrap_or_default().to_owned();
    records.iter().map(|record| (start(record), number(&record["count"]), number(&record["sum"]))).collect()
}

/// Job and state of alerts.
pub fn alerts(records: &[Json]) -> Vec<(u64, String)> {
    let job = |record: &Json| {
        let label = &record["labels"]["job"];
        label.as_u64().or_else(|| label.as_str()?.parse().ok()).unwrap_or(u64::MAX)
    };
    records.iter().map(|record| (job(record), record["state"].as_str().unwrap_or_default().to_owned())).collect()
}

/// Firing and resolved of each job.
pub fn both(jobs: &[u64]) -> Vec<(u64, String)> {
    let states = ["firing", "resolved"];
    jobs.iter().flat_map(|job| states.map(|state| (*job, state.to_owned()))).collect()
}

/// What a receiver of alerts must have taken: each of `expected` under one identity that no other has, firing before
/// resolved. Gives how many came more than once, which is no fault after a kill.
pub fn judge_alerts(requests: &[Request], expected: &[(u64, String)], outcome: &mut Outcome) -> u64 {
    let mut identities: BTreeMap<(u64, String), Vec<String>> = BTreeMap::new();
    let mut fired = std::collections::BTreeSet::new();
    for request in requests {
        let Ok(record) = serde_json::from_slice::<Json>(&request.body) else {
            outcome.violations.push(format!("an alert that is no JSON: {}", String::from_utf8_lossy(&request.body)));
            continue;
        };
        let alert = alerts(&[record]).remove(0);
        match alert.1.as_str() {
            "firing" => drop(fired.insert(alert.0)),
            _ if !fired.contains(&alert.0) => {
                outcome.violations.push(format!("job {} is resolved before it fires", alert.0));
            }
            _ => {}
        }
        let known = identities.entry(alert).or_default();
        if !known.contains(&request.id) {
            known.push(request.id.clone());
        }
    }
    let ids: std::collections::BTreeSet<_> = identities.values().flatten().collect();
    let count: usize = identities.values().map(Vec::len).sum();
    if ids.len() != count {
        outcome.violations.push("two alerts have one identity".to_owned());
    }
    // A second identity is a second alert to whoever receives it.
    let seen = identities.iter().flat_map(|(alert, ids)| ids.iter().map(move |_| alert.clone()));
    outcome.compare("alerts by identity", expected.iter().cloned(), seen);
    (requests.len() - ids.len().min(requests.len())) as u64
}
