//! Receivers from the outside: what one that fails hands on to another, whatever happens in between, and `tocsin notify test`.

mod support;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use expect_test::{Expect, expect};
use support::receiver::{Manner, Receiver};
use support::{Daemon, require_balance, tocsin, wait_for};

/// Two receivers at one server each: the second is told what the first is not.
fn configuration(folder: &Path, pager: u16, mail: u16, more: &str) -> String {
    let text = format!(
        r#"
[daemon]
checkpoint_interval = "50ms"

[sources.log]
type = "file"
paths = ["{0}/input.log"]
codec = "json"
timestamp = {{ field = ".ts", format = "unix" }}

[operators.errors]
type = "alert"
inputs = ["log"]
condition = ".status >= 500"
group_by = [".host"]
annotations = {{ summary = "{{{{ labels.host }}}} says {{{{ values.status }}}}" }}

[sinks.pager]
type = "webhook"
inputs = ["errors"]
url = "http://127.0.0.1:{pager}/pager"
allow_private = true
retry = {{ initial = "10ms", max = "50ms" }}
{more}

[sinks.mail]
type = "webhook"
inputs = ["pager.failed"]
url = "http://127.0.0.1:{mail}/mail"
allow_private = true
retry = {{ initial = "10ms", max = "50ms" }}
"#,
        folder.display()
    );
    let path = folder.join("tocsin.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn append(folder: &Path, line: &str) {
    let file = fs::OpenOptions::new().create(true).append(true).open(folder.join("input.log"));
    writeln!(file.unwrap(), "{line}").unwrap();
}

fn start(configuration: &str, folder: &Path) -> Daemon {
    Daemon::start(tocsin(&["run", configuration, "--data-dir"]).arg(folder.join("data")))
}

/// The names of the notifications that a receiver has taken, without repetitions.
fn told(receiver: &Receiver, path: &str) -> Vec<String> {
    let mut ids: Vec<_> = receiver.accepted(path).into_iter().map(|request| request.id).collect();
    ids.sort();
    ids.dedup();
    ids
}

#[test]
fn what_is_refused_is_told_to_another_receiver_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let (pager, mail) = (Receiver::start(1), Receiver::start(2));
    pager.set(Manner::Refuse);
    let configuration = configuration(folder.path(), pager.port(), mail.port(), "");
    append(folder.path(), r#"{"ts":1,"host":"a","status":500}"#);
    append(folder.path(), r#"{"ts":2,"host":"b","status":503}"#);
    let daemon = start(&configuration, folder.path());
    wait_for("both at the second receiver", || mail.accepted("/mail").len() == 2);
    assert!(daemon.terminate().success());
    let mut given: Vec<_> = pager.requests().into_iter().map(|request| (request.id, request.body)).collect();
    let mut taken: Vec<_> = mail.requests().into_iter().map(|request| (request.id, request.body)).collect();
    given.sort();
    taken.sort();
    assert_eq!(taken, given);
    require_balance(&folder.path().join("data"), "after a fallback");
}

#[test]
fn what_is_not_delivered_for_a_while_is_told_to_another_receiver_and_tried_further() {
    let folder = tempfile::tempdir().unwrap();
    let (pager, mail) = (Receiver::start(1), Receiver::start(2));
    pager.set(Manner::Broken);
    let more = "fallback_after = \"200ms\"\nbreaker = { failures = 3, pause = \"50ms\", pause_max = \"100ms\" }";
    let configuration = configuration(folder.path(), pager.port(), mail.port(), more);
    append(folder.path(), r#"{"ts":1,"host":"a","status":500}"#);
    let daemon = start(&configuration, folder.path());
    wait_for("the second receiver", || mail.accepted("/mail").len() == 1);
    pager.set(Manner::Well);
    wait_for("the first receiver", || pager.accepted("/pager").len() == 1);
    assert!(daemon.terminate().success());
    assert_eq!(told(&pager, "/pager"), told(&mail, "/mail"));
    require_balance(&folder.path().join("data"), "after a fallback");
}

#[test]
fn who_was_told_of_a_beginning_is_told_of_the_end_that_the_first_receiver_took() {
    let folder = tempfile::tempdir().unwrap();
    let (pager, mail) = (Receiver::start(1), Receiver::start(2));
    pager.set(Manner::Refuse);
    let configuration = configuration(folder.path(), pager.port(), mail.port(), "");
    append(folder.path(), r#"{"ts":1,"host":"a","status":500}"#);
    let daemon = start(&configuration, folder.path());
    wait_for("the second receiver", || mail.accepted("/mail").len() == 1);
    assert!(daemon.terminate().success());
    // Also by a daemon that was started again.
    pager.set(Manner::Well);
    append(folder.path(), r#"{"ts":1000,"host":"b","status":200}"#);
    let daemon = start(&configuration, folder.path());
    wait_for("the end at both", || pager.accepted("/pager").len() == 1 && mail.accepted("/mail").len() == 2);
    assert!(daemon.terminate().success());
    assert_eq!(mail.requests()[1].body, pager.accepted("/pager")[0].body);
    require_balance(&folder.path().join("data"), "after a fallback");
}

#[test]
fn what_is_handed_on_is_not_lost_whenever_the_daemon_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (pager, mail) = (Receiver::start(1), Receiver::start(2));
    pager.set(Manner::Refuse);
    let configuration = configuration(folder.path(), pager.port(), mail.port(), "");
    for number in 0..30 {
        append(folder.path(), &format!(r#"{{"ts":{number},"host":"h{number}","status":500}}"#));
        let daemon = start(&configuration, folder.path());
        match number % 3 {
            0 => wait_for("the first receiver", || told_any(&pager) > number),
            1 => wait_for("the second receiver", || told(&mail, "/mail").len() > number),
            _ => {}
        }
        daemon.kill();
    }
    let daemon = start(&configuration, folder.path());
    wait_for("everything at the second receiver", || told(&mail, "/mail").len() == 30);
    assert!(daemon.terminate().success());
    require_balance(&folder.path().join("data"), "after kills");
}

fn told_any(receiver: &Receiver) -> usize {
    let mut ids: Vec<_> = receiver.requests().into_iter().map(|request| request.id).collect();
    ids.sort();
    ids.dedup();
    ids.len()
}

/// What a command says, with the port taken out.
fn check(output: &Output, port: u16, expected: Expect) {
    let told = [&output.stdout[..], &output.stderr].concat();
    let told = String::from_utf8_lossy(&told).replace(&port.to_string(), "PORT");
    expected.assert_eq(&format!("{told}exit status {}\n", output.status.code().unwrap()));
}

#[test]
fn a_receiver_is_tested_without_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(1);
    let port = receiver.port();
    let text = format!(
        r#"
[sources.log]
type = "stdin"

[sinks.hook]
type = "webhook"
inputs = ["log"]
url = "http://127.0.0.1:{port}/hook"
allow_private = true
body = "{{{{ alert }}}} {{{{ state }}}} {{{{ annotations.summary }}}}"

[sinks.ticket]
type = "exec"
inputs = ["log"]
command = ["/bin/sh", "-c", "echo no such queue >&2; exit 3"]

[sinks.screen]
type = "console"
inputs = ["log"]
"#
    );
    let configuration = folder.path().join("tocsin.toml");
    fs::write(&configuration, text).unwrap();
    let test = |name: &str, more: &[&str]| {
        let mut command = tocsin(&["notify", "test", name]);
        command.arg(&configuration).args(more).current_dir(folder.path()).stdin(Stdio::null()).output().unwrap()
    };
    check(
        &test("hook", &["--resolve"]),
        port,
        expect![[r#"
        firing: delivered
        resolved: delivered
        exit status 0
    "#]],
    );
    check(
        &test("hook", &["--record", r#"{"alert":"disk","state":"firing","annotations":{"summary":"full"}}"#]),
        port,
        expect![[r#"
        firing: delivered
        exit status 0
    "#]],
    );
    let bodies = receiver.requests().into_iter().map(|request| String::from_utf8(request.body).unwrap() + "\n");
    expect![[r#"
        tocsin_test firing this is a test of the receiver hook, nothing is wrong
        tocsin_test resolved this is a test of the receiver hook, nothing is wrong
        disk firing TEST: full
    "#]]
    .assert_eq(&bodies.collect::<String>());
    receiver.set(Manner::Broken);
    check(
        &test("hook", &[]),
        port,
        expect![[r#"
        firing: not delivered, would be tried again: 503 Service Unavailable
        exit status 1
    "#]],
    );
    check(
        &test("ticket", &[]),
        port,
        expect![[r#"
        firing: refused: exit status 3: no such queue
        exit status 1
    "#]],
    );
    check(
        &test("screen", &[]),
        port,
        expect![[r#"
        error: `screen` is of type `console`, which tells nobody
        exit status 1
    "#]],
    );
    check(
        &test("nobody", &[]),
        port,
        expect![[r#"
        error: there is no sink `nobody`; these tell somebody: hook, ticket
        exit status 1
    "#]],
    );
    check(
        &test("hook", &["--record", "[]"]),
        port,
        expect![[r#"
        error: --record is an object, as `alert` and `notify` make them
        exit status 1
    "#]],
    );
    // Nothing is left behind.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
