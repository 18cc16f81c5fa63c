//! `csv`: values between delimiters, named by their place.

use std::collections::BTreeMap;
use std::sync::Arc;

use memchr::memchr;
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{CodecConfig, Problem};
use tocsin_pipeline::codec::{Codec, DecodeError};
use vrl::value::KeyString;

use super::kind::Kind;
use super::{Fields, Scan, Scanned, malformed};

/// Reads values between delimiters, quoted where they hold one (RFC 4180), and names them by their place.
///
/// With `columns = ["sensor", "place", "celsius"]` and `types = { celsius = "float" }`, the record
///
/// ```text
/// t7,"hall 3, ""north""",21.5
/// ```
///
/// becomes
///
/// ```json
/// {"sensor": "t7", "place": "hall 3, \"north\"", "celsius": 21.5}
/// ```
///
/// Records are cut at line ends before they are read, so quoted values cannot hold line ends. A header line is a record
/// like others: its names do not fit `types`, or a `filter` takes it out.
///
/// **Event time:** the arrival, unless the source's `timestamp` names a column.
///
/// ```toml
/// [sources.sensors]
/// type = "file"
/// paths = ["/var/lib/sensors/*.csv"]
/// codec = { type = "csv", columns = ["time", "sensor", "celsius"], types = { celsius = "float" } }
/// timestamp = { field = ".time" }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The names of the columns, from the left. An empty name leaves a column out.
    columns: Vec<String>,
    /// What the values of columns are read as: `"text"`, `"integer"`, `"float"` or `"boolean"`. Default: text. An empty value
    /// of a type other than text is missing; one that is not of its type makes the record unreadable.
    #[serde(default)]
    types: BTreeMap<String, Kind>,
    /// What stands between values: one ASCII character, such as `";"` or `"\t"`.
    #[serde(default = "comma")]
    delimiter: String,
    /// What stands around values that hold a delimiter: one ASCII character, doubled within. Empty: nothing quotes.
    #[serde(default = "double_quote")]
    quote: String,
    /// Whether spaces and tabs around values are left out.
    #[serde(default)]
    trim: bool,
    /// Whether records may have fewer values than columns (the rest is missing), or more (those are left out). Otherwise
    /// such records are unreadable.
    #[serde(default)]
    flexible: bool,
}

fn comma() -> String {
    ",".to_owned()
}

fn double_quote() -> String {
    "\"".to_owned()
}

impl CodecConfig for Config {
    const NAME: &'static str = "csv";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.columns.is_empty() {
            problems
                .push(Problem::new("columns", "a record has at least one column").help("name the columns in order"));
        }
        for (at, name) in self.columns.iter().enumerate() {
            if !name.is_empty() && self.columns[..at].contains(name) {
                problems.push(Problem::new(format!("columns.{at}"), format!("{name:?} names a column before")));
            }
        }
        for name in self.types.keys() {
            if !self.columns.contains(name) {
                problems.push(
                    Problem::new(format!("types.{name}"), format!("there is no column {name:?}"))
                        .help(format!("the columns are {:?}", self.columns)),
                );
            }
        }
        let is_one = |text: &str| text.len() == 1 && text.is_ascii() && !matches!(text, "\n" | "\r");
        if !is_one(&self.delimiter) {
            problems.push(
                Problem::new("delimiter", format!("{:?} is not one ASCII character", self.delimiter))
                    .help("write one such as \",\", \";\" or \"\\t\""),
            );
        }
        if !self.quote.is_empty() && !is_one(&self.quote) {
            problems.push(
                Problem::new("quote", format!("{:?} is not one ASCII character", self.quote))
                    .help("write one such as \"'\", or \"\" if nothing quotes"),
            );
        }
        if self.quote == self.delimiter {
            problems.push(Problem::new("quote", "quote and delimiter are the same character"));
        }
        problems
    }

    fn build(&self) -> Arc<dyn Codec> {
        let scan = Csv {
            columns: self.columns.iter().map(|name| self.types.get(name).copied().unwrap_or_default()).collect(),
            names: self.columns.iter().map(|name| name.as_str().into()).collect(),
            delimiter: self.delimiter.as_bytes().first().copied().unwrap_or(b','),
            quote: self.quote.as_bytes().first().copied(),
            trim: self.trim,
            flexible: self.flexible,
        };
        Arc::new(Scanned::new(scan, self.columns.iter().map(String::as_str)))
    }
}

#[derive(Debug)]
struct Csv {
    columns: Vec<Kind>,
    /// Empty where a column is left out.
    names: Vec<KeyString>,
    delimiter: u8,
    quote: Option<u8>,
    trim: bool,
    flexible: bool,
}

impl Scan for Csv {
    const NAME: &'static str = "csv";
    /// A value whose doubled quotes have been made single.
    type Scratch = Vec<u8>;

    fn scratch(&self) -> Vec<u8> {
        Vec::new()
    }

    fn scan(&self, record: &[u8], unquoted: &mut Vec<u8>, fields: &mut impl Fields) -> Result<(), DecodeError> {
        let mut at = 0;
        let mut column = 0;
        loop {
            let value = self.value(record, at, unquoted)?;
            if let Some(kind) = self.columns.get(column) {
                let text = &record[value.start..value.start + value.len];
                let owned = value.is_owned.then_some(&unquoted[..]);
                let is_missing = *kind != Kind::Text && owned.unwrap_or(text).is_empty();
                if !self.names[column].is_empty() && !is_missing {
                    kind.put(column, &self.names[column], (value.start, text), owned, fields)?;
                }
            } else if !self.flexible {
                return Err(malformed(&format!("more than {} values", self.columns.len()), value.start));
            }
            column += 1;
            if value.next > record.len() {
                break;
            }
            at = value.next;
        }
        if column < self.columns.len() && !self.flexible {
            let message = format!("{column} values, but {} columns", self.columns.len());
            return Err(DecodeError::new("malformed", message));
        }
        Ok(())
    }

    /// Doubled quotes are an escape without a backslash.
    fn keeps_text(&self) -> bool {
        self.quote.is_none()
    }
}

/// Where a value stands.
struct Place {
    start: usize,
    len: usize,
    /// Whether it was unquoted into the scratch because it does not stand in the record as it is.
    is_owned: bool,
    /// Where the next one starts; past the end if this was the last.
    next: usize,
}

impl Csv {
    fn value(&self, record: &[u8], from: usize, unquoted: &mut Vec<u8>) -> Result<Place, DecodeError> {
        let mut start = from;
        if self.trim {
            start += blanks(record[from..].iter(), self.delimiter);
        }
        if let Some(quote) = self.quote.filter(|quote| record.get(start) == Some(quote)) {
            return self.quoted(record, start + 1, quote, unquoted);
        }
        let end = memchr(self.delimiter, &record[start..]).map_or(record.len(), |len| start + len);
        let len = end - start - if self.trim { blanks(record[start..end].iter().rev(), self.delimiter) } else { 0 };
        Ok(Place { start, len, is_owned: false, next: end + 1 })
    }

    /// A quoted value whose content begins at `start`.
    fn quoted(&self, record: &[u8], start: usize, quote: u8, unquoted: &mut Vec<u8>) -> Result<Place, DecodeError> {
        let mut end = start + self.closing(record, start, quote)?;
        let mut is_owned = false;
        unquoted.clear();
        let mut from = start;
        while record.get(end + 1) == Some(&quote) {
            is_owned = true;
            unquoted.extend_from_slice(&record[from..=end]);
            from = end + 2;
            end = from + self.closing(record, from, quote)?;
        }
        if is_owned {
            unquoted.extend_from_slice(&record[from..end]);
        }
        let mut next = end + 1;
        if self.trim {
            next += blanks(record[next..].iter(), self.delimiter);
        }
        match record.get(next) {
            Some(byte) if *byte != self.delimiter => Err(malformed("text after a closing quote", next)),
            _ => Ok(Place { start, len: end - start, is_owned, next: next + 1 }),
        }
    }

    fn closing(&self, record: &[u8], from: usize, quote: u8) -> Result<usize, DecodeError> {
        memchr(quote, &record[from..]).ok_or_else(|| malformed("a quote is not closed", record.len()))
    }
}

/// How many spaces and tabs come first.
fn blanks<'a>(bytes: impl Iterator<Item = &'a u8>, delimiter: u8) -> usize {
    bytes.take_while(|byte| matches!(byte, b' ' | b'\t') && **byte != delimiter).count()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::agreement::check_events;
    use super::*;

    fn config(options: &str) -> Config {
        toml::from_str(options).unwrap()
    }

    fn check(options: &str, records: &[&str], expected: Expect) {
        check_events::<Config>(options, records, expected);
    }

    #[test]
    fn values_are_named_by_their_place() {
        check(
            "columns = ['sensor', 'place', 'celsius']\ntypes = { celsius = 'float' }",
            &[
                r#"t7,"hall 3, ""north""",21.5"#,
                r#"t7,"",-1e3"#,
                "t7,a b,",
                "t7,,x",
                "t7,a",
                "t7,a,1,2",
                r#"t7,"a,1"#,
                r#"t7,"a"b,1"#,
                "",
            ],
            expect![[r#"
                { "celsius": 21.5, "place": "hall 3, \"north\"", "sensor": "t7" }
                { "celsius": -1000, "place": "", "sensor": "t7" }
                { "place": "a b", "sensor": "t7" }
                wrong_type: celsius is not a number: "x"
                malformed: 2 values, but 3 columns
                malformed: more than 3 values at byte 8
                malformed: a quote is not closed at byte 8
                malformed: text after a closing quote at byte 7
                malformed: 1 values, but 3 columns"#]],
        );
    }

    #[test]
    fn options_change_what_is_read() {
        check(
            "columns = ['a', '', 'b']\ntypes = { b = 'boolean' }\ndelimiter = \"\\t\"\nquote = \"'\"\ntrim = true\nflexible = true",
            &["1\t2\tyes", " 'x y' \t2\t off ", " x \t", "", "'it''s'\t\t\t\t", "\"q\"\t\tmaybe"],
            expect![[r#"
                { "a": "1", "b": true }
                { "a": "x y", "b": false }
                { "a": "x" }
                { "a": "" }
                { "a": "it's" }
                wrong_type: b is not a boolean: "maybe""#]],
        );
        check(
            "columns = ['a']\nquote = ''",
            &["\"x", "a,b"],
            expect![[r#"
            { "a": "\"x" }
            malformed: more than 1 values at byte 3"#]],
        );
    }

    #[test]
    fn problems_name_their_option() {
        let problems =
            config("columns = ['a', 'a']\ntypes = { c = 'integer' }\ndelimiter = '::'\nquote = 'xy'").problems();
        let shown: Vec<_> = problems.iter().map(|problem| format!("{}: {}", problem.option, problem.message)).collect();
        expect![[r#"
            columns.1: "a" names a column before
            types.c: there is no column "c"
            delimiter: "::" is not one ASCII character
            quote: "xy" is not one ASCII character"#]]
        .assert_eq(&shown.join("\n"));
        assert_eq!(config("columns = []\nquote = ','").problems().len(), 2);
    }
}
