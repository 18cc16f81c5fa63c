//! Values to JSON text.

use std::io::Write;

use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc};
use vrl::value::Value;

use super::scan::{interruptions, word};

/// Appends a value as compact JSON. Text that is not UTF-8 is written with U+FFFD in the place of what is wrong; times are
/// written in RFC 3339, floats as [`float_text`] has them, and infinities, which JSON cannot spell, as null.
pub fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Boolean(true) => out.extend_from_slice(b"true"),
        Value::Boolean(false) => out.extend_from_slice(b"false"),
        Value::Integer(integer) => out.extend_from_slice(itoa::Buffer::new().format(*integer).as_bytes()),
        Value::Float(float) => write_float(float.into_inner(), out),
        Value::Bytes(text) => write_text(text, out),
        Value::String(text) => write_utf8(text, out),
        Value::Regex(regex) => write_utf8(regex.as_str(), out),
        Value::Timestamp(time) => {
            out.push(b'"');
            write_time(time, out);
            out.push(b'"');
        }
        Value::Array(array) => {
            out.push(b'[');
            for (index, element) in array.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_value(element, out);
            }
            out.push(b']');
        }
        Value::Object(map) => {
            out.push(b'{');
            for (index, (key, member)) in map.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_utf8(key, out);
                out.push(b':');
                write_value(member, out);
            }
            out.push(b'}');
        }
    }
}

/// Whether a value read back from what [`write_value`] writes is that value: not where it holds times, regular expressions,
/// text that is not UTF-8 or infinities, which JSON has no spelling for, or is nested deeper than is read.
pub fn is_json(value: &Value) -> bool {
    fn is_within(value: &Value, depth: u32) -> bool {
        match value {
            Value::Null | Value::Boolean(_) | Value::Integer(_) | Value::String(_) => true,
            Value::Float(float) => float.is_finite(),
            Value::Bytes(text) => simdutf8::basic::from_utf8(text).is_ok(),
            Value::Regex(_) | Value::Timestamp(_) => false,
            Value::Array(array) => depth > 0 && array.iter().all(|element| is_within(element, depth - 1)),
            Value::Object(map) => depth > 0 && map.values().all(|member| is_within(member, depth - 1)),
        }
    }
    // The scanner's bound, see `super::scan`.
    is_within(value, super::scan::MAX_DEPTH)
}

/// Appends one JSON string, quotes included.
pub fn write_text(text: &[u8], out: &mut Vec<u8>) {
    match simdutf8::basic::from_utf8(text) {
        Ok(text) => write_utf8(text, out),
        Err(_) => write_utf8(&String::from_utf8_lossy(text), out),
    }
}

fn write_utf8(text: &str, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let text = text.as_bytes();
    out.reserve(text.len() + 2);
    out.push(b'"');
    let (mut copied, mut at) = (0, 0);
    loop {
        match word(text, at) {
            Some(word) => {
                let found = interruptions(word);
                if found == 0 {
                    at += 8;
                    continue;
                }
                at += found.trailing_zeros() as usize / 8;
            }
            None => {
                while text.get(at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20)) {
                    at += 1;
                }
            }
        }
        out.extend_from_slice(&text[copied..at]);
        let Some(byte) = text.get(at) else { break };
        let short = match byte {
            b'"' | b'\\' => *byte,
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            _ => 0,
        };
        match short {
            0 => {
                let (high, low) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
            short => out.extend_from_slice(&[b'\\', short]),
        }
        at += 1;
        copied = at;
    }
    out.push(b'"');
}

fn write_float(float: f64, out: &mut Vec<u8>) {
    if float.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(float).as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

/// The shortest text that reads back as the same double; whole ones keep their `.0`. Infinities and what is no number are
/// `null`.
pub fn float_text(value: f64) -> String {
    let mut text = Vec::new();
    write_float(value, &mut text);
    String::from_utf8(text).expect("numbers are ASCII")
}

/// RFC 3339 in UTC with none, three, six or nine decimals, as chrono's `AutoSi` has it and several times as fast.
fn write_time(time: &DateTime<Utc>, out: &mut Vec<u8>) {
    let nanosecond = time.nanosecond();
    let year = time.year();
    // Leap seconds (a nanosecond above 999,999,999) and years of other than four digits are rare: chrono knows them.
    if nanosecond >= 1_000_000_000 || !(0..=9999).contains(&year) {
        return write!(out, "{}", time.to_rfc3339_opts(SecondsFormat::AutoSi, true)).expect("memory takes every write");
    }
    let two = |number: u32| [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
    let (year, date, clock) = (year as u32, time.date_naive(), time.time());
    let ([y1, y2], [y3, y4]) = (two(year / 100), two(year % 100));
    let ([m1, m2], [d1, d2]) = (two(date.month()), two(date.day()));
    let ([h1, h2], [n1, n2], [s1, s2]) = (two(clock.hour()), two(clock.minute()), two(clock.second()));
    out.extend_from_slice(&[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', n1, n2, b':', s1, s2]);
    if nanosecond > 0 {
        let mut decimals = [b'0'; 9];
        let mut rest = nanosecond;
        for digit in decimals.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let len = match nanosecond {
            _ if nanosecond.is_multiple_of(1_000_000) => 3,
            _ if nanosecond.is_multiple_of(1_000) => 6,
            _ => 9,
        };
        out.push(b'.');
        out.extend_from_slice(&decimals[..len]);
    }
    out.push(b'Z');
}
