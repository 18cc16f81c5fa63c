//! The whole program over real logs, where they are (`TOCSIN_CORPUS`): its figures must be those found by other means.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value as Json;
use support::{corpus, tocsin};

const PIPELINE: &str = r#"
[sources.access]
type = "file"
paths = ["${LOG}"]
codec = "${CODEC}"

[operators.minutes]
type = "window"
inputs = ["access"]
tumbling = "${WINDOW}"
lateness = "${LATENESS}"
aggregates = { count = "count()" }

[operators.statuses]
type = "window"
inputs = ["access"]
tumbling = "3650d"
group_by = [".status"]
aggregates = { count = "count()", bytes = "sum(.size)" }

[operators.methods]
type = "window"
inputs = ["access"]
tumbling = "3650d"
group_by = [".method"]
aggregates = { count = "count()" }

[operators.clients]
type = "window"
inputs = ["access"]
tumbling = "3650d"
aggregates = { clients = "distinct(.client)" }

[sinks.minutes_out]
type = "file"
inputs = ["minutes"]
path = "${OUT}/minutes.ndjson"

[sinks.late_out]
type = "file"
inputs = ["minutes.late"]
path = "${OUT}/late.log"

[sinks.statuses_out]
type = "file"
inputs = ["statuses"]
path = "${OUT}/statuses.ndjson"

[sinks.methods_out]
type = "file"
inputs = ["methods"]
path = "${OUT}/methods.ndjson"

[sinks.clients_out]
type = "file"
inputs = ["clients"]
path = "${OUT}/clients.ndjson"

[sinks.unparsable_out]
type = "file"
inputs = ["access.rejected"]
path = "${OUT}/unparsable.ndjson"
"#;

/// The records of an output file; none if it was not written.
fn records(out: &Path, name: &str) -> Vec<Json> {
    let text = fs::read_to_string(out.join(name)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The time of a line of an access log, in seconds since 1970.
fn second(line: &str) -> Option<i64> {
    let time = line.split('[').nth(1)?.split(']').next()?;
    let time = chrono::DateTime::parse_from_str(time, "%d/%b/%Y:%H:%M:%S %z").ok()?;
    Some(time.timestamp())
}

fn run(log: &Path, codec: &str, window: &str, lateness: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (pipeline, out) = (folder.path().join("pipeline.toml"), folder.path().join("out"));
    fs::write(&pipeline, PIPELINE).unwrap();
    fs::create_dir(&out).unwrap();
    let mut command = tocsin(&["run", "--once"]);
    command.arg(&pipeline).env("LOG", log).env("OUT", &out).env("LATENESS", lateness);
    command.env("CODEC", codec).env("WINDOW", window);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

#[test]
fn access_logs_give_the_figures_that_another_parser_found() {
    let Some(folder) = corpus("web_access") else { return };
    let facts: Json = serde_json::from_slice(&fs::read(folder.join("facts_computed_here.json")).unwrap()).unwrap();
    for (name, facts) in facts.as_object().unwrap() {
        let log = folder.join(name);
        // The NASA log has neither referrer nor agent.
        let codec = if name.contains("nasa") { "common" } else { "combined" };
        let found = run(&log, codec, "1m", "60s");
        let out = found.path().join("out");
        let unparsable = records(&out, "unparsable.ndjson").len() as u64;
        assert_eq!(unparsable, facts["lines_not_matching_reference_regex"].as_u64().unwrap(), "{name}: unparsable");
        let statuses = records(&out, "statuses.ndjson");
        let histogram: BTreeMap<String, u64> =
            statuses.iter().map(|row| (row["status"].to_string(), row["count"].as_u64().unwrap())).collect();
        let expected: BTreeMap<String, u64> = serde_json::from_value(facts["status"].clone()).unwrap();
        assert_eq!(histogram, expected, "{name}: statuses");
        let bytes: i64 = statuses.iter().filter_map(|row| row["bytes"].as_f64()).sum::<f64>() as i64;
        assert_eq!(bytes, facts["bytes_sum"].as_i64().unwrap(), "{name}: bytes");
        let methods: BTreeMap<String, u64> = records(&out, "methods.ndjson")
            .iter()
            .map(|row| (row["method"].as_str().unwrap().to_owned(), row["count"].as_u64().unwrap()))
            .collect();
        let expected: BTreeMap<String, u64> = serde_json::from_value(facts["method"].clone()).unwrap();
        assert_eq!(methods, expected, "{name}: methods");
        let clients = records(&out, "clients.ndjson")[0]["clients"].as_f64().unwrap();
        let exact = facts["unique_clients"].as_f64().unwrap();
        // Beyond 256 clients the count is a sketch.
        assert!((clients - exact).abs() <= exact * 0.05, "{name}: {clients} clients, not {exact}");
        let minutes = records(&out, "minutes.ndjson");
        assert_eq!(minutes.len() as u64, facts["tumbling_1min_windows"].as_u64().unwrap(), "{name}: windows");
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        let mut expected: BTreeMap<i64, u64> = BTreeMap::new();
        for second in text.lines().filter_map(second) {
            *expected.entry(second.div_euclid(60)).or_default() += 1;
        }
        let got: BTreeMap<i64, u64> = minutes
            .iter()
            .map(|row| {
                let start = chrono::DateTime::parse_from_rfc3339(row["window_start"].as_str().unwrap()).unwrap();
                (start.timestamp().div_euclid(60), row["count"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(got, expected, "{name}: records a minute");
        println!(
            "{name}: {} lines, {} windows, {unparsable} unparsable: all figures equal",
            facts["lines"],
            minutes.len()
        );
    }
}

#[test]
fn late_records_are_counted_exactly() {
    let Some(folder) = corpus("web_access") else { return };
    let log = folder.join("elastic_apache_logs.log");
    let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    for (window, width, lateness, wait) in
        [("1m", 60, "0s", 0), ("10s", 10, "0s", 0), ("10s", 10, "30s", 30), ("5s", 5, "60s", 60)]
    {
        let found = run(&log, "combined", window, lateness);
        let late = fs::read_to_string(found.path().join("out/late.log")).unwrap_or_default();
        let (mut seen, mut expected) = (i64::MIN, Vec::new());
        for line in text.lines() {
            let Some(second) = second(line) else { continue };
            if (second.div_euclid(width) + 1) * width + wait <= seen {
                expected.push(line);
            }
            seen = seen.max(second);
        }
        assert_eq!(late.lines().collect::<Vec<_>>(), expected, "windows of {window}, lateness {lateness}");
        let windows = records(&found.path().join("out"), "minutes.ndjson");
        let counted: u64 = windows.iter().map(|row| row["count"].as_u64().unwrap()).sum();
        assert_eq!(counted as usize + expected.len(), text.lines().count());
        println!(
            "elastic_apache_logs.log, windows of {window}, lateness {lateness}: {} of {} lines late",
            expected.len(),
            text.lines().count()
        );
    }
}

#[test]
fn large_nested_json_comes_out_as_equal_json() {
    let Some(folder) = corpus("json_logs") else { return };
    let log = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| !path.file_name().unwrap().to_string_lossy().to_lowercase().contains("license"));
    let log = log.expect("the log");
    let folder = tempfile::tempdir().unwrap();
    let pipeline = folder.path().join("pipeline.toml");
    let text = r#"
        [sources.log]
        type = "file"
        paths = ["${LOG}"]
        codec = "json"

        [operators.touched]
        type = "remap"
        inputs = ["log"]
        program = '.touched = true'

        [sinks.out]
        type = "file"
        inputs = ["touched"]
        path = "${OUT}/out.ndjson"
    "#;
    fs::write(&pipeline, text).unwrap();
    let output = tocsin(&["run", "--once"]).arg(&pipeline).env("LOG", &log).env("OUT", folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let records = records(folder.path(), "out.ndjson");
    let text = fs::read_to_string(&log).unwrap();
    let mut count = 0;
    for (line, mut record) in text.lines().filter(|line| !line.is_empty()).zip(records.clone()) {
        assert_eq!(record.as_object_mut().unwrap().remove("touched"), Some(Json::Bool(true)));
        assert_eq!(record, serde_json::from_str::<Json>(line).unwrap());
        count += 1;
    }
    assert_eq!(count, records.len());
    println!("{count} lines of nested JSON come out equal");
}
