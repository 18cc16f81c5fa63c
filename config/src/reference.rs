//! The reference, written from the doc comments and schemas of components.

use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value as Json};

use crate::component::{Catalog, Type};
use crate::options::{DaemonOptions, SinkOptions, SourceOptions};
use crate::shape::nearest;
use crate::silence::SilenceOptions;
use crate::testing::TestOptions;

/// Makes the schema of options.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A page of the reference.
struct Page {
    name: &'static str,
    /// `source`, `operator`, `sink`, `codec`; empty for the tables that are no component.
    noun: &'static str,
    schema: SchemaOf,
}

/// The whole reference, in Markdown.
pub fn reference(catalog: &Catalog) -> String {
    let mut text = String::from(
        "# Reference\n\n\
         Every component and its options. Lengths of time are written `\"500ms\"`, `\"10s\"`, `\"1h30m\"`; sizes `\"64KiB\"`, \
         `\"1GiB\"`. In every text `${NAME}` stands for an environment variable, `${NAME:-default}` for one that may be \
         missing, `${file:PATH}` for the content of a file, and `$${` for the characters `${` themselves. This page is written \
         from the program: `tocsin help TYPE` shows a part of it.\n",
    );
    let pages = pages(catalog);
    let section = |text: &mut String, title: &str, noun: &str| {
        let _ = write!(text, "\n## {title}\n");
        if let Some(common) = common(noun) {
            let _ = write!(text, "\n{}", common.trim_end());
            text.push('\n');
        }
        for page in pages.iter().filter(|page| page.noun == noun) {
            let _ = write!(text, "\n### `{}`\n\n", page.name);
            text.push_str(&body(page.schema, "####"));
        }
    };
    section(&mut text, "Sources", "source");
    section(&mut text, "Codecs", "codec");
    section(&mut text, "Operators", "operator");
    section(&mut text, "Sinks", "sink");
    for page in pages.iter().filter(|page| page.noun.is_empty()) {
        let _ = write!(text, "\n## `{}`\n\n", page.name);
        text.push_str(&body(page.schema, "###"));
    }
    text
}

/// The pages of the reference for a type; where a source and a sink have one name, of both. `None` if there is none.
pub fn reference_page(catalog: &Catalog, name: &str) -> Option<String> {
    let mut text = String::new();
    for page in pages(catalog).iter().filter(|page| page.name == name) {
        if !text.is_empty() {
            text.push('\n');
        }
        let title = if page.noun.is_empty() { String::new() } else { format!(" ({})", page.noun) };
        let _ = write!(text, "# {}{title}\n\n{}", page.name, body(page.schema, "##"));
        if let Some(common) = common(page.noun).filter(|_| page.noun != "codec") {
            let _ = write!(text, "\n## Options of every {}\n\n{common}", page.noun);
        }
    }
    (!text.is_empty()).then_some(text)
}

/// The type that was probably meant by a name that has no page.
pub fn nearest_page(catalog: &Catalog, name: &str) -> Option<&'static str> {
    nearest(name, pages(catalog).iter().map(|page| page.name))
}

fn pages(catalog: &Catalog) -> Vec<Page> {
    fn of<C: ?Sized>(types: &'static [Type<C>], noun: &'static str) -> impl Iterator<Item = Page> {
        types.iter().map(move |kind| Page { name: kind.name, noun, schema: kind.schema })
    }
    let mut pages: Vec<Page> = of(catalog.sources, "source")
        .chain(of(catalog.codecs, "codec"))
        .chain(of(catalog.operators, "operator"))
        .chain(of(catalog.sinks, "sink"))
        .collect();
    pages.push(Page { name: "daemon", noun: "", schema: DaemonOptions::json_schema });
    pages.push(Page { name: "silences", noun: "", schema: SilenceOptions::json_schema });
    pages.push(Page { name: "tests", noun: "", schema: TestOptions::json_schema });
    pages
}

/// What all components of a kind have.
fn common(noun: &str) -> Option<String> {
    let inputs = "- **`inputs`** (list of text, required): the names of the sources and operators it reads. `NAME.port` names \
                  a further output, such as `route.slow` or `access.rejected`; a pattern such as `web_*` or `*.rejected` names \
                  all that match.\n";
    match noun {
        "source" => Some(format!(
            "{}- **`codec`** (text or table): how the bytes of a record become fields, such as `\"json\"`, or `{{ type = \
             \"csv\", … }}` with the codec's options. Default: that of the source, mostly `\"text\"`.\n",
            body(SourceOptions::json_schema, "")
        )),
        "operator" => Some(format!("Every operator has these options besides its own.\n\n{inputs}")),
        "sink" => Some(format!("{}{inputs}", body(SinkOptions::json_schema, ""))),
        "codec" => Some(
            "A codec is named by the option `codec` of a source: `codec = \"json\"`, or with options `codec = { type = \"csv\", \
             … }`.\n"
                .to_owned(),
        ),
        _ => None,
    }
}

/// The description of a table and its options, below a heading of this level if one is given.
fn body(schema: SchemaOf, heading: &str) -> String {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let schema = schema(&mut generator).to_value();
    let writer = Writer { definitions: generator.take_definitions(true) };
    let mut text = String::new();
    if let Some(description) = description(&schema) {
        let _ = write!(text, "{}\n\n", description.trim());
    }
    let mut options = String::new();
    writer.options(&schema, false, 0, &mut options);
    if !options.is_empty() && !heading.is_empty() {
        let _ = write!(text, "{heading} Options\n\n");
    }
    text + &options
}

fn description(schema: &Json) -> Option<&str> {
    schema.get("description").and_then(Json::as_str)
}

struct Writer {
    definitions: Map<String, Json>,
}

/// Options within options are told so deep.
const DEPTH_MAX: usize = 4;

impl Writer {
    /// A list of the options of a table: those that are needed first, then by name. Where the table is one of several that
    /// are possible, none of its options is needed in itself.
    fn options(&self, schema: &Json, is_alternative: bool, depth: usize, text: &mut String) {
        let schema = self.resolve(schema);
        let required: Vec<&str> =
            schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
        let properties = schema.get("properties").and_then(Json::as_object);
        let mut properties: Vec<_> = properties.into_iter().flatten().collect();
        properties.sort_by_key(|(name, _)| (!required.contains(&name.as_str()), *name));
        for (name, property) in properties {
            let is_required = required.contains(&name.as_str()) && !is_alternative;
            self.option(name, property, is_required, depth, text);
        }
        // Tables whose options are alternatives, at the same level.
        for word in ["oneOf", "anyOf", "allOf"] {
            for alternative in schema.get(word).and_then(Json::as_array).into_iter().flatten() {
                self.options(alternative, word != "allOf", depth, text);
            }
        }
    }

    fn option(&self, name: &str, property: &Json, is_required: bool, depth: usize, text: &mut String) {
        let indent = "  ".repeat(depth);
        let mut facts = vec![self.kind(property, 0)];
        match property.get("default") {
            _ if is_required => facts.push("required".to_owned()),
            Some(Json::Null) | None => {}
            Some(default) if self.is_default_told(default) => facts.push(format!("default `{}`", toml_text(default))),
            Some(_) => {}
        }
        let told = description(property).or_else(|| description(self.resolve(property))).unwrap_or_default();
        let told = told.trim().replace('\n', &format!("\n{indent}  "));
        let colon = if told.is_empty() { "" } else { ": " };
        let _ = writeln!(text, "{indent}- **`{name}`** ({}){colon}{told}", facts.join(", "));
        if depth < DEPTH_MAX {
            self.inside(property, false, depth + 1, text);
        }
    }

    /// Whether a default says more than the options below it do.
    fn is_default_told(&self, default: &Json) -> bool {
        match default {
            Json::Object(object) => object.is_empty(),
            Json::Array(values) => values.is_empty() || values.iter().all(|value| !value.is_object()),
            _ => true,
        }
    }

    /// What an option consists of: the words it can be, the options of its table.
    fn inside(&self, schema: &Json, is_alternative: bool, depth: usize, text: &mut String) {
        let schema = self.resolve(schema);
        let indent = "  ".repeat(depth);
        if let (Some(word), Some(told)) = (schema.get("const"), description(schema)) {
            let told = told.trim().replace('\n', &format!("\n{indent}  "));
            let _ = writeln!(text, "{indent}- `{}`: {told}", toml_text(word));
            return;
        }
        if schema.get("properties").is_some() {
            self.options(schema, is_alternative, depth, text);
            return;
        }
        for word in ["oneOf", "anyOf", "allOf"] {
            for alternative in schema.get(word).and_then(Json::as_array).into_iter().flatten() {
                if depth < DEPTH_MAX {
                    self.inside(alternative, word != "allOf", depth, text);
                }
            }
        }
        for word in ["items", "additionalProperties"] {
            if let Some(below) = schema.get(word).filter(|below| below.is_object()) {
                self.inside(below, false, depth, text);
            }
        }
    }

    /// What kind of value it is.
    fn kind(&self, schema: &Json, depth: usize) -> String {
        if depth > DEPTH_MAX {
            return "any".to_owned();
        }
        let schema = present(schema);
        if let Some(name) = schema.get("$ref").and_then(Json::as_str).and_then(|name| name.rsplit('/').next()) {
            match name {
                "Duration" => return "length of time".to_owned(),
                "ByteSize" => return "size".to_owned(),
                "Secret" => return "secret text".to_owned(),
                _ => {}
            }
        }
        let schema = self.resolve(schema);
        if let Some(word) = schema.get("const") {
            return format!("`{}`", toml_text(word));
        }
        if let Some(words) = schema.get("enum").and_then(Json::as_array) {
            return words.iter().map(|word| format!("`{}`", toml_text(word))).collect::<Vec<_>>().join(" or ");
        }
        for word in ["oneOf", "anyOf"] {
            if let Some(alternatives) = schema.get(word).and_then(Json::as_array) {
                let mut kinds: Vec<String> = Vec::new();
                for alternative in alternatives {
                    let kind = self.kind(alternative, depth + 1);
                    if kind != "null" && !kinds.contains(&kind) {
                        kinds.push(kind);
                    }
                }
                return kinds.join(" or ");
            }
        }
        let kinds: Vec<&str> = match schema.get("type") {
            Some(Json::String(kind)) => vec![kind],
            Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).filter(|kind| *kind != "null").collect(),
            _ => return "any value".to_owned(),
        };
        let words: Vec<String> = kinds
            .into_iter()
            .map(|kind| match kind {
                "string" => "text".to_owned(),
                "integer" => "whole number".to_owned(),
                "boolean" => "`true` or `false`".to_owned(),
                "array" => match schema.get("items") {
                    Some(items) => format!("list of {}", self.kind(items, depth + 1)),
                    None => "list".to_owned(),
                },
                "object" => match schema.get("additionalProperties").filter(|below| below.is_object()) {
                    Some(below) => format!("table of {}", self.kind(below, depth + 1)),
                    None => "table".to_owned(),
                },
                other => other.to_owned(),
            })
            .collect();
        words.join(" or ")
    }

    fn resolve<'a>(&'a self, mut schema: &'a Json) -> &'a Json {
        for _ in 0..DEPTH_MAX {
            let name = schema.get("$ref").and_then(Json::as_str).and_then(|name| name.strip_prefix("#/$defs/"));
            match name.and_then(|name| self.definitions.get(name)) {
                Some(referred) => schema = referred,
                None => break,
            }
        }
        let present = present(schema);
        if std::ptr::eq(present, schema) { schema } else { self.resolve(present) }
    }
}

/// Of an option that may be left out, which is its own schema or null, its own.
fn present(schema: &Json) -> &Json {
    match schema.get("anyOf").and_then(Json::as_array).map(Vec::as_slice) {
        Some([only, null]) if null.get("type").is_some_and(|kind| kind == "null") => only,
        _ => schema,
    }
}

/// A default as it would be written in the configuration.
fn toml_text(value: &Json) -> String {
    match value {
        Json::Array(values) => format!("[{}]", values.iter().map(toml_text).collect::<Vec<_>>().join(", ")),
        Json::Object(object) if object.is_empty() => "{}".to_owned(),
        Json::Object(object) => {
            let entries = object.iter().map(|(name, value)| format!("{name} = {}", toml_text(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::fakes::CATALOG;

    #[test]
    fn a_page_tells_all_of_a_component() {
        expect![[r##"
            # window (operator)

            Counts by time.

            ## Options

            - **`shape`** (table, required): The kind of window.
              - **`tumbling`** (length of time): A length of time: `"500ms"`, `"10s"`, `"5m"`, `"1h30m"`, `"7d"`.
              - **`hopping`** (table)
                - **`every`** (length of time, required): How far they are apart.
                - **`size`** (length of time, required): The length of each.
            - **`state_max`** (size): How much state is kept.

            ## Options of every operator

            Every operator has these options besides its own.

            - **`inputs`** (list of text, required): the names of the sources and operators it reads. `NAME.port` names a further output, such as `route.slow` or `access.rejected`; a pattern such as `web_*` or `*.rejected` names all that match.
        "##]].assert_eq(&reference_page(&CATALOG, "window").unwrap());
        expect![[r##"
            # mail (sink)

            Sends mail.

            ## Options

            - **`smtp`** (text, required): The server.
            - **`headers`** (table of secret text, default `{}`): Further headers.
            - **`password`** (secret text): Who logs in.

            ## Options of every sink

            What every sink can be told about waiting records.

            Every sink has the output `NAME.rejected`: records refused for good, as dead letters. Sinks that tell somebody have
            `NAME.failed` besides: the same records as they came, and those that are not delivered within `max_age` or `fallback_after`.
            Another sink that has it among its `inputs` tells somebody else.

            - **`buffer`** (table): How many bytes may wait for the sink, and what happens then.
              - **`max`** (size, default `"64MiB"`): How many bytes of records may wait.
              - **`max_disk`** (size, default `"10GiB"`): How much may wait on disk, with `when_full = "spill"`. Beyond it, and while the disk is full or broken, whoever writes
                to the sink waits. At least `"1MiB"`.
              - **`when_full`** (`"block"` or `"drop_newest"` or `"spill"`, default `"block"`): What happens when they do.
                - `"block"`: Whoever writes to the sink waits, back to the source. Nothing is lost.
                - `"drop_newest"`: New records are dropped, and counted: a dead sink does not hold up the others.
                - `"spill"`: Records go to disk, in the data directory, and are read back in order: nothing is lost, and a dead sink holds up
                  neither the others nor the checkpoints. See docs/buffers.md.
            - **`inputs`** (list of text, required): the names of the sources and operators it reads. `NAME.port` names a further output, such as `route.slow` or `access.rejected`; a pattern such as `web_*` or `*.rejected` names all that match.
        "##]].assert_eq(&reference_page(&CATALOG, "mail").unwrap());
        expect![[r##"
            # tail (source)

            Reads files as they grow.

            **After a crash:** reads on where the checkpoint says.

            ## Options

            - **`paths`** (list of text, required): The files, as patterns.
            - **`poll_interval`** (length of time, default `"1s"`): How often to look for new files.
            - **`read_from`** (`"beginning"` or `"end"`, default `"end"`): Where a file that is new is read from. Default: its end.
              - `"beginning"`: Its first byte.
              - `"end"`: Its last byte.

            ## Options of every source

            What every source can be told about its records.

            Every source has the output `NAME.rejected`: records that are too long or that the codec cannot read, as dead letters.

            - **`idle_timeout`** (length of time, default `"10s"`): After how long without records a healthy partition stops holding others back: event time then follows the clock.
            - **`journal`** (`true` or `false`): Whether what comes in is written to a journal in the data directory, made durable, and only then worked on: after a
              crash it is read again from there. Only for sources that cannot be read again otherwise, such as `http` or `socket`.
              Default: `true` for `http` with `acknowledge = true` where there is a `data_dir`, else `false`.
            - **`journal_max_bytes`** (size, default `"1GiB"`): How large the journal may become: it holds what came in since the oldest checkpoint that is kept. Beyond it, and while
              its disk is full or broken, clients that wait for an acknowledgement are refused, and all others wait. At least
              `"1MiB"`.
            - **`max_record_bytes`** (size, default `"1MiB"`): Longer records are cut off or rejected, as `too_long` says, and never buffered. At most `"256MiB"`.
            - **`multiline`** (table): Lines that belong together: stack traces, wrapped messages. Only for sources that read lines.
              - **`mode`** (`"start"` or `"end"` or `"continue_past"` or `"continue_through"`, required): What a match says of a line.
                - `"start"`: It begins a record; all others continue one.
                - `"end"`: It ends a record.
                - `"continue_past"`: It is continued by the next line, as one that ends in a backslash.
                - `"continue_through"`: It continues the record before it, as one that is indented.
              - **`pattern`** (text, required): The regular expression that lines are tested with.
              - **`max_lines`** (whole number, default `1000`): A record is complete when it has so many lines. At least 1.
              - **`timeout`** (length of time, default `"1s"`): A record is complete when no further line has come for so long.
            - **`on_decode_error`** (`"reject"` or `"drop"`, default `"reject"`): What becomes of a record that the codec cannot read.
              - `"reject"`: It becomes a dead letter at `NAME.rejected`.
              - `"drop"`: It ends here.
            - **`out_of_order`** (length of time, default `"0s"`): How far an event's time may be behind the greatest seen so far in its partition without being late. Windows and
              alerts wait so much longer.
            - **`timestamp`** (table): Where an event's time is, if not where the codec says. A record without a time counts as of its arrival.
              - **`field`** (text, required): The field that holds it, such as `".ts"` or `".event.created"`.
              - **`format`** (text, default `"auto"`): How it is written: `"rfc3339"`, `"unix"` (seconds, with decimals or without), `"unix_ms"`, `"unix_us"`, `"unix_ns"`,
                `"clf"` (that of access logs), `"syslog"` (without a year: the one that puts it nearest before the arrival), a strftime
                pattern such as `"%d/%b/%Y:%H:%M:%S %z"`, or `"auto"`: what its shape says among `rfc3339`, `clf` and `syslog`.
              - **`timezone`** (text): The time zone of a pattern without `%z`: an IANA name such as `"Europe/Prague"`. Default: UTC.
            - **`too_long`** (`"reject"` or `"truncate"`, default `"reject"`): What becomes of a record longer than `max_record_bytes`.
              - `"reject"`: It becomes a dead letter that holds its head.
              - `"truncate"`: Its head goes on, the rest is left out.
            - **`codec`** (text or table): how the bytes of a record become fields, such as `"json"`, or `{ type = "csv", … }` with the codec's options. Default: that of the source, mostly `"text"`.
        "##]].assert_eq(&reference_page(&CATALOG, "tail").unwrap());
    }

    #[test]
    fn a_name_without_a_page_is_near_to_one_that_has() {
        assert_eq!(reference_page(&CATALOG, "wndow"), None);
        assert_eq!(nearest_page(&CATALOG, "wndow"), Some("window"));
        assert_eq!(nearest_page(&CATALOG, "zzz"), None);
    }

    #[test]
    fn the_reference_has_every_component_and_the_tables_of_the_daemon_and_of_tests() {
        let reference = reference(&CATALOG);
        let headings: Vec<&str> = reference.lines().filter(|line| line.starts_with("##")).collect();
        expect![[r#"
            ## Sources
            ### `tail`
            #### Options
            ## Codecs
            ### `text`
            ### `csv`
            #### Options
            ## Operators
            ### `filter`
            #### Options
            ### `route`
            #### Options
            ### `window`
            #### Options
            ## Sinks
            ### `mail`
            #### Options
            ### `print`
            ## `daemon`
            ### Options
            ## `silences`
            ### Options
            ## `tests`
            ### Options"#]]
        .assert_eq(&headings.join("\n"));
    }
}
