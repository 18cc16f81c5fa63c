//! What a type of component accepts, as its JSON Schema tells: the options it knows, those it needs, those that are secret.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value as Json};
use toml::de::DeValue;

use crate::report::{Found, Secrets};
use crate::tree::{Node, Place, Value};

/// Schemas refer to each other at most so deep; recursive types end here.
const DEPTH_MAX: usize = 32;

pub(crate) struct Shape {
    root: Json,
    definitions: Map<String, Json>,
}

impl Shape {
    pub(crate) fn of(schema: fn(&mut SchemaGenerator) -> Schema) -> Self {
        let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
        let root = schema(&mut generator).to_value();
        Self { root, definitions: generator.take_definitions(true) }
    }

    /// The options at the top.
    pub(crate) fn options(&self) -> Vec<&str> {
        let mut options: Vec<&str> = Vec::new();
        for leaf in self.leaves(&[&self.root]) {
            for name in leaf.get("properties").and_then(Json::as_object).into_iter().flat_map(Map::keys) {
                if !options.contains(&name.as_str()) {
                    options.push(name);
                }
            }
        }
        options
    }

    /// The options at the top without which nothing works.
    pub(crate) fn required(&self) -> Vec<&str> {
        self.root.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect()
    }

    /// What the documentation of an option says first.
    pub(crate) fn summary(&self, option: &str) -> Option<String> {
        let text = self.root.get("properties")?.get(option)?.get("description")?.as_str()?;
        let paragraph = text.split("\n\n").next().unwrap_or(text).replace('\n', " ");
        let sentence = paragraph.split_once(". ").map_or(paragraph.as_str(), |(sentence, _)| sentence);
        Some(sentence.trim_end_matches(['.', ':']).to_owned())
    }

    /// The names of all options that hold secrets, however deep.
    pub(crate) fn secret_names(&self, names: &mut Vec<String>) {
        let mut schemas: Vec<&Json> = vec![&self.root];
        schemas.extend(self.definitions.values());
        while let Some(schema) = schemas.pop() {
            match schema {
                Json::Object(object) => {
                    for (name, property) in object.get("properties").and_then(Json::as_object).into_iter().flatten() {
                        if !names.contains(name) && self.is_secret(property) {
                            names.push(name.clone());
                        }
                    }
                    schemas.extend(object.values());
                }
                Json::Array(items) => schemas.extend(items),
                _ => {}
            }
        }
    }

    fn is_secret(&self, schema: &Json) -> bool {
        self.leaves(&[schema]).iter().any(|leaf| is_secret(leaf) || leaf.get("items").is_some_and(is_secret))
    }

    /// Takes the keys that nothing knows out of a table, with a problem for each, and notes where secrets are.
    /// `further` are known at the top besides.
    pub(crate) fn examine(&self, node: &mut Node<'_>, further: &[&str], what: &str, walk: &mut Walk<'_>) {
        self.visit(node, vec![&self.root], further, what, walk, 0);
    }

    fn visit(
        &self,
        node: &mut Node<'_>,
        candidates: Vec<&Json>,
        further: &[&str],
        what: &str,
        walk: &mut Walk<'_>,
        depth: usize,
    ) {
        let mut leaves = self.leaves(&candidates);
        if leaves.iter().any(|leaf| is_secret(leaf)) {
            walk.secret(node);
            return;
        }
        if depth > DEPTH_MAX {
            return;
        }
        match &mut node.value {
            Value::Table(table) => {
                // Of variants told apart by a word, the one that is meant.
                let is_meant = |leaf: &&Json| {
                    let properties = leaf.get("properties").and_then(Json::as_object);
                    properties.into_iter().flatten().all(|(name, property)| match property.get("const") {
                        Some(constant) => table
                            .iter()
                            .find(|(key, _)| key.name == *name)
                            .is_none_or(|(_, value)| value.as_text().map(Json::from).as_ref() == Some(constant)),
                        None => true,
                    })
                };
                if leaves.iter().any(is_meant) {
                    leaves.retain(is_meant);
                }
                leaves.retain(|leaf| is_table(leaf));
                if leaves.is_empty() {
                    return;
                }
                let is_open = leaves.iter().any(|leaf| is_open(leaf));
                let mut known: Vec<&str> = further.to_vec();
                for leaf in &leaves {
                    known.extend(
                        leaf.get("properties")
                            .and_then(Json::as_object)
                            .into_iter()
                            .flatten()
                            .map(|(name, _)| &name[..]),
                    );
                }
                known.sort_unstable();
                known.dedup();
                let mut names: Vec<String> = table.iter().map(|(key, _)| key.name.clone()).collect();
                table.retain_mut(|(key, value)| {
                    if further.contains(&key.name.as_str()) {
                        return true;
                    }
                    let mut below = below(&leaves, &key.name);
                    if below.is_empty() && !is_open {
                        let meant = walk.unknown(&key.name, &key.place, value, &known, what);
                        // As if it were written right, so that its value is checked and nobody misses it.
                        match meant.filter(|meant| names.iter().all(|name| name != meant)) {
                            Some(meant) => key.name = meant.to_owned(),
                            None => return false,
                        }
                        names.push(key.name.clone());
                        below = self::below(&leaves, &key.name);
                    }
                    if !below.is_empty() {
                        self.visit(value, below, &[], &key.name, walk, depth + 1);
                    }
                    true
                });
            }
            Value::List(values) => {
                for (at, value) in values.iter_mut().enumerate() {
                    let below: Vec<&Json> = leaves
                        .iter()
                        .filter_map(|leaf| {
                            let first = leaf.get("prefixItems").and_then(|items| items.get(at));
                            first.or_else(|| leaf.get("items"))
                        })
                        .collect();
                    if !below.is_empty() {
                        self.visit(value, below, &[], what, walk, depth + 1);
                    }
                }
            }
            Value::Text { .. } | Value::Scalar(_) => {}
        }
    }

    /// The schemas that these come down to once references and alternatives are followed.
    fn leaves<'a>(&'a self, schemas: &[&'a Json]) -> Vec<&'a Json> {
        let mut leaves = Vec::new();
        let mut pending: Vec<(&Json, usize)> = schemas.iter().rev().map(|schema| (*schema, 0)).collect();
        while let Some((schema, depth)) = pending.pop() {
            leaves.push(schema);
            if depth >= DEPTH_MAX {
                continue;
            }
            let referred = schema.get("$ref").and_then(Json::as_str);
            let referred = referred.and_then(|name| self.definitions.get(name.strip_prefix("#/$defs/")?));
            pending.extend(referred.map(|schema| (schema, depth + 1)));
            for word in ["oneOf", "anyOf", "allOf"] {
                let alternatives = schema.get(word).and_then(Json::as_array).into_iter().flatten();
                pending.extend(alternatives.rev().map(|schema| (schema, depth + 1)));
            }
        }
        leaves
    }
}

/// What tables of these schemas accept under a key.
fn below<'a>(leaves: &[&'a Json], name: &str) -> Vec<&'a Json> {
    let named = |leaf: &&'a Json| -> Option<&'a Json> {
        let named = leaf.get("properties").and_then(|properties| properties.get(name));
        named.or_else(|| leaf.get("additionalProperties").filter(|any| any.is_object()))
    };
    leaves.iter().filter_map(named).collect()
}

fn is_secret(schema: &Json) -> bool {
    schema.get("writeOnly") == Some(&Json::Bool(true))
}

fn is_table(schema: &Json) -> bool {
    schema == &Json::Bool(true)
        || schema.get("properties").is_some()
        || schema.get("additionalProperties").is_some()
        || schema.get("type").is_some_and(|kind| {
            kind == "object" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "object"))
        })
}

/// Whether any key goes.
fn is_open(schema: &Json) -> bool {
    match schema.get("additionalProperties") {
        Some(additional) => additional == &Json::Bool(true),
        // What a derived schema lists without more is all that there is.
        None => schema == &Json::Bool(true) || (schema.get("properties").is_none() && is_bare(schema)),
    }
}

/// Whether a schema of a table says nothing of its keys anywhere.
fn is_bare(schema: &Json) -> bool {
    ["$ref", "oneOf", "anyOf", "allOf"].iter().all(|word| schema.get(word).is_none())
}

/// What examining finds.
pub(crate) struct Walk<'a> {
    pub(crate) all: &'a str,
    pub(crate) problems: &'a mut Vec<Found>,
    pub(crate) secrets: &'a mut Secrets,
    /// What options that hold secrets are called anywhere.
    pub(crate) secret_names: &'a [String],
}

impl Walk<'_> {
    pub(crate) fn secret(&mut self, node: &Node<'_>) {
        self.secrets.places.push(node.place.clone());
        match &node.value {
            Value::Text { text, .. } => self.secrets.values.push(text.clone()),
            Value::Scalar(DeValue::Boolean(_)) => {}
            Value::Scalar(_) => self.secrets.values.extend(self.all.get(node.place.clone()).map(str::to_owned)),
            Value::List(values) => values.iter().for_each(|value| self.secret(value)),
            Value::Table(table) => table.iter().for_each(|(_, value)| self.secret(value)),
        }
    }

    /// Tells of a key that nothing knows, and gives the one that was probably meant.
    fn unknown<'k>(
        &mut self,
        name: &str,
        place: &Place,
        value: &Node<'_>,
        known: &[&'k str],
        what: &str,
    ) -> Option<&'k str> {
        let meant = nearest(name, known.iter().copied());
        if self.secret_names.iter().any(|secret| secret == name || meant == Some(secret)) {
            self.secret(value);
        }
        let help = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if known.is_empty() => "it has no options".to_owned(),
            None => format!("it has {}", list(known.iter().copied())),
        };
        self.problems.push(Found::new(place, format!("`{what}` has no option `{name}`")).help(help));
        meant
    }
}

/// The name that was probably meant.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance takes time in the square of the lengths, and no name is that long.
    if name.len() > 64 {
        return None;
    }
    let far = (name.chars().count() / 3).max(1);
    let near = known.into_iter().map(|known| {
        let distance = strsim::damerau_levenshtein(&name.to_lowercase(), known);
        // `cond` is short for `condition`, and `conditions` has one letter more.
        let is_short = name.len() >= 3 && known.starts_with(name);
        (if is_short { distance.min(far) } else { distance }, known)
    });
    near.filter(|(distance, _)| *distance <= far).min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
}

/// Names for a sentence: "`a`, `b` and `c`".
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        Some((only, _)) => only.clone(),
        None => String::new(),
    }
}
