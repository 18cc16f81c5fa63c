//! Conditions of the common shapes, evaluated without VRL and with exactly its meaning.
//!
//! A condition is a tree of tests of fields against literals. VRL's logic has more than two values: a test can fail (which
//! makes the whole condition false, unless `??` or a short circuit keeps it from mattering), and `||` hands on whatever its
//! left side is. [`Outcome`] holds just as much of that as can be told apart from outside.

use std::cmp::Ordering;

use memchr::memmem::Finder;
use regex::Regex;
use vrl::value::Value;

use crate::codec::{FieldPath, Projection};
use crate::event::{Batch, Field};

/// What an expression comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    True,
    False,
    Null,
    /// A value that is neither a boolean nor null.
    Other,
    Failed,
}

impl From<bool> for Outcome {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

#[derive(Debug)]
pub(super) struct Native {
    pub root: Node,
    /// The fields it reads; nodes name them by their place here.
    pub paths: Vec<FieldPath>,
}

#[derive(Debug)]
pub(super) enum Node {
    Constant(Outcome),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    /// The second where the first fails: `??`.
    Otherwise(Box<[Node; 2]>),
    Not(Box<Node>),
    /// A field by itself.
    Truth(usize),
    Exists(usize),
    Is(usize, Kind),
    Compare(usize, Comparison, Literal),
    Text(usize, TextTest),
    /// Whether the array in a field holds a literal.
    Includes(usize, Literal),
    /// Whether a field is among literals.
    OneOf(usize, Vec<Literal>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Float,
    Boolean,
    Null,
    Timestamp,
    Array,
    Object,
    Empty,
    Nullish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Null,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(Vec<u8>),
}

#[derive(Debug)]
pub(super) enum TextTest {
    Contains(Box<Finder<'static>>),
    ContainsIgnoringCase(String),
    StartsWith(Vec<u8>),
    StartsWithIgnoringCase(String),
    EndsWith(Vec<u8>),
    EndsWithIgnoringCase(String),
    Matches(Box<Regex>),
}

impl Native {
    pub fn reads(&self) -> Projection {
        Projection::new(self.paths.iter().cloned())
    }

    pub fn eval(&self, batch: &Batch, row: u32) -> Outcome {
        self.node(&self.root, batch, row)
    }

    fn node(&self, node: &Node, batch: &Batch, row: u32) -> Outcome {
        use Outcome::{Failed, False, Null, Other, True};
        let field = |path: &usize| batch.field(row, &self.paths[*path]);
        match node {
            Node::Constant(outcome) => *outcome,
            Node::And(sides) => match self.node(&sides[0], batch, row) {
                Failed => Failed,
                Null | False => False,
                left => match (left, self.node(&sides[1], batch, row)) {
                    (_, Failed) | (Other, _) | (_, Other) => Failed,
                    (_, right) => (right == True).into(),
                },
            },
            Node::Or(sides) => match self.node(&sides[0], batch, row) {
                Null | False => self.node(&sides[1], batch, row),
                left => left,
            },
            Node::Otherwise(sides) => match self.node(&sides[0], batch, row) {
                Failed => self.node(&sides[1], batch, row),
                left => left,
            },
            Node::Not(inner) => match self.node(inner, batch, row) {
                True => False,
                False => True,
                _ => Failed,
            },
            Node::Truth(path) => match field(path) {
                Field::Missing | Field::Null => Null,
                Field::Bool(value) => value.into(),
                _ => Other,
            },
            Node::Exists(path) => (!matches!(field(path), Field::Missing)).into(),
            Node::Is(path, kind) => kind.is(field(path)),
            Node::Compare(path, comparison, literal) => comparison.test(field(path), literal),
            Node::Text(path, test) => match field(path) {
                Field::Text(text) => test.test(text),
                _ => Failed,
            },
            Node::Includes(path, item) => match field(path) {
                Field::Json(json) if json.first() == Some(&b'[') => match crate::json::parse_value(json) {
                    Ok(Value::Array(array)) => item.is_among(&array).into(),
                    _ => Failed,
                },
                Field::Value(Value::Array(array)) => item.is_among(array).into(),
                _ => Failed,
            },
            Node::OneOf(path, list) => {
                let field = field(path);
                list.iter().any(|literal| literal.is(field)).into()
            }
        }
    }
}

impl Kind {
    fn is(self, field: Field<'_>) -> Outcome {
        let is = match self {
            Self::Text => matches!(field, Field::Text(_)),
            Self::Integer => matches!(field, Field::Integer(_)),
            Self::Float => matches!(field, Field::Float(_)),
            Self::Boolean => matches!(field, Field::Bool(_)),
            Self::Null => matches!(field, Field::Null | Field::Missing),
            Self::Timestamp => matches!(field, Field::Time(_)),
            Self::Array => match field {
                Field::Json(json) => json.first() == Some(&b'['),
                Field::Value(value) => value.is_array(),
                _ => false,
            },
            Self::Object => match field {
                Field::Json(json) => json.first() == Some(&b'{'),
                Field::Value(value) => value.is_object(),
                _ => false,
            },
            Self::Empty => match field {
                Field::Text(text) => text.is_empty(),
                Field::Json(json) => json[1..json.len() - 1].iter().all(u8::is_ascii_whitespace),
                Field::Value(Value::Array(array)) => array.is_empty(),
                Field::Value(Value::Object(object)) => object.is_empty(),
                _ => return Outcome::Failed,
            },
            Self::Nullish => match field {
                Field::Missing | Field::Null => true,
                Field::Text(text) => {
                    let text = String::from_utf8_lossy(text);
                    text == "-" || text.chars().all(char::is_whitespace)
                }
                _ => false,
            },
        };
        is.into()
    }
}

impl Comparison {
    fn test(self, field: Field<'_>, literal: &Literal) -> Outcome {
        let order = match self {
            Self::Equal => return literal.is_lossily(field).into(),
            Self::NotEqual => return (!literal.is_lossily(field)).into(),
            _ => literal.order(field),
        };
        let Some(order) = order else { return Outcome::Failed };
        let holds = match self {
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            _ => order.is_ge(),
        };
        holds.into()
    }

    /// The comparison that is true where this one is false, both of them compared with what has an order.
    pub fn negated(self) -> Self {
        match self {
            Self::Equal => Self::NotEqual,
            Self::NotEqual => Self::Equal,
            Self::Less => Self::GreaterOrEqual,
            Self::LessOrEqual => Self::Greater,
            Self::Greater => Self::LessOrEqual,
            Self::GreaterOrEqual => Self::Less,
        }
    }

    /// The comparison with its sides exchanged.
    pub fn reversed(self) -> Self {
        match self {
            Self::Equal | Self::NotEqual => self,
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
        }
    }
}

impl Literal {
    /// Equality as `==` has it: any two numbers are compared as doubles.
    fn is_lossily(&self, field: Field<'_>) -> bool {
        match (self.as_f64(), field.as_f64()) {
            (Some(literal), Some(field)) => literal == field,
            _ => self.is(field),
        }
    }

    /// Equality as functions have it: an integer is no float.
    fn is(&self, field: Field<'_>) -> bool {
        match (self, field) {
            (Self::Null, Field::Null | Field::Missing) => true,
            (Self::Boolean(literal), Field::Bool(field)) => *literal == field,
            (Self::Integer(literal), Field::Integer(field)) => *literal == field,
            (Self::Float(literal), Field::Float(field)) => *literal == field,
            (Self::Text(literal), Field::Text(field)) => literal == field,
            _ => false,
        }
    }

    fn is_among(&self, array: &[Value]) -> bool {
        array.iter().any(|value| self.is(Field::of_value(value)))
    }

    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Integer(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// How the field is ordered against the literal; `None` where VRL has no order for the two.
    fn order(&self, field: Field<'_>) -> Option<Ordering> {
        match (field, self) {
            (Field::Integer(field), Self::Integer(literal)) => Some(field.cmp(literal)),
            (Field::Text(field), Self::Text(literal)) => Some(field.cmp(literal)),
            (field, literal) => field.as_f64()?.partial_cmp(&literal.as_f64()?),
        }
    }
}

/// U+FFFD, which VRL puts in the place of what is not UTF-8 before it looks for text.
const REPLACEMENT: &str = "\u{fffd}";

impl TextTest {
    pub fn contains(needle: &str, is_case_sensitive: bool) -> Self {
        match is_case_sensitive {
            true => Self::Contains(Box::new(Finder::new(needle.as_bytes()).into_owned())),
            false => Self::ContainsIgnoringCase(needle.to_lowercase()),
        }
    }

    pub fn starts_with(needle: &str, is_case_sensitive: bool) -> Self {
        match is_case_sensitive {
            true => Self::StartsWith(needle.into()),
            false => Self::StartsWithIgnoringCase(needle.into()),
        }
    }

    pub fn ends_with(needle: &str, is_case_sensitive: bool) -> Self {
        match is_case_sensitive {
            true => Self::EndsWith(needle.into()),
            false => Self::EndsWithIgnoringCase(needle.to_lowercase()),
        }
    }

    fn test(&self, text: &[u8]) -> Outcome {
        let holds = match self {
            // Where text is not UTF-8, looking for a needle in the raw bytes is the same as looking for it between the
            // replacements, as long as the needle has none itself: a needle begins with no continuation byte.
            Self::Contains(finder) if has_replacement(finder.needle()) => {
                finder.find(String::from_utf8_lossy(text).as_bytes()).is_some()
            }
            Self::Contains(finder) => finder.find(text).is_some(),
            Self::ContainsIgnoringCase(needle) if text.is_ascii() => contains_ignoring_ascii_case(text, needle),
            Self::ContainsIgnoringCase(needle) => {
                String::from_utf8_lossy(text).to_lowercase().contains(needle.as_str())
            }
            Self::StartsWith(needle) => text.starts_with(needle),
            Self::StartsWithIgnoringCase(needle) => starts_with_ignoring_case(text, needle),
            Self::EndsWith(needle) if has_replacement(needle) => {
                String::from_utf8_lossy(text).as_bytes().ends_with(needle)
            }
            Self::EndsWith(needle) => text.ends_with(needle),
            Self::EndsWithIgnoringCase(needle) => {
                String::from_utf8_lossy(text).to_lowercase().ends_with(needle.as_str())
            }
            Self::Matches(regex) => regex.is_match(&String::from_utf8_lossy(text)),
        };
        holds.into()
    }
}

pub(super) fn has_replacement(text: &[u8]) -> bool {
    memchr::memmem::find(text, REPLACEMENT.as_bytes()).is_some()
}

/// Whether ASCII text holds a needle that is in lower case already.
fn contains_ignoring_ascii_case(text: &[u8], needle: &str) -> bool {
    let needle = needle.as_bytes();
    let Some(first) = needle.first() else { return true };
    let Some(last_start) = text.len().checked_sub(needle.len()) else { return false };
    memchr::memchr2_iter(*first, first.to_ascii_uppercase(), &text[..=last_start])
        .any(|start| text[start..start + needle.len()].eq_ignore_ascii_case(needle))
}

/// As VRL compares prefixes: character by character, as long as both have one. VRL itself breaks on text that is not UTF-8;
/// here U+FFFD stands in the place of what is wrong, as it does for the other functions.
pub(super) fn starts_with_ignoring_case(text: &[u8], needle: &str) -> bool {
    text.len() >= needle.len()
        && String::from_utf8_lossy(&text[..text.len().min(needle.len() * LONGEST_CHAR)])
            .chars()
            .zip(needle.chars())
            .all(|(char, wanted)| wanted.to_lowercase().zip(char.to_lowercase()).all(|(wanted, char)| wanted == char))
}

/// How many bytes a character has at most: one of the needle is compared with no more of the text.
const LONGEST_CHAR: usize = 4;
