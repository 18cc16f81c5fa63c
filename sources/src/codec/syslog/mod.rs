//! `syslog`: messages of RFC 5424 and RFC 3164.

mod parse;
#[cfg(test)]
mod vectors;

use std::sync::Arc;

use bytes::Bytes;
use chrono_tz::Tz;
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{CodecConfig, Problem};
use tocsin_pipeline::codec::{Codec, DecodeError, Projection, Records, Row};
use tocsin_pipeline::json::write_value;
use tocsin_pipeline::timestamp::parse_syslog;
use vrl::path::OwnedValuePath;
use vrl::value::{KeyString, ObjectMap, Value};

use self::parse::{Message, When};
use super::{Fields, ObjectFields, Piece, RowFields, top_level};

/// Reads syslog messages, those of RFC 5424 and those that BSD's syslog and its many relatives write (RFC 3164), as they come
/// over the network or, without the number in front, stand in files.
///
/// The record
///
/// ```text
/// <34>1 2026-11-20T12:00:00.5Z web1 su 4242 ID47 [origin ip="192.0.2.7"] 'su root' failed for ann
/// ```
///
/// becomes
///
/// ```json
/// {"facility": "auth", "severity": "crit", "version": 1, "timestamp": "2026-11-20T12:00:00.500Z", "host": "web1",
///  "app": "su", "pid": "4242", "msgid": "ID47", "structured_data": {"origin": {"ip": "192.0.2.7"}},
///  "message": "'su root' failed for ann"}
/// ```
///
/// and `Nov 20 12:00:00 web1 sshd[99]: Failed password for root` becomes
///
/// ```json
/// {"timestamp": "Nov 20 12:00:00", "host": "web1", "app": "sshd", "pid": "99", "message": "Failed password for root"}
/// ```
///
/// What a message does not have is missing. The facilities are `kern user mail daemon auth syslog lpr news uucp cron authpriv ftp
/// ntp audit alert clock local0` to `local7`, the severities `emerg alert crit err warning notice info debug`.
///
/// **Event time:** `timestamp`. The time of a BSD message has neither year nor zone, so it stays the text it was: the event
/// time is that of the year that puts it nearest before the arrival, in UTC. Where that is wrong, set `year` and `timezone`
/// here, or `timestamp = { field = ".timestamp", format = "syslog", timezone = "Europe/Prague" }` at the source.
///
/// ```toml
/// [sources.auth]
/// type = "file"
/// paths = ["/var/log/auth.log"]
/// codec = "syslog"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Which of the two is read: `"rfc5424"`, `"rfc3164"`, or `"auto"`: each record tells by the version behind its number.
    #[serde(default)]
    mode: Mode,
    /// Whether a record that breaks the rules is unreadable. If not, every record is accepted: what could be read until a rule
    /// was broken are its fields, and the rest is `message`.
    #[serde(default)]
    strict: bool,
    /// The year of BSD times, for reading old files: then `timestamp` is a time and not text. From 1970 to 2261.
    year: Option<u16>,
    /// The time zone of BSD times where `year` is set: an IANA name such as `"Europe/Prague"`. Default: UTC.
    timezone: Option<String>,
}

/// Which kind of syslog message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// Each record tells.
    #[default]
    Auto,
    Rfc5424,
    Rfc3164,
}

impl CodecConfig for Config {
    const NAME: &'static str = "syslog";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.year.is_some_and(|year| !(1970..=2261).contains(&year)) {
            problems.push(Problem::new("year", "it is out of range").help("write a year from 1970 to 2261"));
        }
        if let Some(name) = &self.timezone {
            if name.parse::<Tz>().is_err() {
                problems.push(
                    Problem::new("timezone", format!("{name:?} is not a time zone"))
                        .help("write an IANA name such as \"UTC\" or \"Europe/Prague\""),
                );
            }
            if self.year.is_none() {
                problems.push(
                    Problem::new("timezone", "it has no effect without `year`")
                        .help("without a year, give the zone in `timestamp` of the source"),
                );
            }
        }
        problems
    }

    fn build(&self) -> Arc<dyn Codec> {
        let timezone = self.timezone.as_deref().and_then(|name| name.parse().ok()).unwrap_or(Tz::UTC);
        let year = self.year.map(|year| (i64::from(year), timezone));
        Arc::new(Syslog { mode: self.mode, strict: self.strict, year, names: NAMES.map(KeyString::from) })
    }
}

const NAMES: [&str; 9] = ["facility", "severity", "version", "timestamp", "host", "app", "pid", "msgid", "message"];
const FACILITY: usize = 0;
const SEVERITY: usize = 1;
const VERSION: usize = 2;
const TIMESTAMP: usize = 3;
const HOST: usize = 4;
const APP: usize = 5;
const PID: usize = 6;
const MSGID: usize = 7;
const MESSAGE: usize = 8;

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

#[derive(Debug)]
struct Syslog {
    mode: Mode,
    strict: bool,
    /// The year and zone of BSD times, if they are to be times.
    year: Option<(i64, Tz)>,
    names: [KeyString; 9],
}

/// What a projection wants.
struct Wanted {
    slots: Vec<Option<usize>>,
    /// Slots of the structured data and what is in it, with the paths from there.
    structured_data: Vec<(usize, OwnedValuePath)>,
}

impl Syslog {
    fn parse(&self, record: &[u8]) -> Result<Message, DecodeError> {
        parse::message(record, self.mode, self.strict)
    }

    fn wanted(&self, projection: &Projection) -> Wanted {
        let paths = projection.paths().iter().enumerate();
        let structured = paths.filter(|(_, path)| path.first() == Some("structured_data"));
        Wanted {
            slots: NAMES.iter().map(|name| projection.slot(name.as_bytes())).collect(),
            structured_data: structured
                .map(|(slot, path)| (slot, OwnedValuePath { segments: path.path().segments[1..].to_vec() }))
                .collect(),
        }
    }

    fn tell(&self, record: &[u8], message: &Message, fields: &mut impl Fields) {
        if let Some(priority) = message.priority {
            fields.put(FACILITY, Piece::Text(FACILITIES[usize::from(priority / 8)].as_bytes()));
            fields.put(SEVERITY, Piece::Text(SEVERITIES[usize::from(priority % 8)].as_bytes()));
        }
        if let Some(version) = message.version {
            fields.put(VERSION, Piece::Integer(version));
        }
        match &message.timestamp {
            None => {}
            Some(When::Time(time)) => fields.put(TIMESTAMP, Piece::Time(*time)),
            Some(When::Bsd(at)) => {
                let in_year = self.year.and_then(|(year, timezone)| {
                    let time = parse_syslog(&record[at.clone()])?;
                    time.in_year(time.year.unwrap_or(year), timezone)
                });
                fields.put(TIMESTAMP, in_year.map_or(Piece::At { start: at.start, len: at.len() }, Piece::Time));
            }
        }
        let texts = [&message.host, &message.app, &message.pid, &message.msgid, &message.message];
        for (field, at) in [HOST, APP, PID, MSGID, MESSAGE].into_iter().zip(texts) {
            if let Some(at) = at {
                fields.put(field, Piece::At { start: at.start, len: at.len() });
            }
        }
    }

    /// The structured data as an object of objects; `None` if there is none.
    fn structured_data(&self, record: &[u8], message: &Message) -> Option<Value> {
        let mut object = ObjectMap::new();
        // What breaks a rule was found before: it ends the data, and is part of the message.
        let _ = parse::elements(record, message.structured_data?, self.strict, |id, param| {
            let element = object.entry(text(id).into()).or_insert_with(|| Value::Object(ObjectMap::new()));
            if let (Value::Object(element), Some((name, value))) = (element, param) {
                element.insert(text(name).into(), Value::Bytes(Bytes::from(parse::unescape(value))));
            }
        });
        (!object.is_empty()).then_some(Value::Object(object))
    }

    fn record(&self, record: &[u8], wanted: &Wanted, row: &mut Row<'_>) -> Result<(), DecodeError> {
        let message = self.parse(record)?;
        self.tell(record, &message, &mut RowFields { row: &mut *row, slots: &wanted.slots });
        if wanted.structured_data.is_empty() {
            return Ok(());
        }
        let Some(data) = self.structured_data(record, &message) else { return Ok(()) };
        for (slot, path) in &wanted.structured_data {
            match data.get(path) {
                Some(Value::Bytes(text)) => row.owned(*slot, text),
                Some(object) => {
                    let mut json = Vec::new();
                    write_value(object, &mut json);
                    row.owned_json(*slot, &json);
                }
                None => {}
            }
        }
        Ok(())
    }
}

impl Codec for Syslog {
    fn name(&self) -> &'static str {
        "syslog"
    }

    fn decode(&self, record: &[u8], row: &mut Row<'_>) -> Result<(), DecodeError> {
        let wanted = self.wanted(row.projection());
        self.record(record, &wanted, row)
    }

    fn decode_all(&self, records: &mut Records<'_>) {
        let wanted = self.wanted(records.projection());
        while let Some((record, mut row)) = records.next() {
            let outcome = self.record(record, &wanted, &mut row);
            records.done(outcome);
        }
    }

    fn value(&self, record: &[u8]) -> Result<Value, DecodeError> {
        let message = self.parse(record)?;
        let mut fields = ObjectFields { record, names: &self.names, object: ObjectMap::new() };
        self.tell(record, &message, &mut fields);
        if let Some(data) = self.structured_data(record, &message) {
            fields.object.insert("structured_data".into(), data);
        }
        Ok(Value::Object(fields.object))
    }

    fn accepts_all(&self) -> bool {
        !self.strict
    }

    /// Facility and severity are numbers in the record.
    fn keeps_text(&self) -> bool {
        false
    }

    fn timestamp_path(&self) -> Option<OwnedValuePath> {
        Some(top_level("timestamp"))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::agreement::check_events;
    use super::*;

    fn config(options: &str) -> Config {
        toml::from_str(options).unwrap()
    }

    fn check(options: &str, records: &[&str], expected: Expect) {
        check_events::<Config>(options, records, expected);
    }

    #[test]
    fn messages_of_rfc_5424_are_read() {
        let records = [
            "<34>1 2026-11-20T12:00:00.5Z web1 su 4242 ID47 [origin ip=\"192.0.2.7\"] 'su root' failed for ann",
            r#"<191>12 - - - - - [a@1 x="\"\]\\\n" y=""][b] m"#,
            "<0>1 2026-11-20T12:00:00.123456789+01:00 h a p i -",
        ];
        check(
            "",
            &records,
            expect![[r#"
            { "app": "su", "facility": "auth", "host": "web1", "message": "'su root' failed for ann", "msgid": "ID47", "pid": "4242", "severity": "crit", "structured_data": { "origin": { "ip": "192.0.2.7" } }, "timestamp": t'2026-11-20T12:00:00.500Z', "version": 1 }
            { "facility": "local7", "message": "m", "severity": "debug", "structured_data": { "a@1": { "x": "\"]\\\\n", "y": "" }, "b": {  } }, "version": 12 }
            { "app": "a", "facility": "kern", "host": "h", "msgid": "i", "pid": "p", "severity": "emerg", "timestamp": t'2026-11-20T11:00:00.123456789Z', "version": 1 }"#]],
        );
        check(
            "mode = 'rfc5424'\nstrict = true",
            &records,
            expect![[r#"
            { "app": "su", "facility": "auth", "host": "web1", "message": "'su root' failed for ann", "msgid": "ID47", "pid": "4242", "severity": "crit", "structured_data": { "origin": { "ip": "192.0.2.7" } }, "timestamp": t'2026-11-20T12:00:00.500Z', "version": 1 }
            { "facility": "local7", "message": "m", "severity": "debug", "structured_data": { "a@1": { "x": "\"]\\\\n", "y": "" }, "b": {  } }, "version": 12 }
            malformed: no time such as 2026-11-20T12:00:00Z at byte 6"#]],
        );
    }

    #[test]
    fn messages_of_rfc_3164_are_read() {
        check(
            "",
            &[
                "Nov 20 12:00:00 web1 sshd[99]: Failed password for root",
                "<13>Nov  2 12:00:00 cron[7]: no host",
                "<13>2026-11-20T12:00:00+01:00 web1 app: newer relays write better times",
                "<13>*Nov  2 12:00:00.123: %SYS-5-CONFIG_I: Configured",
                "<13>Nov  2 12:00:00 web1 {\"a\": 1}",
                "<13>Nov  2 12:00:00 web1",
                "<13>app: no time",
                "warning: nothing that syslog would write",
            ],
            expect![[r#"
                { "app": "sshd", "host": "web1", "message": "Failed password for root", "pid": "99", "timestamp": "Nov 20 12:00:00" }
                { "app": "cron", "facility": "user", "message": "no host", "pid": "7", "severity": "notice", "timestamp": "Nov  2 12:00:00" }
                { "app": "app", "facility": "user", "host": "web1", "message": "newer relays write better times", "severity": "notice", "timestamp": t'2026-11-20T11:00:00Z' }
                { "app": "%SYS-5-CONFIG_I", "facility": "user", "message": "Configured", "severity": "notice", "timestamp": "Nov  2 12:00:00.123" }
                { "facility": "user", "host": "web1", "message": "{\"a\": 1}", "severity": "notice", "timestamp": "Nov  2 12:00:00" }
                { "facility": "user", "host": "web1", "severity": "notice", "timestamp": "Nov  2 12:00:00" }
                { "app": "app", "facility": "user", "message": "no time", "severity": "notice" }
                { "message": "warning: nothing that syslog would write" }"#]],
        );
    }

    #[test]
    fn a_configured_year_makes_bsd_times_moments() {
        check(
            "year = 2019\ntimezone = 'Europe/Prague'\nmode = 'rfc3164'",
            &["Jul 20 12:00:00 a b: c", "Feb 29 12:00:00 a b: c", "Jul 20 2018 12:00:00 a b: c"],
            expect![[r#"
                { "app": "b", "host": "a", "message": "c", "timestamp": t'2019-07-20T10:00:00Z' }
                { "app": "b", "host": "a", "message": "c", "timestamp": "Feb 29 12:00:00" }
                { "app": "b", "host": "a", "message": "c", "timestamp": t'2018-07-20T10:00:00Z' }"#]],
        );
    }

    #[test]
    fn what_breaks_a_rule_is_refused_or_kept_as_message() {
        let records = [
            "",
            "<192>1 - - - - - -",
            "<1>1 - - - - -",
            "<1>1 2026-02-29T00:00:00Z - - - - -",
            "<1>1 - h a p i [x y=\"]\"] z",
            "<1>1 - h a p i [x][x] z",
            "<1>1 - h a p i -z",
            "<1>x",
        ];
        check(
            "strict = true",
            &records,
            expect![[r#"
            malformed: no priority at byte 1
            malformed: the priority is not a number from 0 to 191 in angle brackets at byte 5
            malformed: no space after a part at byte 15
            malformed: no time such as 2026-11-20T12:00:00Z at byte 6
            malformed: a ] in the value of a parameter has no backslash before it, at byte 22
            malformed: an element of structured data comes twice, at byte 19
            malformed: no space after the structured data at byte 17
            malformed: no time such as Nov 20 12:00:00 at byte 4"#]],
        );
        check(
            "",
            &records,
            expect![[r#"
                {  }
                { "message": "<192>1 - - - - - -" }
                { "facility": "kern", "severity": "alert", "version": 1 }
                { "facility": "kern", "message": "2026-02-29T00:00:00Z - - - - -", "severity": "alert", "version": 1 }
                { "app": "a", "facility": "kern", "host": "h", "message": "[x y=\"]\"] z", "msgid": "i", "pid": "p", "severity": "alert", "structured_data": { "x": {  } }, "version": 1 }
                { "app": "a", "facility": "kern", "host": "h", "message": "[x] z", "msgid": "i", "pid": "p", "severity": "alert", "structured_data": { "x": {  } }, "version": 1 }
                { "app": "a", "facility": "kern", "host": "h", "message": "-z", "msgid": "i", "pid": "p", "severity": "alert", "version": 1 }
                { "facility": "kern", "message": "x", "severity": "alert" }"#]],
        );
    }

    #[test]
    fn problems_name_their_option() {
        let problems = config("year = 1900\ntimezone = 'CET+1'").problems();
        let shown: Vec<_> = problems.iter().map(|problem| format!("{}: {}", problem.option, problem.message)).collect();
        expect![[r#"
            year: it is out of range
            timezone: "CET+1" is not a time zone"#]]
        .assert_eq(&shown.join("\n"));
        assert_eq!(config("timezone = 'UTC'").problems().len(), 1);
    }
}
