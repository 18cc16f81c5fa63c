//! What is wrong with a configuration, and how it is shown: `file:line:column: error: …`, the line, a pointer, the way out.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use serde::Serialize;

use crate::lints::Allowance;

/// All problems of a configuration, or all that its lints have found, in the order of its files.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub problems: Vec<Reported>,
}

/// Whether a configuration can be run with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It cannot.
    Error,
    /// It can, and is hardly what was meant.
    Warning,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A problem and its place. It holds no secret: those of the line are hidden already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reported {
    #[serde(flatten)]
    pub at: Excerpt,
    pub level: Level,
    /// Of what a lint has found, its code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// Of what a lint has found, the component that it is about: what can be allowed it. `silences` and `daemon` where it is no component.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// What is wrong, in lower case, without a full stop.
    pub message: String,
    /// The way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Other places that have to do with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
}

/// Another place that has to do with a problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    #[serde(flatten)]
    pub at: Excerpt,
    pub message: String,
}

/// A place in a file, with its line as it may be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    pub file: String,
    /// From 1; 0 where a file as a whole is meant.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    #[serde(skip)]
    shown: String,
    /// The part of `shown` that is pointed at, in characters.
    #[serde(skip)]
    pointed: Range<usize>,
}

/// So many problems are told, the rest is only counted: a file of garbage is not answered with a flood.
const REPORTED_MAX: usize = 500;

/// So much of a line is shown.
const SHOWN_MAX: usize = 120;

impl Report {
    /// A problem with a file as a whole.
    pub fn of_file(file: impl Into<String>, message: impl Into<String>, help: Option<String>) -> Self {
        let at = Excerpt { file: file.into(), ..Excerpt::default() };
        let (message, level) = (message.into(), Level::Error);
        Self { problems: vec![Reported { at, level, code: None, component: None, message, help, notes: Vec::new() }] }
    }

    /// Leaves out what is allowed.
    pub fn allow(&mut self, allowances: &[Allowance]) {
        self.problems.retain(|problem| {
            let (code, component) =
                (problem.code.unwrap_or_default(), problem.component.as_deref().unwrap_or_default());
            !allowances.iter().any(|allowance| allowance.is_for(code, component))
        });
    }

    /// For a person, with ANSI colours or without.
    pub fn render(&self, colour: bool) -> String {
        let style = |code: &str, text: &str| {
            if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
        };
        let (mut text, bold, red, yellow, blue) = (String::new(), "1", "1;31", "1;33", "1;34");
        for problem in self.problems.iter().take(REPORTED_MAX) {
            let (place, message) = (problem.at.place(), escape(&problem.message));
            let (level, loud) = (problem.heading(), if problem.level == Level::Error { red } else { yellow });
            let _ = writeln!(text, "{}: {}: {}", style(bold, &place), style(loud, &level), style(bold, &message));
            problem.at.render(&mut text, &|pointer| style(loud, pointer));
            for note in &problem.notes {
                let place = note.at.place();
                let _ = writeln!(text, "{}: {}: {}", style(bold, &place), style(blue, "note"), escape(&note.message));
                note.at.render(&mut text, &|pointer| style(blue, pointer));
            }
            if let Some(help) = &problem.help {
                let _ = writeln!(text, "{}: {}", style("1;36", "help"), escape(help));
            }
            text.push('\n');
        }
        let noun =
            if self.problems.iter().any(|problem| problem.level == Level::Error) { "problem" } else { "finding" };
        let _ = match self.problems.len() {
            1 => write!(text, "1 {noun}"),
            count if count <= REPORTED_MAX => write!(text, "{count} {noun}s"),
            count => write!(text, "{count} {noun}s, of which the first {REPORTED_MAX} are shown"),
        };
        if let Some(code) = self.problems.iter().find_map(|problem| problem.code) {
            let _ = write!(text, "; `tocsin help {code}` tells more, and how to allow what is meant");
        }
        text.push('\n');
        text
    }

    /// A JSON object per problem and line: `file`, `line`, `column`, `level`, `code`, `component`, `message`, `help`, `notes`.
    pub fn json_lines(&self) -> String {
        let line = |problem| serde_json::to_string(problem).expect("text and numbers are always JSON") + "\n";
        self.problems.iter().take(REPORTED_MAX).map(line).collect()
    }
}

impl Reported {
    /// What it is: `error`, `warning[T012]`.
    fn heading(&self) -> String {
        match self.code {
            Some(code) => format!("{}[{code}]", self.level.as_str()),
            None => self.level.as_str().to_owned(),
        }
    }

    /// In one line, for a log.
    pub fn line(&self) -> String {
        format!("{}: {}", self.at.place(), escape(&self.message))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}

impl Excerpt {
    fn place(&self) -> String {
        if self.line == 0 {
            return escape(&self.file);
        }
        format!("{}:{}:{}", escape(&self.file), self.line, self.column)
    }

    fn render(&self, text: &mut String, style: &dyn Fn(&str) -> String) {
        if self.line == 0 {
            return;
        }
        let number = self.line.to_string();
        let _ = writeln!(text, "{number} | {}", self.shown);
        // Tabs stay tabs, so that the pointer stands below what it points at however wide they are.
        let before: String =
            self.shown.chars().take(self.pointed.start).map(|c| if c == '\t' { c } else { ' ' }).collect();
        let pointer = "^".repeat(self.pointed.len().max(1));
        let _ = writeln!(text, "{:width$} | {before}{}", "", style(&pointer), width = number.len());
    }
}

/// Control characters could steer the terminal.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            other if other.is_control() => escaped.extend(other.escape_unicode()),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The text of all files, one after the other.
pub(crate) struct Sources {
    pub(crate) all: String,
    /// Name, and where in `all` the file's text starts.
    files: Vec<(Arc<str>, Range<usize>)>,
}

/// What must not be shown.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    /// Where secrets are written.
    pub(crate) places: Vec<Range<usize>>,
    /// What they are.
    pub(crate) values: Vec<String>,
}

/// A problem before its place is looked up.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) place: Range<usize>,
    /// Of what a lint has found, its code and what it is about.
    pub(crate) code: Option<(&'static str, String)>,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    pub(crate) notes: Vec<(Range<usize>, String)>,
}

impl Found {
    pub(crate) fn new(place: &Range<usize>, message: impl Into<String>) -> Self {
        Self { place: place.clone(), code: None, message: message.into(), help: None, notes: Vec::new() }
    }

    pub(crate) fn code(mut self, code: &'static str, component: &str) -> Self {
        self.code = Some((code, component.to_owned()));
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help;
        self
    }

    pub(crate) fn note(mut self, place: &Range<usize>, message: impl Into<String>) -> Self {
        self.notes.push((place.clone(), message.into()));
        self
    }
}

impl Sources {
    pub(crate) fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut sources = Self { all: String::new(), files: Vec::new() };
        for (name, text) in files {
            let start = sources.all.len();
            sources.all.push_str(text);
            sources.files.push((Arc::from(name), start..sources.all.len()));
            // The end of one file is not the start of the next.
            sources.all.push('\n');
        }
        sources
    }

    /// The range of each file in the text of all.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (&Arc<str>, Range<usize>)> {
        self.files.iter().map(|(name, range)| (name, range.clone()))
    }

    /// Which file an offset is in, and where the file is.
    fn file(&self, offset: usize) -> Option<&(Arc<str>, Range<usize>)> {
        let after = self.files.partition_point(|(_, range)| range.start <= offset);
        self.files.get(after.checked_sub(1)?)
    }

    /// The file and line of an offset.
    pub(crate) fn line(&self, offset: usize) -> (Arc<str>, usize) {
        match self.file(offset) {
            Some((name, range)) => {
                let before = &self.all.as_bytes()[range.start..offset.min(range.end)];
                (Arc::clone(name), 1 + before.iter().filter(|byte| **byte == b'\n').count())
            }
            None => (Arc::from(""), 1),
        }
    }

    /// Makes a report of problems, in the order of the files.
    pub(crate) fn report(&self, mut found: Vec<Found>, secrets: &Secrets) -> Report {
        found.sort_by_key(|problem| (problem.place.start, problem.place.end));
        let mut problems: Vec<Reported> = found
            .into_iter()
            .map(|problem| Reported {
                at: self.excerpt(&problem.place, secrets),
                level: if problem.code.is_some() { Level::Warning } else { Level::Error },
                code: problem.code.as_ref().map(|(code, _)| *code),
                component: problem.code.map(|(_, component)| component),
                message: secrets.hide(problem.message),
                help: problem.help.map(|help| secrets.hide(help)),
                notes: problem
                    .notes
                    .into_iter()
                    .map(|(place, message)| Note { at: self.excerpt(&place, secrets), message: secrets.hide(message) })
                    .collect(),
            })
            .collect();
        problems.dedup();
        Report { problems }
    }

    /// The line of a place, its secrets hidden, cut to what can be read.
    fn excerpt(&self, place: &Range<usize>, secrets: &Secrets) -> Excerpt {
        let Some((name, file)) = self.file(place.start) else {
            return Excerpt { file: "configuration".to_owned(), ..Excerpt::default() };
        };
        let start = place.start.min(file.end);
        let end = place.end.clamp(start, file.end);
        let line_start = self.all[file.start..start].rfind('\n').map_or(file.start, |at| file.start + at + 1);
        let line_end = self.all[start..file.end].find('\n').map_or(file.end, |at| start + at);
        let mut shown: Vec<char> = Vec::new();
        let (mut pointed, mut column) = (None, 1);
        let mut pointed_end = 0;
        let hidden = secrets.hidden(&self.all, line_start..line_end);
        let mut was_hidden = false;
        for (at, character) in self.all[line_start..line_end].char_indices() {
            let at = line_start + at;
            if at == start {
                pointed = Some(shown.len());
            }
            if at < start {
                column += 1;
            }
            let is_hidden = hidden.iter().any(|range| range.contains(&at));
            match character {
                _ if is_hidden && was_hidden => {}
                _ if is_hidden => shown.extend("***".chars()),
                '\r' if at + 1 == line_end => {}
                '\t' => shown.push('\t'),
                other if other.is_control() => shown.push('\u{fffd}'),
                other => shown.push(other),
            }
            was_hidden = is_hidden;
            if at < end {
                pointed_end = shown.len();
            }
        }
        let pointed = pointed.unwrap_or(shown.len());
        let pointed = pointed.min(shown.len())..pointed_end.max(pointed.min(shown.len()));
        let (shown, pointed) = cut(&shown, pointed);
        let (_, line) = self.line(start);
        Excerpt { file: name.to_string(), line, column, shown, pointed }
    }
}

/// Cuts a long line to a part around what is pointed at.
fn cut(line: &[char], pointed: Range<usize>) -> (String, Range<usize>) {
    if line.len() <= SHOWN_MAX {
        return (line.iter().collect(), pointed);
    }
    let from = if pointed.end <= SHOWN_MAX { 0 } else { pointed.start.saturating_sub(SHOWN_MAX / 4) };
    let to = (from + SHOWN_MAX).min(line.len());
    let (head, tail) = (if from > 0 { "…" } else { "" }, if to < line.len() { "…" } else { "" });
    let shown: String = line[from..to].iter().collect();
    let shift = |at: usize| at.clamp(from, to) - from + head.chars().count();
    (format!("{head}{shown}{tail}"), shift(pointed.start)..shift(pointed.end))
}

impl Secrets {
    /// Removes what must not be shown from a message.
    fn hide(&self, mut message: String) -> String {
        for value in &self.values {
            // As it is, and as `{:?}` writes it.
            let escaped = format!("{value:?}");
            let escaped = &escaped[1..escaped.len() - 1];
            for secret in [value.as_str(), escaped] {
                if secret.chars().count() >= 4 {
                    message = message.replace(secret, "***");
                } else if !secret.is_empty() {
                    // So short that it occurs in words by chance: only where it stands alone.
                    for quote in ["\"", "`", "'"] {
                        message = message.replace(&format!("{quote}{secret}{quote}"), &format!("{quote}***{quote}"));
                    }
                }
            }
        }
        CREDENTIALS.replace_all(&message, "$1***@").into_owned()
    }

    /// The parts of a line that must not be shown.
    fn hidden(&self, all: &str, line: Range<usize>) -> Vec<Range<usize>> {
        let mut hidden: Vec<_> =
            self.places.iter().filter(|place| place.start < line.end && line.start < place.end).cloned().collect();
        let text = &all[line.clone()];
        for found in CREDENTIALS.captures_iter(text) {
            if let (Some(scheme), Some(whole)) = (found.get(1), found.get(0)) {
                hidden.push(line.start + scheme.end()..line.start + whole.end() - 1);
            }
        }
        hidden
    }
}

/// The password of a URL.
static CREDENTIALS: LazyLock<regex::Regex> =
    LazyLock::new(|| regex::Regex::new(r#"(://[^/\s:@"']*:)[^@\s/"']+@"#).expect("a valid pattern"));
