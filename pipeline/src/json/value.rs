//! JSON text to values, without a tree in between.

use std::borrow::Cow;

use bytes::Bytes;
use vrl::prelude::NotNan;
use vrl::value::{KeyString, ObjectMap, Value};

use super::scan::{Fault, Number, Text, What, elements, end, literal, members, number, skip_space, string, unescape};
use crate::codec::DecodeError;

/// Parses one JSON text. See the module for what is accepted.
pub fn parse_value(text: &[u8]) -> Result<Value, DecodeError> {
    let (value, at) = value(text, skip_space(text, 0), 0)?;
    end(text, at)?;
    Ok(value)
}

fn value(text: &[u8], at: usize, depth: u32) -> Result<(Value, usize), Fault> {
    match text.get(at) {
        Some(b'"') => {
            let string = string(text, at + 1)?;
            Ok((Value::Bytes(bytes(text, string)), string.end + 1))
        }
        Some(b'-' | b'0'..=b'9') => {
            let (number, end) = number(text, at)?;
            Ok((of_number(number), end))
        }
        Some(b't') => Ok((Value::Boolean(true), literal(text, at, b"true")?)),
        Some(b'f') => Ok((Value::Boolean(false), literal(text, at, b"false")?)),
        Some(b'n') => Ok((Value::Null, literal(text, at, b"null")?)),
        Some(b'{') => object(text, at, depth),
        Some(b'[') => array(text, at, depth),
        _ => Fault::new(at, What::Value),
    }
}

fn object(text: &[u8], at: usize, depth: u32) -> Result<(Value, usize), Fault> {
    let mut map = ObjectMap::new();
    let end = members(text, at, depth, &mut |name, at| {
        let (value, end) = value(text, at, depth + 1)?;
        map.insert(KeyString::from(key_text(name.of(text), name.is_escaped)), value);
        Ok(end)
    })?;
    Ok((Value::Object(map), end))
}

fn array(text: &[u8], at: usize, depth: u32) -> Result<(Value, usize), Fault> {
    let mut array = Vec::new();
    let end = elements(text, at, depth, &mut |_, at| {
        let (value, end) = value(text, at, depth + 1)?;
        array.push(value);
        Ok(end)
    })?;
    Ok((Value::Array(array), end))
}

fn of_number(number: Number) -> Value {
    match number {
        Number::Integer(integer) => Value::Integer(integer),
        Number::Float(float) => Value::Float(NotNan::new(float).expect("numbers that are read are finite")),
    }
}

fn bytes(text: &[u8], string: Text) -> Bytes {
    if !string.is_escaped {
        return Bytes::copy_from_slice(string.of(text));
    }
    let mut unescaped = Vec::with_capacity(string.end - string.start);
    unescape(string.of(text), &mut unescaped);
    Bytes::from(unescaped)
}

/// What a key between its quotes names. Keys are text: what is not UTF-8 in them becomes U+FFFD.
pub(super) fn key_text(raw: &[u8], is_escaped: bool) -> Cow<'_, str> {
    if !is_escaped {
        return match simdutf8::basic::from_utf8(raw) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(raw),
        };
    }
    let mut unescaped = Vec::with_capacity(raw.len());
    unescape(raw, &mut unescaped);
    Cow::Owned(String::from_utf8_lossy(&unescaped).into_owned())
}
