//! The records that made an alert: the first and the last few, as they came in, and what stood around them.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::json;
use tocsin_pipeline::operator::{raw_field, raw_text};
use vrl::value::{KeyString, ObjectMap, Value};

/// No record is kept longer than this; what is beyond is cut off and the length told.
const RAW_MAX: usize = 2 << 10;
/// The same of what stands around it.
const LINE_MAX: usize = 512;
/// Around the records of so many lanes lines are kept; of further ones there are none.
const CONTEXT_LANES_MAX: usize = 256;

/// The text of a record and where it stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    /// `raw`, or `raw_base64` where it is not UTF-8.
    key: String,
    raw: String,
    /// How long it was, where it was cut.
    cut_from: Option<usize>,
    /// As JSON: it holds texts and whole numbers, which survive this exactly.
    coordinate: String,
}

impl Line {
    fn of(batch: &Batch, row: u32, max: usize) -> Self {
        let (key, raw) = match batch.raw(row) {
            // Made by an operator: what it holds is all there is.
            [] => raw_field(batch, row),
            raw => raw_text(raw),
        };
        let mut raw = match raw {
            Value::Bytes(text) => String::from_utf8_lossy(&text).into_owned(),
            Value::String(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
            _ => String::new(),
        };
        let length = raw.len();
        let cut_from = (length > max).then(|| {
            raw.truncate(raw.floor_char_boundary(max));
            length
        });
        let mut coordinate = Vec::new();
        json::write_value(&batch.coordinate(row), &mut coordinate);
        let coordinate = String::from_utf8_lossy(&coordinate).into_owned();
        Self { key: key.to_owned(), raw, cut_from, coordinate }
    }

    fn bytes(&self) -> usize {
        self.raw.len() + self.coordinate.len() + 64
    }

    fn fields(&self) -> ObjectMap {
        let mut fields = ObjectMap::new();
        fields.insert(self.key.as_str().into(), Value::from(self.raw.as_str()));
        if let Some(length) = self.cut_from {
            fields.insert(KeyString::from("cut_from"), Value::Integer(length as i64));
        }
        let coordinate = json::parse_value(self.coordinate.as_bytes()).unwrap_or(Value::Null);
        fields.insert("coordinate".into(), coordinate);
        fields
    }
}

/// One record that matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    /// The number of the match, from 1.
    number: u64,
    #[serde(flatten)]
    line: Line,
    /// Of the whole record as it came in; empty where it is not known.
    hash: String,
    source: String,
    /// The rest of its lane's name, while lines that come after it are waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    before: Vec<Line>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    after: Vec<Line>,
}

impl Piece {
    fn bytes(&self) -> usize {
        let around = self.before.iter().chain(&self.after).map(Line::bytes).sum::<usize>();
        self.line.bytes() + self.hash.len() + self.source.len() + 64 + around
    }

    fn to_value(&self) -> Value {
        let mut fields = self.line.fields();
        fields.insert("source".into(), Value::from(self.source.as_str()));
        if !self.hash.is_empty() {
            fields.insert("hash".into(), Value::from(self.hash.as_str()));
        }
        for (name, lines) in [("before", &self.before), ("after", &self.after)] {
            if !lines.is_empty() {
                let lines = lines.iter().map(|line| Value::Object(line.fields()));
                fields.insert(name.into(), Value::Array(lines.collect()));
            }
        }
        Value::Object(fields)
    }
}

/// The hash of a record as it came in; of one that an operator made, of its JSON.
fn hash(batch: &Batch, row: u32) -> String {
    let raw = match (batch.raw(row), batch.changed(row)) {
        ([], Some(value)) => {
            let mut text = Vec::new();
            json::write_value(value, &mut text);
            Cow::Owned(text)
        }
        (raw, _) => Cow::Borrowed(raw),
    };
    blake3::hash(&raw).to_hex().to_string()
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
    pub(super) fn add(&mut self, batch: &Batch, row: u32, around: Option<&Around>, keep: usize, room: usize) -> isize {
        self.matches += 1;
        if keep == 0 {
            return 0;
        }
        let piece = Piece {
            number: self.matches,
            line: Line::of(batch, row, RAW_MAX),
            hash: hash(batch, row),
            source: batch.lane.source.to_string(),
            partition: around.map(|_| batch.lane.partition.clone()),
            before: around.map_or_else(Vec::new, |around| around.before.iter().cloned().collect()),
            after: Vec::new(),
        };
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

    /// Puts a line behind the record that was the match of this number, if that is still kept. Gives how much more it takes.
    fn follow(&mut self, number: u64, line: &Line, context: usize, room: usize) -> isize {
        let piece = self.first.iter_mut().chain(&mut self.last).find(|piece| piece.number == number);
        let Some(piece) = piece.filter(|_| line.bytes() <= room) else { return 0 };
        piece.after.push(line.clone());
        if piece.after.len() >= context {
            piece.partition = None;
        }
        line.bytes() as isize
    }

    /// The records that lines are still waited for after: lane, number, how many lines.
    fn waiting(&self, context: usize) -> impl Iterator<Item = (LaneName, u64, usize)> + '_ {
        self.first.iter().chain(&self.last).filter_map(move |piece| {
            let lane = (Arc::from(piece.source.as_str()), piece.partition.clone()?);
            Some((lane, piece.number, context.saturating_sub(piece.after.len())))
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.first.iter().chain(&self.last).map(Piece::bytes).sum()
    }

    pub(super) fn to_value(&self) -> Value {
        Value::Array(self.first.iter().chain(&self.last).map(Piece::to_value).collect())
    }
}

/// Brings what the first version of the state held to the shape of today. Its records have no hash: what was kept of one need
/// not be what it came in as.
pub(super) fn migrate(evidence: &mut Json) {
    let mut number = 0;
    for part in ["first", "last"] {
        for piece in evidence[part].as_array_mut().into_iter().flatten() {
            number += 1;
            piece["hash"] = "".into();
            piece["number"] = number.into();
        }
    }
}

/// The source of a lane and its partition.
pub(super) type LaneName = (Arc<str>, String);

/// The lines that a lane has shown last, and the records that further ones stand behind.
#[derive(Default)]
pub(super) struct Around {
    before: VecDeque<Line>,
    /// Alert, number of the match, how many lines more. As each record adds one at most, no more than `context`.
    waiting: VecDeque<(Arc<str>, u64, usize)>,
}

/// What stands around records, by lane; nothing where it is not asked for.
#[derive(Default)]
pub(super) struct Context {
    lines: usize,
    lanes: BTreeMap<LaneName, Around>,
}

/// The lines of a lane, as they are saved.
#[derive(Serialize, Deserialize)]
pub(super) struct AroundPiece {
    source: String,
    partition: String,
    before: Vec<Line>,
}

impl Context {
    pub(super) fn new(lines: usize) -> Self {
        Self { lines, ..Self::default() }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.lines > 0
    }

    /// What stands before the next record of a lane.
    pub(super) fn of(&self, batch: &Batch) -> Option<&Around> {
        self.lanes.get(&(Arc::clone(&batch.lane.source), batch.lane.partition.clone()))
    }

    /// Before a record of a lane is looked at: what it stands behind is told by `follows`, which puts it there.
    pub(super) fn begin(&mut self, batch: &Batch, row: u32, mut follows: impl FnMut(&Arc<str>, &mut FollowUp<'_>)) {
        let name = (Arc::clone(&batch.lane.source), batch.lane.partition.clone());
        if self.lanes.len() >= CONTEXT_LANES_MAX && !self.lanes.contains_key(&name) {
            return;
        }
        let around = self.lanes.entry(name).or_default();
        if around.waiting.is_empty() {
            return;
        }
        let line = Line::of(batch, row, LINE_MAX);
        for (key, number, left) in &mut around.waiting {
            *left -= 1;
            follows(key, &mut FollowUp { number: *number, line: &line, context: self.lines });
        }
        around.waiting.retain(|(_, _, left)| *left > 0);
    }

    /// After a record was looked at: it stands before what comes, and `matched` tells whose evidence it has become, as which
    /// match.
    pub(super) fn end(&mut self, batch: &Batch, row: u32, matched: Option<(Arc<str>, u64)>) {
        let name = (Arc::clone(&batch.lane.source), batch.lane.partition.clone());
        let Some(around) = self.lanes.get_mut(&name) else { return };
        if around.before.len() >= self.lines {
            around.before.pop_front();
        }
        around.before.push_back(Line::of(batch, row, LINE_MAX));
        around.waiting.extend(matched.map(|(key, number)| (key, number, self.lines)));
    }

    pub(super) fn to_pieces(&self) -> Vec<AroundPiece> {
        let lanes = self.lanes.iter().map(|((source, partition), around)| AroundPiece {
            source: source.to_string(),
            partition: partition.clone(),
            before: around.before.iter().cloned().collect(),
        });
        lanes.collect()
    }

    pub(super) fn restore(&mut self, pieces: Vec<AroundPiece>) {
        for AroundPiece { source, partition, before } in pieces.into_iter().filter(|_| self.lines > 0) {
            let skipped = before.len().saturating_sub(self.lines);
            let around = self.lanes.entry((source.into(), partition)).or_default();
            around.before = before.into_iter().skip(skipped).collect();
        }
    }

    /// An alert is back: what its evidence waits for is waited for again.
    pub(super) fn wait_for(&mut self, key: &Arc<str>, evidence: &Evidence) {
        for (lane, number, left) in evidence.waiting(self.lines).filter(|(_, _, left)| *left > 0) {
            self.lanes.entry(lane).or_default().waiting.push_back((Arc::clone(key), number, left));
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.lanes.values().flat_map(|around| &around.before).map(Line::bytes).sum()
    }
}

/// A line that stands behind a record.
pub(super) struct FollowUp<'a> {
    number: u64,
    line: &'a Line,
    context: usize,
}

impl FollowUp<'_> {
    pub(super) fn put(&self, evidence: &mut Evidence, room: usize) -> isize {
        evidence.follow(self.number, self.line, self.context, room)
    }
}
