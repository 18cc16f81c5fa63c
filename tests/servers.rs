//! Alerts to a real SMTP server (aiosmtpd) over STARTTLS with a password, and to an HTTP receiver: once for firing, once for
//! resolved, and with the same identity where the daemon is killed between sending and noting that it was sent.
//!
//! Skipped by name where Python or aiosmtpd is absent; `tests/servers/run` installs them.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value as Json;
use support::{Daemon, tocsin, wait_for};

/// A server of `tests/servers/`; stopped when dropped.
struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    fn start(script: &str, folder: PathBuf) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(script);
        let child = Command::new(python()).arg(script).arg(&folder).stdin(Stdio::null()).spawn().unwrap();
        let server = Self { child, folder };
        wait_for("a server", || server.folder.join("port").exists());
        server
    }

    fn port(&self) -> String {
        fs::read_to_string(self.folder.join("port")).unwrap()
    }

    fn lines(&self, name: &str) -> Vec<Json> {
        let text = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        // The last line may not be whole yet.
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// From now on it takes what it is sent and answers too late.
    fn delay(&self, is_late: bool) {
        if is_late {
            fs::write(self.folder.join("delay"), "").unwrap();
        } else {
            fs::remove_file(self.folder.join("delay")).unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python() -> String {
    std::env::var("TOCSIN_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// Whether the servers can be run; where they must be, it is an error that they cannot.
fn has_servers(test: &str) -> bool {
    let is_there = Command::new(python())
        .args(["-c", "import aiosmtpd"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    assert!(is_there || std::env::var_os("TOCSIN_NO_SKIP").is_none(), "{test}: aiosmtpd is not installed");
    if !is_there {
        println!("skipped: {test}: python3 with aiosmtpd is not installed");
    }
    is_there
}

const PIPELINE: &str = r#"
[daemon]
checkpoint_interval = "50ms"

[sources.log]
type = "file"
paths = ["${FOLDER}/app.log"]
codec = "json"
timestamp = { field = ".ts" }
idle_timeout = "1h"

[operators.failed]
type = "alert"
inputs = ["log"]
condition = '.level == "ERROR"'
resolve_after = "10s"
group_by = [".host"]
labels = { severity = "critical" }
annotations = { summary = "{{ msg }}" }

[sinks.mail]
type = "email"
inputs = ["failed"]
smtp = "smtp://localhost:${SMTP_PORT}"
username = "tocsin"
password = "a secret"
ca = "${FOLDER}/cert.pem"
from = "tocsin@example.org"
to = ["oncall@example.org"]

[sinks.hook]
type = "webhook"
inputs = ["failed"]
url = "http://127.0.0.1:${HTTP_PORT}/alerts"
allow_private = true
"#;

struct Scene {
    folder: tempfile::TempDir,
    mails: Server,
    hooks: Server,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let servers = ["mail", "hook"].map(|name| folder.path().join(name));
        servers.iter().for_each(|folder| fs::create_dir(folder).unwrap());
        for place in [folder.path(), &servers[0]] {
            fs::write(place.join("cert.pem"), certified.cert.pem()).unwrap();
            fs::write(place.join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
        }
        fs::write(folder.path().join("pipeline.toml"), PIPELINE).unwrap();
        fs::write(folder.path().join("app.log"), "").unwrap();
        let [mail, hook] = servers;
        Self { mails: Server::start("smtp.py", mail), hooks: Server::start("receiver.py", hook), folder }
    }

    fn start(&self) -> Daemon {
        let mut command = tocsin(&["run"]);
        command
            .arg(self.folder.path().join("pipeline.toml"))
            .arg("--data-dir")
            .arg(self.folder.path().join("state"))
            .env("FOLDER", self.folder.path())
            .env("SMTP_PORT", self.mails.port())
            .env("HTTP_PORT", self.hooks.port());
        Daemon::start(&mut command)
    }

    fn log(&self, second: u32, level: &str) {
        let mut log = fs::OpenOptions::new().append(true).open(self.folder.path().join("app.log")).unwrap();
        let line = format!(
            "{{\"ts\":\"2026-11-20T12:00:{second:02}Z\",\"level\":\"{level}\",\"host\":\"db-1\",\"msg\":\"disk full\\r\\n.\\r\\nMAIL FROM:<x>\"}}\n"
        );
        log.write_all(line.as_bytes()).unwrap();
    }

    /// Subject and Message-ID of each mail.
    fn mails(&self) -> Vec<(String, String)> {
        let header = |content: &str, name: &str| {
            let head = content.split("\r\n\r\n").next().unwrap().replace("\r\n ", " ");
            let line = head.lines().find(|line| line.to_lowercase().starts_with(name)).unwrap_or_default().to_owned();
            line.split_once(": ").map_or(String::new(), |(_, value)| value.to_owned())
        };
        self.mails
            .lines("mails")
            .iter()
            .map(|mail| {
                assert_eq!((&mail["tls"], &mail["authenticated"]), (&Json::Bool(true), &Json::Bool(true)));
                assert_eq!(mail["to"], serde_json::json!(["oncall@example.org"]));
                let content = mail["content"].as_str().unwrap();
                (header(content, "subject:"), header(content, "message-id:"))
            })
            .collect()
    }

    /// State and identity of each request.
    fn hooks(&self) -> Vec<(String, String)> {
        self.hooks
            .lines("requests")
            .iter()
            .map(|request| {
                let body: Json = serde_json::from_str(request["body"].as_str().unwrap()).unwrap();
                let headers = request["headers"].as_object().unwrap();
                let key = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("idempotency-key")).unwrap().1;
                assert_eq!(&body["id"], key, "it goes by the name that the rule gave it");
                (body["state"].as_str().unwrap().to_owned(), key.as_str().unwrap().to_owned())
            })
            .collect()
    }
}

#[test]
fn an_alert_is_told_once_when_it_fires_and_once_when_it_resolves() {
    if !has_servers("an_alert_is_told_once_when_it_fires_and_once_when_it_resolves") {
        return;
    }
    let scene = Scene::new();
    let daemon = scene.start();
    scene.log(1, "ERROR");
    scene.log(2, "ERROR");
    wait_for("the firing mail", || scene.mails().len() == 1 && scene.hooks().len() == 1);
    scene.log(30, "INFO");
    wait_for("the resolved mail", || scene.mails().len() == 2 && scene.hooks().len() == 2);
    assert!(daemon.terminate().success());
    // Whatever comes after a restart, nobody is told again.
    let daemon = scene.start();
    scene.log(31, "INFO");
    let state = scene.folder.path().join("state/checkpoints");
    let newest = || fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).max();
    let before = newest();
    wait_for("a checkpoint", || newest() > before);
    assert!(daemon.terminate().success());
    let (mails, hooks) = (scene.mails(), scene.hooks());
    assert_eq!((mails.len(), hooks.len()), (2, 2), "{mails:?} {hooks:?}");
    for ((_, message_id), (_, id)) in mails.iter().zip(&hooks) {
        assert!(
            message_id.starts_with(&format!("<{id}.")),
            "the mail and the request tell one thing: {message_id} {id}"
        );
    }
    assert!(mails[0].0.contains("FIRING") && mails[1].0.to_uppercase().contains("RESOLVED"), "{mails:?}");
    assert_eq!((hooks[0].0.as_str(), hooks[1].0.as_str()), ("firing", "resolved"));
    println!("mails: {mails:?}\nrequests: {hooks:?}");
}

#[test]
fn a_kill_between_sending_and_noting_it_repeats_with_the_same_identity() {
    if !has_servers("a_kill_between_sending_and_noting_it_repeats_with_the_same_identity") {
        return;
    }
    let scene = Scene::new();
    for server in [&scene.mails, &scene.hooks] {
        server.delay(true);
    }
    let daemon = scene.start();
    scene.log(1, "ERROR");
    wait_for("the receivers to have it", || scene.mails().len() == 1 && scene.hooks().len() == 1);
    daemon.kill();
    for server in [&scene.mails, &scene.hooks] {
        server.delay(false);
    }
    let daemon = scene.start();
    wait_for("it to come again", || scene.mails().len() == 2 && scene.hooks().len() == 2);
    scene.log(30, "INFO");
    wait_for("the resolved ones", || scene.mails().len() == 3 && scene.hooks().len() == 3);
    assert!(daemon.terminate().success());
    for told in [scene.mails(), scene.hooks()] {
        assert_eq!(told[0], told[1], "the repeat has the identity of the first");
        let distinct: BTreeSet<_> = told.iter().map(|(_, identity)| identity).collect();
        assert_eq!(distinct.len(), 2, "one for firing, one for resolved: {told:?}");
        println!("{told:?}");
    }
}
