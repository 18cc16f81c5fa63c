//! Where a character of a TOML string's content stands in the file: for problems inside VRL, patterns and the like.

use std::ops::Range;

/// Maps offsets in a string's content to offsets in its literal, quotes and escapes included.
pub(crate) struct Literal {
    /// Where each byte of the content begins in the literal; one more for the end.
    starts: Vec<usize>,
}

impl Literal {
    /// Reads `literal` again. `None` if it is not a string literal that stands for `content`.
    pub(crate) fn read(literal: &str, content: &str) -> Option<Self> {
        if literal == content {
            // From the command line, without quotes.
            return Some(Self { starts: (0..=content.len()).collect() });
        }
        let (quote, is_basic) = match literal.as_bytes() {
            [b'"', b'"', b'"', ..] if literal.len() >= 6 => (3, true),
            [b'\'', b'\'', b'\'', ..] if literal.len() >= 6 => (3, false),
            [b'"', ..] if literal.len() >= 2 => (1, true),
            [b'\'', ..] if literal.len() >= 2 => (1, false),
            _ => return None,
        };
        if !literal.ends_with(&literal[..quote]) {
            return None;
        }
        let mut reader =
            Reader { literal, at: quote, end: literal.len() - quote, text: String::new(), starts: Vec::new() };
        if quote == 3 {
            // A newline right after the opening quotes does not belong to the content.
            let rest = reader.rest();
            reader.at += if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
        }
        while let Some(character) = reader.rest().chars().next() {
            if is_basic && character == '\\' {
                reader.escape()?;
            } else {
                reader.push(character, character.len_utf8());
            }
        }
        reader.starts.push(reader.end);
        (reader.text == content).then_some(Self { starts: reader.starts })
    }

    /// The piece of the literal that gave this piece of the content.
    pub(crate) fn map(&self, content: &Range<usize>) -> Range<usize> {
        let at = |offset: usize| self.starts[offset.min(self.starts.len() - 1)];
        let start = at(content.start);
        start..at(content.end).max(start)
    }
}

struct Reader<'a> {
    literal: &'a str,
    at: usize,
    end: usize,
    text: String,
    starts: Vec<usize>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.literal.get(self.at..self.end).unwrap_or_default()
    }

    /// Takes `len` bytes that stand for `character`.
    fn push(&mut self, character: char, len: usize) {
        self.text.push(character);
        self.starts.resize(self.text.len(), self.at);
        self.at += len;
    }

    fn escape(&mut self) -> Option<()> {
        let rest = self.rest();
        let kind = *rest.as_bytes().get(1)?;
        let simple = match kind {
            b'b' => '\u{8}',
            b't' => '\t',
            b'n' => '\n',
            b'f' => '\u{c}',
            b'r' => '\r',
            b'e' => '\u{1b}',
            b'"' => '"',
            b'\\' => '\\',
            b'x' | b'u' | b'U' => {
                let digits = match kind {
                    b'x' => 2,
                    b'u' => 4,
                    _ => 8,
                };
                let code = u32::from_str_radix(rest.get(2..2 + digits)?, 16).ok()?;
                self.push(char::from_u32(code)?, 2 + digits);
                return Some(());
            }
            // A backslash at the end of a line takes the newline and all white space after it away.
            b' ' | b'\t' | b'\r' | b'\n' => {
                let after = rest[1..].trim_start_matches([' ', '\t', '\r', '\n']);
                self.at = self.end - after.len();
                return Some(());
            }
            _ => return None,
        };
        self.push(simple, 2);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The piece of `literal` that gave `piece` of its content.
    fn piece(literal: &str, piece: &str) -> String {
        let content = toml::de::DeValue::parse(literal).unwrap();
        let content = content.get_ref().as_str().unwrap();
        let start = content.find(piece).unwrap();
        let map = Literal::read(literal, content).expect("the literal is read as TOML reads it");
        literal[map.map(&(start..start + piece.len()))].to_owned()
    }

    #[test]
    fn every_kind_of_string_leads_back_to_its_text() {
        assert_eq!(piece(r#""a \"b\" c""#, "\"b\""), r#"\"b\""#);
        assert_eq!(piece(r"'a \b c'", "\\b"), r"\b");
        assert_eq!(piece(r#""\u00e9\U0001F600\x41\te""#, "\u{1F600}"), r"\U0001F600");
        assert_eq!(piece("\"\"\"\r\none\ntwo\"\"\"", "two"), "two");
        assert_eq!(piece("\"\"\"\none \\\n   \n  two\"\"\"", "one two"), "one \\\n   \n  two");
        assert_eq!(piece("'''\n'x' y'''", "'x'"), "'x'");
        assert_eq!(piece("\"\"\"\"q\"\"\"\"\"", "q"), "q");
    }

    #[test]
    fn what_is_no_literal_of_the_content_is_not_guessed_at() {
        for (literal, content) in [("\"", ""), ("\"a", "a"), ("", "x"), ("'a'", "b"), ("\"\\q\"", "q"), ("\"\\", "")] {
            assert!(Literal::read(literal, content).is_none(), "{literal}");
        }
    }
}
