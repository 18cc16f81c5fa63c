//! Regular expressions with the meaning they have in Alertmanager, whose engine reads some of them differently from
//! ours.

use regex::bytes::{Regex, RegexBuilder};

/// How much memory a compiled pattern may take.
const COMPILED_MAX: usize = 1 << 20;

/// What a class of characters stands for, outside of brackets and within them. Only ASCII counts.
const CLASSES: [(char, &str, &str); 6] = [
    ('d', "[0-9]", "0-9"),
    ('D', "[^0-9]", "[^0-9]"),
    ('s', "[\\t\\n\\x0c\\r ]", "\\t\\n\\x0c\\r "),
    ('S', "[^\\t\\n\\x0c\\r ]", "[^\\t\\n\\x0c\\r ]"),
    ('w', "[0-9A-Za-z_]", "0-9A-Za-z_"),
    ('W', "[^0-9A-Za-z_]", "[^0-9A-Za-z_]"),
];

/// Compiles a pattern that a text matches as a whole. The error says what is wrong with it.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    // Alone first: `a)(b` must not become right by what is put around it.
    let translated = translate(pattern);
    if let Err(error) = regex_syntax::ast::parse::Parser::new().parse(&translated) {
        return Err(format!("not a regular expression: {}", error.kind()));
    }
    // On bytes, since only there may what is between two characters be asked for without Unicode. The texts are always
    // UTF-8.
    RegexBuilder::new(&format!("^(?:{translated})$")).size_limit(COMPILED_MAX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("the regular expression needs more than {limit} bytes when compiled; make its repetitions smaller")
        }
        error => match regex_syntax::ParserBuilder::new().utf8(false).build().parse(&translated) {
            Err(regex_syntax::Error::Translate(error)) => format!("not a regular expression: {}", error.kind()),
            _ => format!("not a regular expression: {error}"),
        },
    })
}

/// The same pattern in our engine's spelling: `\d`, `\s`, `\w` and `\b` are ASCII, `{` that begins no repetition and
/// `[` in brackets stand for themselves, `\Q…\E` quotes, brackets know no set operations.
fn translate(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    let mut is_in_class = false;
    while let Some(letter) = rest.chars().next() {
        let after = &rest[letter.len_utf8()..];
        rest = after;
        match letter {
            '\\' => {
                let Some(escaped) = after.chars().next() else {
                    translated.push('\\');
                    break;
                };
                rest = &after[escaped.len_utf8()..];
                let class = CLASSES.iter().find(|(name, ..)| *name == escaped);
                match (class, escaped) {
                    (Some((_, alone, within)), _) => translated.push_str(if is_in_class { within } else { alone }),
                    (None, 'b') if !is_in_class => translated.push_str("(?-u:\\b)"),
                    (None, 'B') if !is_in_class => translated.push_str("(?-u:\\B)"),
                    (None, '<' | '>') => translated.push(escaped),
                    (None, 'Q') if !is_in_class => {
                        let (quoted, end) = rest.split_once("\\E").unwrap_or((rest, ""));
                        translated.push_str(&regex_syntax::escape(quoted));
                        rest = end;
                    }
                    (None, '0'..='7') => rest = octal(after, &mut translated),
                    (None, _) => {
                        translated.push('\\');
                        translated.push(escaped);
                    }
                }
            }
            '[' if is_in_class && !after.starts_with(':') => translated.push_str("\\["),
            '[' if is_in_class => {
                // A class with a name, `[:alpha:]`, up to its end; what has no end stands for itself.
                match after.find(":]") {
                    Some(end) => {
                        translated.push('[');
                        translated.push_str(&after[..end + 2]);
                        rest = &after[end + 2..];
                    }
                    None => translated.push_str("\\["),
                }
            }
            '[' => {
                is_in_class = true;
                translated.push('[');
                if let Some(negated) = rest.strip_prefix('^') {
                    translated.push('^');
                    rest = negated;
                }
                // The first of a class stands for itself, even if it is the bracket that would end it.
                if let Some(following) = rest.strip_prefix(']') {
                    translated.push_str("\\]");
                    rest = following;
                }
            }
            ']' if is_in_class => {
                is_in_class = false;
                translated.push(']');
            }
            '&' | '~' if is_in_class => {
                translated.push('\\');
                translated.push(letter);
            }
            '{' if !is_in_class && !begins_repetition(after) => translated.push_str("\\{"),
            _ => translated.push(letter),
        }
    }
    translated
}

/// Up to three octal digits as a character. A single one other than `0` would refer back to a group, which neither
/// engine knows.
fn octal<'a>(digits: &'a str, translated: &mut String) -> &'a str {
    let length = digits.bytes().take(3).take_while(|digit| (b'0'..=b'7').contains(digit)).count();
    if length == 1 && !digits.starts_with('0') {
        translated.push('\\');
        translated.push_str(&digits[..1]);
    } else {
        let code = u32::from_str_radix(&digits[..length], 8).unwrap_or_default();
        translated.push_str(&format!("\\x{{{code:x}}}"));
    }
    &digits[length..]
}

/// Whether what follows a brace makes it a repetition: `3}`, `3,}` or `3,5}`.
fn begins_repetition(after: &str) -> bool {
    let Some((inner, _)) = after.split_once('}') else { return false };
    let (least, most) = inner.split_once(',').unwrap_or((inner, "0"));
    let is_count = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    is_count(least) && (most.is_empty() || is_count(most))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, matching: &[&str], others: &[&str]) {
        let regex = compile(pattern).unwrap();
        for text in matching {
            assert!(regex.is_match(text.as_bytes()), "{pattern} is to match {text:?}");
        }
        for text in others {
            assert!(!regex.is_match(text.as_bytes()), "{pattern} is not to match {text:?}");
        }
    }

    #[test]
    fn a_pattern_matches_the_whole_text() {
        check("a|b", &["a", "b"], &["ab", "xa", "bx", ""]);
        check("", &[""], &["a", "\n"]);
        check(".*", &["", "anything 🙂"], &["two\nlines"]);
        check("(?i)err.r", &["ERROR", "Err🙂r"], &["an error"]);
    }

    #[test]
    fn classes_are_those_of_ascii() {
        check(r"\d+", &["42"], &["٤٢", "4x"]);
        check(r"[\d-]+", &["4-2"], &["٤"]);
        check(r"\w\W\s\S[\w\s]", &["a.\tb_", "a🙂 éx"], &["é. bc"]);
        check(r"a\b.\B.", &["a--"], &["ab-"]);
    }

    #[test]
    fn brackets_and_braces_that_mean_nothing_stand_for_themselves() {
        check("[[a]+", &["[a["], &["]"]);
        check("[]a]+", &["]a"], &["["]);
        check("[^]a]", &["b"], &["]", "a"]);
        check("[a&&b~~]+", &["&ab~"], &["c"]);
        check("[[:alpha:]_]+", &["ab_"], &["1", ":"]);
        check("{{a}{,3}", &["{{a}{,3}"], &["aaa"]);
        check("a{2}b{1,}c{1,2}", &["aabbbcc"], &["abc"]);
        check(r"\Qa.b\E+", &["a.b", "a.bbb"], &["axb"]);
        check(r"\<b\>", &["<b>"], &["b"]);
        check(r"\101\0", &["A\0"], &[]);
    }

    proptest! {
        #[test]
        fn any_text_is_compiled_or_refused(text in "([a-c]|[\\\\\\[\\]{}()*+?|^$.,:&~QEdDwWsSbB0-9-]){0,12}") {
            let _ = compile(&text);
        }
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        assert_eq!(compile("invalid[regexp").unwrap_err(), "not a regular expression: unclosed character class");
        assert_eq!(compile("a)|(b").unwrap_err(), "not a regular expression: unopened group");
        assert_eq!(
            compile("(?:a{1000}){1000}").unwrap_err(),
            "the regular expression needs more than 1048576 bytes when compiled; make its repetitions smaller"
        );
        assert!(compile(r"\").is_err());
        assert!(compile(r"\1").is_err());
        assert!(compile("*").is_err());
    }
}
