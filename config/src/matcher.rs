//! Which alerts something is about: conditions on labels, written and read as in Alertmanager.

use std::fmt;
use std::ops::Range;

use regex::bytes::Regex;

use super::pattern;

/// No text of matchers is longer, and no text has more of them.
const TEXT_MAX: usize = 64 << 10;
const MATCHERS_MAX: usize = 256;

/// How the value of a label stands to the text of a matcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Relation {
    Equal,
    NotEqual,
    /// The pattern matches the whole value.
    Matches,
    MatchesNot,
}

impl Relation {
    /// Those of two characters first, so that none is taken for another that begins like it.
    const SPELLINGS: [(&'static str, Self); 4] =
        [("=~", Self::Matches), ("!=", Self::NotEqual), ("!~", Self::MatchesNot), ("=", Self::Equal)];

    pub fn as_str(self) -> &'static str {
        Self::SPELLINGS.iter().find(|(_, relation)| *relation == self).map_or("", |(text, _)| text)
    }
}

/// A condition on one label. A label that an alert does not have counts as empty.
#[derive(Clone, Debug)]
pub struct Matcher {
    pub name: String,
    pub relation: Relation,
    pub value: String,
    /// Of the relations that need one.
    pattern: Option<Regex>,
}

impl Matcher {
    /// The error says what is wrong with the value as a pattern.
    pub fn new(name: String, relation: Relation, value: String) -> Result<Self, String> {
        let pattern = match relation {
            Relation::Equal | Relation::NotEqual => None,
            Relation::Matches | Relation::MatchesNot => Some(pattern::compile(&value)?),
        };
        Ok(Self { name, relation, value, pattern })
    }

    /// Whether it is true of a label of this value.
    pub(crate) fn is_true_of(&self, value: &str) -> bool {
        match (&self.pattern, self.relation) {
            (Some(pattern), Relation::Matches) => pattern.is_match(value.as_bytes()),
            (Some(pattern), _) => !pattern.is_match(value.as_bytes()),
            (None, Relation::NotEqual) => value != self.value,
            (None, _) => value == self.value,
        }
    }

    fn parts(&self) -> (&str, &str, Relation) {
        (&self.name, &self.value, self.relation)
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Matcher {}

/// Written so that it can be read again. Names that are no plain words are quoted, as Alertmanager does.
impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() || self.name.contains(is_reserved) {
            return write!(f, "{}{}{}", quoted(&self.name), self.relation.as_str(), quoted(&self.value));
        }
        let value = self.value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
        write!(f, "{}{}\"{value}\"", self.name, self.relation.as_str())
    }
}

/// Conditions that must all be true. None at all are true of every alert.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matchers(pub Vec<Matcher>);

/// What is wrong with a text of matchers, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatcherError {
    pub within: Range<usize>,
    pub message: String,
}

impl MatcherError {
    fn new(within: Range<usize>, message: impl Into<String>) -> Self {
        Self { within, message: message.into() }
    }
}

impl Matchers {
    /// Reads `severity="critical"`, `{a=b, "c d"=~"e.*"}`, or nothing. Alertmanager has two grammars, an old one and
    /// one that knows UTF-8 names, and reads a text that is right in both by the old one.
    pub fn parse(text: &str) -> Result<Self, MatcherError> {
        if text.len() > TEXT_MAX {
            return Err(MatcherError::new(0..text.len(), format!("matchers are at most {TEXT_MAX} bytes long")));
        }
        let matchers = match (parse(text), parse_classic(text)) {
            (Ok(matchers), None) => matchers,
            (Err(error), None) => return Err(error),
            (_, Some(matchers)) => matchers,
        };
        if matchers.len() > MATCHERS_MAX {
            return Err(MatcherError::new(0..text.len(), format!("there are more than {MATCHERS_MAX} matchers")));
        }
        Ok(Self(matchers))
    }

    /// Those of a list of texts together. Only called with texts that can be read.
    pub fn all(texts: &[String]) -> Self {
        Self(texts.iter().flat_map(|text| Self::parse(text).expect("checked").0).collect())
    }

    /// Puts them into the order in which Alertmanager writes those of a route.
    pub fn sort(&mut self) {
        self.0.sort_by(|one, other| one.parts().cmp(&other.parts()));
    }

    /// Whether they are true of an alert with these labels.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|matcher| matcher.is_true_of(label(&matcher.name).unwrap_or_default()))
    }
}

impl fmt::Display for Matchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, matcher) in self.0.iter().enumerate() {
            write!(f, "{}{matcher}", if at == 0 { "" } else { "," })?;
        }
        f.write_str("}")
    }
}

/// What cannot be part of a word without quotes.
fn is_reserved(letter: char) -> bool {
    letter.is_whitespace() || "{}!=~,\\\"'`".contains(letter)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Open,
    Close,
    Comma,
    Relation(Relation),
    Quoted,
    Word,
}

struct Token {
    kind: Kind,
    within: Range<usize>,
}

fn tokens(text: &str) -> Result<Vec<Token>, MatcherError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(letter) = text[at..].chars().next() {
        let rest = &text[at..];
        let (kind, length) = match letter {
            '{' => (Kind::Open, 1),
            '}' => (Kind::Close, 1),
            ',' => (Kind::Comma, 1),
            '=' | '!' => match Relation::SPELLINGS.iter().find(|(spelling, _)| rest.starts_with(spelling)) {
                Some((spelling, relation)) => (Kind::Relation(*relation), spelling.len()),
                None => return Err(MatcherError::new(at..at + 1, "`!` is to be followed by `=` or `~`")),
            },
            '"' => (Kind::Quoted, quoted_length(rest, at)?),
            letter if letter.is_whitespace() => {
                at += letter.len_utf8();
                continue;
            }
            letter if is_reserved(letter) => {
                let message = format!("`{letter}` must stand in double quotes");
                return Err(MatcherError::new(at..at + letter.len_utf8(), message));
            }
            _ => (Kind::Word, rest.find(is_reserved).unwrap_or(rest.len())),
        };
        tokens.push(Token { kind, within: at..at + length });
        at += length;
    }
    Ok(tokens)
}

/// The length of the quoted text that `rest` begins with, quotes included. It stands `at` there.
fn quoted_length(rest: &str, at: usize) -> Result<usize, MatcherError> {
    let mut is_escaped = false;
    for (place, letter) in rest.char_indices().skip(1) {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return Ok(place + 1),
            _ => {}
        }
    }
    Err(MatcherError::new(at..at + rest.len(), "the closing quote is missing"))
}

/// The grammar that knows UTF-8 names.
pub fn parse(text: &str) -> Result<Vec<Matcher>, MatcherError> {
    let tokens = tokens(text)?;
    let mut rest = tokens.iter().peekable();
    let end = text.len()..text.len();
    let mut matchers = Vec::new();
    let has_brace = rest.next_if(|token| token.kind == Kind::Open).is_some();
    while rest.peek().is_some_and(|token| token.kind != Kind::Close) {
        let mut take = |is_right: fn(Kind) -> bool, expected: &str| match rest.next() {
            Some(token) if is_right(token.kind) => Ok(token),
            Some(token) => {
                let found = &text[token.within.clone()];
                Err(MatcherError::new(token.within.clone(), format!("expected {expected}, and this is `{found}`")))
            }
            None => Err(MatcherError::new(end.clone(), format!("expected {expected}, and this is the end"))),
        };
        let name = take(|kind| matches!(kind, Kind::Word | Kind::Quoted), "the name of a label")?;
        let relation =
            take(|kind| matches!(kind, Kind::Relation(_)), "one of `=`, `!=`, `=~` and `!~` after a label's name")?;
        let value = take(|kind| matches!(kind, Kind::Word | Kind::Quoted), "a value")?;
        let Kind::Relation(relation) = relation.kind else { unreachable!("it was taken as one") };
        let matcher = Matcher::new(content(text, name)?, relation, content(text, value)?);
        matchers.push(matcher.map_err(|message| MatcherError::new(value.within.clone(), message))?);
        if rest.next_if(|token| token.kind == Kind::Comma).is_none() {
            break;
        }
    }
    match (has_brace, rest.next()) {
        (true, Some(token)) if token.kind == Kind::Close => {}
        (false, None) => return Ok(matchers),
        (true, None) => return Err(MatcherError::new(end, "the closing brace is missing")),
        (false, Some(token)) if token.kind == Kind::Close => {
            return Err(MatcherError::new(token.within.clone(), "there is no opening brace"));
        }
        (_, Some(token)) => {
            let expected = if has_brace { "expected a comma or the closing brace" } else { "expected a comma" };
            return Err(MatcherError::new(token.within.clone(), expected));
        }
    }
    match rest.next() {
        None => Ok(matchers),
        Some(token) => {
            Err(MatcherError::new(token.within.start..text.len(), "expected the end after the closing brace"))
        }
    }
}

/// What a word or a quoted text says.
fn content(text: &str, token: &Token) -> Result<String, MatcherError> {
    let written = &text[token.within.clone()];
    match token.kind {
        Kind::Quoted => unquoted(&written[1..written.len() - 1]).map_err(|(within, message)| {
            let start = token.within.start + 1;
            MatcherError::new(start + within.start..start + within.end, message)
        }),
        _ => Ok(written.to_owned()),
    }
}

/// Resolves the escapes of Go's quoted texts. The error tells where the escape is that cannot be.
fn unquoted(text: &str) -> Result<String, (Range<usize>, &'static str)> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        if letter == '\n' {
            return Err((at..at + 1, "a line ends within quotes; write `\\n`"));
        }
        if letter != '\\' {
            bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escape = letters.next().map_or('\\', |(_, escape)| escape);
        let unknown = |to: usize| (at..to, "there is no such escape; write a backslash as `\\\\`");
        let simple = ['a', 'b', 'f', 'n', 'r', 't', 'v', '\\', '"'].iter().position(|known| *known == escape);
        if let Some(place) = simple {
            bytes.push(b"\x07\x08\x0c\n\r\t\x0b\\\""[place]);
            continue;
        }
        let after = at + 1 + escape.len_utf8();
        let (start, count, radix) = match escape {
            'x' => (after, 2, 16),
            'u' => (after, 4, 16),
            'U' => (after, 8, 16),
            '0'..='7' => (at + 1, 3, 8),
            _ => return Err(unknown(after)),
        };
        let digits =
            text.get(start..start + count).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, radix).ok()).ok_or_else(|| unknown(after))?;
        match escape {
            'u' | 'U' => {
                let letter = char::from_u32(code).ok_or_else(|| unknown(start + count))?;
                bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => bytes.push(u8::try_from(code).map_err(|_| unknown(start + count))?),
        }
        letters = text.char_indices();
        letters.by_ref().take_while(|(place, _)| *place < start + count - 1).for_each(drop);
    }
    String::from_utf8(bytes).map_err(|_| (0..text.len(), "the escaped bytes are no UTF-8"))
}

/// The grammar from before, which takes nearly everything after the relation as it stands.
fn parse_classic(text: &str) -> Option<Vec<Matcher>> {
    let text = text.strip_prefix('{').unwrap_or(text);
    let text = text.strip_suffix('}').unwrap_or(text);
    let mut pieces = Vec::new();
    let (mut is_quoted, mut is_escaped, mut start) = (false, false, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            ',' if !is_quoted => {
                pieces.push(&text[start..at]);
                start = at + 1;
                // What was escaped before the comma stays so: only what is not a comma ends it.
                continue;
            }
            '"' if is_escaped => is_escaped = false,
            '"' => is_quoted = !is_quoted,
            '\\' => is_escaped = !is_escaped,
            // A comma in quotes too leaves it.
            ',' => {}
            _ => is_escaped = false,
        }
    }
    pieces.extend(Some(text[start..].trim()).filter(|last| !last.is_empty()));
    pieces.into_iter().map(classic_matcher).collect()
}

fn classic_matcher(text: &str) -> Option<Matcher> {
    let is_space = |letter: char| matches!(letter, '\t' | '\n' | '\x0c' | '\r' | ' ');
    let text = text.trim_matches(is_space);
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | ':');
    let (name, rest) = text.split_at(text.find(|letter| !is_name(letter)).unwrap_or(text.len()));
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let rest = rest.trim_start_matches(is_space);
    let (spelling, relation) = Relation::SPELLINGS.iter().find(|(spelling, _)| rest.starts_with(spelling))?;
    let written = rest[spelling.len()..].trim_start_matches(is_space);
    let mut is_quote_missing = written.starts_with('"');
    let written = written.strip_prefix('"').unwrap_or(written);
    let (mut value, mut is_escaped) = (String::with_capacity(written.len()), false);
    for (at, letter) in written.char_indices() {
        let is_last = at + 1 == written.len();
        match letter {
            'n' if is_escaped => value.push('\n'),
            '"' | '\\' if is_escaped => value.push(letter),
            _ if is_escaped => value.extend(['\\', letter]),
            '\\' if !is_last => {
                is_escaped = true;
                continue;
            }
            '"' if is_quote_missing && is_last => is_quote_missing = false,
            '"' => return None,
            _ => value.push(letter),
        }
        is_escaped = false;
    }
    if is_quote_missing {
        return None;
    }
    Matcher::new(name.to_owned(), *relation, value).ok()
}

/// Text in double quotes as Go writes it: what can be printed as it is, the rest escaped.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0b' => quoted.push_str("\\v"),
            _ if is_printable(letter) => quoted.push(letter),
            '\0'..='\x7f' => quoted.push_str(&format!("\\x{:02x}", u32::from(letter))),
            '\u{80}'..='\u{ffff}' => quoted.push_str(&format!("\\u{:04x}", u32::from(letter))),
            _ => quoted.push_str(&format!("\\U{:08x}", u32::from(letter))),
        }
    }
    quoted.push('"');
    quoted
}

/// Whether a character shows. The standard library knows, and tells it by what it escapes; behind another character,
/// since one that is to be put over the one before is escaped where there is none.
fn is_printable(letter: char) -> bool {
    letter == '\'' || ['a', letter].iter().collect::<String>().escape_debug().nth(1) != Some('\\')
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check(texts: &[&str], expected: Expect) {
        let told = texts.iter().map(|text| match Matchers::parse(text) {
            Ok(matchers) => format!("{matchers}\n"),
            Err(MatcherError { within, message }) => format!("[{}..{}]: {message}\n", within.start, within.end),
        });
        expected.assert_eq(&told.collect::<String>());
    }

    #[test]
    fn matchers_are_written_as_they_are_read() {
        check(
            &[
                "",
                "a=b",
                " { a != \"b c\", d=~e.* , } ",
                "\"a b\"=\"c\\td\"",
                "foo🙂=🙂",
                "a=\\n",
                "a=b\"c",
                "a=\"x\\\"y\\\\\"",
                "\"a\\u202f\"!~\"\\x00|\\101|'|\\U0001F642|e\\u0301\"",
            ],
            expect![[r#"
                {}
                {a="b"}
                {a!="b c",d=~"e.*"}
                {"a b"="c\td"}
                {foo🙂="🙂"}
                {a="\n"}
                [3..5]: the closing quote is missing
                {a="x\"y\\"}
                {"a\u202f"!~"\x00|A|'|🙂|é"}
            "#]],
        );
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_place() {
        check(
            &[
                "a",
                "a!b",
                "a=",
                "🙂=",
                "=b",
                "{a=b",
                "{🙂=b}}",
                "🙂=b}",
                "{a=b} c",
                "{a=b c}",
                "a=b c=d",
                ",",
                "{a=b,,}",
                "🙂='b'",
                "\"a\\q\"=b",
                "\"a\\x4\"=b",
                "\"\\ud800\"=b",
                "\"\\777\"=b",
                "\"a\nb\"=c",
                "\"\\xff\"=b",
                "a=~\"(\"",
                "a=~\"x[\"",
            ],
            expect![[r#"
                [1..1]: expected one of `=`, `!=`, `=~` and `!~` after a label's name, and this is the end
                [1..2]: `!` is to be followed by `=` or `~`
                {a=""}
                [5..5]: expected a value, and this is the end
                [0..1]: expected the name of a label, and this is `=`
                {a="b"}
                [8..9]: expected the end after the closing brace
                [6..7]: there is no opening brace
                {a="b} c"}
                {a="b c"}
                {a="b c=d"}
                [0..1]: expected the name of a label, and this is `,`
                [5..6]: expected the name of a label, and this is `,`
                [5..6]: `'` must stand in double quotes
                [2..4]: there is no such escape; write a backslash as `\\`
                [2..4]: there is no such escape; write a backslash as `\\`
                [1..7]: there is no such escape; write a backslash as `\\`
                [1..5]: there is no such escape; write a backslash as `\\`
                [2..3]: a line ends within quotes; write `\n`
                [1..5]: the escaped bytes are no UTF-8
                [3..6]: not a regular expression: unclosed group
                [3..7]: not a regular expression: unclosed character class
            "#]],
        );
    }

    #[test]
    fn a_label_that_is_missing_counts_as_empty() {
        let is_true = |text: &str| {
            let label =
                |name: &str| [("a", "1"), ("b", "x\ny")].iter().find(|label| label.0 == name).map(|label| label.1);
            Matchers::parse(text).unwrap().matches(label)
        };
        for text in ["", "a=1", "a!=2", "c=\"\"", "c!=1", "c=~\".*\"", "c!~\".+\"", "a=~\"[0-9]\"", "b=~\"(?s)x.y\""] {
            assert!(is_true(text), "{text} is true");
        }
        for text in ["a=2", "a=1,c=1", "c=~\".+\"", "a=~\"\"", "b=~\"x.y\"", "a!~\"1|2\""] {
            assert!(!is_true(text), "{text} is not true");
        }
    }

    fn letters() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof!["[a-z]", "[{}!=~,\"'`\\\\ \n\t\r]", any::<char>().prop_map(String::from)],
            0..6,
        )
        .prop_map(|letters| letters.concat())
    }

    proptest! {
        #[test]
        fn what_is_written_means_the_same_when_it_is_read(parts in proptest::collection::vec((letters(), letters()), 0..4)) {
            let matcher = |(name, value): (String, String)| Matcher::new(name, Relation::NotEqual, value).unwrap();
            let matchers = Matchers(parts.into_iter().map(matcher).collect());
            prop_assert_eq!(Matchers::parse(&matchers.to_string()), Ok(matchers));
        }

        #[test]
        fn any_text_is_read_or_refused(text in letters()) {
            if let Err(error) = Matchers::parse(&text) {
                prop_assert!(text.get(error.within).is_some());
            }
        }
    }
}
