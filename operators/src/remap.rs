//! Records are changed by a program.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, OperatorConfig, Problem};
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::expression::{Program, ProgramError};
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

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let (_, source) = self.source().expect("the configuration was checked");
        Built::Transform(Arc::new(Remap {
            name: Arc::clone(&context.name),
            program: Program::compile(source).expect("the configuration was checked"),
            on_error: self.on_error,
        }))
    }
}

struct Remap {
    name: Arc<str>,
    program: Program,
    on_error: OnError,
}

impl Transform for Remap {
    fn apply(&self, batch: Batch, output: &mut Output) {
        let mut changed: Vec<Option<Value>> = vec![None; batch.spans.len()];
        let mut kept = Vec::with_capacity(batch.len());
        let mut letters = Vec::new();
        let mut dropped = 0;
        for row in batch.rows() {
            let result = match self.program.run(&batch, row) {
                Ok(Value::Array(_)) => Err(ProgramError::Failed(
                    "the program made the record an array; it has to stay one record".to_owned(),
                )),
                result => result,
            };
            match (result, self.on_error) {
                (Ok(value), _) => {
                    changed[row as usize] = Some(value);
                    kept.push(row);
                }
                (Err(ProgramError::Aborted(_)), _) | (Err(_), OnError::Drop) => dropped += 1,
                (Err(error), OnError::Reject) => {
                    let reason = Reason::ProgramError.as_str();
                    letters.push((batch.time(row), dead_letter(&self.name, reason, &error.to_string(), &batch, row)));
                }
                (Err(_), OnError::Pass) => {
                    changed[row as usize] = batch.changed(row).cloned();
                    kept.push(row);
                }
            }
        }
        output.drop(Reason::ProgramError, dropped);
        if !letters.is_empty() {
            output.emit(REJECTED, Batch::of_values(Arc::clone(&batch.lane), letters, batch.arrival));
        }
        let mut batch = if kept.len() < batch.len() { batch.select(kept) } else { batch };
        batch.changed = Arc::new(changed);
        output.emit(0, batch);
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
            (program_error 1)
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
            program_file: line 2, column 2 of the file: syntax error: unexpected syntax token: "InvalidToken": expected one of: ";", "\n", "|", "=", "|=", ",", "+", "*", "-", "/", "<", "<=", ">", ">=", "==", "!=", "|", "&&", "||", "??"
            program_file: line 2, column 14 of the file: call to undefined function: did you mean "for_each"?
        "#]]
            .assert_eq(&script::problems::<Config>("program_file = \"\"\".a = 1\n.é = 1; .b = no_such()\n\"\"\""));
    }
}
