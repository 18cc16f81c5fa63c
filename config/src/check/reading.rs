//! Files and overrides become tables: substituted, with programs in place of their paths, secrets hidden.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{Checker, Component, SET};
use crate::graph::Kind;
use crate::plan::Place as PlanPlace;
use crate::report::Found;
use crate::shape::{Walk, nearest};
use crate::substitute::{FILE_BYTES, Piece, expand, written};
use crate::tree::{Key, Node, Place, Table, Value, table_from_toml};

/// The option whose value is the path of a file that holds a program.
const PROGRAM_FILE: &str = "program_file";

/// The top-level tables.
const SECTIONS: [&str; 8] = ["daemon", "sources", "operators", "sinks", "tests", "silences", "tables", "templates"];

impl<'a> Checker<'a> {
    pub(super) fn file(&mut self, range: Place) {
        let text: &'a str = &self.sources.all[range.clone()];
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            self.is_partial = true;
            for error in errors {
                let span = error.span().unwrap_or(0..0);
                let place = range.start + span.start..range.start + span.end;
                self.problems.push(Found::new(&place, format!("not TOML: {}", error.message())));
            }
            self.hide_by_name(range);
            return;
        }
        let folder = self.folder(range.start);
        for (key, mut value) in table_from_toml(table.into_inner(), range.start) {
            self.substitute(&mut value, &folder);
            match key.name.as_str() {
                "daemon" => self.daemon_table(&key, value),
                "sources" => self.component_tables(Kind::Source, &key, value),
                "operators" => self.component_tables(Kind::Operator, &key, value),
                "sinks" => self.component_tables(Kind::Sink, &key, value),
                name @ ("silences" | "tests") => match value.value {
                    Value::List(tests) if name == "tests" => self.tests.extend(tests),
                    Value::List(silences) => self.silences.extend(silences),
                    _ => self.problems.push(
                        Found::new(&value.place, format!("`{name}` is a list of tables"))
                            .help(format!("write each as `[[{name}]]`")),
                    ),
                },
                "tables" | "templates" => {
                    let message = format!("`{}` is not supported yet", key.name);
                    self.problems.push(Found::new(&key.place, message).help("remove it"));
                }
                name => {
                    let help = match nearest(name, SECTIONS) {
                        Some(meant) => format!("did you mean `{meant}`?"),
                        None => {
                            "a configuration has `[daemon]`, `[sources.NAME]`, `[operators.NAME]`, `[sinks.NAME]`, \
                                 `[[silences]]` and `[[tests]]`"
                                .to_owned()
                        }
                    };
                    self.hide_deep(&value, name);
                    self.problems.push(Found::new(&key.place, format!("unknown table `{name}`")).help(help));
                }
            }
        }
    }

    /// The folder of the file that an offset is in.
    pub(super) fn folder(&self, offset: usize) -> PathBuf {
        let (name, _) = self.sources.line(offset);
        if &*name == SET {
            return PathBuf::new();
        }
        Path::new(&*name).parent().map(Path::to_owned).unwrap_or_default()
    }

    pub(super) fn plan_place(&self, place: &Place) -> PlanPlace {
        let (file, line) = self.sources.line(place.start);
        PlanPlace { file, line }
    }

    pub(super) fn substitute(&mut self, node: &mut Node<'a>, folder: &Path) {
        match &mut node.value {
            Value::Text { text, .. } if text.contains("${") => {
                let expanded = expand(text, self.environment, folder);
                for (within, message, help) in expanded.problems {
                    let place = node.place_within(&within, &self.sources.all);
                    self.problems.push(Found::new(&place, message).help(help));
                }
                self.secrets.values.extend(expanded.secrets);
                node.value = Value::Text { text: expanded.text, pieces: expanded.pieces };
            }
            Value::Text { .. } | Value::Scalar(_) => {}
            Value::List(values) => values.iter_mut().for_each(|value| self.substitute(value, folder)),
            Value::Table(table) => {
                for (key, value) in table {
                    self.substitute(value, folder);
                    if key.name == PROGRAM_FILE {
                        self.include(value, folder);
                    }
                }
            }
        }
    }

    /// Puts the content of a file in the place of its path, so that a component can check it without reading anything.
    pub(super) fn include(&mut self, node: &mut Node<'a>, folder: &Path) {
        let Value::Text { text: path, pieces } = &node.value else { return };
        let from = written(pieces, &(0..path.len()));
        let file = folder.join(path);
        match self.environment.file(&file, FILE_BYTES) {
            Ok(text) => {
                let pieces = vec![Piece { from, to: 0..text.len(), has_default: false }];
                node.value = Value::Text { text, pieces };
            }
            Err(reason) => {
                let message = format!("cannot read the file {path:?}: {reason}");
                let help = format!("it is looked for at {:?}", file.display().to_string());
                self.problems.push(Found::new(&node.place, message).help(help));
                // Nothing is wrong with a program that is not there.
                node.value =
                    Value::Text { text: ".".to_owned(), pieces: vec![Piece { from, to: 0..1, has_default: false }] };
            }
        }
    }

    /// Several files may each say something of the daemon.
    pub(super) fn daemon_table(&mut self, key: &Key, value: Node<'a>) {
        let Value::Table(table) = value.value else {
            let message = format!("`daemon` is a table, not {}", value.kind());
            self.problems.push(Found::new(&key.place, message).help("write its options below `[daemon]`"));
            return;
        };
        for (key, value) in table {
            match self.daemon.iter().find(|(known, _)| known.name == key.name) {
                Some((first, _)) => self.problems.push(
                    Found::new(&key.place, format!("`daemon.{}` is given twice", key.name))
                        .note(&first.place, "here first"),
                ),
                None => self.daemon.push((key, value)),
            }
        }
    }

    pub(super) fn component_tables(&mut self, kind: Kind, section: &Key, value: Node<'a>) {
        let (word, noun) = (kind.section(), kind.noun());
        let Value::Table(table) = value.value else {
            let message = format!("`{word}` is a table of {word}, not {}", value.kind());
            self.hide_deep(&value, &section.name);
            self.problems
                .push(Found::new(&section.place, message).help(format!("write each {noun} as `[{word}.NAME]`")));
            return;
        };
        for (key, node) in table {
            if node.as_table().is_none() {
                let message = format!("the {noun} `{}` is a table, not {}", key.name, node.kind());
                self.hide_deep(&node, &key.name);
                self.problems
                    .push(Found::new(&key.place, message).help(format!("write each {noun} as `[{word}.NAME]`")));
                continue;
            }
            let is_plain = |character: char| character.is_ascii_alphanumeric() || character == '_' || character == '-';
            if key.name.is_empty() || !key.name.chars().all(is_plain) {
                let message = format!("{:?} cannot be the name of a {noun}", key.name);
                self.problems.push(Found::new(&key.place, message).help("use letters, digits, `_` and `-`"));
            }
            match self.components.iter().find(|known| known.key.name == key.name) {
                Some(first) => {
                    let message = format!("there are two components called `{}`", key.name);
                    let found = Found::new(&key.place, message).help("give one of them another name");
                    self.problems.push(found.note(&first.key.place, "here first"));
                }
                None => self.components.push(Component { kind, key, node }),
            }
        }
    }

    /// Where a file is not even TOML, nobody knows which values are secrets; their names must do.
    pub(super) fn hide_by_name(&mut self, range: Place) {
        let text = &self.sources.all[range.clone()];
        for name in &self.secret_names {
            for (at, _) in text.match_indices(name.as_str()) {
                let rest = text[at + name.len()..].trim_start_matches(['"', '\'', ' ', '\t']);
                let Some(value) = rest.strip_prefix('=') else { continue };
                let value = value.trim_start_matches([' ', '\t']);
                let start = text.len() - value.len();
                let quotes = ["\"\"\"", "'''"].into_iter().find(|quotes| value.starts_with(quotes));
                let end = match quotes {
                    Some(quotes) => value[3..].find(quotes).map_or(value.len(), |end| end + 6),
                    None => value.find('\n').unwrap_or(value.len()),
                };
                self.secrets.places.push(range.start + start..range.start + start + end);
            }
        }
    }

    /// Of tables that nothing is known of, hides what is called like a secret.
    pub(super) fn hide_deep(&mut self, node: &Node<'_>, name: &str) {
        let is_secret = self.secret_names.iter().any(|secret| secret == name);
        let all = &self.sources.all;
        let (problems, secrets, secret_names) = (&mut self.problems, &mut self.secrets, &self.secret_names[..]);
        let mut walk = Walk { all, problems, secrets, secret_names };
        if is_secret {
            walk.secret(node);
            return;
        }
        match &node.value {
            Value::Table(table) => table.iter().for_each(|(key, value)| self.hide_deep(value, &key.name)),
            Value::List(values) => values.iter().for_each(|value| self.hide_deep(value, name)),
            Value::Text { .. } | Value::Scalar(_) => {}
        }
    }

    /// One `key=value` of the command line.
    pub(super) fn set(&mut self, range: Place) {
        let text: &'a str = &self.sources.all[range.clone()];
        let Some((key, value)) = text.split_once('=') else {
            let help = "write `key=value`, such as `sinks.mail.smtp=smtp://localhost`";
            self.problems.push(Found::new(&range, "an override without `=`").help(help));
            return;
        };
        let at = range.start + key.len() + 1;
        let place = at..range.end;
        let mut node = match DeValue::parse(value) {
            Ok(parsed) => Node::from_toml(parsed, at),
            Err(_) => Node::text(value, place),
        };
        // A key within a wrong path must not make a secret visible.
        let last = key.rsplit('.').next().unwrap_or(key).trim_matches(['"', '\'', ' ']).to_owned();
        self.hide_deep(&node, &last);
        self.substitute(&mut node, Path::new(""));
        let Some(path) = parse_key(key, range.start) else {
            let place = range.start..range.start + key.len();
            let help = "write the table and the option with dots between them: `sinks.mail.smtp=…`";
            self.problems.push(Found::new(&place, format!("{key:?} is not a key")).help(help));
            return;
        };
        let (table, rest) = match path.as_slice() {
            [section, rest @ ..] if section.name == "daemon" && !rest.is_empty() => (&mut self.daemon, rest),
            [section, name, rest @ ..]
                if !rest.is_empty() && ["sources", "operators", "sinks"].contains(&section.name.as_str()) =>
            {
                let component = self
                    .components
                    .iter_mut()
                    .find(|component| component.key.name == name.name && component.kind.section() == section.name);
                match component.and_then(|component| component.node.as_table_mut()) {
                    Some(table) => (table, rest),
                    None => {
                        if !self.is_partial {
                            let known = self.components.iter().filter(|known| known.kind.section() == section.name);
                            let meant = nearest(&name.name, known.map(|known| known.key.name.as_str()));
                            let message = format!("there is no `{}.{}`", section.name, name.name);
                            let help = meant.map(|meant| format!("did you mean `{}.{meant}`?", section.name));
                            self.problems.push(Found::new(&name.place, message).maybe_help(help));
                        }
                        return;
                    }
                }
            }
            [first, ..] => {
                let help = "it sets an option of the daemon or of a component: `daemon.memory=…`, `sinks.mail.smtp=…`";
                self.problems.push(Found::new(&first.place, format!("{key:?} is not an option's key")).help(help));
                return;
            }
            [] => return,
        };
        if let Err(at) = insert(table, rest, node) {
            let message = format!("`{}` is no table, so nothing in it can be set", at.name);
            self.problems.push(Found::new(&at.place, message));
        }
    }
}

/// A dotted key, as TOML has it.
fn parse_key(key: &str, base: usize) -> Option<Vec<Key>> {
    let text = format!("{key}=0");
    let mut table = DeTable::parse(&text).ok()?.into_inner();
    let mut path = Vec::new();
    loop {
        let (key, value) = table.into_iter().next()?;
        let place = key.span().start + base..key.span().end + base;
        path.push(Key { name: key.into_inner().into_owned(), place });
        match value.into_inner() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}

/// Puts a value at a path, making tables on the way. The key that is no table is the error.
fn insert<'a>(table: &mut Table<'a>, path: &[Key], node: Node<'a>) -> Result<(), Key> {
    let Some((key, rest)) = path.split_first() else { return Ok(()) };
    let at = table.iter().position(|(known, _)| known.name == key.name);
    if rest.is_empty() {
        match at {
            Some(at) => table[at].1 = node,
            None => table.push((key.clone(), node)),
        }
        return Ok(());
    }
    let at = at.unwrap_or_else(|| {
        table.push((key.clone(), Node::table(key.place.clone())));
        table.len() - 1
    });
    let inner = table[at].1.as_table_mut().ok_or_else(|| key.clone())?;
    insert(inner, rest, node)
}
