//! The configuration as a tree of values that know where they are written. Offsets count over all files, one after the
//! other, so that a value moved from one file's table into another's keeps its place.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

use crate::substitute::{Piece, written};
use crate::text::Literal;

/// A piece of the text of all files.
pub(crate) type Place = Range<usize>;

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) place: Place,
}

#[derive(Clone, Debug)]
pub(crate) struct Node<'a> {
    /// Of a table with a header that is the header.
    pub(crate) place: Place,
    pub(crate) value: Value<'a>,
}

#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Text {
        text: String,
        /// Where it is not as written.
        pieces: Vec<Piece>,
    },
    /// Numbers, booleans, dates.
    Scalar(DeValue<'a>),
    List(Vec<Node<'a>>),
    Table(Table<'a>),
}

/// In the order of the file.
pub(crate) type Table<'a> = Vec<(Key, Node<'a>)>;

impl<'a> Node<'a> {
    /// `base` is the offset of the file in the text of all files.
    pub(crate) fn from_toml(value: Spanned<DeValue<'a>>, base: usize) -> Self {
        let place = value.span().start + base..value.span().end + base;
        let value = match value.into_inner() {
            DeValue::String(text) => Value::Text { text: text.into_owned(), pieces: Vec::new() },
            DeValue::Array(values) => {
                Value::List(values.into_iter().map(|value| Self::from_toml(value, base)).collect())
            }
            DeValue::Table(table) => Value::Table(table_from_toml(table, base)),
            scalar => Value::Scalar(scalar),
        };
        Self { place, value }
    }

    pub(crate) fn text(text: &str, place: Place) -> Self {
        Self { place, value: Value::Text { text: text.to_owned(), pieces: Vec::new() } }
    }

    pub(crate) fn table(place: Place) -> Self {
        Self { place, value: Value::Table(Table::new()) }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text { text, .. } => Some(text),
            _ => None,
        }
    }

    pub(crate) fn as_table(&self) -> Option<&Table<'a>> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub(crate) fn as_table_mut(&mut self) -> Option<&mut Table<'a>> {
        match &mut self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        self.as_table()?.iter().find(|(key, _)| key.name == name).map(|(_, value)| value)
    }

    /// The same with all of it at one offset, where nothing of it is written.
    pub(crate) fn moved(self, to: usize) -> Self {
        let value = match self.value {
            Value::List(values) => Value::List(values.into_iter().map(|value| value.moved(to)).collect()),
            Value::Table(table) => Value::Table(
                table.into_iter().map(|(key, value)| (Key { place: to..to, ..key }, value.moved(to))).collect(),
            ),
            value => value,
        };
        Self { place: to..to, value }
    }

    /// Takes an entry out of a table.
    pub(crate) fn take(&mut self, name: &str) -> Option<(Key, Self)> {
        let table = self.as_table_mut()?;
        let at = table.iter().position(|(key, _)| key.name == name)?;
        Some(table.remove(at))
    }

    /// What kind of value it is, for a person.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Text { .. } => "text",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Scalar(DeValue::Boolean(_)) => "true or false",
            Value::Scalar(DeValue::Datetime(_)) => "a date",
            Value::Scalar(_) => "a number",
        }
    }

    /// Whether something within it stands at `place`. Tables made of dotted keys and of headers are not in one piece.
    pub(crate) fn covers(&self, place: &Place) -> bool {
        let holds = |outer: &Place| outer.start <= place.start && place.end <= outer.end;
        holds(&self.place)
            || match &self.value {
                Value::List(values) => values.iter().any(|value| value.covers(place)),
                Value::Table(table) => table.iter().any(|(key, value)| holds(&key.place) || value.covers(place)),
                Value::Text { .. } | Value::Scalar(_) => false,
            }
    }

    /// The value behind a dotted path (`aggregates.p99`, `steps.0.condition`), or the nearest one above it. Keys may have
    /// dots themselves. Of a key of a table, its value; `None` if not even the first part exists.
    pub(crate) fn find(&self, path: &str) -> Option<&Self> {
        match &self.value {
            Value::Table(table) => {
                // The longest key first: `"a.b"` before `a`.
                let mut ends: Vec<usize> = path.match_indices(['.', '[']).map(|(at, _)| at).collect();
                ends.push(path.len());
                ends.iter().rev().find_map(|end| {
                    let name = &path[..*end];
                    let value = table.iter().find(|(key, _)| key.name == name).map(|(_, value)| value)?;
                    let rest = path[*end..].trim_start_matches('.');
                    Some(if rest.is_empty() { value } else { value.find(rest).unwrap_or(value) })
                })
            }
            Value::List(values) => {
                let path = path.trim_start_matches('[');
                let digits = path.find(|other: char| !other.is_ascii_digit()).unwrap_or(path.len());
                let value = values.get(path[..digits].parse::<usize>().ok()?)?;
                let rest = path[digits..].trim_start_matches(']').trim_start_matches('.');
                Some(if rest.is_empty() { value } else { value.find(rest).unwrap_or(value) })
            }
            Value::Text { .. } | Value::Scalar(_) => None,
        }
    }

    /// Where a piece of a text stands. `all` is the text of all files.
    pub(crate) fn place_within(&self, within: &Range<usize>, all: &str) -> Place {
        let Value::Text { text, pieces } = &self.value else { return self.place.clone() };
        let Some(literal) = all.get(self.place.clone()) else { return self.place.clone() };
        let within = within.start.min(text.len())..within.end.min(text.len());
        // The content as written is what the literal stands for; it is the content as used where nothing was replaced.
        let (content, within) = if pieces.is_empty() {
            (Cow::Borrowed(text.as_str()), within)
        } else {
            match DeValue::parse(literal).map(Spanned::into_inner) {
                Ok(DeValue::String(content)) => (Cow::Owned(content.into_owned()), written(pieces, &within)),
                _ => (Cow::Borrowed(literal), written(pieces, &within)),
            }
        };
        match Literal::read(literal, &content) {
            Some(map) => {
                let place = map.map(&within);
                self.place.start + place.start..self.place.start + place.end
            }
            None => self.place.clone(),
        }
    }

    pub(crate) fn to_toml(&self) -> Spanned<DeValue<'a>> {
        let value = match &self.value {
            Value::Text { text, .. } => DeValue::String(Cow::Owned(text.clone())),
            Value::Scalar(scalar) => scalar.clone(),
            Value::List(values) => DeValue::Array(values.iter().map(Self::to_toml).collect::<DeArray<'_>>()),
            Value::Table(table) => DeValue::Table(
                table
                    .iter()
                    .map(|(key, value)| {
                        (Spanned::new(key.place.clone(), Cow::Owned(key.name.clone())), value.to_toml())
                    })
                    .collect::<DeTable<'_>>(),
            ),
        };
        Spanned::new(self.place.clone(), value)
    }

    /// The value as JSON: what is written, wherever it is written and in whatever order.
    pub(crate) fn to_json(&self) -> Json {
        match &self.value {
            Value::Text { text, .. } => Json::String(text.clone()),
            Value::Scalar(DeValue::Boolean(value)) => Json::Bool(*value),
            // Whole numbers are the same in whichever base they are written; the rest by its digits.
            Value::Scalar(DeValue::Integer(number)) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Json::from(number.as_str()), Json::from),
            Value::Scalar(DeValue::Float(number)) => {
                number.as_str().parse::<f64>().map_or_else(|_| Json::from(number.as_str()), Json::from)
            }
            Value::Scalar(DeValue::Datetime(time)) => Json::String(time.to_string()),
            Value::Scalar(DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_)) => Json::Null,
            Value::List(values) => values.iter().map(Self::to_json).collect(),
            Value::Table(table) => table.iter().map(|(key, value)| (key.name.clone(), value.to_json())).collect(),
        }
    }

    pub(crate) fn deserializer(&self) -> ValueDeserializer<'a> {
        ValueDeserializer::from(self.to_toml())
    }
}

pub(crate) fn table_from_toml<'a>(table: DeTable<'a>, base: usize) -> Table<'a> {
    let mut entries: Table<'a> = table
        .into_iter()
        .map(|(key, value)| {
            let place = key.span().start + base..key.span().end + base;
            (Key { name: key.into_inner().into_owned(), place }, Node::from_toml(value, base))
        })
        .collect();
    entries.sort_by_key(|(key, _)| key.place.start);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        let table = DeTable::parse(text).unwrap().into_inner();
        Node { place: 0..0, value: Value::Table(table_from_toml(table, 0)) }.to_json()
    }

    #[test]
    fn the_same_values_are_the_same_json_however_they_are_written() {
        let one = json("a = 255\nb = [1.5, true]\n[c]\nd = \"x\"\ne = 2026-11-20");
        let other = json("c = { e = 2026-11-20, d = 'x' }\nb = [ 15e-1,\ntrue ]\na = 0xff");
        assert_eq!(one, other);
        assert_eq!(one.to_string(), r#"{"a":255,"b":[1.5,true],"c":{"d":"x","e":"2026-11-20"}}"#);
        assert_ne!(json("a = 1"), json("a = \"1\""));
    }
}
