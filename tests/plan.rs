//! What becomes of state when the configuration changes: told beforehand by `tocsin plan`, and done by `tocsin run`.

mod support;

use std::fs;
use std::path::Path;

use expect_test::{Expect, expect};
use support::tocsin;

const OLD: &str = r#"
[sources.log]
type = "file"
paths = ["app.log"]
codec = "json"
timestamp = { field = ".ts" }

[operators.errors]
type = "filter"
inputs = ["log"]
condition = ".status >= 500"

[operators.once]
type = "dedupe"
inputs = ["errors"]
key = [".id"]

[operators.by_minute]
type = "window"
inputs = ["once"]
tumbling = "1m"
group_by = [".host"]
aggregates = { n = "count()" }

[operators.many]
type = "alert"
inputs = ["by_minute"]
condition = ".n > 1"

[sinks.windows]
type = "file"
inputs = ["by_minute"]
path = "out/windows.ndjson"

[sinks.hook]
type = "webhook"
inputs = ["many"]
url = "http://127.0.0.1:9/"
allow_http = true
allow_private = true
"#;

/// The same with other texts for some of it.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(OLD.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

/// Changes that state does not depend on, in other words, and changes that it does.
fn new() -> String {
    changed(&[
        ("group_by = [\".host\"]", "lateness = \"10s\"\ngroup_by = [ \" .host \" ]\nmax_keys = 10"),
        ("tumbling = \"1m\"", "hopping = { size = \"60s\", every = \"1m\" }"),
        ("key = [\".id\"]", "key = [\".id\", \".host\"]"),
        ("condition = \".n > 1\"", "condition = \".n > 2\"\nfor = \"5m\""),
        ("out/windows", "out/by-minute"),
        (
            "type = \"webhook\"\ninputs = [\"many\"]\nurl = \"http://127.0.0.1:9/\"\nallow_http = true\nallow_private = true",
            "type = \"console\"\ninputs = [\"many\"]",
        ),
        ("[sources.log]", "[sources.log]\nidle_timeout = \"1h\""),
    ]) + "[sinks.late]\ntype = \"blackhole\"\ninputs = [\"by_minute.late\"]\n"
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("old.toml"), OLD).unwrap();
    fs::write(folder.path().join("new.toml"), new()).unwrap();
    fs::create_dir(folder.path().join("out")).unwrap();
    let line =
        |minute, id| format!("{{\"ts\":\"2026-11-20T12:0{minute}:00Z\",\"id\":{id},\"host\":\"a\",\"status\":500}}\n");
    let lines: String = (0..4).flat_map(|minute| [line(minute, 2 * minute), line(minute, 2 * minute + 1)]).collect();
    fs::write(folder.path().join("app.log"), lines).unwrap();
    folder
}

fn said(folder: &Path, arguments: &[&str], status: i32) -> String {
    let output = tocsin(arguments).current_dir(folder).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    text
}

fn check(said: &str, expected: Expect) {
    // How many checkpoints there were, and when, differs between runs.
    let line = |line: &str| match line.split_once(", written ") {
        Some((before, _)) => before.trim_end_matches(|digit: char| digit != ' ').replace(char::is_numeric, "") + "…\n",
        None => format!("{line}\n"),
    };
    expected.assert_eq(&said.lines().map(line).collect::<String>());
}

#[test]
fn two_configurations_are_compared() {
    let folder = folder();
    let plan = said(folder.path(), &["plan", "old.toml", "new.toml"], 0);
    check(
        &plan,
        expect![[r#"
        source    log        kept
        operator  by_minute  kept
        operator  errors     keeps no state
        operator  many       kept
        operator  once       lost: key [".id"] → [".id",".host"]
        sink      hook       lost: type webhook → console; what it has not delivered
        sink      late       new
        sink      windows    kept
        the state of 2 components is lost
    "#]],
    );
    said(folder.path(), &["plan", "old.toml", "new.toml", "--no-state-loss"], 1);
    let same = said(folder.path(), &["plan", "old.toml", "old.toml", "--no-state-loss", "--format", "json"], 0);
    check(
        &same,
        expect![[r#"
        {"fate":"kept","name":"log","reason":null,"role":"source"}
        {"fate":"kept","name":"by_minute","reason":null,"role":"operator"}
        {"fate":"kept","name":"many","reason":null,"role":"operator"}
        {"fate":"kept","name":"once","reason":null,"role":"operator"}
        {"fate":"kept","name":"hook","reason":null,"role":"sink"}
        {"fate":"kept","name":"windows","reason":null,"role":"sink"}
        {"fate":"stateless","name":"errors","reason":null,"role":"operator"}
    "#]],
    );
    said(folder.path(), &["plan", "old.toml"], 2);
    said(folder.path(), &["plan", "old.toml", "gone.toml"], 1);
}

#[test]
fn a_configuration_is_compared_with_a_data_directory_and_then_run_on_it() {
    let folder = folder();
    let folder = folder.path();
    let run = ["run", "--once", "--data-dir", "state", "--set", "daemon.shutdown_timeout=50ms"];
    let with = |more: &[&'static str]| [&run, more].concat();
    said(folder, &with(&["old.toml"]), 0);
    check(
        &said(folder, &["plan", "--data-dir", "state", "old.toml", "--no-state-loss"], 0),
        expect![[r#"
            epoch  of …
            source    log        kept
            operator  by_minute  kept
            operator  errors     keeps no state
            operator  many       kept
            operator  once       kept
            sink      hook       kept
            sink      windows    kept
            nothing is lost
        "#]],
    );
    check(
        &said(folder, &["plan", "--data-dir", "state", "new.toml"], 0),
        expect![[r#"
            epoch  of …
            source    log        kept
            operator  by_minute  kept
            operator  errors     keeps no state
            operator  many       kept
            operator  once       replaced: key [".id"] → [".id",".host"]
            sink      hook       lost: type webhook → console, and 1 of what it was given is not delivered
            sink      late       new
            sink      windows    kept
            the state of 1 component is lost
        "#]],
    );
    check(
        &said(folder, &with(&["new.toml", "--no-state-loss"]), 1),
        expect![[r#"
        error: state would be lost, which --no-state-loss forbids:
          sink `hook`: lost: type webhook → console, and 1 of what it was given is not delivered
        tocsin plan tells the same without starting
    "#]],
    );
    // Refusing has changed nothing.
    check(
        &said(folder, &["plan", "--data-dir", "state", "new.toml"], 0),
        expect![[r#"
            epoch  of …
            source    log        kept
            operator  by_minute  kept
            operator  errors     keeps no state
            operator  many       kept
            operator  once       replaced: key [".id"] → [".id",".host"]
            sink      hook       lost: type webhook → console, and 1 of what it was given is not delivered
            sink      late       new
            sink      windows    kept
            the state of 1 component is lost
        "#]],
    );
    let output = tocsin(&with(&["new.toml"])).current_dir(folder).env("TOCSIN_LOG", "warn").output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let lost: Vec<_> = told.lines().filter(|line| line.contains("its state is lost")).collect();
    assert!(lost.len() == 1 && lost[0].contains("1 of what it was given is not delivered"), "{told}");
    // What was lost is not in later epochs, and what the webhook kept is out of the way.
    check(
        &said(folder, &["plan", "--data-dir", "state", "new.toml"], 0),
        expect![[r#"
            epoch  of …
            source    log        kept
            operator  by_minute  kept
            operator  errors     keeps no state
            operator  many       kept
            operator  once       kept
            sink      hook       kept
            sink      late       kept
            sink      windows    kept
            nothing is lost
        "#]],
    );
    let mut sinks: Vec<_> =
        fs::read_dir(folder.join("state/sinks")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    sinks.sort();
    check(
        &format!("{sinks:?}").replace(char::is_numeric, ""),
        expect![[r#"
        ["hook", "hook.left-", "late", "windows"]
    "#]],
    );
}
