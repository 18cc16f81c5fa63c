//! The `json` codec: fields found in the text of a record, whole columns at a time.
//!
//! Programs write the same keys in the same order, record after record. So decoding remembers what stood between the values
//! of earlier records (`,"level":`), guesses that the same stands there again, and compares a few bytes where it would
//! otherwise find a key and look it up. A wrong guess costs one look at the key. Either way the whole record is checked.

use hashbrown::HashMap;
use vrl::path::OwnedSegment;
use vrl::value::Value;

use super::scan::{
    Fault, Number, Text, What, elements, end, key, literal, members, number, skip_array, skip_object, skip_space,
    skip_value, string, unescape, word,
};
use super::value::{key_text, parse_value};
use crate::codec::{Codec, DecodeError, Projection, Records, Row};
use crate::event::Cell;

/// One JSON text per record. See the module for what is accepted.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonCodec;

impl JsonCodec {
    pub fn new() -> Self {
        Self
    }
}

impl Codec for JsonCodec {
    fn name(&self) -> &'static str {
        "json"
    }

    fn decode(&self, record: &[u8], row: &mut Row<'_>) -> Result<(), DecodeError> {
        let plan = Plan::new(row.projection());
        finish(plan.record(record, row), row)
    }

    fn value(&self, record: &[u8]) -> Result<Value, DecodeError> {
        parse_value(record)
    }

    fn decode_all(&self, records: &mut Records<'_>) {
        let plan = Plan::new(records.projection());
        let mut layout = Layout::new();
        while let Some((record, mut row)) = records.next() {
            let outcome = layout.record(&plan, record, &mut row);
            let outcome = finish(outcome, &mut row);
            records.done(outcome);
        }
    }
}

fn finish(outcome: Result<(), Fault>, row: &mut Row<'_>) -> Result<(), DecodeError> {
    outcome.map_err(|fault| {
        row.clear();
        fault.into()
    })
}

/// The wanted paths as a tree, so that one walk over a record finds them all.
struct Plan {
    /// The first is the root.
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    /// Where its value is written, if it is wanted itself.
    slot: Option<usize>,
    fields: Vec<(Box<str>, usize)>,
    indices: Vec<(isize, usize)>,
    /// The slots of everything below it.
    below: Vec<usize>,
}

impl Plan {
    fn new(projection: &Projection) -> Self {
        let mut plan = Self { nodes: vec![Node::default()] };
        for (slot, path) in projection.paths().iter().enumerate() {
            let mut at = 0;
            for segment in &path.path().segments {
                plan.nodes[at].below.push(slot);
                at = plan.child(at, segment);
            }
            plan.nodes[at].slot = Some(slot);
        }
        plan
    }

    fn child(&mut self, parent: usize, segment: &OwnedSegment) -> usize {
        let next = self.nodes.len();
        let node = &mut self.nodes[parent];
        let known = match segment {
            OwnedSegment::Field(name) => node.fields.iter().find(|(field, _)| **field == **name).map(|known| known.1),
            OwnedSegment::Index(index) => node.indices.iter().find(|known| known.0 == *index).map(|known| known.1),
        };
        if let Some(known) = known {
            return known;
        }
        match segment {
            OwnedSegment::Field(name) => node.fields.push((name.as_str().into(), next)),
            OwnedSegment::Index(index) => node.indices.push((*index, next)),
        }
        self.nodes.push(Node::default());
        next
    }

    fn record(&self, record: &[u8], row: &mut Row<'_>) -> Result<(), Fault> {
        let at = self.take(0, record, skip_space(record, 0), 0, row)?;
        end(record, at)
    }

    /// Which field of a node a key names.
    fn field(&self, node: &Node, record: &[u8], name: Text) -> Option<usize> {
        let raw = name.of(record);
        if !name.is_escaped && raw.is_ascii() {
            return node.fields.iter().find(|(field, _)| field.as_bytes() == raw).map(|(_, child)| *child);
        }
        // Spelt with escapes, or perhaps not in UTF-8: what counts is the name that the whole value would have.
        let name = key_text(raw, name.is_escaped);
        node.fields.iter().find(|(field, _)| **field == *name).map(|(_, child)| *child)
    }

    /// Writes the value at `at` to the slot of a node and to those below it; gives the place after it. The last of several
    /// equal keys counts, so whatever an earlier one wrote below is forgotten first.
    #[inline]
    fn take(&self, node: usize, record: &[u8], at: usize, depth: u32, row: &mut Row<'_>) -> Result<usize, Fault> {
        let node = &self.nodes[node];
        for slot in &node.below {
            row.set(*slot, Cell::Missing);
        }
        let (cell, end) = match record.get(at) {
            Some(b'"') => {
                let string = string(record, at + 1)?;
                if let Some(slot) = node.slot {
                    self.write_text(record, string, slot, row);
                }
                return Ok(string.end + 1);
            }
            Some(b'-' | b'0'..=b'9') => match number(record, at)? {
                (Number::Integer(integer), end) => (Cell::Integer(integer), end),
                (Number::Float(float), end) => (Cell::Float(float), end),
            },
            Some(b't') => (Cell::Bool(true), literal(record, at, b"true")?),
            Some(b'f') => (Cell::Bool(false), literal(record, at, b"false")?),
            Some(b'n') => (Cell::Null, literal(record, at, b"null")?),
            Some(b'{' | b'[') => {
                let end = self.container(node, record, at, depth, row)?;
                if let Some(slot) = node.slot {
                    row.json(slot, at, end - at);
                }
                return Ok(end);
            }
            _ => return Fault::new(at, What::Value),
        };
        if let Some(slot) = node.slot {
            row.set(slot, cell);
        }
        Ok(end)
    }

    fn write_text(&self, record: &[u8], string: Text, slot: usize, row: &mut Row<'_>) {
        if string.is_escaped {
            let mut unescaped = Vec::with_capacity(string.end - string.start);
            unescape(string.of(record), &mut unescaped);
            row.owned(slot, &unescaped);
        } else {
            row.text(slot, string.start, string.end - string.start);
        }
    }

    fn container(&self, node: &Node, record: &[u8], at: usize, depth: u32, row: &mut Row<'_>) -> Result<usize, Fault> {
        if record[at] == b'{' {
            if node.fields.is_empty() {
                return skip_object(record, at, depth);
            }
            return members(record, at, depth, &mut |name, at| match self.field(node, record, name) {
                Some(child) => self.take(child, record, at, depth + 1, row),
                None => skip_value(record, at, depth + 1),
            });
        }
        if node.indices.is_empty() {
            return skip_array(record, at, depth);
        }
        let mut len = 0;
        let end = elements(record, at, depth, &mut |index, at| {
            len = index + 1;
            skip_value(record, at, depth + 1)
        })?;
        // The second walk knows the length, from which negative indices count.
        elements(record, at, depth, &mut |index, at| {
            let mut end = None;
            for (wanted, child) in &node.indices {
                if wanted.checked_add_unsigned(if *wanted < 0 { len } else { 0 }) == isize::try_from(index).ok() {
                    end = Some(self.take(*child, record, at, depth + 1, row)?);
                }
            }
            end.map_or_else(|| skip_value(record, at, depth + 1), Ok)
        })?;
        Ok(end)
    }
}

/// How many different pieces between values are remembered; the keys of records with more are looked up.
const MAX_PIECES: usize = 512;
/// The longest piece that is remembered.
const MAX_PIECE_BYTES: usize = 256;

/// What stood between the values of earlier records of a batch, and what to do with the value after it.
struct Layout {
    pieces: Vec<Piece>,
    /// The pieces by their bytes.
    known: HashMap<Box<[u8]>, usize, foldhash::fast::RandomState>,
}

struct Piece {
    bytes: Box<[u8]>,
    /// The first eight bytes of it, and which bits of them there are.
    head: u64,
    mask: u64,
    /// The last eight bytes of it, if it is that long.
    tail: u64,
    then: Then,
    /// What followed last, and what before that: an optional field does not spoil the guess.
    next: [usize; 2],
}

#[derive(Clone, Copy)]
enum Then {
    Skip,
    Take(usize),
    End,
}

/// The beginning of a record, before its first piece.
const START: usize = 0;

impl Piece {
    fn new(bytes: &[u8], then: Then) -> Self {
        let mut head = [0; 8];
        let short = bytes.len().min(8);
        head[..short].copy_from_slice(&bytes[..short]);
        let mask = if short == 8 { u64::MAX } else { (1 << (8 * short)) - 1 };
        let tail = bytes.last_chunk().map_or(0, |tail| u64::from_le_bytes(*tail));
        Self { bytes: bytes.into(), head: u64::from_le_bytes(head), mask, tail, then, next: [START; 2] }
    }

    /// Whether it stands in the record at `at`. Two comparisons of eight bytes are enough for most pieces.
    #[inline]
    fn stands(&self, record: &[u8], at: usize) -> bool {
        let len = self.bytes.len();
        match word(record, at) {
            Some(head) if (head ^ self.head) & self.mask != 0 => false,
            Some(_) if len <= 8 => true,
            Some(_) if len <= 16 => word(record, at + len - 8) == Some(self.tail),
            _ => record.get(at..at + len) == Some(&*self.bytes),
        }
    }
}

impl Layout {
    fn new() -> Self {
        Self { pieces: vec![Piece::new(b"", Then::Skip)], known: HashMap::default() }
    }

    fn record(&mut self, plan: &Plan, record: &[u8], row: &mut Row<'_>) -> Result<(), Fault> {
        // Where the record itself is wanted as well, it is walked as a value below that node.
        if plan.nodes[0].slot.is_some() || record.get(skip_space(record, 0)) != Some(&b'{') {
            return plan.record(record, row);
        }
        let mut at = 0;
        let mut piece = Some(START);
        loop {
            let (next, then, value) = match piece.and_then(|piece| self.guess(piece, record, at)) {
                Some(next) => (Some(next), self.pieces[next].then, at + self.pieces[next].bytes.len()),
                None => self.look(plan, piece, record, at)?,
            };
            at = match then {
                Then::End => return end(record, value),
                Then::Take(node) => plan.take(node, record, skip_space(record, value), 1, row)?,
                Then::Skip => skip_value(record, skip_space(record, value), 1)?,
            };
            piece = next;
        }
    }

    #[inline]
    fn guess(&self, piece: usize, record: &[u8], at: usize) -> Option<usize> {
        let [likely, other] = self.pieces[piece].next;
        if likely != START && self.pieces[likely].stands(record, at) {
            return Some(likely);
        }
        (other != START && self.pieces[other].stands(record, at)).then_some(other)
    }

    /// Reads the piece at `at` and remembers it as following `before`. Gives the place of the value after it.
    #[cold]
    fn look(
        &mut self,
        plan: &Plan,
        before: Option<usize>,
        record: &[u8],
        start: usize,
    ) -> Result<(Option<usize>, Then, usize), Fault> {
        let mut at = skip_space(record, start);
        let is_first = start == 0;
        let then_key = match record.get(at) {
            Some(b'{') if is_first => {
                at = skip_space(record, at + 1);
                record.get(at) != Some(&b'}')
            }
            Some(b',') if !is_first => {
                at = skip_space(record, at + 1);
                true
            }
            Some(b'}') if !is_first => false,
            _ => return Fault::new(at, What::MemberEnd),
        };
        let (then, value) = if then_key {
            let (name, value) = key(record, at)?;
            (plan.field(&plan.nodes[0], record, name).map_or(Then::Skip, Then::Take), value)
        } else {
            (Then::End, at + 1)
        };
        let index = self.remember(&record[start..value], then);
        if let (Some(before), Some(index)) = (before, index) {
            let next = &mut self.pieces[before].next;
            *next = [index, next[0]];
        }
        Ok((index, then, value))
    }

    fn remember(&mut self, bytes: &[u8], then: Then) -> Option<usize> {
        if let Some(known) = self.known.get(bytes) {
            return Some(*known);
        }
        if self.pieces.len() >= MAX_PIECES || bytes.len() > MAX_PIECE_BYTES {
            return None;
        }
        let index = self.pieces.len();
        self.pieces.push(Piece::new(bytes, then));
        self.known.insert(bytes.into(), index);
        Some(index)
    }
}
