//! `tocsin evidence`: the records that made an alert are found again, wherever rotation has put them.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use expect_test::{Expect, expect};
use flate2::Compression;
use flate2::write::GzEncoder;
use support::tocsin;

const PIPELINE: &str = r#"
[daemon]
data_dir = "data"

[sources.log]
type = "file"
paths = ["app.log"]
codec = "json"
timestamp = { field = ".ts" }

[operators.failed]
type = "alert"
inputs = ["log"]
condition = ".status >= 500"
annotations = { summary = "{{ status }}" }
evidence = 2
context = 1

[sinks.out]
type = "file"
inputs = ["failed"]
path = "alerts.ndjson"
"#;

/// A folder where the pipeline has run over a log, and the `id` of the resolution.
fn ran() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tocsin.toml"), PIPELINE).unwrap();
    let mut log = File::create(folder.path().join("app.log")).unwrap();
    for (second, status) in [(1, 200), (2, 200), (3, 503), (4, 200), (5, 500), (6, 200), (7, 502), (8, 200)] {
        writeln!(log, "{{\"ts\":\"2026-11-20T12:00:{second:02}Z\",\"status\":{status}}}").unwrap();
    }
    let output = tocsin(&["run", "--once", "tocsin.toml"]).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = fs::read_to_string(folder.path().join("alerts.ndjson")).unwrap();
    let resolved: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    let id = resolved["id"].as_str().unwrap().to_owned();
    (folder, id)
}

#[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
fn check(folder: &Path, arguments: &[&str], status: i32, expected: Expect) {
    let output = tocsin(&["evidence"]).args(arguments).current_dir(folder).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    expected.assert_eq(&text);
}

#[test]
fn records_that_stand_where_they_stood_are_verified() {
    let (folder, id) = ran();
    check(
        folder.path(),
        &[&id[..8], "tocsin.toml"],
        0,
        expect![[r#"
        failed resolved {}
          2026-11-20T12:00:03Z to 2026-11-20T12:05:07Z, id d0356f1410de90f849e75cf063b86ba6
          summary: 503
          values: {"status":502}

        3 of 3 records are kept as evidence

        1. log, app.log at 86, 42 bytes: as it was
             {"ts":"2026-11-20T12:00:02Z","status":200}
           > {"ts":"2026-11-20T12:00:03Z","status":503}
             {"ts":"2026-11-20T12:00:04Z","status":200}

        2. log, app.log at 172, 42 bytes: as it was
             {"ts":"2026-11-20T12:00:04Z","status":200}
           > {"ts":"2026-11-20T12:00:05Z","status":500}
             {"ts":"2026-11-20T12:00:06Z","status":200}

        3. log, app.log at 258, 42 bytes: as it was
             {"ts":"2026-11-20T12:00:06Z","status":200}
           > {"ts":"2026-11-20T12:00:07Z","status":502}
             {"ts":"2026-11-20T12:00:08Z","status":200}

        all of them are what they were
    "#]],
    );
    check(
        folder.path(),
        &[&id, "--data-dir", "data", "--format", "json"],
        0,
        expect![[r#"
        {"alert":"failed","annotations":{"summary":"503"},"ends_at":"2026-11-20T12:05:07Z","episode":1,"evidence":[{"after":[{"coordinate":{"file":"app.log","length":42,"offset":129},"raw":"{\"ts\":\"2026-11-20T12:00:04Z\",\"status\":200}"}],"before":[{"coordinate":{"file":"app.log","length":42,"offset":43},"raw":"{\"ts\":\"2026-11-20T12:00:02Z\",\"status\":200}"}],"coordinate":{"file":"app.log","length":42,"offset":86},"hash":"57e6568147e5c3fad7db6d247b4a07c9238a996f03e1afad2f75d808165504fd","raw":"{\"ts\":\"2026-11-20T12:00:03Z\",\"status\":503}","source":"log"},{"after":[{"coordinate":{"file":"app.log","length":42,"offset":215},"raw":"{\"ts\":\"2026-11-20T12:00:06Z\",\"status\":200}"}],"before":[{"coordinate":{"file":"app.log","length":42,"offset":129},"raw":"{\"ts\":\"2026-11-20T12:00:04Z\",\"status\":200}"}],"coordinate":{"file":"app.log","length":42,"offset":172},"hash":"e3e41745cc7bffb7f1dcf8084f8e06b215cdf8fb14f2fec96431a3e46fec6304","raw":"{\"ts\":\"2026-11-20T12:00:05Z\",\"status\":500}","source":"log"},{"after":[{"coordinate":{"file":"app.log","length":42,"offset":301},"raw":"{\"ts\":\"2026-11-20T12:00:08Z\",\"status\":200}"}],"before":[{"coordinate":{"file":"app.log","length":42,"offset":215},"raw":"{\"ts\":\"2026-11-20T12:00:06Z\",\"status\":200}"}],"coordinate":{"file":"app.log","length":42,"offset":258},"hash":"0e1b20afe4fca533dc8b62cc81fedf65ded449206290f1e4ae4a4cd2893502e7","raw":"{\"ts\":\"2026-11-20T12:00:07Z\",\"status\":502}","source":"log"}],"fingerprint":"212e4c5837750834","firing_id":"2f7fcd352783ef41da0ed4e84981f7a1","history":[[1795176003,503],[1795176005,500],[1795176007,502]],"id":"d0356f1410de90f849e75cf063b86ba6","kind":"alert","labels":{},"matches":3,"starts_at":"2026-11-20T12:00:03Z","state":"resolved","values":{"status":502}}
        {"coordinate":{"file":"app.log","length":42,"offset":86},"found_in":"app.log","hash":"57e6568147e5c3fad7db6d247b4a07c9238a996f03e1afad2f75d808165504fd","kind":"evidence","message":"as it was","source":"log","verdict":"verified"}
        {"coordinate":{"file":"app.log","length":42,"offset":172},"found_in":"app.log","hash":"e3e41745cc7bffb7f1dcf8084f8e06b215cdf8fb14f2fec96431a3e46fec6304","kind":"evidence","message":"as it was","source":"log","verdict":"verified"}
        {"coordinate":{"file":"app.log","length":42,"offset":258},"found_in":"app.log","hash":"0e1b20afe4fca533dc8b62cc81fedf65ded449206290f1e4ae4a4cd2893502e7","kind":"evidence","message":"as it was","source":"log","verdict":"verified"}
    "#]],
    );
}

#[test]
fn a_rotated_and_compressed_file_is_found() {
    let (folder, id) = ran();
    let at = |name: &str| folder.path().join(name);
    let mut packed = GzEncoder::new(File::create(at("app.log.2.gz")).unwrap(), Compression::fast());
    packed.write_all(&fs::read(at("app.log")).unwrap()).unwrap();
    packed.finish().unwrap();
    fs::write(at("app.log.1"), "{\"ts\":\"2026-11-21T12:00:00Z\",\"status\":200}\n".repeat(20)).unwrap();
    fs::write(at("app.log"), "").unwrap();
    check(
        folder.path(),
        &[&id, "tocsin.toml"],
        0,
        expect![[r#"
            failed resolved {}
              2026-11-20T12:00:03Z to 2026-11-20T12:05:07Z, id d0356f1410de90f849e75cf063b86ba6
              summary: 503
              values: {"status":502}

            3 of 3 records are kept as evidence

            1. log, app.log at 86, 42 bytes: as it was, now in app.log.2.gz
                 {"ts":"2026-11-20T12:00:02Z","status":200}
               > {"ts":"2026-11-20T12:00:03Z","status":503}
                 {"ts":"2026-11-20T12:00:04Z","status":200}

            2. log, app.log at 172, 42 bytes: as it was, now in app.log.2.gz
                 {"ts":"2026-11-20T12:00:04Z","status":200}
               > {"ts":"2026-11-20T12:00:05Z","status":500}
                 {"ts":"2026-11-20T12:00:06Z","status":200}

            3. log, app.log at 258, 42 bytes: as it was, now in app.log.2.gz
                 {"ts":"2026-11-20T12:00:06Z","status":200}
               > {"ts":"2026-11-20T12:00:07Z","status":502}
                 {"ts":"2026-11-20T12:00:08Z","status":200}

            all of them are what they were
        "#]],
    );
}

#[test]
fn what_is_gone_or_has_changed_is_told() {
    let (folder, id) = ran();
    let log = folder.path().join("app.log");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replace("503", "200")).unwrap();
    check(
        folder.path(),
        &[&id, "tocsin.toml"],
        1,
        expect![[r#"
        failed resolved {}
          2026-11-20T12:00:03Z to 2026-11-20T12:05:07Z, id d0356f1410de90f849e75cf063b86ba6
          summary: 503
          values: {"status":502}

        3 of 3 records are kept as evidence

        1. log, app.log at 86, 42 bytes: GONE: app.log holds something else there, and no other file of its rotation has it there
             {"ts":"2026-11-20T12:00:02Z","status":200}
           > {"ts":"2026-11-20T12:00:03Z","status":503}
             {"ts":"2026-11-20T12:00:04Z","status":200}

        2. log, app.log at 172, 42 bytes: as it was
             {"ts":"2026-11-20T12:00:04Z","status":200}
           > {"ts":"2026-11-20T12:00:05Z","status":500}
             {"ts":"2026-11-20T12:00:06Z","status":200}

        3. log, app.log at 258, 42 bytes: as it was
             {"ts":"2026-11-20T12:00:06Z","status":200}
           > {"ts":"2026-11-20T12:00:07Z","status":502}
             {"ts":"2026-11-20T12:00:08Z","status":200}

        1 of 3 are gone or were not looked up
    "#]],
    );
    fs::write(&log, &text[..100]).unwrap();
    check(
        folder.path(),
        &[&id, "tocsin.toml"],
        1,
        expect![[r#"
        failed resolved {}
          2026-11-20T12:00:03Z to 2026-11-20T12:05:07Z, id d0356f1410de90f849e75cf063b86ba6
          summary: 503
          values: {"status":502}

        3 of 3 records are kept as evidence

        1. log, app.log at 86, 42 bytes: GONE: app.log ends before it, and no other file of its rotation has it there
             {"ts":"2026-11-20T12:00:02Z","status":200}
           > {"ts":"2026-11-20T12:00:03Z","status":503}
             {"ts":"2026-11-20T12:00:04Z","status":200}

        2. log, app.log at 172, 42 bytes: GONE: app.log ends before it, and no other file of its rotation has it there
             {"ts":"2026-11-20T12:00:04Z","status":200}
           > {"ts":"2026-11-20T12:00:05Z","status":500}
             {"ts":"2026-11-20T12:00:06Z","status":200}

        3. log, app.log at 258, 42 bytes: GONE: app.log ends before it, and no other file of its rotation has it there
             {"ts":"2026-11-20T12:00:06Z","status":200}
           > {"ts":"2026-11-20T12:00:07Z","status":502}
             {"ts":"2026-11-20T12:00:08Z","status":200}

        3 of 3 are gone or were not looked up
    "#]],
    );
    fs::remove_file(&log).unwrap();
    check(
        folder.path(),
        &[&id, "tocsin.toml"],
        1,
        expect![[r#"
        failed resolved {}
          2026-11-20T12:00:03Z to 2026-11-20T12:05:07Z, id d0356f1410de90f849e75cf063b86ba6
          summary: 503
          values: {"status":502}

        3 of 3 records are kept as evidence

        1. log, app.log at 86, 42 bytes: GONE: app.log cannot be read (No such file or directory (os error 2)), and no other file of its rotation has it there
             {"ts":"2026-11-20T12:00:02Z","status":200}
           > {"ts":"2026-11-20T12:00:03Z","status":503}
             {"ts":"2026-11-20T12:00:04Z","status":200}

        2. log, app.log at 172, 42 bytes: GONE: app.log cannot be read (No such file or directory (os error 2)), and no other file of its rotation has it there
             {"ts":"2026-11-20T12:00:04Z","status":200}
           > {"ts":"2026-11-20T12:00:05Z","status":500}
             {"ts":"2026-11-20T12:00:06Z","status":200}

        3. log, app.log at 258, 42 bytes: GONE: app.log cannot be read (No such file or directory (os error 2)), and no other file of its rotation has it there
             {"ts":"2026-11-20T12:00:06Z","status":200}
           > {"ts":"2026-11-20T12:00:07Z","status":502}
             {"ts":"2026-11-20T12:00:08Z","status":200}

        3 of 3 are gone or were not looked up
    "#]],
    );
    check(
        folder.path(),
        &["0000nothing", "tocsin.toml"],
        1,
        expect![[r#"
            error: none of the 2 records that are kept of what was told begins with the id "0000nothing", nor (with six letters or more) does the fingerprint of its alert, which `tocsin alerts` shows
        "#]],
    );
}

#[test]
fn an_alert_is_called_by_its_fingerprint_too() {
    let (folder, id) = ran();
    let found = |named: &str| {
        let output = tocsin(&["evidence", named, "tocsin.toml"]).current_dir(folder.path()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let of_record = found(&id);
    // The end was told last.
    assert!(of_record.1.starts_with("failed resolved"), "{}", of_record.1);
    for fingerprint in ["212e4c5837750834", "212e4c"] {
        assert_eq!(found(fingerprint), of_record, "{fingerprint}");
    }
    expect![[r#"
        error: none of the 2 records that are kept of what was told begins with the id "212e4", nor (with six letters or more) does the fingerprint of its alert, which `tocsin alerts` shows
    "#]].assert_eq(&found("212e4").1);
}
