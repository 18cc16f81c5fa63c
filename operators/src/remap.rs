//! Records are changed by a program.

use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{Assigns, BuildContext, Keying, OperatorConfig, Problem};
use tocsin_pipeline::event::{Batch, Span};
use tocsin_pipeline::expression::{Program, ProgramError};
use tocsin_pipeline::json::{is_json, parse_value, write_value};
use tocsin_pipeline::operator::{Built, Output, Ports, Reason, Transform, dead_letter};
use vrl::value::Value;

use crate::filter::problems_of;

/// Runs a program in [VRL](https://vrl.dev) over each record; what it leaves as `.` is the record from here on.
///
/// `%source`, `%file`, `%offset`, `%partition` and `%ingest_time` tell where a record is from. `now()` is when it arrived.
/// `uuid_v4()`, `uuid_v7()` and `random_…()` are drawn from the record's coordinate and the program, so they give the same
/// when the record is read again, and are no secrets. Functions that ask the network, read files, or differ between machines
/// are refused by `tocsin check`. A record stays one record: a program that makes `.` an array fails on it.
///
/// The event time of a record stays what the source found it to be.
///
/// **State:** none.
///
/// **Late records:** like any other.
///
/// **When the program fails** on a record, `on_error` decides what becomes of it. `abort` drops the record whatever
/// `on_error` says, counted as `program_error`.
///
/// **After a crash:** records that are read again become what they became the first time.
///
/// ```toml
/// [operators.tidy]
/// type = "remap"
/// inputs = ["access"]
/// program = '''
/// .host = downcase!(.host)
/// .seconds = to_float!(del(.latency_ms)) / 1000
/// if .level == "DEBUG" { abort }
/// '''
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The program. One of `program` and `program_file` is needed.
    #[serde(default)]
    program: Option<String>,
    /// The path of a file that holds the program; relative to the folder of the configuration file.
    // By the time it comes here, the configuration has put the content of the file in the place of its path: that is how
    // `check` finds what is wrong with it.
    #[serde(default)]
    program_file: Option<String>,
    /// What becomes of a record on which the program fails: `"reject"` sends it as it was to `NAME.rejected` with the
    /// reason, `"drop"` drops it, counted as `program_error`, `"pass"` hands it on as it was. Default: `"reject"`.
    #[serde(default)]
    on_error: OnError,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OnError {
    #[default]
    Reject,
    Drop,
    Pass,
}

/// The place of the port `rejected` among the outputs.
const REJECTED: usize = 1;
/// How many bytes of JSON are written for a batch before records are kept as values.
const BLOCK_MAX: usize = 1 << 30;

impl Config {
    /// The option that holds the program, and the program.
    fn source(&self) -> Option<(&'static str, &str)> {
        match (&self.program, &self.program_file) {
            (Some(program), None) => Some(("program", program)),
            (None, Some(program)) => Some(("program_file", program)),
            _ => None,
        }
    }
}

impl OperatorConfig for Config {
    const NAME: &'static str = "remap";

    fn problems(&self) -> Vec<Problem> {
        match self.source() {
            Some((option @ "program_file", source)) => Program::check(source)
                .into_iter()
                .map(|found| {
                    // The place of it is in the file; in the configuration there is but its path.
                    let before = source.get(..found.within.start).unwrap_or(source);
                    let (line, start) = (before.matches('\n').count() + 1, before.rfind('\n').map_or(0, |at| at + 1));
                    let column = before[start..].chars().count() + 1;
                    let message = format!("line {line}, column {column} of the file: {}", found.message);
                    Problem { option: option.to_owned(), within: None, message, help: found.help }
                })
                .collect(),
            Some((option, source)) => problems_of(option, Program::check(source)),
            None if self.program.is_some() => {
                vec![Problem::new("program_file", "`program` is given as well").help("remove one of them")]
            }
            None => vec![Problem::new("", "there is no program").help("write it as `program = '.a = 1'`")],
        }
    }

    fn ports(&self) -> Ports {
        vec!["rejected".to_owned()]
    }

    fn keying(&self) -> Keying {
        let program = self.source().and_then(|(_, source)| Program::compile(source).ok());
        let assigns = match program.map(|program| program.changes()) {
            Some(changes) if changes.is_empty() => Assigns::Nothing,
            Some(changes) => Assigns::Paths(changes.iter().map(|path| format!(".{path}")).collect()),
            // There is no such program: that is told already.
            None => Assigns::Everything,
        };
        Keying::Stateless { assigns }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let (_, source) = self.source().expect("the configuration was checked");
        Built::Transform(Arc::new(Remap {
            name: Arc::clone(&context.name),
            program: Program::compile(source).expect("the configuration was checked"),
            on_error: self.on_error,
            tells_rejected: context.connected.iter().any(|port| port == "rejected"),
        }))
    }
}

struct Remap {
    name: Arc<str>,
    program: Program,
    on_error: OnError,
    /// Whether something reads the dead letters.
    tells_rejected: bool,
}

impl Transform for Remap {
    fn apply(&self, mut batch: Batch, output: &mut Output) {
        let mut made = Made::new(&batch);
        let mut kept = Vec::with_capacity(batch.len());
        let mut letters = Vec::new();
        let mut failed = 0;
        for row in batch.rows() {
            let result = match self.program.run(&batch, row) {
                Ok(Value::Array(_)) => Err(ProgramError::Failed(
                    "the program made the record an array; it has to stay one record".to_owned(),
                )),
                result => result,
            };
            match (result, self.on_error) {
                (Ok(value), _) => {
                    made.push(row, value);
                    kept.push(row);
                }
                (Err(error), on_error) => {
                    failed += 1;
                    match (error, on_error) {
                        (ProgramError::Aborted(_), _) | (_, OnError::Drop) => {}
                        (_, OnError::Reject) if !self.tells_rejected => {}
                        (error, OnError::Reject) => {
                            let (reason, message) = (Reason::ProgramError.as_str(), error.to_string());
                            let letter = dead_letter(&self.name, reason, &message, &batch, row);
                            letters.push((batch.time(row), letter));
                        }
                        (_, OnError::Pass) => {
                            failed -= 1;
                            made.pass(&batch, row);
                            kept.push(row);
                        }
                    }
                }
            }
        }
        output.drop(Reason::ProgramError, failed);
        if !letters.is_empty() {
            output.make(letters.len());
            output.emit(REJECTED, Batch::of_values(Arc::clone(&batch.lane), letters, batch.arrival));
        }
        if kept.len() < batch.len() {
            batch = batch.select(kept);
        }
        made.put(&mut batch);
        output.emit(0, batch);
    }
}

/// What the program made of the records of a batch. They are written as JSON at once, while their values are in the cache,
/// and whatever follows reads them as it reads JSON from a source; so a value is kept only where JSON cannot spell it, and
/// where records pass unchanged among others.
struct Made {
    json: Vec<u8>,
    spans: Vec<Span>,
    /// Empty: no value is kept.
    kept: Vec<Option<Value>>,
    /// A record has passed as it was: then all others are kept as values beside it.
    is_mixed: bool,
}

impl Made {
    fn new(batch: &Batch) -> Self {
        let json = Vec::with_capacity(batch.block.len() + batch.block.len() / 8);
        Self { json, spans: vec![Span::default(); batch.spans.len()], kept: Vec::new(), is_mixed: false }
    }

    fn push(&mut self, row: u32, value: Value) {
        // A span reaches to 4 GiB; what a program makes of a block of 1 GiB could be longer.
        if self.is_mixed || !is_json(&value) || self.json.len() > BLOCK_MAX {
            self.keep(row, Some(value));
            return;
        }
        let start = self.json.len();
        write_value(&value, &mut self.json);
        self.spans[row as usize] = Span::new(start, self.json.len() - start);
        self.json.push(b'\n');
    }

    fn keep(&mut self, row: u32, value: Option<Value>) {
        if self.kept.is_empty() {
            self.kept = vec![None; self.spans.len()];
        }
        self.kept[row as usize] = value;
    }

    /// Lets a record through as it is.
    fn pass(&mut self, batch: &Batch, row: u32) {
        if !self.is_mixed {
            self.is_mixed = true;
            for row in 0..self.spans.len() as u32 {
                let span = std::mem::take(&mut self.spans[row as usize]);
                if span.len > 0 {
                    let value = parse_value(span.of(&self.json)).expect("it was written as JSON");
                    self.keep(row, Some(value));
                }
            }
        }
        self.keep(row, batch.changed(row).cloned());
    }

    fn put(self, batch: &mut Batch) {
        if self.is_mixed {
            batch.changed = Arc::new(self.kept);
        } else {
            batch.rewrite(Bytes::from(self.json), self.spans, self.kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::script;

    const STORY: &str = r#"
        00:01 {"a":"1","b":1}
        00:02 {"a":"x","b":2}
        00:03 {"a":"3","b":3,"stop":true}
        00:04 {"a":[1],"b":4}
    "#;
    const PROGRAM: &str = r#"program = 'if .stop == true { abort }; .a = to_int!(.a); .c = .a * 2; del(.b)'"#;

    #[test]
    fn a_record_is_what_the_program_leaves() {
        expect![[r#"
            00:01 {"a":1,"c":2}
            rejected: 00:02 {"coordinate":{"length":15,"offset":16},"error":{"component":"operator","message":"function call error for \"to_int\" at (33:44): Invalid integer \"x\": invalid digit found in string","reason":"program_error"},"raw":"{\"a\":\"x\",\"b\":2}","source":"source"}
            rejected: 00:04 {"coordinate":{"length":15,"offset":60},"error":{"component":"operator","message":"function call error for \"to_int\" at (33:44): unable to coerce [integer] into integer","reason":"program_error"},"raw":"{\"a\":[1],\"b\":4}","source":"source"}
            (program_error 3)
        "#]].assert_eq(&script::run::<Config>(PROGRAM, STORY));
    }

    #[test]
    fn a_record_on_which_the_program_fails_can_be_dropped_or_passed() {
        expect![[r#"
            00:01 {"a":1,"c":2}
            (program_error 3)
        "#]]
        .assert_eq(&script::run::<Config>(&format!("{PROGRAM}\non_error = 'drop'"), STORY));
        expect![[r#"
            00:01 {"a":1,"c":2}
            00:02 {"a":"x","b":2}
            00:04 {"a":[1],"b":4}
            (program_error 1)
        "#]]
        .assert_eq(&script::run::<Config>(&format!("{PROGRAM}\non_error = 'pass'"), STORY));
    }

    #[test]
    fn what_json_cannot_spell_keeps_its_type_for_what_follows() {
        let config = format!(
            "{:?}",
            r#".time = to_unix_timestamp(parse_timestamp!(.at, "%+")); .at = parse_timestamp!(.at, "%+"); .n = 1.0"#
        );
        expect![[r#"
            00:01 {"at":"2026-11-20T12:00:00Z","n":1.0,"time":1795176000}
        "#]]
        .assert_eq(&script::run::<Config>(
            &format!("program = {config}"),
            "00:01 {\"at\":\"2026-11-20T13:00:00+01:00\"}",
        ));
    }

    #[test]
    fn a_record_stays_one_record() {
        expect![[r#"
            00:01 {"a":1}
        "#]]
        .assert_eq(&script::run::<Config>("program = '. = [1, 2]'\non_error = 'pass'", "00:01 {\"a\":1}"));
    }

    #[test]
    fn metadata_is_at_hand() {
        expect![[r#"
            00:01 {"partition":"a","source":"source"}
        "#]]
        .assert_eq(&script::run::<Config>(
            "program = '. = {\"source\": %source, \"partition\": %partition}'",
            "00:01 {}",
        ));
    }

    #[test]
    fn what_it_changes_is_known() {
        expect![[r#"Stateless { assigns: Paths([".a", ".b", ".c"]) }, Same"#]]
            .assert_eq(&script::keying::<Config>(PROGRAM));
        expect![[r#"Stateless { assigns: Paths(["."]) }, Same"#]]
            .assert_eq(&script::keying::<Config>("program_file = '. = parse_json!(.a)'"));
        expect!["Stateless { assigns: Nothing }, Same"]
            .assert_eq(&script::keying::<Config>("program = 'if .a == 1 { abort }'"));
    }

    #[test]
    fn programs_that_cannot_be_are_told() {
        expect![[r#"
            program[5..15]: unhandled fallible assignment: this expression is fallible because at least one argument's type cannot be verified to be valid: or change this to an infallible assignment: .a, err = to_int(.b)
        "#]].assert_eq(&script::problems::<Config>("program = '.a = to_int(.b)'"));
        expect![[r#"
            program[5..30]: http_request is not available: it asks the network
        "#]]
        .assert_eq(&script::problems::<Config>("program = '.a = http_request!(\"http://x\")'"));
        expect![[r#"
            : there is no program (write it as `program = '.a = 1'`)
        "#]]
        .assert_eq(&script::problems::<Config>(""));
        expect![[r#"
            program_file: `program` is given as well (remove one of them)
        "#]]
        .assert_eq(&script::problems::<Config>("program = '.a = 1'\nprogram_file = 'b.vrl'"));
        // Here stands what the configuration has read from the file.
        expect![[r#"
            program_file: line 2, column 2 of the file: `é` cannot stand here
            program_file: line 2, column 14 of the file: call to undefined function: did you mean "for_each"?
        "#]]
        .assert_eq(&script::problems::<Config>("program_file = \"\"\".a = 1\n.é = 1; .b = no_such()\n\"\"\""));
    }
}
