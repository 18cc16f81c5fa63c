//! Files, what they take from outside, and overrides; and files that somebody is writing.

use super::*;

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
