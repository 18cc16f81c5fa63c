//! `combined`: access logs with referrer and agent; and the scanner that `common` shares.

use std::sync::Arc;

use memchr::{memchr, memchr2};
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::CodecConfig;
use tocsin_pipeline::codec::{Codec, DecodeError};
use tocsin_pipeline::timestamp::parse_clf;

use super::{Fields, Piece, Scan, Scanned, malformed};

/// Reads the combined log format of web servers, as Apache and nginx write it:
/// `host ident user [time] "request" status size "referrer" "agent"`.
///
/// The record
///
/// ```text
/// 192.0.2.7 - - [20/Nov/2026:12:00:00 +0100] "GET /cart?id=4 HTTP/1.1" 500 312 "https://example.org/" "curl/8.5"
/// ```
///
/// becomes
///
/// ```json
/// {"client": "192.0.2.7", "timestamp": "2026-11-20T11:00:00Z", "request": "GET /cart?id=4 HTTP/1.1", "method": "GET",
///  "path": "/cart?id=4", "protocol": "HTTP/1.1", "status": 500, "size": 312, "referrer": "https://example.org/",
///  "agent": "curl/8.5"}
/// ```
///
/// - `status` and `size` are integers.
/// - `identity`, `user`, `status`, `size`, `referrer` and `agent` are missing where the record has `-`.
/// - `method`, `path` and `protocol` are missing where the request is not of the form `METHOD PATH HTTP/n`; `request` is
///   always there, as it was logged.
/// - `\"` and `\\` in `path`, `referrer` and `agent` are read as the characters they stand for; other escapes, such as
///   `\x16`, are left as they were logged.
/// - What follows the agent, in log formats that add fields, is text in `extra`.
///
/// A record without referrer and agent is refused: that is the format `common`.
///
/// **Event time:** `timestamp`.
///
/// ```toml
/// [sources.access]
/// type = "file"
/// paths = ["/var/log/nginx/access.log*"]
/// codec = "combined"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {}

impl CodecConfig for Config {
    const NAME: &'static str = "combined";

    fn build(&self) -> Arc<dyn Codec> {
        access_log::<true>()
    }
}

const NAMES: [&str; 13] = [
    "client",
    "identity",
    "user",
    "timestamp",
    "request",
    "method",
    "path",
    "protocol",
    "status",
    "size",
    "referrer",
    "agent",
    "extra",
];
const CLIENT: usize = 0;
const IDENTITY: usize = 1;
const USER: usize = 2;
const TIMESTAMP: usize = 3;
const REQUEST: usize = 4;
const METHOD: usize = 5;
const PATH: usize = 6;
const PROTOCOL: usize = 7;
const STATUS: usize = 8;
const SIZE: usize = 9;
const REFERRER: usize = 10;
const AGENT: usize = 11;
const EXTRA: usize = 12;

/// The codec of access logs, with referrer and agent or without.
pub(super) fn access_log<const COMBINED: bool>() -> Arc<dyn Codec> {
    Arc::new(Scanned::new(AccessLog::<COMBINED>, NAMES))
}

#[derive(Debug)]
struct AccessLog<const COMBINED: bool>;

impl<const COMBINED: bool> Scan for AccessLog<COMBINED> {
    const NAME: &'static str = if COMBINED { "combined" } else { "common" };
    type Scratch = ();

    fn scratch(&self) {}

    fn scan(&self, record: &[u8], (): &mut (), fields: &mut impl Fields) -> Result<(), DecodeError> {
        let client = match memchr(b' ', record) {
            Some(len) if len > 0 => len,
            _ => return Err(malformed("no client", 0)),
        };
        fields.put(CLIENT, Piece::At { start: 0, len: client });

        let start = client + 1;
        let identity = memchr(b' ', &record[start..]).ok_or_else(|| malformed("no identity", start))?;
        put_unless_dash(record, IDENTITY, start, identity, fields);

        // Names of users can have spaces, so the user ends where the time begins.
        let start = start + identity + 1;
        let bracket = opening_bracket(record, start).ok_or_else(|| malformed("no time in brackets", start))?;
        put_unless_dash(record, USER, start, bracket - 1 - start, fields);

        let start = bracket + 1;
        let time = memchr(b']', &record[start..]).ok_or_else(|| malformed("no time in brackets", start))?;
        let timestamp = parse_clf(&record[start..start + time])
            .ok_or_else(|| malformed("no time such as 20/Nov/2026:12:00:00 +0100", start))?;
        fields.put(TIMESTAMP, Piece::Time(timestamp));

        let request = quoted(record, start + time + 1, "request")?;
        put_request(record, &request, fields);

        let start = request.after();
        let at = token(record, start, "status")?;
        let status = integer(record, at.clone(), "status")?;
        if let Some(status) = status {
            fields.put(STATUS, Piece::Integer(status));
        }
        let at = token(record, at.end, "size")?;
        let size = integer(record, at.clone(), "size")?;
        if let Some(size) = size {
            fields.put(SIZE, Piece::Integer(size));
        }
        let mut end = at.end;
        if COMBINED {
            let referrer = quoted(record, end, "referrer")?;
            put_quoted(record, REFERRER, &referrer, fields);
            let agent = quoted(record, referrer.after(), "agent")?;
            put_quoted(record, AGENT, &agent, fields);
            end = agent.after();
        }
        match &record[end..] {
            [] | [b' '] => {}
            [b' ', ..] => fields.put(EXTRA, Piece::At { start: end + 1, len: record.len() - end - 1 }),
            _ => return Err(malformed("no space between fields", end)),
        }
        Ok(())
    }

    fn timestamp_field(&self) -> Option<&'static str> {
        Some("timestamp")
    }
}

/// The place of the first `[` at or after `from` that a space precedes.
fn opening_bracket(record: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += memchr(b'[', &record[at..])?;
        if at > from && record[at - 1] == b' ' {
            return Some(at);
        }
        at += 1;
    }
}

/// A quoted part: where its content stands.
struct Quoted {
    start: usize,
    len: usize,
    has_backslash: bool,
}

impl Quoted {
    /// The place after the closing quote.
    fn after(&self) -> usize {
        self.start + self.len + 1
    }
}

/// A space and a quoted part at `at`.
fn quoted(record: &[u8], at: usize, what: &str) -> Result<Quoted, DecodeError> {
    if !record[at..].starts_with(b" \"") {
        return Err(malformed(&format!("no quoted {what}"), at));
    }
    let start = at + 2;
    let mut end = start;
    let mut has_backslash = false;
    loop {
        let rest = record.get(end..).unwrap_or_default();
        let found = memchr2(b'"', b'\\', rest).ok_or_else(|| malformed(&format!("the {what} has no end,"), start))?;
        end += found;
        if record[end] == b'"' {
            return Ok(Quoted { start, len: end - start, has_backslash });
        }
        has_backslash = true;
        end += 2;
    }
}

/// A space and what stands up to the next one.
fn token(record: &[u8], at: usize, what: &str) -> Result<std::ops::Range<usize>, DecodeError> {
    if record.get(at) != Some(&b' ') {
        return Err(malformed(&format!("no {what}"), at));
    }
    let start = at + 1;
    let len = record[start..].iter().position(|byte| *byte == b' ').unwrap_or(record.len() - start);
    Ok(start..start + len)
}

/// A number; `None` where a dash stands for it.
fn integer(record: &[u8], at: std::ops::Range<usize>, what: &str) -> Result<Option<i64>, DecodeError> {
    let digits = &record[at.clone()];
    if digits == b"-" {
        return Ok(None);
    }
    let value = digits.iter().try_fold(0i64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(i64::from(digit))
    });
    match value {
        Some(value) if !digits.is_empty() => Ok(Some(value)),
        _ => Err(malformed(&format!("the {what} is not a number,"), at.start)),
    }
}

fn put_unless_dash(record: &[u8], field: usize, start: usize, len: usize, fields: &mut impl Fields) {
    if record[start..start + len] != *b"-" {
        fields.put(field, Piece::At { start, len });
    }
}

fn put_quoted(record: &[u8], field: usize, quoted: &Quoted, fields: &mut impl Fields) {
    if quoted.has_backslash && fields.wants(field) {
        put_unescaped(record, field, quoted.start, quoted.len, fields);
    } else {
        put_unless_dash(record, field, quoted.start, quoted.len, fields);
    }
}

/// Text in which `\"` and `\\` are the second character.
fn put_unescaped(record: &[u8], field: usize, start: usize, len: usize, fields: &mut impl Fields) {
    let text = &record[start..start + len];
    let mut unescaped = Vec::with_capacity(len);
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'\\' && matches!(text.get(at + 1), Some(b'"' | b'\\')) {
            at += 1;
        }
        unescaped.push(text[at]);
        at += 1;
    }
    fields.put(field, Piece::Text(&unescaped));
}

/// The request, and its parts where it has the form of one.
fn put_request(record: &[u8], request: &Quoted, fields: &mut impl Fields) {
    let Quoted { start, len, has_backslash } = *request;
    fields.put(REQUEST, Piece::At { start, len });
    if !(fields.wants(METHOD) || fields.wants(PATH) || fields.wants(PROTOCOL)) {
        return;
    }
    let text = &record[start..start + len];
    // Some clients send paths with spaces, so the path ends at the last one.
    let (Some(first), Some(last)) = (memchr(b' ', text), memchr::memrchr(b' ', text)) else { return };
    let is_method =
        first > 0 && text[..first].iter().all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_'));
    if !is_method || last <= first + 1 || !text[last + 1..].starts_with(b"HTTP/") {
        return;
    }
    fields.put(METHOD, Piece::At { start, len: first });
    if has_backslash {
        put_unescaped(record, PATH, start + first + 1, last - first - 1, fields);
    } else {
        fields.put(PATH, Piece::At { start: start + first + 1, len: last - first - 1 });
    }
    fields.put(PROTOCOL, Piece::At { start: start + last + 1, len: len - last - 1 });
}

/// Checks the figures that were computed of a published log by other means.
#[cfg(test)]
pub(super) fn corpus(codec: &dyn Codec, file: &str) {
    use std::collections::{BTreeMap, BTreeSet};

    use vrl::value::Value;

    let Some(log) = crate::conformance::corpus(&format!("web_access/{file}")) else { return };
    let Some(facts) = crate::conformance::corpus("web_access/facts_computed_here.json") else { return };
    let facts: serde_json::Value = serde_json::from_slice(&facts).unwrap();
    let facts = &facts[file];
    let (mut lines, mut refused, mut bytes, mut dashes) = (0u64, Vec::new(), 0i64, 0u64);
    let (mut clients, mut statuses, mut methods) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
    let (mut minutes, mut newest, mut late) = (BTreeSet::new(), i64::MIN, 0u64);
    for line in log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        lines += 1;
        if lines % 97 == 1 {
            super::agreement::check(codec, line);
        }
        let Ok(value) = codec.value(line) else {
            refused.push(lines);
            continue;
        };
        let event = value.as_object().unwrap();
        match event.get("size") {
            Some(size) => bytes += size.as_integer().unwrap(),
            None => dashes += 1,
        }
        clients.insert(event["client"].to_string());
        *statuses.entry(event["status"].to_string()).or_insert(0u64) += 1;
        *methods.entry(event["method"].to_string_lossy().into_owned()).or_insert(0u64) += 1;
        let Value::Timestamp(time) = &event["timestamp"] else { panic!("no time") };
        minutes.insert(time.timestamp().div_euclid(60));
        late += u64::from(time.timestamp() < newest);
        newest = newest.max(time.timestamp());
    }
    let found = serde_json::json!({
        "lines": lines, "lines_not_matching_reference_regex": refused.len(), "bytes_sum": bytes, "bytes_dash": dashes,
        "status": statuses, "method": methods, "unique_clients": clients.len(), "tumbling_1min_windows": minutes.len(),
        "out_of_order_lines": late,
    });
    for (figure, found) in found.as_object().unwrap() {
        assert_eq!(found, &facts[figure], "{figure} of {file}");
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::agreement::{check_all, show};
    use super::*;

    fn check(record: &str, expected: Expect) {
        expected.assert_eq(&show(&*Config {}.build(), record));
    }

    const RECORD: &str = r#"192.0.2.7 - - [20/Nov/2026:12:00:00 +0100] "GET /cart?id=4 HTTP/1.1" 500 312 "https://example.org/" "curl/8.5""#;

    #[test]
    fn the_fields_are_those_of_the_format() {
        check(
            RECORD,
            expect![[
                r#"{ "agent": "curl/8.5", "client": "192.0.2.7", "method": "GET", "path": "/cart?id=4", "protocol": "HTTP/1.1", "referrer": "https://example.org/", "request": "GET /cart?id=4 HTTP/1.1", "size": 312, "status": 500, "timestamp": t'2026-11-20T11:00:00Z' }"#
            ]],
        );
    }

    #[test]
    fn what_a_dash_stands_for_is_missing() {
        check(
            r#"::1 - - [20/Nov/2026:12:00:00 +0000] "-" - - "-" "-""#,
            expect![[r#"{ "client": "::1", "request": "-", "timestamp": t'2026-11-20T12:00:00Z' }"#]],
        );
    }

    #[test]
    fn quotes_in_quoted_parts_are_read() {
        check(
            r#"::1 id Jane Doe [20/Nov/2026:12:00:00 +0000] "GET /a\"b c HTTP/1.0" 200 1 "\\" "a \"b\" \x16" 0.5 "x""#,
            expect![[
                r#"{ "agent": "a \"b\" \\x16", "client": "::1", "extra": "0.5 \"x\"", "identity": "id", "method": "GET", "path": "/a\"b c", "protocol": "HTTP/1.0", "referrer": "\\", "request": "GET /a\\\"b c HTTP/1.0", "size": 1, "status": 200, "timestamp": t'2026-11-20T12:00:00Z', "user": "Jane Doe" }"#
            ]],
        );
    }

    #[test]
    fn a_request_that_is_none_has_no_parts() {
        check(
            r#"::1 - - [20/Nov/2026:12:00:00 +0000] "\x16\x03\x01 a HTTP/1" 400 0 "" """#,
            expect![[
                r#"{ "agent": "", "client": "::1", "referrer": "", "request": "\\x16\\x03\\x01 a HTTP/1", "size": 0, "status": 400, "timestamp": t'2026-11-20T12:00:00Z' }"#
            ]],
        );
        check(
            r#"::1 - - [20/Nov/2026:12:00:00 +0000] "GET /" 200 0 "" """#,
            expect![[
                r#"{ "agent": "", "client": "::1", "referrer": "", "request": "GET /", "size": 0, "status": 200, "timestamp": t'2026-11-20T12:00:00Z' }"#
            ]],
        );
    }

    #[test]
    fn what_is_not_of_the_format_is_refused_with_the_place() {
        let codec = Config {}.build();
        let refusals: Vec<_> = [
            "",
            "gobbledegook",
            "a b c d",
            r#"a - - [20/Nov/2026:25:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-""#,
            r#"a - - [20/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 1"#,
            r#"a - - [20/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" ok 1 "-" "-""#,
            r#"a - - [20/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 99999999999999999999 "-" "-""#,
            r#"a - - [20/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"#,
            r#"a - - [20/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-\"#,
            r#"a - - [20/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"x"#,
        ]
        .map(|record| show(&*codec, record))
        .into();
        expect![[r#"
            malformed: no client at byte 1
            malformed: no client at byte 1
            malformed: no time in brackets at byte 5
            malformed: no time such as 20/Nov/2026:12:00:00 +0100 at byte 8
            malformed: no quoted referrer at byte 58
            malformed: the status is not a number, at byte 53
            malformed: the size is not a number, at byte 57
            malformed: the agent has no end, at byte 64
            malformed: the agent has no end, at byte 64
            malformed: no space between fields at byte 66"#]]
        .assert_eq(&refusals.join("\n"));
    }

    #[test]
    fn projections_agree_with_whole_records() {
        check_all(
            &*Config {}.build(),
            &[RECORD, r#"::1 i u s [20/Nov/2026:12:00:00 +0000] "GET /\"b HTTP/1.0" 200 - "\\" "\"" 0.5 "x""#],
        );
    }

    #[test]
    fn published_logs_give_the_figures_computed_by_other_means() {
        corpus(&*Config {}.build(), "elastic_apache_logs.log");
    }
}
