//! Values as bytes. JSON would not do: it has no times, no bytes that are not text, and no infinities, and a sink must not see
//! whether a record was on disk.

use std::sync::Arc;

use bytes::Bytes;
use vrl::prelude::NotNan;
use vrl::value::{ObjectMap, Value};

const ABSENT: u8 = 0;
const NULL: u8 = 1;
const FALSE: u8 = 2;
const TRUE: u8 = 3;
const INTEGER: u8 = 4;
const FLOAT: u8 = 5;
const BYTES: u8 = 6;
const STRING: u8 = 7;
const REGEX: u8 = 8;
const TIMESTAMP: u8 = 9;
const ARRAY: u8 = 10;
const OBJECT: u8 = 11;

/// Appends a value, or that there is none.
pub(super) fn write_some(value: Option<&Value>, out: &mut Vec<u8>) {
    match value {
        None => out.push(ABSENT),
        Some(value) => write(value, out),
    }
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(NULL),
        Value::Boolean(false) => out.push(FALSE),
        Value::Boolean(true) => out.push(TRUE),
        Value::Integer(integer) => {
            out.push(INTEGER);
            out.extend_from_slice(&integer.to_le_bytes());
        }
        Value::Float(float) => {
            out.push(FLOAT);
            out.extend_from_slice(&float.into_inner().to_le_bytes());
        }
        Value::Bytes(bytes) => write_text(BYTES, bytes, out),
        Value::String(text) => write_text(STRING, text.as_bytes(), out),
        Value::Regex(regex) => write_text(REGEX, regex.as_str().as_bytes(), out),
        Value::Timestamp(time) => {
            out.push(TIMESTAMP);
            out.extend_from_slice(&time.timestamp().to_le_bytes());
            out.extend_from_slice(&time.timestamp_subsec_nanos().to_le_bytes());
        }
        Value::Array(array) => {
            out.push(ARRAY);
            write_length(array.len(), out);
            array.iter().for_each(|element| write(element, out));
        }
        Value::Object(map) => {
            out.push(OBJECT);
            write_length(map.len(), out);
            for (key, member) in map {
                write_length(key.len(), out);
                out.extend_from_slice(key.as_bytes());
                write(member, out);
            }
        }
    }
}

fn write_text(kind: u8, text: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    write_length(text.len(), out);
    out.extend_from_slice(text);
}

fn write_length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(length).expect("values are below 4 GiB").to_le_bytes());
}

/// Reads what was written; `None` where that ends too early or makes no sense. What is read has been through a checksum, so
/// its depth is that of a value that there was.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// How many bytes are left.
    pub fn rest(&self) -> usize {
        self.0.len()
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }

    /// The outer `None`: it cannot be read.
    pub fn some_value(&mut self) -> Option<Option<Value>> {
        let [kind] = self.take()?;
        if kind == ABSENT { Some(None) } else { self.of_kind(kind).map(Some) }
    }

    fn value(&mut self) -> Option<Value> {
        let [kind] = self.take()?;
        self.of_kind(kind)
    }

    fn of_kind(&mut self, kind: u8) -> Option<Value> {
        Some(match kind {
            NULL => Value::Null,
            FALSE => Value::Boolean(false),
            TRUE => Value::Boolean(true),
            INTEGER => Value::Integer(self.take().map(i64::from_le_bytes)?),
            FLOAT => Value::Float(NotNan::new(self.take().map(f64::from_le_bytes)?).ok()?),
            BYTES => Value::Bytes(Bytes::copy_from_slice(self.text()?)),
            STRING => Value::String(std::str::from_utf8(self.text()?).ok()?.to_owned().into()),
            REGEX => Value::Regex(Arc::new(regex::Regex::new(std::str::from_utf8(self.text()?).ok()?).ok()?).into()),
            TIMESTAMP => {
                let seconds = self.take().map(i64::from_le_bytes)?;
                Value::Timestamp(chrono::DateTime::from_timestamp(seconds, self.u32()?)?)
            }
            ARRAY => {
                let length = self.u32()?;
                Value::Array((0..length).map(|_| self.value()).collect::<Option<_>>()?)
            }
            OBJECT => {
                let mut map = ObjectMap::new();
                for _ in 0..self.u32()? {
                    let key = std::str::from_utf8(self.text()?).ok()?.to_owned();
                    map.insert(key.into(), self.value()?);
                }
                Value::Object(map)
            }
            _ => return None,
        })
    }
}
