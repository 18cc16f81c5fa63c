//! Whole configurations in, whole reports out.

mod cases;
mod reading;
mod typing;

use std::fmt::Write as _;
use std::path::Path;

use expect_test::{Expect, expect};

use super::*;
use crate::fakes::CATALOG;
use crate::plan::{ComponentId, Outlet};

struct Fixed;

impl Environment for Fixed {
    fn variable(&self, name: &str) -> Result<Option<String>, String> {
        Ok((name == "SERVER").then(|| "smtp://example.org".to_owned()))
    }

    fn file(&self, path: &Path, _: u64) -> Result<String, String> {
        if path == Path::new("etc/password") {
            Ok("swordfish two\n".to_owned())
        } else {
            Err("no such file".to_owned())
        }
    }
}

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.to_owned(), text: text.to_owned() }
}

fn outcome(files: &[(&str, &str)], overrides: &[&str]) -> Result<Plan, Report> {
    let files: Vec<SourceFile> = files.iter().map(|(name, text)| file(name, text)).collect();
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    super::check(&files, &Fixed, &CATALOG, &overrides)
}

/// What is said of one file.
fn check(text: &str, expected: Expect) {
    check_all(&[("a.toml", text)], &[], expected);
}

fn check_all(files: &[(&str, &str)], overrides: &[&str], expected: Expect) {
    match outcome(files, overrides) {
        Ok(plan) => expected.assert_eq(&describe(&plan)),
        Err(report) => expected.assert_eq(&report.render(false)),
    }
}

fn describe(plan: &Plan) -> String {
    let mut text = String::new();
    for id in plan.components() {
        let (type_name, place) = match id {
            ComponentId::Source(at) => (plan.sources[at].type_name, &plan.sources[at].place),
            ComponentId::Operator(at) => (plan.operators[at].type_name, &plan.operators[at].place),
            ComponentId::Sink(at) => (plan.sinks[at].type_name, &plan.sinks[at].place),
        };
        let _ = write!(text, "{}:{} {} ({type_name})", place.file, place.line, plan.name(id));
        for edge in plan.inputs(id) {
            let _ = write!(text, " {}←{}", edge.input, plan.outlet_name(edge.from));
        }
        let is_read = |port| plan.readers(Outlet { component: id, port }).next().is_some();
        let ports = (1..).zip(plan.ports(id));
        let connected: Vec<_> = ports.filter(|(port, _)| is_read(*port)).map(|(_, name)| name).collect();
        let _ = writeln!(
            text,
            "{}",
            if connected.is_empty() { String::new() } else { format!(" connected: {connected:?}") }
        );
    }
    for test in &plan.tests {
        let _ = writeln!(text, "{test:#?}");
    }
    text
}

/// A configuration without problems, to be spoiled.
const GOOD: &str = r#"
[sources.access]
type = "tail"
paths = ["access.log"]
codec = { type = "csv", columns = ["status"] }

[operators.errors]
type = "filter"
inputs = ["access"]
condition = ".status == \"500\""

[sinks.out]
type = "print"
inputs = ["errors"]
"#;

#[test]
fn a_good_configuration_becomes_a_plan() {
    check(
        r#"
[sinks.dead]
type = "print"
inputs = ["*.rejected", "windows.late"]

[operators.windows]
type = "window"
inputs = ["split.slow", "spl*"]
shape = { hopping = { size = "5m", every = "10s" } }

[operators.split]
type = "route"
inputs = ["web_*"]
routes.slow = ".latency > 1"

[sources.web_a]
type = "tail"
paths = ["a"]
timestamp = { field = ".ts", format = "%Y-%m-%d %H:%M:%S", timezone = "Europe/Prague" }
multiline = { pattern = '^\d', mode = "start" }

[sources.web_b]
type = "tail"
paths = ["b"]

[sinks.mail]
type = "mail"
inputs = ["windows"]
smtp = "${SERVER}:25"
"#,
        expect![[r#"
            a.toml:16 web_a (tail) connected: ["rejected"]
            a.toml:22 web_b (tail) connected: ["rejected"]
            a.toml:11 split (route) 0←web_a 0←web_b connected: ["slow", "rejected"]
            a.toml:6 windows (window) 0←split.slow 1←split connected: ["late", "rejected"]
            a.toml:26 mail (mail) 0←windows connected: ["rejected"]
            a.toml:2 dead (print) 0←windows.rejected 0←split.rejected 0←web_a.rejected 0←web_b.rejected 0←mail.rejected 1←windows.late
        "#]],
    );
}

#[test]
fn all_problems_are_told_in_one_run_in_the_order_of_the_file() {
    check(
        r#"[sources.access]
type = "tail"
path = ["access.log"]
poll_interval = "10 minutes"
read_from = "begin"
max_record_bytes = 5
multiline = { pattern = "^(a", mode = "start", timout = "1s" }
timestamp = { field = "..", format = "%Q", timezone = "Mars" }

[operators.errors]
type = "filter"
inputs = ["acess"]
conditon = ".status >= 500"
limit = "many"

[operators.windows]
type = "windo"
inputs = "access"
shape = 5

[sinks.out]
type = "print"
inputs = ["errors", "windows.late", "errors"]
buffer = { max = "10 MB", when_full = "spill" }

[operator.x]
"#,
        expect![[r#"
            a.toml:3:1: error: `tail` has no option `path`
            3 | path = ["access.log"]
              | ^^^^
            help: did you mean `paths`?

            a.toml:4:17: error: "10 minutes" is not a length of time
            4 | poll_interval = "10 minutes"
              |                 ^^^^^^^^^^^^
            help: write "500ms", "10s", "5m", "1h30m" or "7d"

            a.toml:5:13: error: "begin" is not one of the values it can have
            5 | read_from = "begin"
              |             ^^^^^^^
            help: did you mean "beginning"?

            a.toml:6:20: error: expected text, found the number 5
            6 | max_record_bytes = 5
              |                    ^

            a.toml:7:27: error: not a regular expression: unclosed group
            7 | multiline = { pattern = "^(a", mode = "start", timout = "1s" }
              |                           ^

            a.toml:7:48: error: `multiline` has no option `timout`
            7 | multiline = { pattern = "^(a", mode = "start", timout = "1s" }
              |                                                ^^^^^^
            help: did you mean `timeout`?

            a.toml:8:23: error: ".." is not a path to a field
            8 | timestamp = { field = "..", format = "%Q", timezone = "Mars" }
              |                       ^^^^
            help: write a path such as ".ts" or ".event.created"

            a.toml:8:38: error: "%Q" has a specifier that strftime lacks
            8 | timestamp = { field = "..", format = "%Q", timezone = "Mars" }
              |                                      ^^^^
            help: write "auto", "rfc3339", "unix", "unix_ms", "unix_us", "unix_ns", "clf", "syslog", or a pattern such as "%Y-%m-%d %H:%M:%S"

            a.toml:8:55: error: "Mars" is not a time zone
            8 | timestamp = { field = "..", format = "%Q", timezone = "Mars" }
              |                                                       ^^^^^^
            help: write an IANA name such as "UTC" or "Europe/Prague"

            a.toml:12:11: error: no source or operator is called `acess`
            12 | inputs = ["acess"]
               |           ^^^^^^^
            help: did you mean `access`?

            a.toml:13:1: error: `filter` has no option `conditon`
            13 | conditon = ".status >= 500"
               | ^^^^^^^^
            help: did you mean `condition`?

            a.toml:14:9: error: expected a whole number, found the text "many"
            14 | limit = "many"
               |         ^^^^^^

            a.toml:17:8: error: there is no operator of type "windo"
            17 | type = "windo"
               |        ^^^^^^^
            help: did you mean `window`?

            a.toml:18:10: error: `inputs` is a list of names, not text
            18 | inputs = "access"
               |          ^^^^^^^^
            help: write it as a list: `inputs = ["access"]`

            a.toml:23:37: error: the input `errors` is named twice
            23 | inputs = ["errors", "windows.late", "errors"]
               |                                     ^^^^^^^^
            a.toml:23:11: note: here first
            23 | inputs = ["errors", "windows.late", "errors"]
               |           ^^^^^^^^

            a.toml:26:2: error: unknown table `operator`
            26 | [operator.x]
               |  ^^^^^^^^
            help: did you mean `operators`?

            16 problems
        "#]],
    );
}

#[test]
fn names_are_one_for_all_files() {
    check_all(
        &[
            ("a.toml", GOOD),
            ("more/b.toml", "[daemon]\nthreads = 0\n[sinks.errors]\ntype = \"print\"\ninputs = [\"access\"]\n"),
            ("more/c.toml", "daemon.threads = 2\n[sources.\"a b\"]\ntype = \"tail\"\npaths = []\n"),
        ],
        &[],
        expect![[r#"
            more/b.toml:2:11: error: expected a whole number above zero, found the number 0
            2 | threads = 0
              |           ^

            more/b.toml:3:8: error: there are two components called `errors`
            3 | [sinks.errors]
              |        ^^^^^^
            a.toml:7:12: note: here first
            7 | [operators.errors]
              |            ^^^^^^
            help: give one of them another name

            more/c.toml:1:8: error: `daemon.threads` is given twice
            1 | daemon.threads = 2
              |        ^^^^^^^
            more/b.toml:2:1: note: here first
            2 | threads = 0
              | ^^^^^^^

            more/c.toml:2:1: error: nothing reads the source `a b`
            2 | [sources."a b"]
              | ^^^^^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            more/c.toml:2:10: error: "a b" cannot be the name of a source
            2 | [sources."a b"]
              |          ^^^^^
            help: use letters, digits, `_` and `-`

            more/c.toml:4:9: error: no path
            4 | paths = []
              |         ^^
            help: name a file

            6 problems
        "#]],
    );
}

#[test]
fn names_in_inputs_must_lead_somewhere_and_not_in_a_circle() {
    check(
        r#"
[sources.access]
type = "tail"
paths = ["a"]

[sources.lonely]
type = "tail"
paths = ["a"]

[operators.a]
type = "filter"
inputs = ["access", "b"]
condition = "true"

[operators.b]
type = "filter"
inputs = ["a"]
condition = "true"

[operators.c]
type = "filter"
inputs = []
condition = "true"

[operators.d]
type = "route"
inputs = ["access.rejectd", "x_*", "[", "nobody", "out", 5]
routes = {}

[sinks.out]
type = "print"
inputs = ["d.slow", "out.rejected"]
"#,
        expect![[r#"
            a.toml:12:21: error: the inputs make a circle: a → b → a
            12 | inputs = ["access", "b"]
               |                     ^^^
            help: a record would go round for ever: take one of these inputs away

            a.toml:22:10: error: the operator `c` has no inputs
            22 | inputs = []
               |          ^^
            help: name the sources or operators it reads: `inputs = ["NAME"]`

            a.toml:27:11: error: `access` has no output `rejectd`
            27 | inputs = ["access.rejectd", "x_*", "[", "nobody", "out", 5]
               |           ^^^^^^^^^^^^^^^^
            help: did you mean `access.rejected`?

            a.toml:27:29: error: nothing matches `x_*`
            27 | inputs = ["access.rejectd", "x_*", "[", "nobody", "out", 5]
               |                             ^^^^^
            help: there is `access`, `lonely`, `a`, `b`, `c` and `d`

            a.toml:27:36: error: `[` is not a pattern for names: unclosed character class; missing ']'
            27 | inputs = ["access.rejectd", "x_*", "[", "nobody", "out", 5]
               |                                    ^^^
            help: a pattern looks like `web_*`, `web_?` or `{web,api}_errors`

            a.toml:27:41: error: no source or operator is called `nobody`
            27 | inputs = ["access.rejectd", "x_*", "[", "nobody", "out", 5]
               |                                         ^^^^^^^^
            help: there is `access`, `lonely`, `a`, `b`, `c` and `d`

            a.toml:27:51: error: `out` is a sink: nothing comes out of it but `out.rejected`
            27 | inputs = ["access.rejectd", "x_*", "[", "nobody", "out", 5]
               |                                                   ^^^^^
            help: read what the sink reads, or its `rejected` for dead letters

            a.toml:27:58: error: `inputs` is a list of names; this is a number
            27 | inputs = ["access.rejectd", "x_*", "[", "nobody", "out", 5]
               |                                                          ^
            help: name the sources or operators it reads: `inputs = ["NAME"]`

            a.toml:32:11: error: `d` has no output `slow`
            32 | inputs = ["d.slow", "out.rejected"]
               |           ^^^^^^^^
            help: it has `d.other` and `d.rejected`

            a.toml:32:21: error: the inputs make a circle: out → out
            32 | inputs = ["d.slow", "out.rejected"]
               |                     ^^^^^^^^^^^^^^
            help: a record would go round for ever: take one of these inputs away

            10 problems
        "#]],
    );
}

#[test]
fn what_nobody_reads_is_told_once_the_rest_is_right() {
    check(
        r#"
[sources.lonely]
type = "tail"
paths = ["a"]

[sources.access]
type = "tail"
paths = ["a"]

[operators.unread]
type = "filter"
inputs = ["access"]
condition = "true"

[operators.mute]
type = "filter"
inputs = []
condition = "true"
"#,
        expect![[r#"
            a.toml:2:1: error: nothing reads the source `lonely`
            2 | [sources.lonely]
              | ^^^^^^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            a.toml:10:1: error: nothing reads the operator `unread`
            10 | [operators.unread]
               | ^^^^^^^^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            a.toml:15:1: error: nothing reads the operator `mute`
            15 | [operators.mute]
               | ^^^^^^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            a.toml:17:10: error: the operator `mute` has no inputs
            17 | inputs = []
               |          ^^
            help: name the sources or operators it reads: `inputs = ["NAME"]`

            4 problems
        "#]],
    );
}

#[test]
fn what_daemons_share_is_no_other_than_a_place_and_a_name_each() {
    let text = "[sources.a]\ntype = \"tail\"\npaths = [\"a\"]\n[sinks.mail]\ntype = \"mail\"\ninputs = [\"a\"]\nsmtp = \"smtp://x\"\n";
    check_all(
        &[("a.toml", text)],
        &["daemon.checkpoint_store=ftp://host/folder", "daemon.instance=two words"],
        expect![[r#"
            --set:1:25: error: ftp:// is not known
            1 | daemon.checkpoint_store=ftp://host/folder
              |                         ^^^^^^^^^^^^^^^^^
            help: write a folder, or s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER; credentials are taken from the environment

            --set:1:17: error: not a name for a daemon
            1 | daemon.instance=two words
              |                 ^^^^^^^^^
            help: write letters, digits, `.`, `_` and `-`, such as "node-1" or "${HOSTNAME}"

            2 problems
        "#]],
    );
    check_all(
        &[("a.toml", text)],
        &["daemon.checkpoint_store=s3:///folder", "daemon.instance="],
        expect![[r#"
        --set:1:25: error: it names no bucket
        1 | daemon.checkpoint_store=s3:///folder
          |                         ^^^^^^^^^^^^
        help: write a folder, or s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER; credentials are taken from the environment

        --set:1:17: error: not a name for a daemon
        1 | daemon.instance=
          |                 ^
        help: write letters, digits, `.`, `_` and `-`, such as "node-1" or "${HOSTNAME}"

        2 problems
    "#]],
    );
}

#[test]
fn an_empty_configuration_has_no_source() {
    check(
        "# nothing yet\n",
        expect![[r#"
        a.toml:1:1: error: the configuration has no source
        1 | # nothing yet
          | ^
        help: begin with a table `[sources.NAME]`

        1 problem
    "#]],
    );
}

#[test]
fn places_count_characters_and_long_lines_are_cut() {
    let long = format!(
        "[sources.a]\ntype = \"tail\"\npaths = [\"é\u{1b}[31m\"] # not TOML\n[sources.b]\n\"ключ\"\t= 1\nnote = \"{}\"\n",
        "x".repeat(500)
    );
    check(
        &long.replace("\u{1b}", ""),
        expect![[r#"
        a.toml:1:1: error: nothing reads the source `a`
        1 | [sources.a]
          | ^^^^^^^^^^^
        help: name it in the `inputs` of an operator or a sink, or remove it

        a.toml:4:1: error: the source `b` has no `type`
        4 | [sources.b]
          | ^^^^^^^^^^^
        help: it is one of `tail`

        a.toml:4:1: error: nothing reads the source `b`
        4 | [sources.b]
          | ^^^^^^^^^^^
        help: name it in the `inputs` of an operator or a sink, or remove it

        3 problems
    "#]],
    );
    check(
        &long,
        expect![[r#"
        a.toml:3:12: error: not TOML: invalid basic string, expected non-double-quote visible characters, `\`
        3 | paths = ["é�[31m"] # not TOML
          |            ^

        1 problem
    "#]],
    );
}

#[test]
fn reports_are_json_lines_too() {
    let Err(report) = outcome(&[("a.toml", "[sources.a]\ntype = \"tial\"\n[sources.a-]\n")], &[]) else {
        panic!("there are problems")
    };
    expect![[r#"
        {"file":"a.toml","line":1,"column":1,"level":"error","message":"nothing reads the source `a`","help":"name it in the `inputs` of an operator or a sink, or remove it"}
        {"file":"a.toml","line":2,"column":8,"level":"error","message":"there is no source of type \"tial\"","help":"did you mean `tail`?"}
        {"file":"a.toml","line":3,"column":1,"level":"error","message":"the source `a-` has no `type`","help":"it is one of `tail`"}
        {"file":"a.toml","line":3,"column":1,"level":"error","message":"nothing reads the source `a-`","help":"name it in the `inputs` of an operator or a sink, or remove it"}
    "#]].assert_eq(&report.json_lines());
}
