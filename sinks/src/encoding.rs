//! How records are written as text: what all sinks that write lines, datagrams or bodies share.

use std::borrow::Cow;
use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::Problem;
use tocsin_pipeline::event::{Batch, Field};
use tocsin_pipeline::json;
use tocsin_pipeline::template::{Escape, Template};
use vrl::value::{ObjectMap, Value};

/// How a record is written. Not given: a record that no operator changed is written as the bytes it came in, every other
/// as compact JSON.
///
/// A record that is written as it came in keeps the newlines it has (a stack trace put together by `multiline`); JSON and
/// logfmt never contain one.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(untagged, expecting = "expected \"json\", \"logfmt\", \"text\", \"raw\", \"pretty\" or { template = \"…\" }")]
pub(crate) enum Config {
    Named(Named),
    Template(TemplateConfig),
}

/// The encodings that have a name.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Named {
    /// Compact JSON, whatever the record came as.
    Json,
    /// `key=value` pairs in the order of their keys, nested fields under `outer.inner`.
    Logfmt,
    /// The field `.message` and nothing else; the record as JSON where it has none.
    Text,
    /// The bytes the record came in, even where an operator changed it; JSON where an operator made it.
    Raw,
    /// For people: `FIRING high_error_rate {severity=critical} …` for an alert, JSON for every other record.
    Pretty,
}

/// A text with fields of the record in it.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateConfig {
    /// The text; `{{ field }}` stands for a field. A missing field leaves nothing and is counted in
    /// `tocsin_expression_errors_total`; `{{ field | default("-") }}` says what stands instead.
    template: String,
}

/// What is wrong with it, told of the option `encoding`.
pub(crate) fn problems(config: Option<&Config>) -> Vec<Problem> {
    let Some(Config::Template(config)) = config else { return Vec::new() };
    match Template::compile(&config.template, Escape::None) {
        Ok(_) => Vec::new(),
        Err(error) => vec![Problem::new("encoding.template", error.message).within(error.within)],
    }
}

#[derive(Clone, Debug)]
enum Kind {
    AsRead,
    Json,
    Logfmt,
    Text,
    Raw,
    Pretty { is_coloured: bool },
    Template(Template),
}

/// Writes records as text.
#[derive(Clone, Debug)]
pub(crate) struct Encoder {
    kind: Kind,
}

/// A part of a batch, in order.
pub(crate) enum Piece<'a> {
    /// Records that are written as they stand in the block, each with the newline that ends it.
    Lines(&'a [u8]),
    /// A record that is to be encoded.
    Row(u32),
}

impl Encoder {
    /// # Panics
    /// When the configuration has problems.
    pub(crate) fn new(config: Option<&Config>) -> Self {
        let kind = match config {
            None => Kind::AsRead,
            Some(Config::Named(Named::Json)) => Kind::Json,
            Some(Config::Named(Named::Logfmt)) => Kind::Logfmt,
            Some(Config::Named(Named::Text)) => Kind::Text,
            Some(Config::Named(Named::Raw)) => Kind::Raw,
            Some(Config::Named(Named::Pretty)) => Kind::Pretty { is_coloured: false },
            Some(Config::Template(config)) => Kind::Template(
                Template::compile(&config.template, Escape::None).expect("`problems` has compiled it before"),
            ),
        };
        Self { kind }
    }

    /// The encoding with colours, if it knows any.
    #[must_use]
    pub(crate) fn coloured(self) -> Self {
        match self.kind {
            Kind::Pretty { .. } => Self { kind: Kind::Pretty { is_coloured: true } },
            kind => Self { kind },
        }
    }

    /// Whether what it writes is fit for a terminal already.
    pub(crate) fn is_for_people(&self) -> bool {
        matches!(self.kind, Kind::Pretty { .. })
    }

    /// Whether a record of this batch is written as the bytes it came in if no operator changed it.
    fn is_verbatim(&self, batch: &Batch) -> bool {
        match self.kind {
            Kind::AsRead | Kind::Raw => true,
            // The source has checked that its records are JSON.
            Kind::Json | Kind::Pretty { .. } => batch.codec.name() == "json",
            Kind::Text => batch.codec.name() == "text",
            Kind::Logfmt | Kind::Template(_) => false,
        }
    }

    /// Appends one record without a newline at its end. Returns how many templates failed on it: 0 or 1.
    pub(crate) fn append(&self, batch: &Batch, row: u32, out: &mut Vec<u8>) -> u64 {
        match &self.kind {
            Kind::Raw if !batch.raw(row).is_empty() => out.extend_from_slice(batch.raw(row)),
            // An alert as a file holds it is still an alert.
            Kind::Pretty { is_coloured } => write_pretty(&batch.value(row), *is_coloured, out),
            Kind::Json if batch.changed(row).is_none() && self.is_verbatim(batch) => {
                let record = batch.record(row);
                // JSON may be spread over lines; what is written is one.
                if memchr::memchr2(b'\n', b'\r', record).is_some() {
                    json::write_value(&batch.value(row), out);
                } else {
                    out.extend_from_slice(record);
                }
            }
            Kind::AsRead | Kind::Text if batch.changed(row).is_none() && self.is_verbatim(batch) => {
                out.extend_from_slice(batch.record(row));
            }
            Kind::AsRead | Kind::Json | Kind::Raw => json::write_value(&batch.value(row), out),
            Kind::Text => {
                let value = batch.value(row);
                let message = value.as_object().and_then(|fields| fields.get("message")).map(Field::of_value);
                match message.and_then(Field::to_text) {
                    Some(message) => out.extend_from_slice(&message),
                    None => json::write_value(&value, out),
                }
            }
            Kind::Logfmt => write_logfmt(&batch.value(row), out),
            Kind::Template(template) => {
                let rendered = template.render(&batch.value(row));
                out.extend_from_slice(rendered.text.as_bytes());
                return u64::from(rendered.failure.is_some());
            }
        }
        0
    }

    /// Takes a batch apart into runs that can be copied as they are, and single records.
    pub(crate) fn pieces<'a>(&self, batch: &'a Batch, mut each: impl FnMut(Piece<'a>)) {
        // Lines of JSON are looked at one by one for newlines within, unless no JSON line can have one: those that were
        // split at newlines. The encodings below do not care.
        let copies = matches!(self.kind, Kind::AsRead)
            || matches!(self.kind, Kind::Raw) && batch.original.is_none()
            || matches!(self.kind, Kind::Text | Kind::Json) && self.is_verbatim(batch);
        let keeps_changed = matches!(self.kind, Kind::Raw) && !batch.block.is_empty();
        let must_be_one_line = matches!(self.kind, Kind::Json);
        let block = &batch.block[..];
        let (mut start, mut end) = (0, 0);
        for row in batch.rows() {
            let span = batch.spans[row as usize];
            let stands = copies
                && (keeps_changed || batch.changed(row).is_none())
                && block.get(span.end()) == Some(&b'\n')
                && !(must_be_one_line && memchr::memchr2(b'\n', b'\r', span.of(block)).is_some());
            if stands && start < end && span.start as usize == end {
                end = span.end() + 1;
                continue;
            }
            if start < end {
                each(Piece::Lines(&block[start..end]));
            }
            (start, end) = if stands { (span.start as usize, span.end() + 1) } else { (0, 0) };
            if !stands {
                each(Piece::Row(row));
            }
        }
        if start < end {
            each(Piece::Lines(&block[start..end]));
        }
    }

    /// Appends all records of a batch, each with a newline at its end. Returns how many templates failed.
    pub(crate) fn append_all(&self, batch: &Batch, out: &mut Vec<u8>) -> u64 {
        let mut failures = 0;
        self.pieces(batch, |piece| match piece {
            Piece::Lines(bytes) => out.extend_from_slice(bytes),
            Piece::Row(row) => {
                failures += self.append(batch, row, out);
                out.push(b'\n');
            }
        });
        failures
    }

    /// As [`Self::append_all`], and tells where each record ends in `out`.
    pub(crate) fn append_each(&self, batch: &Batch, out: &mut Vec<u8>, mut end: impl FnMut(usize)) -> u64 {
        let mut failures = 0;
        let mut rows = batch.rows();
        self.pieces(batch, |piece| match piece {
            Piece::Lines(bytes) => {
                let mut at = out.len();
                out.extend_from_slice(bytes);
                while at < out.len() {
                    let row = rows.next().expect("a run is made of the rows in order");
                    at += batch.spans[row as usize].len as usize + 1;
                    end(at);
                }
            }
            Piece::Row(row) => {
                rows.next();
                failures += self.append(batch, row, out);
                out.push(b'\n');
                end(out.len());
            }
        });
        failures
    }
}

/// Appends a record as `key=value` pairs.
fn write_logfmt(value: &Value, out: &mut Vec<u8>) {
    let start = out.len();
    match value {
        Value::Object(fields) => write_logfmt_fields("", fields, start, out),
        other => write_logfmt_pair("value", other, start, out),
    }
}

fn write_logfmt_fields(prefix: &str, fields: &ObjectMap, start: usize, out: &mut Vec<u8>) {
    for (key, value) in fields {
        let key = if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
        match value {
            Value::Object(fields) if !fields.is_empty() => write_logfmt_fields(&key, fields, start, out),
            value => write_logfmt_pair(&key, value, start, out),
        }
    }
}

fn write_logfmt_pair(key: &str, value: &Value, start: usize, out: &mut Vec<u8>) {
    if out.len() > start {
        out.push(b' ');
    }
    // A key cannot be quoted, so what would end it is replaced.
    let is_plain = |letter: char| !(letter.is_whitespace() || letter.is_control() || matches!(letter, '=' | '"'));
    let mut utf8 = [0; 4];
    for letter in key.chars().map(|letter| if is_plain(letter) { letter } else { '_' }) {
        out.extend_from_slice(letter.encode_utf8(&mut utf8).as_bytes());
    }
    out.push(b'=');
    let text = match value {
        Value::Null => Cow::Borrowed(&b"null"[..]),
        value => Field::of_value(value).to_text().unwrap_or_default(),
    };
    let text = String::from_utf8_lossy(&text);
    if !text.is_empty() && text.chars().all(|letter| is_plain(letter) && letter != '\\') {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    // JSON's way of quoting is the one that readers of logfmt know.
    json::write_value(&Value::from(&*text), out);
}

/// Appends a record as people like to read it.
fn write_pretty(value: &Value, is_coloured: bool, out: &mut Vec<u8>) {
    let mut line = String::new();
    if write_alert(value, is_coloured, &mut line).is_none() {
        let mut text = Vec::new();
        json::write_value(value, &mut text);
        append_escaped(&text, out);
        return;
    }
    out.extend_from_slice(line.as_bytes());
}

/// Writes an alert as one line; `None` if the record is not one.
fn write_alert(value: &Value, is_coloured: bool, line: &mut String) -> Option<()> {
    let fields = value.as_object()?;
    let text = |value: &Value| -> Option<String> {
        let text = Field::of_value(value).to_text()?;
        let mut escaped = Vec::new();
        append_escaped(&text, &mut escaped);
        // One alert is one line.
        Some(String::from_utf8_lossy(&escaped).replace(['\n', '\t'], " "))
    };
    let name = text(fields.get("alert")?)?;
    let state = text(fields.get("state")?)?;
    let labels = fields.get("labels")?.as_object()?;
    let colour = match &*state {
        "firing" => "\x1b[1;31m",
        "resolved" => "\x1b[32m",
        "pending" => "\x1b[33m",
        _ => return None,
    };
    let when = fields.get(if state == "resolved" { "ends_at" } else { "starts_at" }).and_then(text);
    if let Some(when) = when {
        let _ = write!(line, "{when} ");
    }
    let state = state.to_uppercase();
    let _ = if is_coloured { write!(line, "{colour}{state}\x1b[0m {name}") } else { write!(line, "{state} {name}") };
    if !labels.is_empty() {
        let labels: Vec<_> =
            labels.iter().map(|(key, value)| format!("{key}={}", text(value).unwrap_or_default())).collect();
        let mut escaped = Vec::new();
        append_escaped(labels.join(", ").as_bytes(), &mut escaped);
        let _ = write!(line, " {{{}}}", String::from_utf8_lossy(&escaped));
    }
    let summary = fields
        .get("annotations")
        .and_then(Value::as_object)
        .and_then(|annotations| annotations.get("summary").or_else(|| annotations.values().next()))
        .and_then(text);
    if let Some(summary) = summary {
        let _ = write!(line, " {summary}");
    }
    Some(())
}

/// Appends text so that it cannot drive a terminal: control characters but tab and newline, the marks that turn the
/// direction of writing, and bytes that are not UTF-8 are written as `\u001b`, `\u202e`, `\xff`.
pub(crate) fn append_escaped(text: &[u8], out: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        let valid = chunk.valid();
        let mut copied = 0;
        for (at, letter) in valid.char_indices() {
            if is_harmless(letter) {
                continue;
            }
            out.extend_from_slice(&valid.as_bytes()[copied..at]);
            out.extend_from_slice(format!("\\u{:04x}", u32::from(letter)).as_bytes());
            copied = at + letter.len_utf8();
        }
        out.extend_from_slice(&valid.as_bytes()[copied..]);
        for byte in chunk.invalid() {
            out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
}

fn is_harmless(letter: char) -> bool {
    match letter {
        '\t' | '\n' | ' '..='~' => true,
        // DEL and C1, the marks and overrides of direction (UAX #9), line and paragraph separators.
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => false,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::conformance::{lines, records};

    fn encoder(config: &str) -> Encoder {
        Encoder::new(Some(&serde_json::from_str(config).unwrap()))
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(encoder: &Encoder, batch: &Batch, expected: Expect) {
        let mut out = Vec::new();
        let failures = encoder.append_all(batch, &mut out);
        let failed = if failures > 0 { format!("failures: {failures}\n") } else { String::new() };
        expected.assert_eq(&format!("{}{failed}", String::from_utf8_lossy(&out)));
    }

    const MADE: &str = r#"{"message": "a \"b\"\nc", "n": 1, "at": {"x": null, "y = z": ""}, "list": [1, "x"]}"#;

    #[test]
    fn a_record_that_nobody_changed_is_written_as_it_came() {
        let encoder = Encoder::new(None);
        check(
            &encoder,
            &lines("one\n  two\nthree"),
            expect![["
            one
              two
            three
        "]],
        );
        let mut some = lines("one\ntwo\nthree\nfour\n").select(vec![0, 2, 3]);
        some.replace(2, Value::from("changed"));
        check(
            &encoder,
            &some,
            expect![[r#"
            one
            "changed"
            four
        "#]],
        );
    }

    #[test]
    fn adjacent_records_are_copied_at_once() {
        let batch = lines("one\ntwo\nthree\nfour\nfive").select(vec![0, 1, 3, 4]);
        let mut runs = Vec::new();
        Encoder::new(None).pieces(&batch, |piece| match piece {
            Piece::Lines(bytes) => runs.push(String::from_utf8_lossy(bytes).into_owned()),
            Piece::Row(row) => runs.push(format!("row {row}")),
        });
        assert_eq!(runs, ["one\ntwo\n", "four\n", "row 4"]);
    }

    #[test]
    fn every_encoding_writes_one_record_a_line() {
        let batch = records(&[MADE]);
        check(
            &encoder(r#""json""#),
            &batch,
            expect![[r#"
            {"at":{"x":null,"y = z":""},"list":[1,"x"],"message":"a \"b\"\nc","n":1}
        "#]],
        );
        check(
            &encoder(r#""logfmt""#),
            &batch,
            expect![[r#"
            at.x=null at.y___z="" list="[1,\"x\"]" message="a \"b\"\nc" n=1
        "#]],
        );
        check(
            &encoder(r#""text""#),
            &batch,
            expect![[r#"
            a "b"
            c
        "#]],
        );
        check(
            &encoder(r#"{"template": "{{ n }}: {{ at.y }} {{ list[1] }}"}"#),
            &batch,
            expect![[r#"
            1:  x
            failures: 1
        "#]],
        );
    }

    #[test]
    fn raw_keeps_the_bytes_even_of_a_changed_record() {
        let mut batch = lines("one\ntwo\n");
        batch.replace(0, Value::from(1));
        check(
            &encoder(r#""raw""#),
            &batch,
            expect![["
            one
            two
        "]],
        );
        check(
            &encoder(r#""raw""#),
            &records(&["{\"a\": 1}"]),
            expect![[r#"
            {"a":1}
        "#]],
        );
    }

    #[test]
    fn an_alert_is_a_line_that_people_can_read() {
        let alert = |state: &str| {
            format!(
                r#"{{"alert": "errors", "state": "{state}", "labels": {{"severity": "critical", "host": "a\u001b[2J"}},
                "annotations": {{"summary": "web: 120\nerrors"}}, "starts_at": "2026-11-20T12:00:00Z", "ends_at": "2026-11-20T12:05:00Z"}}"#
            )
        };
        let batch = records(&[&alert("firing"), &alert("resolved"), &alert("other"), "{\"a\": \"\u{202e}\"}"]);
        check(
            &encoder(r#""pretty""#),
            &batch,
            expect![[r#"
            2026-11-20T12:00:00Z FIRING errors {host=a\u001b[2J, severity=critical} web: 120 errors
            2026-11-20T12:05:00Z RESOLVED errors {host=a\u001b[2J, severity=critical} web: 120 errors
            {"alert":"errors","annotations":{"summary":"web: 120\nerrors"},"ends_at":"2026-11-20T12:05:00Z","labels":{"host":"a\u001b[2J","severity":"critical"},"starts_at":"2026-11-20T12:00:00Z","state":"other"}
            {"a":"\u202e"}
        "#]],
        );
        let mut out = Vec::new();
        encoder(r#""pretty""#).coloured().append(&batch, 0, &mut out);
        assert!(out.starts_with(b"2026-11-20T12:00:00Z \x1b[1;31mFIRING\x1b[0m errors {host=a\\u001b[2J"));
    }

    #[test]
    fn text_cannot_drive_a_terminal() {
        let mut out = Vec::new();
        append_escaped("a\tb\x1b[2J\r\u{9b}1m\u{202e}ä\n".as_bytes(), &mut out);
        append_escaped(b"\x9b\xff", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "a\tb\\u001b[2J\\u000d\\u009b1m\\u202eä\n\\x9b\\xff");
    }

    #[test]
    fn an_encoding_that_is_none_is_told_what_there_is() {
        let error = serde_json::from_str::<Config>("\"xml\"").unwrap_err().to_string();
        assert!(error.contains("\"logfmt\""), "{error}");
        let config = serde_json::from_str(r#"{"template": "{{ a"}"#).unwrap();
        assert_eq!(problems(Some(&config))[0].option, "encoding.template");
    }
}
