//! `logfmt`: `key=value` pairs.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::CodecConfig;
use tocsin_pipeline::codec::{Codec, DecodeError, Row};
use vrl::value::{KeyString, ObjectMap, Value};

use super::kind::Kind;
use super::{Piece, put_cell, value_of};

/// Reads `key=value` pairs; the keys are the fields of the event.
///
/// The record
///
/// ```text
/// ts=2026-11-20T12:00:00Z level=error msg="disk \"sda1\" is full" free=0 retry
/// ```
///
/// becomes
///
/// ```json
/// {"ts": "2026-11-20T12:00:00Z", "level": "error", "msg": "disk \"sda1\" is full", "free": "0", "retry": null}
/// ```
///
/// - Pairs are separated by spaces and control characters.
/// - A value in double quotes can hold anything; escapes are those of JSON.
/// - A key without a value is null. Of a key that comes twice the last value counts.
/// - Keys are taken as they are: `http.status=200` is the field `."http.status"`.
///
/// **Event time:** the arrival, unless the source's `timestamp` says which field it is.
///
/// ```toml
/// [sources.app]
/// type = "file"
/// paths = ["/var/log/app.log"]
/// codec = { type = "logfmt", typed = true }
/// timestamp = { field = ".ts" }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Whether unquoted numbers, `true` and `false` become numbers and booleans: then `.free < 10` needs no conversion, but an
    /// identifier such as `id=007` loses its zeros. Otherwise all values are text.
    #[serde(default)]
    typed: bool,
    /// Whether a record with `=` or `"` inside an unquoted value, such as `url=/?a=b`, is unreadable. If not, they are taken
    /// as part of the value.
    #[serde(default = "yes")]
    strict: bool,
}

fn yes() -> bool {
    true
}

impl CodecConfig for Config {
    const NAME: &'static str = "logfmt";

    fn build(&self) -> Arc<dyn Codec> {
        Arc::new(Logfmt { typed: self.typed, strict: self.strict })
    }
}

#[derive(Debug)]
struct Logfmt {
    typed: bool,
    strict: bool,
}

impl Codec for Logfmt {
    fn name(&self) -> &'static str {
        "logfmt"
    }

    fn decode(&self, record: &[u8], row: &mut Row<'_>) -> Result<(), DecodeError> {
        let projection = row.projection();
        let mut unescaped = Vec::new();
        let outcome = self.pairs(record, |key, value| {
            if let Some(slot) = projection.slot(key.as_bytes()) {
                put_cell(row, slot, self.piece(record, value, &mut unescaped));
            }
        });
        if outcome.is_err() {
            row.clear();
        }
        outcome
    }

    fn value(&self, record: &[u8]) -> Result<Value, DecodeError> {
        let mut object = ObjectMap::new();
        let mut unescaped = Vec::new();
        self.pairs(record, |key, value| {
            object.insert(KeyString::from(key), value_of(record, self.piece(record, value, &mut unescaped)));
        })?;
        Ok(Value::Object(object))
    }
}

/// Where a value stands, and how it is written.
#[derive(Clone, Copy)]
enum Found {
    Nothing,
    Bare {
        start: usize,
        len: usize,
    },
    /// Between quotes, which are not part of it.
    Quoted {
        start: usize,
        len: usize,
        has_escapes: bool,
    },
}

impl Logfmt {
    /// Goes over all pairs. Errors tell the place as the format's reference implementation does, counting bytes from 1.
    fn pairs<'a>(&self, record: &'a [u8], mut found: impl FnMut(&'a str, Found)) -> Result<(), DecodeError> {
        let mut at = 0;
        loop {
            while record.get(at).is_some_and(|byte| *byte <= b' ') {
                at += 1;
            }
            let start = at;
            while record.get(at).is_some_and(|byte| *byte > b' ' && *byte != b'=' && *byte != b'"') {
                at += 1;
            }
            let next = record.get(at).copied();
            match next {
                Some(b'=') if at == start => return Err(unexpected('=', at)),
                Some(b'"') => return Err(unexpected('"', at)),
                None if at == start => return Ok(()),
                _ => {}
            }
            // The replacement character stands where somebody's text was broken: no name of a field.
            let key = std::str::from_utf8(&record[start..at]).ok().filter(|key| !key.contains('\u{fffd}'));
            let key = key.ok_or_else(|| fault("invalid key", at))?;
            if next != Some(b'=') {
                found(key, Found::Nothing);
                continue;
            }
            at += 1;
            let value = if record.get(at) == Some(&b'"') { quoted(record, at + 1)? } else { self.bare(record, at)? };
            at = match value {
                Found::Nothing => at,
                Found::Bare { start, len } => start + len,
                Found::Quoted { start, len, .. } => start + len + 1,
            };
            found(key, value);
        }
    }

    fn bare(&self, record: &[u8], start: usize) -> Result<Found, DecodeError> {
        let mut end = start;
        while let Some(byte) = record.get(end).filter(|byte| **byte > b' ') {
            if self.strict && matches!(byte, b'=' | b'"') {
                return Err(unexpected(char::from(*byte), end));
            }
            end += 1;
        }
        Ok(if end == start { Found::Nothing } else { Found::Bare { start, len: end - start } })
    }

    fn piece<'a>(&self, record: &'a [u8], value: Found, unescaped: &'a mut Vec<u8>) -> Piece<'a> {
        match value {
            Found::Nothing => Piece::Null,
            Found::Bare { start, len } => {
                let text = &record[start..start + len];
                let typed = if self.typed { typed(text) } else { None };
                typed.unwrap_or(Piece::At { start, len })
            }
            Found::Quoted { start, len, has_escapes: false } => Piece::At { start, len },
            Found::Quoted { start, len, has_escapes: true } => {
                unescaped.clear();
                // Checked when it was found.
                let _ = unescape(&record[start..start + len], unescaped);
                Piece::Text(unescaped)
            }
        }
    }
}

fn typed(text: &[u8]) -> Option<Piece<'static>> {
    match text {
        b"true" => Some(Piece::Bool(true)),
        b"false" => Some(Piece::Bool(false)),
        [b'0'..=b'9' | b'-' | b'+' | b'.', ..] => {
            [Kind::Integer, Kind::Float].iter().find_map(|kind| match kind.read(text)? {
                Piece::Integer(value) => Some(Piece::Integer(value)),
                Piece::Float(value) => Some(Piece::Float(value)),
                _ => None,
            })
        }
        _ => None,
    }
}

/// A quoted value whose content begins at `start`.
fn quoted(record: &[u8], start: usize) -> Result<Found, DecodeError> {
    let mut end = start;
    let mut has_escapes = false;
    loop {
        let rest = record.get(end..).unwrap_or_default();
        let found =
            memchr::memchr2(b'"', b'\\', rest).ok_or_else(|| fault("unterminated quoted value", record.len()))?;
        end += found;
        if record[end] == b'"' {
            break;
        }
        has_escapes = true;
        end += 2;
    }
    if has_escapes && unescape(&record[start..end], &mut Vec::new()).is_none() {
        return Err(fault("invalid quoted value", end + 1));
    }
    Ok(Found::Quoted { start, len: end - start, has_escapes })
}

/// Appends text whose escapes are those of JSON; `None` where one is not. Half of a surrogate pair becomes U+FFFD.
fn unescape(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &text[at..]) {
        out.extend_from_slice(&text[at..at + found]);
        at += found + 2;
        let character = match *text.get(at - 1)? {
            byte @ (b'"' | b'\\' | b'/' | b'\'') => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = hex(text, at)?;
                at += 4;
                let low = if text[at..].starts_with(b"\\u") { hex(text, at + 2) } else { None };
                match (high, low) {
                    (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) => {
                        at += 6;
                        char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)).unwrap_or('\u{fffd}')
                    }
                    _ => char::from_u32(high).unwrap_or('\u{fffd}'),
                }
            }
            _ => return None,
        };
        out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
    out.extend_from_slice(&text[at..]);
    Some(())
}

/// Four hexadecimal digits at `at`.
fn hex(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + 4)?;
    digits.iter().try_fold(0, |value, digit| Some(value * 16 + char::from(*digit).to_digit(16)?))
}

fn unexpected(character: char, at: usize) -> DecodeError {
    fault(&format!("unexpected '{character}'"), at)
}

fn fault(message: &str, at: usize) -> DecodeError {
    super::malformed(message, at)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::agreement::{check as agree, check_all, show};
    use super::*;

    fn check(options: &str, records: &[&str], expected: Expect) {
        let codec = toml::from_str::<Config>(options).unwrap().build();
        check_all(&*codec, records);
        let shown: Vec<_> = records.iter().map(|record| show(&*codec, record)).collect();
        expected.assert_eq(&shown.join("\n"));
    }

    #[test]
    fn pairs_are_fields() {
        check(
            "",
            &[
                r#"ts=2026-11-20T12:00:00Z level=error msg="disk \"sda1\" is full" free=0 retry"#,
                r#"a="" b= a=2 c.d=x	é=ü "#,
                r#"a="A\t\/\ud83d\ude00\ud83d" b="plain""#,
                "",
            ],
            expect![[r#"
                { "free": "0", "level": "error", "msg": "disk \"sda1\" is full", "retry": null, "ts": "2026-11-20T12:00:00Z" }
                { "a": "2", "b": null, "c.d": "x", "é": "ü" }
                { "a": "A	/😀�", "b": "plain" }
                {  }"#]],
        );
    }

    #[test]
    fn values_can_be_typed() {
        check(
            "typed = true",
            &[r#"a=1 b=-2.5e3 c=true d="1" e=1h f=inf g=007 h=12345678901234567890 i=+"#],
            expect![[
                r#"{ "a": 1, "b": -2500, "c": true, "d": "1", "e": "1h", "f": "inf", "g": 7, "h": 12345678901234567000, "i": "+" }"#
            ]],
        );
    }

    #[test]
    fn what_is_not_a_pair_is_refused_with_the_place() {
        let records = ["=bar", "\"k\"=bar", "k=b =ar", "a==", "k=b=ar", "a=\"1", "a=\"\\x\"", "u=/?a=\"b\" c"];
        check(
            "",
            &records,
            expect![[r#"
            malformed: unexpected '=' at byte 1
            malformed: unexpected '"' at byte 1
            malformed: unexpected '=' at byte 5
            malformed: unexpected '=' at byte 3
            malformed: unexpected '=' at byte 4
            malformed: unterminated quoted value at byte 5
            malformed: invalid quoted value at byte 7
            malformed: unexpected '=' at byte 6"#]],
        );
        check(
            "strict = false",
            &records,
            expect![[r#"
            malformed: unexpected '=' at byte 1
            malformed: unexpected '"' at byte 1
            malformed: unexpected '=' at byte 5
            { "a": "=" }
            { "k": "b=ar" }
            malformed: unterminated quoted value at byte 5
            malformed: invalid quoted value at byte 7
            { "c": null, "u": "/?a=\"b\"" }"#]],
        );
    }

    #[test]
    fn published_cases_are_read_or_refused_as_published() {
        let Some(cases) = crate::conformance::corpus("logfmt/go_logfmt_cases.jsonl") else { return };
        let codec = toml::from_str::<Config>("").unwrap().build();
        let mut failures = Vec::new();
        for case in cases.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let case: serde_json::Value = serde_json::from_slice(case).unwrap();
            let lines: Vec<_> = case["data"].as_str().unwrap().split('\n').collect();
            for line in &lines {
                agree(&*codec, line.as_bytes());
            }
            let is_right = match case["want_records"].as_array() {
                Some(records) => records.iter().zip(&lines).all(|(pairs, line)| {
                    let pairs = pairs.as_array().unwrap().iter();
                    let wanted: serde_json::Map<_, _> =
                        pairs.map(|pair| (pair[0].as_str().unwrap().to_owned(), pair[1].clone())).collect();
                    let found = codec.value(line.as_bytes()).map(|value| serde_json::to_value(value).unwrap());
                    found == Ok(serde_json::Value::Object(wanted))
                }),
                None => {
                    let want = &case["want"];
                    let place = format!("{} at byte {}", want["Msg"].as_str().unwrap(), want["Pos"]);
                    let line = lines[want["Line"].as_u64().unwrap() as usize - 1];
                    codec.value(line.as_bytes()).is_err_and(|error| error.message == place)
                }
            };
            if !is_right {
                failures.push(case["id"].to_string());
            }
        }
        assert_eq!(failures, Vec::<String>::new());
    }
}
