//! Daemons that run one configuration and share the partitions of a topic.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tocsin_pipeline::fault::Defect;

use crate::feed::{Feed, WINDOW};
use crate::follower::Follower;
use crate::support::kafka::Cluster;
use crate::support::{Daemon, tocsin};

/// How long anything may take that a fleet is waited for: a group notices after 6 s that a member is dead.
const PATIENCE: Duration = Duration::from_secs(90);
/// Those of the output.
pub const OUTPUT_PARTITIONS: i32 = 3;

/// Filtered records, each once, and windows of each host into one topic. `BY` says in a header which daemon has written.
const PIPELINE: &str = r#"
[daemon]
checkpoint_store = "STORE"
checkpoint_interval = "200ms"
shutdown_timeout = "10s"

[sources.log]
type = "kafka"
brokers = ["BROKERS"]
topics = ["NAME-in"]
group = "NAME"
codec = "json"
keyed_by = [".host"]
timestamp = { field = ".ts" }
out_of_order = "1s"
idle_timeout = "1h"
options = { "session.timeout.ms" = "6000" }

[operators.kept]
type = "filter"
inputs = ["log"]
condition = '.level != "DEBUG"'

[operators.once]
type = "dedupe"
inputs = ["kept"]
key = [".host", ".seq"]
within = "20s"

[operators.by_host]
type = "window"
inputs = ["once"]
tumbling = "WINDOWms"
group_by = [".host"]
aggregates = { count = "count()", sum = "sum(.seq)" }

[sinks.out]
type = "kafka"
inputs = ["once", "by_host"]
brokers = ["BROKERS"]
topic = "NAME-out"
key = [".host"]
headers = { by = "${BY}" }
delivery = "DELIVERY"
"#;

/// Topics, a group and a configuration of their own.
pub struct Fleet<'c> {
    pub cluster: &'c Cluster,
    pub name: String,
    pub partitions: i32,
    planted: Option<Defect>,
    variables: Vec<(&'static str, String)>,
    folder: tempfile::TempDir,
}

impl<'c> Fleet<'c> {
    pub fn new(cluster: &'c Cluster, partitions: i32, delivery: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fleet-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        // What is read here happened longer ago than topics remember.
        let keep = [("retention.ms", "-1")];
        cluster.create_topic_with(&format!("{name}-in"), partitions, &keep);
        cluster.create_topic_with(&format!("{name}-out"), OUTPUT_PARTITIONS, &keep);
        let folder = tempfile::tempdir().unwrap();
        let fleet = Self { cluster, name, partitions, planted: None, variables: Vec::new(), folder };
        let store = fleet.folder.path().join("state").display().to_string();
        fleet.configure(&store, delivery);
        fleet
    }

    fn configure(&self, store: &str, delivery: &str) {
        let text = [
            ("STORE", store),
            ("NAME", &self.name),
            ("BROKERS", &self.cluster.bootstrap()),
            ("WINDOW", &WINDOW.to_string()),
            ("DELIVERY", delivery),
        ]
        .into_iter()
        .fold(PIPELINE.to_owned(), |text, (name, value)| text.replace(name, value));
        fs::write(self.folder.path().join("pipeline.toml"), text).unwrap();
    }

    /// Keeps checkpoints elsewhere; `variables` say to the daemons how that is come by.
    pub fn keep_at(mut self, store: &str, variables: Vec<(&'static str, String)>) -> Self {
        self.configure(&format!("{store}/{}", self.name), "exactly_once");
        self.variables = variables;
        self
    }

    /// In every daemon.
    pub fn plant(mut self, planted: Option<Defect>) -> Self {
        self.planted = planted;
        self
    }

    pub fn with_variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    pub fn input(&self) -> String {
        format!("{}-in", self.name)
    }

    pub fn output(&self) -> String {
        format!("{}-out", self.name)
    }

    pub fn feed(&self) -> Feed<'c> {
        Feed::new(self.cluster, self.input(), self.partitions)
    }

    pub fn follower(&self) -> Follower {
        Follower::start(self.cluster, &self.output(), OUTPUT_PARTITIONS)
    }

    /// Starts a daemon under a name for people, with further arguments. What it says is appended to what one of that name said
    /// before.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Member {
        let log = self.folder.path().join(format!("{name}.log"));
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let mut command = tocsin(&["run"]);
        command
            .args(arguments)
            .args(["--set", &format!("daemon.admin={admin}")])
            .arg(self.folder.path().join("pipeline.toml"))
            .env("TOCSIN_LOG", std::env::var("TOCSIN_LOG").unwrap_or_else(|_| "info".to_owned()))
            .env("BY", name)
            .envs(self.variables.iter().cloned())
            .stderr(OpenOptions::new().create(true).append(true).open(&log).unwrap());
        if let Some(defect) = self.planted {
            command.env("TOCSIN_PLANT", defect.as_str());
        }
        let told_before = fs::metadata(&log).map_or(0, |it| it.len());
        Member { name: name.to_owned(), daemon: Daemon::start(&mut command), log, told_before, admin }
    }

    /// Waits until all that was written was read and is committed for the group.
    pub fn wait_until_read(&self, feed: &Feed<'_>, members: &mut [Member]) -> anyhow::Result<()> {
        let ends = feed.ends()?;
        let mut config = self.cluster.client();
        config.set("group.id", &self.name).set("isolation.level", "read_uncommitted");
        let group: BaseConsumer = config.create()?;
        let begun = Instant::now();
        loop {
            let mut wanted = TopicPartitionList::new();
            wanted.add_partition_range(&self.input(), 0, self.partitions - 1);
            let committed = group.committed_offsets(wanted, Duration::from_secs(30))?;
            let offsets: Vec<_> = committed
                .elements()
                .iter()
                .map(|one| match one.offset() {
                    Offset::Offset(offset) => offset,
                    _ => 0,
                })
                .collect();
            if offsets == ends {
                return Ok(());
            }
            for member in members.iter_mut() {
                member.require_alive()?;
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "it was read to {offsets:?} of {ends:?}\n{}",
                members.iter().map(Member::told).collect::<String>()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the partitions are shared out among these evenly, and each of them is ready.
    pub fn wait_until_shared(&self, members: &[&Member]) -> anyhow::Result<()> {
        let all: Vec<i32> = (0..self.partitions).collect();
        let most = all.len().div_ceil(members.len());
        let begun = Instant::now();
        loop {
            let shares: Vec<_> = members.iter().map(|member| member.lanes()).collect();
            let mut shared: Vec<i32> = shares.iter().flatten().copied().collect();
            shared.sort_unstable();
            let is_even = shared == all && shares.iter().all(|share| share.len() <= most);
            if is_even && members.iter().all(|member| member.ready().0 == 200) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "the partitions are not shared: {shares:?}\n{}",
                members.iter().map(|member| member.told()).collect::<String>()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What all of them have said that nobody should have to read.
    pub fn complaints(&self) -> Vec<String> {
        let logs = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let mut complaints = Vec::new();
        for log in logs {
            let text = fs::read_to_string(log).unwrap();
            complaints
                .extend(text.lines().filter(|it| it.contains("ERROR") || it.contains("panicked")).map(str::to_owned));
        }
        complaints
    }
}

/// A daemon of a fleet.
pub struct Member {
    pub name: String,
    daemon: Daemon,
    log: PathBuf,
    /// How long the log was when it was started.
    told_before: u64,
    pub admin: SocketAddr,
}

impl Member {
    pub fn kill(self) {
        self.daemon.kill();
    }

    /// SIGTERM: must end well, and soon.
    pub fn terminate(self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let told = self.told();
        let status = self.daemon.terminate();
        ensure!(status.success(), "it ended with {status}\n{told}");
        Ok(begun.elapsed())
    }

    pub fn signal(&self, name: &str) {
        self.daemon.signal(name);
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.daemon.ended()
    }

    pub fn require_alive(&mut self) -> anyhow::Result<()> {
        match self.daemon.ended() {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {status}\n{}", self.name, self.told()),
        }
    }

    /// What it has said since it was started.
    pub fn told(&self) -> String {
        let bytes = fs::read(&self.log).unwrap();
        String::from_utf8_lossy(&bytes[usize::try_from(self.told_before).unwrap()..]).into_owned()
    }

    /// How often it has said something.
    pub fn has_told(&self, what: &str) -> usize {
        self.told().matches(what).count()
    }

    /// The status and the body of an answer of the admin address.
    pub fn ask(&self, request: &str) -> anyhow::Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.admin, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "{request} HTTP/1.1\r\nhost: tests\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("not an answer")?;
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).context("no status")?;
        Ok((status, body.to_owned()))
    }

    /// What `/readyz` says; 0: nothing.
    pub fn ready(&self) -> (u16, String) {
        self.ask("GET /readyz").unwrap_or_default()
    }

    pub fn metrics(&self) -> String {
        self.ask("GET /metrics").map(|(_, body)| body).unwrap_or_default()
    }

    /// The partitions that it runs.
    pub fn lanes(&self) -> BTreeSet<i32> {
        let metrics = self.metrics();
        let of_lanes = metrics.lines().filter(|line| line.starts_with("tocsin_checkpoint_epoch{"));
        of_lanes.filter_map(|line| line.split_once("-in/")?.1.split_once('"')?.0.parse().ok()).collect()
    }

    /// Waits until something is so.
    pub fn wait(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !is_so(self) {
            self.require_alive()?;
            ensure!(begun.elapsed() < PATIENCE, "waited in vain for {what} of {}\n{}", self.name, self.told());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}
