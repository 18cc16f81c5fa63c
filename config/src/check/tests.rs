//! Whole configurations in, whole reports out.

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
fn what_is_wrong_within_a_text_is_pointed_at_in_every_kind_of_string() {
    check(
        r#"
[sources.access]
type = "tail"
paths = ["a"]

[operators.basic]
type = "filter"
inputs = ["access"]
condition = ".message == \"\u00e9\" && .status >= foo"

[operators.literal]
type = "filter"
inputs = ["basic"]
condition = '.a == nope'

[operators.lines]
type = "filter"
inputs = ["literal"]
condition = """
.a == 1 && \
   .b == 2 &&
	.c == missing
"""

[operators.replaced]
type = "filter"
inputs = ["lines"]
condition = '.a == "${SERVER}" && .b == "${HOME:-x}" && .c == missing'

[operators.branches]
type = "route"
inputs = ["replaced"]
routes = { slow = ".latency > 1", "odd.name" = "wrong ==" }

[sinks.out]
type = "print"
inputs = ["branches"]
"#,
        expect![[r#"
            a.toml:9:51: error: call to undefined variable: did you mean "null"?
            9 | condition = ".message == \"\u00e9\" && .status >= foo"
              |                                                   ^^^

            a.toml:14:20: error: call to undefined variable: did you mean "null"?
            14 | condition = '.a == nope'
               |                    ^^^^

            a.toml:22:8: error: call to undefined variable: did you mean "false"?
            22 | 	.c == missing
               | 	      ^^^^^^^

            a.toml:28:63: error: call to undefined variable: did you mean "false"?
            28 | condition = '.a == "${SERVER}" && .b == "${HOME:-x}" && .c == missing'
               |                                                               ^^^^^^^

            a.toml:33:57: error: it ends where something is still to come
            33 | routes = { slow = ".latency > 1", "odd.name" = "wrong ==" }
               |                                                         ^

            5 problems
        "#]],
    );
}

#[test]
fn a_file_that_is_not_toml_does_not_hide_the_others() {
    check_all(
        &[
            ("broken.toml", "[sources.a]\ntype = tail\npassword = \"tell nobody\nx = 1\nx = 2\n"),
            ("fine.toml", "[sinks.out]\ntype = \"prnt\"\ninputs = [\"a\"]\n"),
        ],
        &[],
        expect![[r#"
            broken.toml:2:8: error: not TOML: invalid boolean, expected `true`
            2 | type = tail
              |        ^^^^

            broken.toml:3:24: error: not TOML: invalid basic string, expected `"`
            3 | password = ***
              |               ^

            broken.toml:5:1: error: not TOML: duplicate key
            5 | x = 2
              | ^

            fine.toml:2:8: error: there is no sink of type "prnt"
            2 | type = "prnt"
              |        ^^^^^^
            help: did you mean `print`?

            4 problems
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
fn a_secret_is_shown_nowhere() {
    let files = [(
        "etc/a.toml",
        r#"
[sources.access]
type = "tail"
paths = ["a"]

[sinks.one]
type = "mail"
inputs = ["access"]
smtp = "imap://me:hunter2@example.org"
password = "top secret one"

[sinks.two]
type = "mail"
inputs = ["access"]
smtp = "smtp://example.org"
password = "${file:password}"
headers = { token = "top secret two", count = 123456 }

[sinks.three]
type = "mail"
inputs = ["access"]
pasword = "top secret three"
smtp = "${file:password}"

[sinks.four]
type = "post"
inputs = ["access"]
password = "top secret four"

[sinks.five]
type = "mail"
inputs = ["access"]
smtp = "smtp://example.org"
password = ["top secret five"]

[sinks.six]
type = "mail"
inputs = ["access"]
smtp = "smtp://example.org"
password = """
top secret
six"""
"#,
    )];
    let report = outcome(&files, &["sinks.one.password=top secret seven", "sinks.on.password=top secret eight"]);
    let Err(report) = report else { panic!("there are problems") };
    let (text, json) = (report.render(true), report.json_lines());
    for secret in ["top secret", "swordfish", "hunter2", "123456"] {
        let mentions = text.matches(secret).count() + json.matches(secret).count();
        assert_eq!(mentions, 0, "{secret}: {text}");
    }
    expect![[r#"
        etc/a.toml:9:8: error: "imap://me:***@example.org" is not a mail server
        9 | smtp = "imap://me:***@example.org"
          |        ^^^^^^^^^^^^^^^^^^^^^^^^^^^

        etc/a.toml:16:12: error: "***" has a space
        16 | password = ***
           |            ^^^

        etc/a.toml:17:47: error: expected text, found the number ***
        17 | headers = { token = ***, count = *** }
           |                                  ^^^

        etc/a.toml:22:1: error: `mail` has no option `pasword`
        22 | pasword = ***
           | ^^^^^^^
        help: did you mean `password`?

        etc/a.toml:22:11: error: "***" has a space
        22 | pasword = ***
           |           ^^^

        etc/a.toml:23:8: error: "***" is not a mail server
        23 | smtp = "${file:password}"
           |        ^^^^^^^^^^^^^^^^^^

        etc/a.toml:26:8: error: there is no sink of type "post"
        26 | type = "post"
           |        ^^^^^^
        help: it is one of `mail` and `print`

        etc/a.toml:34:12: error: expected text, found a list
        34 | password = ***
           |            ^^^

        etc/a.toml:40:12: error: "***" has a space
        40 | password = ***
           |            ^^^

        --set:1:20: error: "***" has a space
        1 | sinks.one.password=***
          |                    ^^^

        --set:1:7: error: there is no `sinks.on`
        1 | sinks.on.password=***
          |       ^^
        help: did you mean `sinks.one`?

        11 problems
    "#]]
    .assert_eq(&report.render(false));
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
fn options_can_be_set_from_the_command_line() {
    let text = "[sources.a]\ntype = \"tail\"\npaths = [\"a\"]\n[sinks.mail]\ntype = \"mail\"\ninputs = [\"a\"]\nsmtp = \"smtp://x\"\n";
    check_all(
        &[("a.toml", text)],
        &[
            "sinks.mail.smtp=imap://x",
            "sinks.mial.smtp=smtp://x",
            "sinks.mail.type.x=1",
            "sinks.mail.smpt=\"smtp://x\"",
            "sources.a.paths=[]",
            "daemon.memory=1MiB",
            "daemon.log=loud",
            "tests.x=1",
            "nonsense",
            "a..b=1",
        ],
        expect![[r#"
            --set:1:17: error: "imap://x" is not a mail server
            1 | sinks.mail.smtp=imap://x
              |                 ^^^^^^^^

            --set:1:7: error: there is no `sinks.mial`
            1 | sinks.mial.smtp=smtp://x
              |       ^^^^
            help: did you mean `sinks.mail`?

            --set:1:12: error: `type` is no table, so nothing in it can be set
            1 | sinks.mail.type.x=1
              |            ^^^^

            --set:1:12: error: `mail` has no option `smpt`
            1 | sinks.mail.smpt="smtp://x"
              |            ^^^^
            help: did you mean `smtp`?

            --set:1:17: error: no path
            1 | sources.a.paths=[]
              |                 ^^
            help: name a file

            --set:1:15: error: too little memory for records on their way
            1 | daemon.memory=1MiB
              |               ^^^^
            help: write at least "4MiB"; the default is "256MiB"

            --set:1:12: error: "loud" is not one of the values it can have
            1 | daemon.log=loud
              |            ^^^^
            help: it is one of `error`, `warn`, `info`, `debug` and `trace`

            --set:1:1: error: "tests.x" is not an option's key
            1 | tests.x=1
              | ^^^^^
            help: it sets an option of the daemon or of a component: `daemon.memory=…`, `sinks.mail.smtp=…`

            --set:1:1: error: an override without `=`
            1 | nonsense
              | ^^^^^^^^
            help: write `key=value`, such as `sinks.mail.smtp=smtp://localhost`

            --set:1:1: error: "a..b" is not a key
            1 | a..b=1
              | ^^^^
            help: write the table and the option with dots between them: `sinks.mail.smtp=…`

            10 problems
        "#]],
    );
    let Ok(plan) =
        outcome(&[("a.toml", text)], &["sources.a.out_of_order=5s", "daemon.threads=3", "daemon.data_dir=d"])
    else {
        panic!("there is nothing wrong")
    };
    assert_eq!(plan.sources[0].out_of_order, std::time::Duration::from_secs(5));
    assert_eq!(plan.daemon.threads.map(std::num::NonZeroUsize::get), Some(3));
    assert_eq!(plan.daemon.data_dir.as_deref(), Some(Path::new("d")));
}

#[test]
fn paths_start_at_the_folder_of_their_file() {
    let text = format!("[daemon]\ndata_dir = \"state\"\n{GOOD}");
    let Ok(plan) = outcome(&[("etc/tocsin/a.toml", &text)], &[]) else { panic!("there is nothing wrong") };
    assert_eq!(plan.daemon.data_dir.as_deref(), Some(Path::new("etc/tocsin/state")));
    assert_eq!(plan.sources[0].folder, Path::new("etc/tocsin"));
}

#[test]
fn tests_are_resolved() {
    check(
        &format!(
            "{GOOD}{}",
            r#"
[[tests]]
name = "an error gets through"
input = [
  { source = "access", at = "2026-11-20T12:00:00Z", record = "500" },
  { source = "access", at = "+10s", records = ["200", "500"] },
]
advance = "1m"
expect = [{ from = "errors", records = [{ status = "500", at = 2026-11-20T12:00:00Z }, "500"], exact = true }]
alerts = [{ rule = "errors", at = "+1m", state = "firing", labels = { severity = "critical" } }]
notifications = [{ receiver = "out", at = "+1m", subject = "x" }]
"#
        ),
        expect![[r#"
            a.toml:2 access (tail)
            a.toml:7 errors (filter) 0←access
            a.toml:12 out (print) 0←errors
            Test {
                name: "an error gets through",
                start: Timestamp(
                    1795176000000000000,
                ),
                input: [
                    TestInput {
                        source: 0,
                        at: Timestamp(
                            1795176000000000000,
                        ),
                        records: [
                            "500",
                        ],
                    },
                    TestInput {
                        source: 0,
                        at: Timestamp(
                            1795176010000000000,
                        ),
                        records: [
                            "200",
                            "500",
                        ],
                    },
                ],
                until: Some(
                    Timestamp(
                        1795176070000000000,
                    ),
                ),
                expect: [
                    ExpectedRecords {
                        from: Outlet {
                            component: Operator(
                                0,
                            ),
                            port: 0,
                        },
                        name: "errors",
                        records: [
                            Object {
                                "at": String("2026-11-20T12:00:00Z"),
                                "status": String("500"),
                            },
                            String("500"),
                        ],
                        exact: true,
                        place: Place {
                            file: "a.toml",
                            line: 23,
                        },
                    },
                ],
                alerts: [
                    ExpectedAlert {
                        rule: 0,
                        at: Some(
                            Timestamp(
                                1795176060000000000,
                            ),
                        ),
                        state: Firing,
                        labels: {
                            "severity": String("critical"),
                        },
                        place: Place {
                            file: "a.toml",
                            line: 24,
                        },
                    },
                ],
                notifications: Some(
                    [
                        ExpectedNotification {
                            receiver: 0,
                            at: Timestamp(
                                1795176060000000000,
                            ),
                            subject: Some(
                                "x",
                            ),
                            body: None,
                            place: Place {
                                file: "a.toml",
                                line: 25,
                            },
                        },
                    ],
                ),
                place: Place {
                    file: "a.toml",
                    line: 16,
                },
            }
        "#]],
    );
}

#[test]
fn tests_that_cannot_be_run_are_problems() {
    check(
        &format!(
            "{GOOD}{}",
            r#"
[[tests]]
name = "nothing"
input = [{ source = "acess", at = "noon", record = "x" }]
advance = "1m"
until = "+5m"

[[tests]]
input = [
  { source = "access", at = "+10s", record = "x" },
  { source = "access", at = "+5s", records = [], record = "x" },
]
name = "order"
until = "+1s"
expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] }]

[[tests]]
name = "receivers"
input = []
alerts = [{ rule = "access", state = "burning" }]
notifications = [{ receiver = "errors", at = "x" }]
"#
        ),
        expect![[r#"
            a.toml:16:1: error: the test "nothing" expects nothing, so it cannot fail
            16 | [[tests]]
               | ^^^^^^^^^
            help: add `expect`, `alerts` or `notifications`

            a.toml:18:21: error: there is no source called `acess`
            18 | input = [{ source = "acess", at = "noon", record = "x" }]
               |                     ^^^^^^^
            help: did you mean `access`?

            a.toml:18:35: error: "noon" is not a moment
            18 | input = [{ source = "acess", at = "noon", record = "x" }]
               |                                   ^^^^^^
            help: write "2026-11-20T12:00:00Z", or "+90s" for so long after the start

            a.toml:20:9: error: `advance` and `until` say the same
            20 | until = "+5m"
               |         ^^^^^
            help: remove one of them

            a.toml:25:3: error: an input has either `record` or `records`
            25 |   { source = "access", at = "+5s", records = [], record = "x" },
               |   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
            help: write `record = "…"` for one, `records = ["…", "…"]` for several

            a.toml:25:29: error: "+5s" is before the input above it or before the start
            25 |   { source = "access", at = "+5s", records = [], record = "x" },
               |                             ^^^^^
            help: the clock does not go back: order the input by time

            a.toml:28:9: error: this is before the last input
            28 | until = "+1s"
               |         ^^^^^
            help: write a later moment

            a.toml:29:20: error: `errors` has no output `late`
            29 | expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] …
               |                    ^^^^^^^^^^^^^

            a.toml:29:61: error: `access` has no output `reject`
            29 | expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] …
               |                                                             ^^^^^^^^^^^^^^^
            help: did you mean `access.rejected`?

            a.toml:29:96: error: `expect` has no option `form`
            29 | expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] …
               |                                                                                                ^^^^
            help: did you mean `from`?

            a.toml:29:103: error: there is no component called `x`
            29 | expect = [{ from = "errors.late", records = [5] }, { from = "access.reject", records = [] }, { form = "x", records = [] …
               |                                                                                                       ^^^

            a.toml:34:38: error: "burning" is not one of the values it can have
            34 | alerts = [{ rule = "access", state = "burning" }]
               |                                      ^^^^^^^^^
            help: it is one of `pending`, `firing`, `resolved` and `amended`

            12 problems
        "#]],
    );
}

#[test]
fn values_of_the_wrong_kind_are_told_at_every_level() {
    check_all(
        &[
            (
                "a.toml",
                "sources = 5\noperators.x = true\nsilences = []\ntests = 1\ndaemon = \"x\"\nsorces.a.type = \"b\"\n",
            ),
            ("b.toml", "[[sinks]]\ntype = \"print\"\n[sources.a]\npaths = [\"x\"]\ncodec = 5\n[sources.b]\ntype = 5\n"),
            ("c.toml", "[sources.c]\ntype = \"tail\"\npaths = [5]\ncodec = { type = \"cvs\" }\n"),
            ("d.toml", "[sources.d]\ntype = \"tail\"\npaths = [\"x\"]\ncodec = { type = \"csv\", seperator = 1 }\n"),
            (
                "e.toml",
                "[sources.e]\ntype = \"tail\"\npaths = \"x\"\ncodec.type = \"csv\"\ncodec.columns = []\ncodec.separator = \"ab\"\n",
            ),
        ],
        &[],
        expect![[r#"
            a.toml:1:1: error: `sources` is a table of sources, not a number
            1 | sources = 5
              | ^^^^^^^
            help: write each source as `[sources.NAME]`

            a.toml:2:11: error: the operator `x` is a table, not true or false
            2 | operators.x = true
              |           ^
            help: write each operator as `[operators.NAME]`

            a.toml:4:9: error: `tests` is a list of tables
            4 | tests = 1
              |         ^
            help: write each as `[[tests]]`

            a.toml:5:1: error: `daemon` is a table, not text
            5 | daemon = "x"
              | ^^^^^^
            help: write its options below `[daemon]`

            a.toml:6:1: error: unknown table `sorces`
            6 | sorces.a.type = "b"
              | ^^^^^^
            help: did you mean `sources`?

            b.toml:1:3: error: `sinks` is a table of sinks, not a list
            1 | [[sinks]]
              |   ^^^^^
            help: write each sink as `[sinks.NAME]`

            b.toml:3:1: error: the source `a` has no `type`
            3 | [sources.a]
              | ^^^^^^^^^^^
            help: it is one of `tail`

            b.toml:3:1: error: nothing reads the source `a`
            3 | [sources.a]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            b.toml:5:9: error: `codec` is a name or a table, not a number
            5 | codec = 5
              |         ^
            help: write `codec = "json"`, or `codec = { type = "csv", … }`

            b.toml:6:1: error: nothing reads the source `b`
            6 | [sources.b]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            b.toml:7:8: error: `type` is the name of a kind of source, not a number
            7 | type = 5
              |        ^
            help: it is one of `tail`

            c.toml:1:1: error: nothing reads the source `c`
            1 | [sources.c]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            c.toml:3:10: error: expected text, found the number 5
            3 | paths = [5]
              |          ^

            c.toml:4:18: error: there is no codec of type "cvs"
            4 | codec = { type = "cvs" }
              |                  ^^^^^
            help: did you mean `csv`?

            d.toml:1:1: error: nothing reads the source `d`
            1 | [sources.d]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            d.toml:4:9: error: `csv` needs `columns`
            4 | codec = { type = "csv", seperator = 1 }
              |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
            help: `columns`: The names of the columns

            d.toml:4:25: error: `csv` has no option `seperator`
            4 | codec = { type = "csv", seperator = 1 }
              |                         ^^^^^^^^^
            help: did you mean `separator`?

            d.toml:4:37: error: expected text, found the number 1
            4 | codec = { type = "csv", seperator = 1 }
              |                                     ^

            e.toml:1:1: error: nothing reads the source `e`
            1 | [sources.e]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            e.toml:3:9: error: expected a list, found the text "x"
            3 | paths = "x"
              |         ^^^

            e.toml:6:19: error: "ab" is not one character
            6 | codec.separator = "ab"
              |                   ^^^^

            21 problems
        "#]],
    );
}

#[test]
fn alternatives_of_an_option_are_checked_as_the_one_that_is_meant() {
    check(
        r#"
[sources.a]
type = "tail"
paths = ["x"]
[operators.w]
type = "window"
inputs = ["a"]
shape = { hopping = { size = "5m", ever = "10s" } }
[operators.v]
type = "window"
inputs = ["w"]
shape = { hopping = { size = "5m", every = "10m" } }
[operators.u]
type = "window"
inputs = ["v"]
shape = { tumblin = "5m" }
[operators.t]
type = "window"
inputs = ["u"]
shape.tumbling = "5 m"
state_max = "1 PiB"
[sinks.out]
type = "print"
inputs = ["t"]
"#,
        expect![[r#"
            a.toml:8:36: error: `hopping` has no option `ever`
            8 | shape = { hopping = { size = "5m", ever = "10s" } }
              |                                    ^^^^
            help: did you mean `every`?

            a.toml:12:44: error: windows this far apart leave gaps
            12 | shape = { hopping = { size = "5m", every = "10m" } }
               |                                            ^^^^^

            a.toml:16:11: error: `shape` has no option `tumblin`
            16 | shape = { tumblin = "5m" }
               |           ^^^^^^^
            help: did you mean `tumbling`?

            a.toml:21:13: error: "1 PiB" is not a size
            21 | state_max = "1 PiB"
               |             ^^^^^^^
            help: write "512", "64KiB", "10MB" or "1GiB"

            4 problems
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
fn no_files_are_no_configuration() {
    check_all(
        &[],
        &[],
        expect![[r#"
        configuration: error: the configuration has no source
        help: begin with a table `[sources.NAME]`

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

/// A configuration with a bit of everything, for [`no_edit_makes_it_panic`].
const RICH: &str = r#"
[daemon]
memory = "64MiB"
[sources.access]
type = "tail"
paths = ["${FILE:-a}"]
codec = { type = "csv", columns = ["a\u00e9"] }
timestamp = { field = ".ts", format = "%Y" }
multiline = { pattern = '^\d', mode = "start" }
[operators.split]
type = "route"
inputs = ["acc*", "access.rejected"]
routes.slow = """
.latency > 1 && \
  .x == "y"
"""
[operators.w]
type = "window"
inputs = ["split.slow"]
shape = { hopping = { size = "5m", every = "10s" } }
[sinks.mail]
type = "mail"
inputs = ["w", "w.late"]
smtp = "${SERVER}"
password = "${file:password}"
headers.x = "y"
[[tests]]
name = "t"
input = [{ source = "access", at = "+1s", record = "x" }]
expect = [{ from = "w", records = [{ a = 1.5, b = [1979-05-27] }] }]
"#;

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever is done to a configuration, it is answered with a plan or a report that can be shown.
    #[test]
    fn no_edit_makes_it_panic(
        edits in proptest::collection::vec((0usize..2000, 0usize..12, 0usize..40), 1..6),
        set in "[a-z.\"=${}\\[\\]é]{0,20}",
    ) {
        const PIECES: [&str; 40] = [
            "", "\"", "'", "\"\"\"", "'''", "[", "]", "[[", "]]", "{", "}", "=", ".", "\n", "\\", "\\u00e9", "\\\n", "${",
            "$${", "}", "${file:", "${SERVER}", "é", "\u{1F600}", "\t", "\r\n", "#", "5", "true", "1979-05-27", "type", "inputs",
            "*", "w", "access", "\u{0}", "\u{feff}", "-1e999", "99999999999999999999999", "inputs = [\"w\"]\n",
        ];
        let mut text = RICH.to_owned();
        for (at, len, piece) in edits {
            let mut start = at.min(text.len());
            while !text.is_char_boundary(start) { start -= 1; }
            let mut end = (start + len).min(text.len());
            while !text.is_char_boundary(end) { end += 1; }
            text.replace_range(start..end, PIECES[piece]);
        }
        if let Err(report) = outcome(&[("a.toml", &text), ("b.toml", GOOD)], &[&set]) {
            assert!(!report.problems.is_empty());
            let shown = report.render(true) + &report.json_lines();
            assert!(!shown.contains("swordfish"), "{shown}");
        }
    }
}

#[test]
fn what_can_be_read_again_needs_no_journal() {
    check(
        "[sources.access]\ntype = \"tail\"\npaths = [\"a\"]\njournal = true\njournal_max_bytes = \"1KiB\"\n\n\
         [sinks.out]\ntype = \"print\"\ninputs = [\"access\"]\n",
        expect![[r#"
            a.toml:4:11: error: `tail` can be read again after a crash, so it needs no journal
            4 | journal = true
              |           ^^^^
            help: remove it

            a.toml:5:21: error: too little for a journal
            5 | journal_max_bytes = "1KiB"
              |                     ^^^^^^
            help: write at least "1MiB"; the default is "1GiB"

            2 problems
        "#]],
    );
}

#[test]
fn a_program_file_is_read_by_the_configuration() {
    let config = |path: &str| {
        let text = format!(
            "[sources.access]\ntype = \"tail\"\n\n[sinks.one]\ntype = \"mail\"\ninputs = [\"access\"]\n\
             smtp = \"smtp://example.org\"\nprogram_file = \"{path}\"\n"
        );
        let Err(report) = outcome(&[("etc/a.toml", &text)], &[]) else { panic!("no sink of the tests has programs") };
        report.render(false)
    };
    assert!(
        config("missing.vrl").contains("cannot read the file \"missing.vrl\": no such file"),
        "{}",
        config("missing.vrl")
    );
    assert!(!config("password").contains("cannot read"), "{}", config("password"));
}
