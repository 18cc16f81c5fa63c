//! `${NAME}`, `${NAME:-default}` and `${file:PATH}` in the strings of a configuration. Done after TOML is parsed, so what a
//! variable or file holds can change one string and nothing else.

use std::io::Read;
use std::ops::Range;
use std::path::Path;

use tocsin_pipeline::time::{Clock, SystemClock, Timestamp};

/// Where variables and secret files come from.
pub trait Environment {
    /// `None` if it is not set.
    ///
    /// # Errors
    /// When it is set but cannot be used, with the reason.
    fn variable(&self, name: &str) -> Result<Option<String>, String>;

    /// The content of a file of at most `limit` bytes.
    ///
    /// # Errors
    /// When it cannot be read, with the reason.
    fn file(&self, path: &Path, limit: u64) -> Result<String, String>;

    /// What time it is, for what may be over; `None`: nobody knows.
    fn now(&self) -> Option<Timestamp> {
        None
    }
}

/// That of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnvironment;

impl Environment for SystemEnvironment {
    fn variable(&self, name: &str) -> Result<Option<String>, String> {
        match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err("it is not UTF-8".to_owned()),
        }
    }

    fn file(&self, path: &Path, limit: u64) -> Result<String, String> {
        read_text(path, limit)
    }

    fn now(&self) -> Option<Timestamp> {
        Some(SystemClock::default().now())
    }
}

/// Reads a regular file of at most `limit` bytes. Anything else (a pipe, a device) could make `check` wait or never end.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    let describe = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    let metadata = std::fs::metadata(path).map_err(describe)?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(describe)?;
    if bytes.len() as u64 > limit {
        return Err(format!("larger than {limit} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| format!("not UTF-8 from byte {} on", error.utf8_error().valid_up_to()))
}

/// Nothing is set and no file exists: for tests and for checking without the machine's settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyEnvironment;

impl Environment for EmptyEnvironment {
    fn variable(&self, _: &str) -> Result<Option<String>, String> {
        Ok(None)
    }

    fn file(&self, _: &Path, _: u64) -> Result<String, String> {
        Err("no such file".to_owned())
    }
}

/// Secrets are short; a larger file is a mistake.
pub(crate) const FILE_BYTES: u64 = 1 << 20;

/// A part of a string that was put in place of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// In the string as written.
    pub(crate) from: Range<usize>,
    /// In the string as used.
    pub(crate) to: Range<usize>,
    /// Whether what is to be used without a variable is written here, used or not.
    pub(crate) has_default: bool,
}

/// Where a piece of the string as used stands in the string as written.
pub(crate) fn written(pieces: &[Piece], used: &Range<usize>) -> Range<usize> {
    let back = |offset: usize, is_end: bool| {
        let (mut written, mut used_end) = (0, 0);
        for piece in pieces {
            if offset < piece.to.start {
                break;
            }
            if offset < piece.to.end || (is_end && offset == piece.to.end) {
                return if is_end { piece.from.end } else { piece.from.start };
            }
            (written, used_end) = (piece.from.end, piece.to.end);
        }
        written + (offset - used_end)
    };
    let start = back(used.start, false);
    start..back(used.end, used.end > used.start).max(start)
}

/// What became of a string.
#[derive(Debug, Default)]
pub(crate) struct Expanded {
    pub(crate) text: String,
    pub(crate) pieces: Vec<Piece>,
    /// Contents of files: never to be shown.
    pub(crate) secrets: Vec<String>,
    /// Where in the string as written, what is wrong, and the way out.
    pub(crate) problems: Vec<(Range<usize>, String, String)>,
}

/// Replaces what stands for something else. Paths start at `folder`.
pub(crate) fn expand(text: &str, environment: &dyn Environment, folder: &Path) -> Expanded {
    let mut expanded = Expanded::default();
    let mut at = 0;
    while let Some(found) = text[at..].find("${") {
        let start = at + found;
        if text[..start].ends_with('$') && start > at {
            // `$${` stands for `${`.
            expanded.text.push_str(&text[at..start - 1]);
            expanded.replace(start - 1..start + 2, "${", false);
            at = start + 2;
            continue;
        }
        expanded.text.push_str(&text[at..start]);
        let Some(len) = text[start..].find('}') else {
            let help = "close it with `}`, or write `$${` for the two characters themselves".to_owned();
            expanded.problems.push((start..start + 2, "`${` without `}`".to_owned(), help));
            at = start;
            break;
        };
        let end = start + len + 1;
        match value_of(&text[start + 2..end - 1], environment, folder) {
            Ok((value, is_secret)) => {
                let default = text[start + 2..end - 1].split_once(":-").map_or("", |(_, default)| default);
                // Whatever a path is called, it is no default.
                expanded.replace(start..end, &value, !is_secret && !default.is_empty());
                if is_secret {
                    expanded.secrets.push(value);
                }
            }
            Err((message, help)) => expanded.problems.push((start..end, message, help)),
        }
        at = end;
    }
    expanded.text.push_str(&text[at..]);
    expanded
}

impl Expanded {
    fn replace(&mut self, from: Range<usize>, by: &str, has_default: bool) {
        let start = self.text.len();
        self.text.push_str(by);
        self.pieces.push(Piece { from, to: start..self.text.len(), has_default });
    }
}

/// What stands between the braces, looked up; and whether it is a secret.
fn value_of(inside: &str, environment: &dyn Environment, folder: &Path) -> Result<(String, bool), (String, String)> {
    if let Some(path) = inside.strip_prefix("file:") {
        let file = folder.join(path);
        let mut content = environment.file(&file, FILE_BYTES).map_err(|reason| {
            (
                format!("cannot read the file {path:?}: {reason}"),
                format!("it is looked for at {:?}", file.display().to_string()),
            )
        })?;
        if content.ends_with('\n') {
            content.pop();
            if content.ends_with('\r') {
                content.pop();
            }
        }
        return Ok((content, true));
    }
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|other| other.is_ascii_alphanumeric() || other == '_');
    if !is_name {
        return Err((
            format!("{inside:?} is not the name of an environment variable"),
            "write `${NAME}`, `${NAME:-default}` or `${file:PATH}`; `$${` stands for the characters `${` themselves"
                .to_owned(),
        ));
    }
    let value = environment.variable(name).map_err(|reason| {
        (format!("cannot use the environment variable `{name}`: {reason}"), "set it to plain text".to_owned())
    })?;
    match (value, default) {
        (Some(value), None) => Ok((value, false)),
        (Some(value), Some(_)) if !value.is_empty() => Ok((value, false)),
        (_, Some(default)) => Ok((default.to_owned(), false)),
        (None, None) => Err((
            format!("the environment variable `{name}` is not set"),
            format!("set it, or give a default: `${{{name}:-default}}`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Environment for Fixed {
        fn variable(&self, name: &str) -> Result<Option<String>, String> {
            Ok(match name {
                "HOST" => Some("example.org".to_owned()),
                "EMPTY" => Some(String::new()),
                _ => None,
            })
        }

        fn file(&self, path: &Path, _: u64) -> Result<String, String> {
            if path == Path::new("etc/secret") { Ok("hunter2\n".to_owned()) } else { Err("no such file".to_owned()) }
        }
    }

    fn check(text: &str) -> String {
        let expanded = expand(text, &Fixed, Path::new("etc"));
        let problems: Vec<_> = expanded
            .problems
            .iter()
            .map(|(range, message, _)| format!(" [{}: {message}]", &text[range.clone()]))
            .collect();
        format!("{}{}", expanded.text, problems.concat())
    }

    #[test]
    fn only_the_exact_form_is_replaced() {
        assert_eq!(check("https://${HOST}:${PORT:-443}/$1 $ $x {a} }"), "https://example.org:443/$1 $ $x {a} }");
        assert_eq!(check("${EMPTY}|${EMPTY:-x}|${HOST:-y}|${NONE:-}"), "|x|example.org|");
        assert_eq!(check("$${HOST} $$${HOST} ${file:secret}"), "${HOST} $${HOST} hunter2");
    }

    #[test]
    fn what_cannot_be_replaced_is_told_with_its_place() {
        assert_eq!(
            check("a ${NONE} b ${1x} c ${file:other} d ${HOST"),
            "a  b  c  d ${HOST [${NONE}: the environment variable `NONE` is not set] \
             [${1x}: \"1x\" is not the name of an environment variable] \
             [${file:other}: cannot read the file \"other\": no such file] [${: `${` without `}`]"
        );
    }

    #[test]
    fn places_lead_back_through_what_was_replaced() {
        let text = "ab ${HOST} cd ${PORT:-1} ef";
        let expanded = expand(text, &Fixed, Path::new(""));
        let back = |piece: &str| {
            let start = expanded.text.find(piece).unwrap();
            &text[written(&expanded.pieces, &(start..start + piece.len()))]
        };
        assert_eq!(back("ab"), "ab");
        assert_eq!(back("ample"), "${HOST}");
        assert_eq!(back("cd"), "cd");
        assert_eq!(back("ef"), "ef");
        assert_eq!(back("org cd 1"), "${HOST} cd ${PORT:-1}");
    }
}
