//! The records that made an alert: the first and the last few, as they came in.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::json;
use tocsin_pipeline::operator::raw_field;
use vrl::value::{KeyString, ObjectMap, Value};

/// No record is kept longer than this; what is beyond is cut off and the length told.
const RAW_MAX: usize = 2 << 10;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    /// `raw`, or `raw_base64` where it is not UTF-8.
    key: String,
    raw: String,
    /// How long it was, where it was cut.
    cut_from: Option<usize>,
    source: String,
    /// As JSON: it holds texts and whole numbers, which survive this exactly.
    coordinate: String,
}

impl Piece {
    fn of(batch: &Batch, row: u32) -> Self {
        let (key, raw) = raw_field(batch, row);
        let mut raw = match raw {
            Value::Bytes(text) => String::from_utf8_lossy(&text).into_owned(),
            Value::String(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
            _ => String::new(),
        };
        let length = raw.len();
        let cut_from = (length > RAW_MAX).then(|| {
            raw.truncate((0..=RAW_MAX).rev().find(|at| raw.is_char_boundary(*at)).unwrap_or(0));
            length
        });
        let mut coordinate = Vec::new();
        json::write_value(&batch.coordinate(row), &mut coordinate);
        let coordinate = String::from_utf8_lossy(&coordinate).into_owned();
        Self { key: key.to_owned(), raw, cut_from, source: batch.lane.source.to_string(), coordinate }
    }

    fn bytes(&self) -> usize {
        self.raw.len() + self.source.len() + self.coordinate.len() + 128
    }

    fn to_value(&self) -> Value {
        let mut value = ObjectMap::new();
        value.insert(self.key.as_str().into(), Value::from(self.raw.as_str()));
        if let Some(length) = self.cut_from {
            value.insert(KeyString::from("cut_from"), Value::Integer(length as i64));
        }
        value.insert("source".into(), Value::from(self.source.as_str()));
        let coordinate = json::parse_value(self.coordinate.as_bytes()).unwrap_or(Value::Null);
        value.insert("coordinate".into(), coordinate);
        Value::Object(value)
    }
}

/// The records of one episode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Evidence {
    first: Vec<Piece>,
    last: VecDeque<Piece>,
    /// How many records there were in all.
    pub(super) matches: u64,
}

impl Evidence {
    /// Takes a record; `room` is how much more memory the evidence of all alerts may take. Gives how much more it takes.
    pub(super) fn add(&mut self, batch: &Batch, row: u32, keep: usize, room: usize) -> isize {
        self.matches += 1;
        if keep == 0 {
            return 0;
        }
        let piece = Piece::of(batch, row);
        let grown = piece.bytes();
        if self.first.len() < keep {
            if grown > room {
                return 0;
            }
            self.first.push(piece);
            return grown as isize;
        }
        let shrunk = if self.last.len() == keep { self.last.pop_front().map_or(0, |piece| piece.bytes()) } else { 0 };
        if grown > room + shrunk {
            return -(shrunk as isize);
        }
        self.last.push_back(piece);
        grown as isize - shrunk as isize
    }

    pub(super) fn bytes(&self) -> usize {
        self.first.iter().chain(&self.last).map(Piece::bytes).sum()
    }

    pub(super) fn to_value(&self) -> Value {
        Value::Array(self.first.iter().chain(&self.last).map(Piece::to_value).collect())
    }
}
