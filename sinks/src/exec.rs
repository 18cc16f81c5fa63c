//! A command for each notification.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, Problem, SinkConfig};
use tocsin_config::types::Secret;
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::json::{parse_value, write_value};
use tocsin_pipeline::sink::{Notification, Sink, SinkContext, SinkError, SinkState};
use tocsin_pipeline::time::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use vrl::value::Value;

use crate::delivery::{Delivery, Usual};
use crate::notice::{Notice, State, one_line};
use crate::outbox::{self, Answer, Courier, Digest, Draft, Identity, Outbox, Row, Settings};

/// What is kept of what a command says.
const SAID_MAX: usize = 4 << 10;
/// A variable is not longer.
const VARIABLE_MAX: usize = 1000;
/// A command that exits with this could not do it now (`EX_TEMPFAIL` of sysexits.h).
const TRY_AGAIN: i32 = 75;
/// What of the daemon's own environment commands get: not the secrets that may be in it.
const INHERITED: [&str; 8] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE"];

/// Runs a command for each record: alerts in the first place, other records just as well.
///
/// The record is its standard input, as JSON. `TOCSIN_ID` is the record's identity, the same on each attempt, after a restart and in
/// a replay, so that the command can tell a repetition. Further it gets `TOCSIN_SINK`, `TOCSIN_ATTEMPT` (1 for the first),
/// `TOCSIN_STATE` (`firing`, `resolved`, `pending`, `amended` or nothing), `TOCSIN_ALERT`, `TOCSIN_SEVERITY` (`critical`, `error`, `warning`,
/// `info`), `TOCSIN_KEY` (the same for all of an episode), `TOCSIN_TITLE`, and of the daemon's own environment `PATH`, `HOME`,
/// `USER`, `LANG`, `LC_ALL`, `TZ`, `TMPDIR` and `SSL_CERT_FILE`. No shell is involved: `command` is the program and its
/// arguments, and what stands in records is in none of them.
///
/// Exit status 0 means delivered. 75, a signal, a program that cannot be started, and taking longer than `timeout` mean to try
/// again, for `max_age`. Every other status refuses the record: it goes to `NAME.rejected`, with what the command has written
/// to standard error, and as it came to `NAME.failed`. A command that takes too long is killed, with all that it has started in
/// its process group; so is one that runs when the daemon has to stop, and it is run again later. The *firing* and the
/// *resolved* of an alert are told in this order, the second once the first is delivered or refused.
///
/// When `max_waiting` notifications wait, or 64 MiB of them, what comes is told as one, a digest, as soon as there is room.
///
/// **State:** what is not delivered yet, and the digest of what came beyond. The names of the last 100,000 that are settled.
///
/// **Late events:** told like all others.
///
/// **After a crash:** nothing is lost. A command that ran when the daemon died is run again with the same `TOCSIN_ID`.
///
/// ```toml
/// [sinks.siren]
/// type = "exec"
/// inputs = ["high_error_rate"]
/// command = ["/usr/local/bin/siren", "--loud"]
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The program and its arguments.
    command: Vec<String>,
    /// Further variables of its environment.
    #[serde(default)]
    environment: BTreeMap<String, Secret>,
    /// The folder it runs in. Default: that of the configuration file.
    directory: Option<PathBuf>,
    #[serde(flatten)]
    delivery: Delivery,
}

impl SinkConfig for Config {
    const NAME: &'static str = "exec";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.command.first().is_none_or(String::is_empty) {
            problems.push(
                Problem::new("command", "has no program").help("write the program and its arguments, each as a text"),
            );
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            problems.push(Problem::new("command", "holds a NUL"));
        }
        for (name, value) in &self.environment {
            let option = format!("environment.{name}");
            if name.is_empty() || name.contains(['=', '\0']) || value.reveal().contains('\0') {
                problems.push(Problem::new(option, "is not a variable: no `=` in its name, and no NUL"));
            } else if name.starts_with("TOCSIN_") {
                problems.push(Problem::new(option, "is a name that the sink itself may set"));
            }
        }
        problems.extend(self.delivery.problems(Usual::SLOW));
        problems
    }

    fn guarantee(&self) -> &'static str {
        "at least once, with one identity"
    }

    fn undelivered(state: &[u8]) -> u64 {
        outbox::undelivered(state)
    }

    fn hands_on(&self) -> bool {
        true
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        let runner = Runner {
            name: Arc::clone(&context.name),
            command: self.command.clone(),
            environment: self.environment.clone(),
            directory: directory(context.folder.join(self.directory.clone().unwrap_or_default())),
            timeout: self.delivery.timeout(Usual::SLOW),
        };
        Box::new(Exec { runner: Arc::new(runner), settings: self.delivery.settings(Usual::SLOW), outbox: None })
    }
}

/// A folder that commands can be run in: that of a configuration named without one is the current one.
fn directory(folder: PathBuf) -> PathBuf {
    if folder.as_os_str().is_empty() { ".".into() } else { folder }
}

struct Exec {
    runner: Arc<Runner>,
    settings: Settings,
    outbox: Option<Outbox>,
}

impl Sink for Exec {
    fn preview(&self, batch: &Batch, row: u32) -> Option<Notification> {
        let record = batch.value(row);
        let body = String::from_utf8_lossy(&json_of(&record)).into_owned();
        Some(Notification { subject: Some(Notice::of(&record).title), body })
    }

    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            self.outbox = Some(Outbox::open(self.settings, context).await?);
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(self.outbox.expect("opened before it is run").run(self.runner, context))
    }
}

/// Runs the command.
struct Runner {
    name: Arc<str>,
    command: Vec<String>,
    environment: BTreeMap<String, Secret>,
    directory: PathBuf,
    timeout: Duration,
}

impl Runner {
    fn command(&self, row: &Row) -> Command {
        let record = parse_value(&row.payload).unwrap_or(Value::Null);
        let notice = Notice::of(&record);
        let state = match notice.state {
            State::Pending => "pending",
            State::Firing => "firing",
            State::Resolved => "resolved",
            State::Amended => "amended",
            State::None => "",
        };
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).current_dir(&self.directory).process_group(0);
        command.env_clear();
        command.envs(INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
        let attempt = (row.attempts + 1).to_string();
        let told = [
            ("TOCSIN_ID", &*row.id),
            ("TOCSIN_SINK", &self.name),
            ("TOCSIN_ATTEMPT", &attempt),
            ("TOCSIN_STATE", state),
            ("TOCSIN_ALERT", &notice.name),
            ("TOCSIN_SEVERITY", notice.severity.as_str()),
            ("TOCSIN_KEY", &notice.key),
            ("TOCSIN_TITLE", &notice.title),
        ];
        // One line without controls, and so without NUL, which no variable can hold.
        command.envs(told.iter().map(|(name, text)| (*name, one_line(text, VARIABLE_MAX))));
        command.envs(self.environment.iter().map(|(name, value)| (name, value.reveal())));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end. Gives how it ended, and what it has said.
    async fn run(&self, row: &Row) -> std::io::Result<(ExitStatus, Vec<u8>)> {
        let mut command = self.command(row);
        let mut child = tokio::task::spawn_blocking(move || command.spawn()).await??;
        let stdin = child.stdin.take().map(OwnedFd::from).map(pipe::Sender::from_owned_fd).transpose()?;
        let stderr = child.stderr.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd).transpose()?;
        // From here on it is killed when nobody waits for it any more.
        let group = Group(Arc::new(Mutex::new(Some(child))));
        let payload = row.payload.clone();
        let write = async move {
            if let Some(mut stdin) = stdin {
                // One that does not want to know closes it.
                let _ = stdin.write_all(&payload).await;
            }
            std::future::pending::<()>().await;
        };
        let mut said = Said { stderr, text: Vec::new() };
        let status = tokio::select! {
            status = group.wait() => status?,
            () = write => unreachable!("it never ends"),
            () = said.listen() => unreachable!("it never ends"),
        };
        Ok((status, said.whole()))
    }
}

/// What a command says, as much of it as is kept.
struct Said {
    stderr: Option<pipe::Receiver>,
    text: Vec<u8>,
}

impl Said {
    /// Reads what is said, so that the command need not wait. Never ends itself.
    async fn listen(&mut self) {
        let mut piece = [0; 4096];
        while let Some(stderr) = &mut self.stderr {
            match stderr.read(&mut piece).await {
                Ok(length @ 1..) => self.keep(&piece[..length]),
                Ok(0) | Err(_) => self.stderr = None,
            }
        }
        std::future::pending::<()>().await;
    }

    /// All of it, with what is still in the pipe. Nobody waits for more: others may hold the pipe open.
    fn whole(mut self) -> Vec<u8> {
        let mut piece = [0; 4096];
        if let Some(stderr) = self.stderr.take() {
            while let Ok(length @ 1..) = rustix::io::read(&stderr, &mut piece)
                && self.text.len() < SAID_MAX
            {
                self.keep(&piece[..length]);
            }
        }
        self.text
    }

    fn keep(&mut self, piece: &[u8]) {
        self.text.extend_from_slice(&piece[..piece.len().min(SAID_MAX - self.text.len())]);
    }
}

/// A command that runs, and what it has started. Dropped before it has ended, all of it is killed.
struct Group(Arc<Mutex<Option<Child>>>);

impl Group {
    /// Waits until the command has ended.
    async fn wait(&self) -> std::io::Result<ExitStatus> {
        let running = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            let id = {
                let child = running.lock().expect("no holder of this lock panics");
                child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()))
            };
            // It stays a zombie until the lock is held: its number must not be another's when the group is killed.
            if let Some(id) = id {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                rustix::io::retry_on_intr(|| waitid(WaitId::Pid(id), options))?;
            }
            let child = running.lock().expect("no holder of this lock panics").take();
            child.ok_or_else(|| std::io::Error::other("it was waited for before"))?.wait()
        })
        .await?
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let child = self.0.lock().expect("no holder of this lock panics");
        if let Some(id) = child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed())) {
            // The thread that waits for it takes it away then.
            let _ = kill_process_group(id, Signal::KILL);
        }
    }
}

fn json_of(record: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    write_value(record, &mut text);
    text
}

/// What follows from how a command ended.
fn answer(status: ExitStatus, said: &[u8]) -> Answer {
    let said = one_line(&String::from_utf8_lossy(said), 300);
    let ended = match (status.code(), status.signal()) {
        (Some(0), _) => return Answer::Delivered,
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    };
    let why = if said.is_empty() { ended } else { format!("{ended}: {said}") };
    match status.code() {
        Some(code) if code != TRY_AGAIN => Answer::Never { why },
        _ => Answer::Again { why, wish: None },
    }
}

impl Courier for Runner {
    fn drafts(&self, batch: &Batch, row: u32) -> Result<Vec<Draft>, String> {
        let record = batch.value(row);
        let Identity { id, thread } = Identity::of(&record, batch, row);
        Ok(vec![Draft { id, receiver: String::new(), thread, payload: json_of(&record) }])
    }

    fn digest(&self, digest: &Digest) -> Draft {
        let payload = digest.record().to_string().into_bytes();
        Draft { id: digest.id.clone(), receiver: digest.receiver.clone(), thread: digest.threads(), payload }
    }

    fn deliver(self: Arc<Self>, row: Row, _: Timestamp) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            match tokio::time::timeout(self.timeout, self.run(&row)).await {
                Ok(Ok((status, said))) => answer(status, &said),
                Ok(Err(error)) => Answer::Again { why: format!("{}: {error}", self.command[0]), wish: None },
                Err(_) => Answer::Again { why: format!("has not ended within {:?}", self.timeout), wish: None },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use expect_test::expect;

    use super::*;
    use crate::conformance::{Running, records, sink};
    use crate::notice::tests::{FIRING, RESOLVED};
    use crate::service::tests::{problems, run_sink};

    fn shell(script: &str, more: &str) -> String {
        let script = serde_json::to_string(script).unwrap();
        format!(r#"{{"command":["/bin/sh","-c",{script}]{more}}}"#)
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[tokio::test]
    async fn a_command_gets_the_record_and_its_environment_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let script =
            "cat > $TOCSIN_STATE.json; env | grep -v -e ^PWD -e ^SHLVL -e ^_= -e ^OLDPWD | sort > $TOCSIN_STATE.env";
        let options = shell(script, r#","environment":{"TOKEN":"secret"}"#);
        assert_eq!(run_sink(sink::<Config>(&options, folder.path()), &[FIRING, RESOLVED]).await, [2, 0, 0]);
        let given = parse_value(FIRING.as_bytes()).unwrap();
        assert_eq!(parse_value(read(&folder.path().join("firing.json")).as_bytes()).unwrap(), given);
        let environment = read(&folder.path().join("firing.env"));
        let own = environment.lines().filter(|line| INHERITED.iter().all(|name| !line.starts_with(name)));
        expect![[r#"
            TOCSIN_ALERT=errors
            TOCSIN_ATTEMPT=1
            TOCSIN_ID=abc
            TOCSIN_KEY=f1-abc
            TOCSIN_SEVERITY=critical
            TOCSIN_SINK=out
            TOCSIN_STATE=firing
            TOCSIN_TITLE=[FIRING] errors: too many & more
            TOKEN=secret"#]]
        .assert_eq(&own.collect::<Vec<_>>().join("\n"));
        assert!(read(&folder.path().join("resolved.env")).contains("TOCSIN_KEY=f1-abc\n"));
    }

    #[tokio::test]
    async fn exit_status_75_is_tried_again_and_others_refuse() {
        let folder = tempfile::tempdir().unwrap();
        let script = "case $TOCSIN_ATTEMPT in 1) echo busy >&2; exit 75;; 2) kill -9 $$;; 3) exit 0;; esac";
        assert_eq!(run_sink(sink::<Config>(&shell(script, ""), folder.path()), &[FIRING]).await, [1, 2, 0]);
        assert_eq!(run_sink(sink::<Config>(&shell("exit 1", ""), folder.path()), &[FIRING]).await, [0, 0, 1]);
    }

    #[tokio::test]
    async fn what_a_command_says_is_told() {
        let runner = |script: &str| Runner {
            name: "out".into(),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            environment: BTreeMap::new(),
            directory: std::env::temp_dir(),
            timeout: Duration::from_secs(20),
        };
        let row = |attempts| {
            let draft =
                Draft { id: "a".into(), receiver: String::new(), thread: String::new(), payload: b"{}".to_vec() };
            Row { attempts, ..outbox::row_of(draft, bytes::Bytes::new(), Timestamp(0), Timestamp(0)) }
        };
        let said = |script: &str| {
            let runner = Arc::new(runner(script));
            async move { format!("{:?}\n", runner.deliver(row(0), Timestamp(0)).await) }
        };
        let mut told = said("echo no such number >&2; exit 3").await;
        told += &said("head -c 100000 /dev/zero >&2; exit 75").await.replace(' ', "");
        // Who holds the pipe open is not waited for.
        told += &said("sleep 3 & echo said >&2; exit 1").await;
        let gone = Arc::new(Runner { command: vec!["/no/such/program".into()], ..runner("") });
        told += &format!("{:?}\n", gone.deliver(row(0), Timestamp(0)).await);
        expect![[r#"
            Never { why: "exit status 3: no such number" }
            Again{why:"exitstatus75:…",wish:None}
            Never { why: "exit status 1: said" }
            Again { why: "/no/such/program: No such file or directory (os error 2)", wish: None }
        "#]]
        .assert_eq(&told);
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let script = "test $TOCSIN_ATTEMPT = 2 && exit 0; sleep 1000 & echo $! > child; sleep 1000";
        let options = shell(script, r#","timeout":"300ms""#);
        assert_eq!(run_sink(sink::<Config>(&options, folder.path()), &[FIRING]).await, [1, 1, 0]);
        let child = read(&folder.path().join("child"));
        let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        // Gone, or dead and not yet buried by whoever has inherited it.
        assert!(state.is_err() || state.is_ok_and(|stat| stat.contains(") Z ")), "{child}");
    }

    #[tokio::test]
    async fn it_withstands_what_every_sink_must() {
        let folder = tempfile::tempdir().unwrap();
        let options = shell("cat >> told; echo >> told", r#","concurrency":1"#);
        let make = || sink::<Config>(&options, folder.path());
        let read = async || std::fs::read_to_string(folder.path().join("told")).unwrap();
        let expected = "{\"message\":\"one\"}\n{\"message\":\"two\"}\n{\"three\":3}\n{\"message\":\"five\"}\n";
        crate::conformance::withstands(make, Some(folder.path()), read, expected).await;
    }

    #[tokio::test]
    async fn a_daemon_that_has_to_stop_does_not_wait_for_a_command() {
        let folder = tempfile::tempdir().unwrap();
        let options = shell("echo $$ > child; sleep 1000", "");
        let running = Running::start(sink::<Config>(&options, folder.path()), None, None).await.unwrap();
        running.send(records(&[FIRING])).await;
        running.barrier(1).await;
        running.stop.cancel();
        assert!(matches!(running.end().await.unwrap(), SinkState::Unchanged | SinkState::State(_)));
    }

    #[test]
    fn there_is_always_a_folder() {
        for (folder, expected) in [("", "."), ("a", "a"), ("/", "/")] {
            assert_eq!(directory(folder.into()), Path::new(expected));
        }
    }

    #[test]
    fn problems_are_told() {
        problems::<Config>(
            r#"{"command":[],"environment":{"A=B":"canary","TOCSIN_ID":"x"},"concurrency":0}"#,
            expect![[r#"
                command: has no program
                environment.A=B: is not a variable: no `=` in its name, and no NUL
                environment.TOCSIN_ID: is a name that the sink itself may set
                concurrency: must be from 1 to 64
            "#]],
        );
    }
}
