//! Keys as bytes: what keyed state is found, ordered, grouped and saved by.
//!
//! An encoded key is its values one after the other. Comparing encoded keys byte by byte compares the values from the
//! first to the last: null and missing (which are the same key) before false, true, integers, floats, times, text, and
//! arrays and objects (by their JSON text with sorted keys). The encoding is part of the checkpoint's format.
//!
//! | value | bytes |
//! |---|---|
//! | null, missing | `00` |
//! | false, true | `01`, `02` |
//! | integer, time | `03`, `05`, then 8 bytes, greatest first, with the sign turned |
//! | float | `04`, then its bits as 8 bytes, greatest first, turned so that they sort as numbers do |
//! | text, array or object | `06`, `07`, then the bytes with each `00` written `00 ff`, then `00 00` |

use std::borrow::Cow;
use std::fmt;

use tocsin_pipeline::event::{Batch, Field};
use tocsin_pipeline::expression::Expression;
use tocsin_pipeline::json;
use tocsin_pipeline::time::Timestamp;
use vrl::prelude::NotNan;
use vrl::value::Value;

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INTEGER: u8 = 3;
const FLOAT: u8 = 4;
const TIME: u8 = 5;
const TEXT: u8 = 6;
const JSON: u8 = 7;

const SIGN: u64 = 1 << 63;

/// Appends one value of a key.
pub(crate) fn encode(field: Field<'_>, out: &mut Vec<u8>) {
    match field {
        Field::Missing | Field::Null => out.push(NULL),
        Field::Bool(value) => out.push(if value { TRUE } else { FALSE }),
        Field::Integer(value) => encode_number(INTEGER, value.cast_unsigned() ^ SIGN, out),
        // Both zeros are one key.
        Field::Float(value) => encode_number(FLOAT, sorted_bits(value + 0.0), out),
        Field::Time(time) => encode_number(TIME, time.0.cast_unsigned() ^ SIGN, out),
        Field::Text(text) => encode_bytes(TEXT, text, out),
        Field::Json(text) => match json::parse_value(text) {
            Ok(value) => encode_json(&value, out),
            // Codecs check what they call JSON; if one did not, its bytes still tell it from others.
            Err(_) => encode_bytes(JSON, text, out),
        },
        Field::Value(value) => encode_json(value, out),
    }
}

fn encode_number(tag: u8, bits: u64, out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(&bits.to_be_bytes());
}

fn encode_json(value: &Value, out: &mut Vec<u8>) {
    let mut text = Vec::new();
    json::write_value(value, &mut text);
    encode_bytes(JSON, &text, out);
}

fn encode_bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    let mut rest = bytes;
    while let Some(at) = memchr::memchr(0, rest) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(&[0, 0xff]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[0, 0]);
}

/// The bits of a float, turned so that they compare as the numbers do.
fn sorted_bits(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits & SIGN == 0 { bits | SIGN } else { !bits }
}

/// Takes the first value off an encoded key; `None` where it is not one.
pub(crate) fn decode(key: &mut &[u8]) -> Option<Value> {
    let (tag, rest) = key.split_first()?;
    *key = rest;
    Some(match *tag {
        NULL => Value::Null,
        FALSE => Value::Boolean(false),
        TRUE => Value::Boolean(true),
        INTEGER => Value::Integer((decode_number(key)? ^ SIGN).cast_signed()),
        FLOAT => {
            let bits = decode_number(key)?;
            let bits = if bits & SIGN == 0 { !bits } else { bits ^ SIGN };
            NotNan::new(f64::from_bits(bits)).map_or(Value::Null, Value::Float)
        }
        TIME => Value::Timestamp(Timestamp((decode_number(key)? ^ SIGN).cast_signed()).to_datetime()),
        TEXT => Value::Bytes(decode_bytes(key)?.into_owned().into()),
        JSON => {
            let text = decode_bytes(key)?;
            json::parse_value(&text).unwrap_or_else(|_| Value::Bytes(text.into_owned().into()))
        }
        _ => return None,
    })
}

fn decode_number(key: &mut &[u8]) -> Option<u64> {
    let (bits, rest) = key.split_first_chunk::<8>()?;
    *key = rest;
    Some(u64::from_be_bytes(*bits))
}

fn decode_bytes<'a>(key: &mut &'a [u8]) -> Option<Cow<'a, [u8]>> {
    let mut text = Cow::Borrowed(&[] as &[u8]);
    loop {
        let at = memchr::memchr(0, key)?;
        let (piece, rest) = key.split_at(at);
        let after = *rest.get(1)?;
        *key = &rest[2..];
        match &mut text {
            Cow::Borrowed(whole) if after == 0 && whole.is_empty() => return Some(Cow::Borrowed(piece)),
            text => text.to_mut().extend_from_slice(piece),
        }
        match after {
            0 => return Some(text),
            0xff => text.to_mut().push(0),
            _ => return None,
        }
    }
}

/// Appends the whole key of a record: the values of `expressions`, each of which counts as null where it has none.
pub(crate) fn encode_row(expressions: &[Expression], batch: &Batch, row: u32, errors: &mut u64, out: &mut Vec<u8>) {
    for expression in expressions {
        match expression.field(batch, row) {
            Some(field) => encode(field, out),
            None => match expression.eval(batch, row, errors) {
                Some(value) => encode(Field::of_value(&value), out),
                None => out.push(NULL),
            },
        }
    }
}

/// Writes a number in as few groups of seven bits as it needs, lowest first (LEB128).
pub(crate) fn write_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes bytes after their length.
pub(crate) fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A piece of a snapshot ends too early or holds what nothing writes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Damaged;

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the saved state is damaged")
    }
}

impl From<Damaged> for tocsin_pipeline::operator::StateError {
    fn from(damaged: Damaged) -> Self {
        Self(damaged.to_string())
    }
}

/// Reads what [`write_number`] and its like wrote.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn number(&mut self) -> Result<u64, Damaged> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(Damaged);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Damaged)
    }

    /// A number of things of which each takes at least `size` bytes, so that a damaged one cannot ask for all memory.
    pub fn count(&mut self, size: usize) -> Result<usize, Damaged> {
        usize::try_from(self.number()?).ok().filter(|count| *count <= self.0.len() / size.max(1)).ok_or(Damaged)
    }

    pub fn byte(&mut self) -> Result<u8, Damaged> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(Damaged)?;
        self.0 = rest;
        Ok(*array)
    }

    pub fn i64(&mut self) -> Result<i64, Damaged> {
        self.array().map(i64::from_le_bytes)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Damaged> {
        let len = self.count(1)?;
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(field: Field<'_>) -> Vec<u8> {
        let mut key = Vec::new();
        encode(field, &mut key);
        key
    }

    #[test]
    fn a_key_comes_back_as_it_was() {
        let object = json::parse_value(br#"{"a":[1,"x"]}"#).unwrap();
        let fields = [
            Field::Null,
            Field::Bool(true),
            Field::Integer(-7),
            Field::Float(-1.5),
            Field::Time(Timestamp(-1)),
            Field::Text(b""),
            Field::Text(b"a\0b\0\xff\0"),
            Field::Value(&object),
        ];
        let mut key = Vec::new();
        fields.iter().for_each(|field| encode(*field, &mut key));
        let mut rest = &key[..];
        for field in fields {
            assert_eq!(decode(&mut rest), field.to_value(), "{field:?}");
        }
        assert!(rest.is_empty());
        assert_eq!(decode(&mut rest), None);
    }

    #[test]
    fn keys_sort_as_their_values_do() {
        let sorted = [
            Field::Missing,
            Field::Bool(false),
            Field::Bool(true),
            Field::Integer(i64::MIN),
            Field::Integer(-1),
            Field::Integer(0),
            Field::Integer(i64::MAX),
            Field::Float(f64::MIN),
            Field::Float(-0.5),
            Field::Float(0.0),
            Field::Float(2.5),
            Field::Time(Timestamp(0)),
            Field::Text(b""),
            Field::Text(b"\0"),
            Field::Text(b"\x01"),
            Field::Text(b"a"),
            Field::Text(b"a\0"),
            Field::Text(b"ab"),
            Field::Json(b"[]"),
        ];
        for pair in sorted.windows(2) {
            assert!(encoded(pair[0]) < encoded(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn json_is_one_key_however_it_is_spelt() {
        assert_eq!(encoded(Field::Json(br#"{"a":1, "b":2}"#)), encoded(Field::Json(br#"{"b":2,"a":1}"#)));
        assert_eq!(encoded(Field::Float(0.0)), encoded(Field::Float(-0.0)));
    }

    #[test]
    fn damaged_pieces_are_refused_without_asking_for_memory() {
        assert_eq!(Reader(&[0xff; 9]).number(), Err(Damaged));
        assert_eq!(Reader(&[0xff; 12]).number(), Err(Damaged));
        assert_eq!(Reader(&[0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2]).bytes(), Err(Damaged));
        let mut out = Vec::new();
        write_number(u64::MAX, &mut out);
        assert_eq!(Reader(&out).number(), Ok(u64::MAX));
    }
}
