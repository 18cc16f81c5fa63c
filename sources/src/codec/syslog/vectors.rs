//! What other implementations publish of what they read. They disagree with each other about messages that break the
//! rules, so each is scored by itself, and each score may only rise.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use chrono_tz::Tz;
use serde_json::Value as Json;
use tocsin_pipeline::codec::Codec;
use tocsin_pipeline::event::Field;
use tocsin_pipeline::time::Timestamp;
use tocsin_pipeline::timestamp::{TimestampFormat, TimestampOptions};
use vrl::value::{ObjectMap, Value};

use super::super::agreement;
use super::{Config, FACILITIES, SEVERITIES, parse};
use crate::conformance::corpus;
use tocsin_config::component::CodecConfig;

fn codec(options: &str) -> Arc<dyn Codec> {
    toml::from_str::<Config>(options).unwrap().build()
}

fn event(codec: &dyn Codec, record: &[u8]) -> Option<ObjectMap> {
    agreement::check(codec, record);
    codec.value(record).ok().map(|value| value.into_object().unwrap())
}

fn text(event: &ObjectMap, name: &str) -> Option<String> {
    event.get(name).map(|value| value.to_string_lossy().into_owned())
}

/// The lines of a file of cases.
fn cases(file: &str) -> Option<Vec<Json>> {
    let lines = corpus(file)?;
    Some(lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect())
}

/// Lists who fails, and checks that no fewer pass than are known to.
fn score(results: Vec<(String, Option<String>)>, floor: usize) {
    let failures: Vec<_> =
        results.iter().filter_map(|(id, failure)| Some(format!("{id}: {}", failure.as_ref()?))).collect();
    let passing = results.len() - failures.len();
    println!("{passing} of {} pass; not:\n{}", results.len(), failures.join("\n"));
    assert!(passing >= floor, "{passing} pass, {floor} did before; not:\n{}", failures.join("\n"));
}

/// The event time of a BSD message that came in on 1 March 2020, with the time zone of nobody.
fn event_time(event: &ObjectMap) -> Option<Timestamp> {
    let options = TimestampOptions { path: None, format: TimestampFormat::Auto, timezone: Tz::UTC };
    options.event_time(Field::of_value(event.get("timestamp")?), Timestamp::parse_rfc3339(b"2020-03-01T00:00:00Z")?)
}

/// The fields of an event under the names and in the form of go-syslog.
fn like_go_syslog(event: &ObjectMap) -> BTreeMap<String, Json> {
    let mut fields = BTreeMap::new();
    let number = |name: &str, names: &[&str]| {
        let name = text(event, name)?;
        names.iter().position(|known| *known == name)
    };
    if let (Some(facility), Some(severity)) = (number("facility", &FACILITIES), number("severity", &SEVERITIES)) {
        fields.insert("facility".to_owned(), facility.into());
        fields.insert("severity".to_owned(), severity.into());
        fields.insert("priority".to_owned(), (facility * 8 + severity).into());
    }
    let names =
        [("host", "hostname"), ("app", "appname"), ("pid", "procid"), ("msgid", "msgid"), ("message", "message")];
    for (name, theirs) in names.into_iter().chain([("version", "version"), ("structured_data", "structured_data")]) {
        if let Some(value) = event.get(name) {
            fields.insert(theirs.to_owned(), serde_json::to_value(value).unwrap());
        }
    }
    match event.get("timestamp") {
        Some(Value::Timestamp(time)) => {
            fields.insert("timestamp".to_owned(), time.to_rfc3339().into());
        }
        Some(other) => {
            fields.insert("timestamp".to_owned(), other.to_string_lossy().into());
        }
        None => {}
    }
    fields
}

/// What go-syslog expects, in our form: one spelling for a moment, and structured data without its backslashes. RFC 5424
/// demands the backslashes of the sender; go-syslog hands them on, we take them away.
fn expected_by_go_syslog(fields: &Json) -> BTreeMap<String, Json> {
    let mut fields: BTreeMap<String, Json> = serde_json::from_value(fields.clone()).unwrap();
    if let Some(Json::String(time)) = fields.get_mut("timestamp")
        && let Ok(moment) = chrono::DateTime::parse_from_rfc3339(time)
    {
        *time = moment.to_utc().to_rfc3339();
    }
    let elements = fields.get_mut("structured_data").and_then(Json::as_object_mut);
    for value in
        elements.into_iter().flat_map(|elements| elements.values_mut()).flat_map(|e| e.as_object_mut().unwrap())
    {
        let plain = parse::unescape(value.1.as_str().unwrap().as_bytes());
        *value.1 = String::from_utf8(plain).unwrap().into();
    }
    fields
}

#[test]
fn go_syslog() {
    let Some(cases) = cases("syslog/go_syslog_messages.jsonl") else { return };
    let results = cases.iter().map(|case| {
        let input = match &case["input"] {
            Json::String(text) => text.as_bytes().to_vec(),
            other => base64::engine::general_purpose::STANDARD.decode(other["$bytes_b64"].as_str().unwrap()).unwrap(),
        };
        let mode = format!("mode = 'rfc{}'", case["rfc"].as_str().unwrap());
        let strict = event(&*codec(&format!("{mode}\nstrict = true")), &input);
        let failure = if case["valid"] == true {
            let expected = expected_by_go_syslog(&case["expect"]);
            let found = strict.as_ref().map(like_go_syslog);
            (found.as_ref() != Some(&expected)).then(|| format!("expected {expected:?}, found {found:?}"))
        } else if strict.is_some() {
            Some("not refused".to_owned())
        } else {
            // Theirs drops what comes after the fault; we keep it as the message.
            let mut found = like_go_syslog(&event(&*codec(&mode), &input).unwrap());
            found.remove("message");
            let expected = case.get("best_effort").filter(|expected| !expected.is_null()).map(expected_by_go_syslog);
            expected
                .filter(|expected| *expected != found)
                .map(|expected| format!("expected {expected:?}, found {found:?}"))
        };
        (case["id"].as_str().unwrap().to_owned(), failure)
    });
    // Not: a version of four digits of which theirs takes three, and a time whose zone is said twice, of which theirs takes the
    // first half.
    score(results.collect(), 117);
}

#[test]
fn syslog_loose() {
    let Some(cases) = cases("syslog/syslog_loose.jsonl") else { return };
    let results = cases.iter().map(|case| {
        let expect = &case["expect"];
        let found = event(&*codec(""), case["input"].as_str().unwrap().as_bytes()).unwrap();
        let mut failures = Vec::new();
        let level = |name: &str| text(&found, name).map(|name| name.to_uppercase());
        for (theirs, ours) in [
            ("facility", level("facility").map(|name| format!("LOG_{name}"))),
            ("severity", level("severity").map(|name| format!("SEV_{name}"))),
            ("hostname", text(&found, "host")),
            ("appname", text(&found, "app")),
            ("procid", text(&found, "pid")),
            ("msgid", text(&found, "msgid")),
            ("msg", text(&found, "message")),
        ] {
            if expect[theirs].as_str().map(str::to_owned) != ours {
                failures.push(format!("{theirs} {} is {ours:?}", expect[theirs]));
            }
        }
        let data = found.get("structured_data").map(|data| serde_json::to_value(data).unwrap());
        if data.unwrap_or_else(|| serde_json::json!({})) != expect["structured_data"] {
            failures.push("structured_data".to_owned());
        }
        // A local time of an unsaid zone is compared as it would stand in UTC, which is what the codec says it assumes.
        let time = event_time(&found).map(|time| time.to_datetime().naive_utc().and_utc().fixed_offset());
        let wanted = expect["timestamp"].as_str().map(|time| {
            let time = time.strip_suffix(" (local tz)").unwrap_or(time);
            let is_bsd = expect["protocol"] == "RFC3164";
            let local = format!("{}Z", if is_bsd { &time[..19] } else { time.trim_end_matches("+00:00") });
            chrono::DateTime::parse_from_rfc3339(&local).unwrap()
        });
        if time != wanted {
            failures.push(format!("timestamp {wanted:?} is {time:?}"));
        }
        (case["id"].as_str().unwrap().to_owned(), (!failures.is_empty()).then(|| failures.join(", ")))
    });
    // Not: all spaces after the tag are taken away there, one here: the others belong to the text.
    score(results.collect(), 7);
}

/// One property of rsyslog's template language. The codec does not keep whether a colon followed the tag: the caller tells.
fn property(event: &ObjectMap, record: &str, name: &str, colon: &str) -> String {
    let app = text(event, "app");
    let number =
        |field: &str, names: &[&str]| text(event, field).and_then(|name| names.iter().position(|known| *known == name));
    let time =
        |format: &str| event_time(event).map(|time| time.to_datetime().format(format).to_string()).unwrap_or_default();
    match name {
        // Without a priority rsyslog takes user.notice, as RFC 3164 has relays do.
        "PRI" => (number("facility", &FACILITIES).unwrap_or(1) * 8 + number("severity", &SEVERITIES).unwrap_or(5))
            .to_string(),
        "syslogfacility-text" => text(event, "facility").unwrap_or_else(|| "user".to_owned()),
        "syslogseverity-text" => text(event, "severity").unwrap_or_else(|| "notice".to_owned()),
        "syslogseverity:::csv" => format!("\"{}\"", number("severity", &SEVERITIES).unwrap_or(5)),
        "timestamp" => time("%b %e %H:%M:%S"),
        "timestamp:::date-rfc3164-buggyday" => time("%b %d %H:%M:%S"),
        "timereported:1:19:date-rfc3339,csv" => time("\"%Y-%m-%dT%H:%M:%S\""),
        "hostname" => text(event, "host").unwrap_or_else(|| "$RS_HOSTNAME".to_owned()),
        "programname" => app.unwrap_or_default(),
        "syslogtag" => match (app, text(event, "pid")) {
            (Some(app), Some(pid)) => format!("{app}[{pid}]{colon}"),
            (Some(app), None) => format!("{app}{colon}"),
            (None, _) => String::new(),
        },
        "syslogtag:R,ERE,0,BLANK:[0-9]+--end:csv" => format!("\"{}\"", text(event, "pid").unwrap_or_default()),
        // rsyslog leaves the space after the tag with the message, except in RFC 5424.
        "msg" | "msg:::drop-last-lf,csv" => {
            let space = if app.is_some() && !event.contains_key("version") { " " } else { "" };
            let message = text(event, "message").map(|message| format!("{space}{message}")).unwrap_or_default();
            if name == "msg" { message } else { format!("\"{message}\"") }
        }
        "rawmsg" => record.to_owned(),
        "$!structured-data" => {
            let data = event.get("structured_data").map_or(Json::Null, |data| serde_json::to_value(data).unwrap());
            serde_json::json!({ "custom-sd": data }).to_string()
        }
        quoted if quoted.ends_with(":::csv") => {
            format!("\"{}\"", property(event, record, quoted.trim_end_matches(":::csv"), colon))
        }
        other => panic!("no property {other}"),
    }
}

#[test]
fn rsyslog() {
    let Some(cases) = cases("syslog/rsyslog.jsonl") else { return };
    let results = cases.iter().map(|case| {
        let record = case["input"].as_str().unwrap();
        let found = event(&*codec(""), record.as_bytes()).unwrap();
        let failure = case["template"].as_str().and_then(|template| {
            let expected = case["expect_line"].as_str().unwrap();
            let removes_space = case["parser_options"].to_string().contains("remove.msgFirstSpace");
            let rendered = ["", ":"].map(|colon| {
                let parts = template.trim_end_matches("\\n").split('%').enumerate();
                let line: String = parts
                    .map(|(at, part)| if at % 2 == 1 { property(&found, record, part, colon) } else { part.to_owned() })
                    .collect();
                // JSON is spaced out there, and the first space of the message taken away on request.
                if expected.contains("custom-sd") {
                    line.replace('{', "{ ").replace('}', " }").replace(':', ": ")
                } else if removes_space {
                    line.replacen("- ", "-", 1)
                } else {
                    line
                }
            });
            (!rendered.iter().any(|line| line == expected))
                .then(|| format!("expected {expected:?}, rendered {:?}", rendered[1]))
        });
        (case["id"].as_str().unwrap().to_owned(), failure)
    });
    // Not: with an option, messages without a tag keep the spaces that come first.
    score(results.collect(), 41);
}

#[test]
fn every_line_of_a_published_auth_log_is_read_to_the_end() {
    let Some(log) = corpus("syslog_real/elastic_auth.log") else { return };
    let codec = codec("");
    let (mut lines, mut failed_passwords, mut invalid_users) = (0, 0, 0);
    for line in log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        lines += 1;
        let found =
            if lines % 50 == 0 { event(&*codec, line) } else { codec.value(line).unwrap().into_object() }.unwrap();
        for field in ["timestamp", "host", "app", "message"] {
            assert!(found.contains_key(field), "no {field} in {}", String::from_utf8_lossy(line));
        }
        let time = text(&found, "timestamp").unwrap();
        assert!(event_time(&found).is_some(), "{time}");
        // What the parts leave out of a line is spaces, brackets and the colon.
        let parts: usize = found.values().map(|value| value.as_bytes().unwrap().len()).sum();
        let more = if found.contains_key("pid") { 6 } else { 4 };
        assert!(line.len() - parts <= more, "{}", String::from_utf8_lossy(line));
        let message = text(&found, "message").unwrap();
        failed_passwords += usize::from(message.contains("Failed password"));
        invalid_users += usize::from(message.contains("Invalid user"));
    }
    let in_file = |needle: &str| memchr::memmem::find_iter(&log, needle).count();
    assert!(lines > 0);
    assert_eq!((failed_passwords, invalid_users), (in_file("Failed password"), in_file("Invalid user")));
}
