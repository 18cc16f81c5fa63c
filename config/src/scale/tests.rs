//! Configurations for several daemons in; what is wrong with them, or their sections, out.

mod sections;

use std::borrow::Borrow;
use std::fmt::Write as _;

use expect_test::{Expect, expect};

use super::fakes::CATALOG;
use super::sections;
use crate::plan::{ComponentId, Plan};
use crate::{EmptyEnvironment, Report, SourceFile};

fn outcome(text: &str) -> Result<Plan, Report> {
    let file = SourceFile { name: "a.toml".to_owned(), text: text.to_owned() };
    crate::check(&[file], &EmptyEnvironment, &CATALOG, &[])
}

/// What is said of a configuration; of one without problems its sections, each with what it holds and what that reads.
fn check(text: &str, expected: impl Borrow<Expect>) {
    match outcome(text) {
        Ok(plan) => expected.borrow().assert_eq(&describe(&plan)),
        Err(report) => expected.borrow().assert_eq(&report.render(false)),
    }
}

fn describe(plan: &Plan) -> String {
    let mut text = String::new();
    for section in sections(plan) {
        let _ = writeln!(text, "{}", section.name);
        let operators = section.operators.iter().map(|at| ComponentId::Operator(*at));
        for component in operators.chain(section.sinks.iter().map(|at| ComponentId::Sink(*at))) {
            let inputs: Vec<_> = plan.inputs(component).map(|edge| plan.outlet_name(edge.from)).collect();
            let _ = writeln!(text, "  {} ← {}", plan.name(component), inputs.join(" "));
        }
    }
    text
}

/// A configuration for several daemons: a topic that is keyed as told, and the rest.
fn several(keyed_by: &str, rest: &str) -> String {
    format!(
        "daemon.checkpoint_store = \"s3://state\"\n\n[sources.orders]\ntype = \"topic\"\ntopic = \"orders\"\n{keyed_by}\n{rest}"
    )
}

const BY_HOST: &str = "keyed_by = [\".host\"]";

/// What must be in order, and what is not.
fn check_behind(keyed_by: &str, operators: &str, last: &str, expected: impl Borrow<Expect>) {
    check(
        &several(keyed_by, &format!("{operators}\n[sinks.out]\ntype = \"print\"\ninputs = [\"{last}\"]\n")),
        expected,
    );
}

#[test]
fn state_by_the_key_of_the_topic_is_right() {
    check_behind(
        BY_HOST,
        r#"
[operators.tidy]
type = "edit"
inputs = ["orders"]
assigns = [".path", ".hosts.first"]

[operators.once]
type = "unique"
inputs = ["tidy"]
key = [" .path", ".host "]

[operators.split]
type = "split"
inputs = ["once"]

[operators.counts]
type = "count"
inputs = ["split.low", "split.high"]
group_by = [".host", "downcase(.path)"]
"#,
        "counts",
        expect![[r#"
            orders
              tidy ← orders
              once ← tidy
              split ← once
              counts ← split.low split.high
              out ← counts
        "#]],
    );
}

#[test]
fn daemons_share_a_place_and_have_a_name_each() {
    let text = several(BY_HOST, "[sinks.out]\ntype = \"print\"\ninputs = [\"orders\"]");
    let files = [SourceFile { name: "a.toml".to_owned(), text }];
    for store in ["s3://logs/tocsin", "/shared/tocsin"] {
        let overrides = [format!("daemon.checkpoint_store={store}"), "daemon.instance=node-1.example_2".to_owned()];
        let plan = crate::check(&files, &EmptyEnvironment, &CATALOG, &overrides).unwrap();
        assert_eq!(plan.daemon.checkpoint_store.as_deref(), Some(store));
        assert_eq!(plan.daemon.instance.as_deref(), Some("node-1.example_2"));
    }
}

#[test]
fn a_longer_path_of_the_topics_key_is_within_a_shorter_one() {
    check_behind(
        "keyed_by = [\".http.host\"]",
        "[operators.once]\ntype = \"unique\"\ninputs = [\"orders\"]\nkey = [\".http\"]",
        "once",
        expect![[r#"
            orders
              once ← orders
              out ← once
        "#]],
    );
}

#[test]
fn a_key_that_holds_a_part_of_the_topics_key_is_scattered() {
    check_behind(
        "keyed_by = [\".host\", \".http.path\"]",
        r#"
[operators.once]
type = "unique"
inputs = ["orders"]
key = [".host", ".http.path.first", "downcase(.http.path)"]
"#,
        "once",
        expect![[r#"
            a.toml:11:7: error: `once` keeps state by `.host`, `.http.path.first` and `downcase(.http.path)`, and not all records of such a key are in one partition: they are in partitions by `.host` and `.http.path`
            11 | key = [".host", ".http.path.first", "downcase(.http.path)"]
               |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_host]` with `type = "repartition"`, `inputs = ["orders"]` and `key = [".host", ".http.path.first"]`; or leave out `daemon.checkpoint_store` and run one daemon

            1 problem
        "#]],
    );
}

#[test]
fn a_key_without_paths_goes_through_a_remap_first() {
    check_behind(
        BY_HOST,
        "[operators.once]\ntype = \"unique\"\ninputs = [\"orders\"]\nkey = [\"downcase(.host)\"]",
        "once",
        expect![[r#"
            a.toml:10:7: error: `once` keeps state by `downcase(.host)`, and not all records of such a key are in one partition: they are in partitions by `.host`
            10 | key = ["downcase(.host)"]
               |       ^^^^^^^^^^^^^^^^^^^
            help: let a `remap` before it put the key into a field, so that they can go through a topic by that with `repartition`; or leave out `daemon.checkpoint_store` and run one daemon

            1 problem
        "#]],
    );
}

#[test]
fn a_topic_whose_key_is_not_told_may_scatter_every_key() {
    let untold = expect![[r#"
        a.toml:10:12: error: `counts` keeps state by `.host` and `.path`, and not all records of such a key are in one partition: `orders` does not say by what they are in partitions
        10 | group_by = [".host", ".path"]
           |            ^^^^^^^^^^^^^^^^^^
        help: let them go through a topic before it: `[operators.by_host]` with `type = "repartition"`, `inputs = ["orders"]` and `key = [".host", ".path"]`; or say `keyed_by = [".host", ".path"]` at `orders` if its topic is keyed so; or leave out `daemon.checkpoint_store` and run one daemon

        1 problem
    "#]];
    for keyed_by in ["", "keyed_by = []", "keyed_by = [\".host\", \"downcase(.path)\"]"] {
        check_behind(
            keyed_by,
            "[operators.counts]\ntype = \"count\"\ninputs = [\"orders\"]\ngroup_by = [\".host\", \".path\"]",
            "counts",
            &untold,
        );
    }
}

#[test]
fn one_state_of_all_records_is_as_many_as_there_are_partitions() {
    check_behind(
        BY_HOST,
        r#"
[operators.counts]
type = "count"
inputs = ["orders"]

[operators.sorted]
type = "sort"
inputs = ["orders"]

[operators.rule]
type = "rule"
inputs = ["orders"]

[operators.behind]
type = "count"
inputs = ["counts", "sorted"]
"#,
        "*",
        expect![[r#"
            a.toml:8:1: error: `counts` keeps one state of all records, and each partition of `orders` has a state of its own
            8 | [operators.counts]
              | ^^^^^^^^^^^^^^^^^^
            help: give it a key with `group_by`; or leave out `daemon.checkpoint_store` and run one daemon

            a.toml:12:1: error: `sorted` keeps one state of all records, and each partition of `orders` has a state of its own
            12 | [operators.sorted]
               | ^^^^^^^^^^^^^^^^^^
            help: leave out `daemon.checkpoint_store` and run one daemon

            a.toml:16:1: error: `rule` keeps one state of all records, and each partition of `orders` has a state of its own
            16 | [operators.rule]
               | ^^^^^^^^^^^^^^^^
            help: leave out `daemon.checkpoint_store` and run one daemon

            3 problems
        "#]],
    );
}

#[test]
fn a_program_that_changes_the_topics_key_scatters_it() {
    let changed = expect![[r#"
        a.toml:19:7: error: `once` keeps state by `.host`, and not all records of such a key are in one partition: `tidy` may change `.host`, by which they are in partitions
        19 | key = [".host"]
           |       ^^^^^^^^^
        help: let them go through a topic before it: `[operators.by_host]` with `type = "repartition"`, `inputs = ["split.high"]` and `key = [".host"]`; or leave out `daemon.checkpoint_store` and run one daemon

        1 problem
    "#]];
    for assigns in ["[\".a\", \".host\"]", "[\".host.name\"]", "[\".\"]"] {
        check_behind(
            BY_HOST,
            &format!(
                "[operators.tidy]\ntype = \"edit\"\ninputs = [\"orders\"]\nassigns = {assigns}\n\n[operators.split]\ntype = \
                 \"split\"\ninputs = [\"tidy\"]\n\n[operators.once]\ntype = \"unique\"\ninputs = [\"split.high\"]\nkey = \
                 [\".host\"]"
            ),
            "once",
            &changed,
        );
    }
}

#[test]
fn a_program_of_which_nothing_is_known_scatters_every_key() {
    check_behind(
        BY_HOST,
        r#"
[operators.tidy]
type = "edit"
inputs = ["orders"]

[operators.once]
type = "unique"
inputs = ["tidy"]
key = [".host"]
"#,
        "once",
        expect![[r#"
            a.toml:15:7: error: `once` keeps state by `.host`, and not all records of such a key are in one partition: `tidy` may change `.host`, by which they are in partitions
            15 | key = [".host"]
               |       ^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_host]` with `type = "repartition"`, `inputs = ["tidy"]` and `key = [".host"]`; or leave out `daemon.checkpoint_store` and run one daemon

            1 problem
        "#]],
    );
}

#[test]
fn windows_hold_the_topics_key_under_its_last_field() {
    check_behind(
        "keyed_by = [\".http.host\"]",
        r#"
[operators.counts]
type = "count"
inputs = ["orders"]
group_by = [".path", ".http.host"]

[operators.again]
type = "count"
inputs = ["counts"]
group_by = [".host"]

[operators.rule]
type = "rule"
inputs = ["again", "counts"]

[operators.once]
type = "unique"
inputs = ["rule"]
key = [".labels.host"]

[operators.late]
type = "unique"
inputs = ["counts.late"]
key = [".http.host"]
"#,
        "*",
        expect![[r#"
            orders
              counts ← orders
              again ← counts
              rule ← again counts
              once ← rule
              late ← counts.late
              out ← orders counts again rule once late
        "#]],
    );
}

#[test]
fn what_windows_hold_under_its_old_path_is_not_the_topics_key() {
    check_behind(
        "keyed_by = [\".http.host\"]",
        r#"
[operators.counts]
type = "count"
inputs = ["orders"]
group_by = [".http.host"]

[operators.whole]
type = "count"
inputs = ["orders"]
group_by = [".http"]

[operators.once]
type = "unique"
inputs = ["counts"]
key = [".http.host"]

[operators.twice]
type = "unique"
inputs = ["whole"]
key = [".http"]

[operators.rule]
type = "rule"
inputs = ["counts"]
group_by = [".path"]
"#,
        "*",
        expect![[r#"
            a.toml:21:7: error: `once` keeps state by `.http.host`, and not all records of such a key are in one partition: they are in partitions by `.host`
            21 | key = [".http.host"]
               |       ^^^^^^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_host]` with `type = "repartition"`, `inputs = ["counts"]` and `key = [".http.host"]`; or leave out `daemon.checkpoint_store` and run one daemon

            a.toml:26:7: error: `twice` keeps state by `.http`, and not all records of such a key are in one partition: those that come from `whole` do not hold `.http.host`, by which they are in partitions
            26 | key = [".http"]
               |       ^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_http]` with `type = "repartition"`, `inputs = ["whole"]` and `key = [".http"]`; or leave out `daemon.checkpoint_store` and run one daemon

            a.toml:31:12: error: `rule` keeps state by `.path`, and not all records of such a key are in one partition: they are in partitions by `.host`
            31 | group_by = [".path"]
               |            ^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_path]` with `type = "repartition"`, `inputs = ["counts"]` and `key = [".path"]`; or leave out `daemon.checkpoint_store` and run one daemon

            3 problems
        "#]],
    );
}

#[test]
fn rules_on_plain_records_go_by_their_labels() {
    check_behind(
        BY_HOST,
        r#"
[operators.rule]
type = "rule"
inputs = ["orders"]
labels = { a = ".host", b = ".path" }

[operators.other]
type = "rule"
inputs = ["orders"]
labels = { b = ".path" }
"#,
        "*",
        expect![[r#"
            a.toml:13:1: error: `other` keeps state by `.path`, and not all records of such a key are in one partition: they are in partitions by `.host`
            13 | [operators.other]
               | ^^^^^^^^^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_path]` with `type = "repartition"`, `inputs = ["orders"]` and `key = [".path"]`; or leave out `daemon.checkpoint_store` and run one daemon

            1 problem
        "#]],
    );
}

#[test]
fn what_a_rule_makes_holds_the_topics_key_among_its_labels() {
    check_behind(
        "keyed_by = [\".team\", \".host\"]",
        r#"
[operators.rule]
type = "rule"
inputs = ["orders"]
group_by = [".team", ".host"]

[operators.once]
type = "unique"
inputs = ["rule"]
key = [".labels.team", ".labels.host"]
"#,
        "once",
        expect![[r#"
            a.toml:16:7: error: `once` keeps state by `.labels.team` and `.labels.host`, and not all records of such a key are in one partition: those that come from `rule` do not hold `.team`, by which they are in partitions
            16 | key = [".labels.team", ".labels.host"]
               |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_team]` with `type = "repartition"`, `inputs = ["rule"]` and `key = [".labels.team", ".labels.host"]`; or leave out `daemon.checkpoint_store` and run one daemon

            1 problem
        "#]],
    );
}

#[test]
fn dead_letters_hold_no_key() {
    check_behind(
        BY_HOST,
        r#"
[operators.tidy]
type = "edit"
inputs = ["orders"]
assigns = []

[operators.once]
type = "unique"
inputs = ["tidy.rejected"]
key = [".host"]

[operators.twice]
type = "unique"
inputs = ["tidy", "orders.rejected"]
key = [".host"]
"#,
        "*",
        expect![[r#"
            a.toml:16:7: error: `once` keeps state by `.host`, and not all records of such a key are in one partition: those that come from `tidy.rejected` do not hold `.host`, by which they are in partitions
            16 | key = [".host"]
               |       ^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_host]` with `type = "repartition"`, `inputs = ["tidy.rejected"]` and `key = [".host"]`; or leave out `daemon.checkpoint_store` and run one daemon

            a.toml:21:7: error: `twice` keeps state by `.host`, and not all records of such a key are in one partition: those that come from `orders.rejected` do not hold `.host`, by which they are in partitions
            21 | key = [".host"]
               |       ^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_host]` with `type = "repartition"`, `inputs = ["tidy", "orders.rejected"]` and `key = [".host"]`; or leave out `daemon.checkpoint_store` and run one daemon

            2 problems
        "#]],
    );
}

#[test]
fn streams_whose_key_is_under_different_names_are_not_in_partitions_alike() {
    check_behind(
        "keyed_by = [\".http.host\"]",
        r#"
[operators.counts]
type = "count"
inputs = ["orders"]
group_by = [".http.host"]

[operators.once]
type = "unique"
inputs = ["orders", "counts"]
key = [".http.host", ".host"]
"#,
        "once",
        expect![[r#"
            a.toml:16:7: error: `once` keeps state by `.http.host` and `.host`, and not all records of such a key are in one partition: some are in partitions by `.http.host`, others by `.host`
            16 | key = [".http.host", ".host"]
               |       ^^^^^^^^^^^^^^^^^^^^^^^
            help: let them go through a topic before it: `[operators.by_host]` with `type = "repartition"`, `inputs = ["orders", "counts"]` and `key = [".http.host", ".host"]`; or leave out `daemon.checkpoint_store` and run one daemon

            1 problem
        "#]],
    );
}

#[test]
fn what_cannot_move_is_told_of_each() {
    check(
        &several(
            BY_HOST,
            r#"
[sources.files]
type = "tail"
journal = true

[sinks.archive]
type = "folder"
inputs = ["orders", "files"]

[sinks.out]
type = "print"
inputs = ["orders"]
buffer.when_full = "spill"
"#,
        ),
        expect![[r#"
            a.toml:8:1: error: daemons cannot share what `files` reads: it has no partitions
            8 | [sources.files]
              | ^^^^^^^^^^^^^^^
            help: read it in a pipeline of its own that writes to a topic with a `kafka` sink, and read that topic here; or leave out `daemon.checkpoint_store` and run one daemon

            a.toml:10:11: error: a journal is on the disk of one machine, and partitions move to others
            10 | journal = true
               |           ^^^^
            help: remove it: what has partitions can be read again from where it is

            a.toml:12:1: error: `archive` writes to the disk of the machine it runs on, and partitions move to others
            12 | [sinks.archive]
               | ^^^^^^^^^^^^^^^
            help: write to a topic with a `kafka` sink, and from there to files in a pipeline of its own on one daemon; or leave out `daemon.checkpoint_store` and run one daemon

            a.toml:19:20: error: what waits on the disk of one machine cannot move to another
            19 | buffer.when_full = "spill"
               |                    ^^^^^^^
            help: remove it: the sink makes its writers wait, and what is not read yet waits in its topic

            4 problems
        "#]],
    );
}

#[test]
fn what_cannot_move_is_told_beside_other_problems() {
    check(
        &several(
            BY_HOST,
            r#"
[sinks.archive]
type = "folder"
inputs = ["ordres"]

[sinks.out]
type = "print"
inputs = ["orders"]
colour = true
"#,
        ),
        expect![[r#"
            a.toml:8:1: error: `archive` writes to the disk of the machine it runs on, and partitions move to others
            8 | [sinks.archive]
              | ^^^^^^^^^^^^^^^
            help: write to a topic with a `kafka` sink, and from there to files in a pipeline of its own on one daemon; or leave out `daemon.checkpoint_store` and run one daemon

            a.toml:10:11: error: no source or operator is called `ordres`
            10 | inputs = ["ordres"]
               |           ^^^^^^^^
            help: did you mean `orders`?

            a.toml:15:1: error: `print` has no option `colour`
            15 | colour = true
               | ^^^^^^
            help: it has `buffer`, `inputs` and `type`

            3 problems
        "#]],
    );
}

#[test]
fn several_daemons_need_something_to_share() {
    check(
        r#"
[daemon]
checkpoint_store = "s3://state"

[sources.files]
type = "tail"

[sinks.archive]
type = "folder"
inputs = ["files"]
"#,
        expect![[r#"
            a.toml:3:20: error: `checkpoint_store` is for daemons that share the partitions of a topic, and no source reads one so
            3 | checkpoint_store = "s3://state"
              |                    ^^^^^^^^^^^^
            help: read the topic with a `kafka` source that has a `group`, or leave out `daemon.checkpoint_store` and run one daemon

            a.toml:8:1: error: `archive` writes to the disk of the machine it runs on, and partitions move to others
            8 | [sinks.archive]
              | ^^^^^^^^^^^^^^^
            help: write to a topic with a `kafka` sink, and from there to files in a pipeline of its own on one daemon; or leave out `daemon.checkpoint_store` and run one daemon

            2 problems
        "#]],
    );
}

#[test]
fn what_could_not_be_read_may_be_what_is_shared() {
    check(
        r#"
[daemon]
checkpoint_store = "s3://state"

[sources.files]
type = "tail"

[sources.orders]
type = "topik"
topic = "orders"

[sinks.out]
type = "print"
inputs = ["files", "orders"]
"#,
        expect![[r#"
            a.toml:9:8: error: there is no source of type "topik"
            9 | type = "topik"
              |        ^^^^^^^
            help: did you mean `topic`?

            1 problem
        "#]],
    );
}

#[test]
fn one_daemon_may_do_as_it_likes() {
    check(
        r#"
[sources.orders]
type = "topic"
topic = "orders"

[sources.files]
type = "tail"
journal = true

[operators.counts]
type = "count"
inputs = ["orders", "files"]

[sinks.archive]
type = "folder"
inputs = ["counts"]
buffer.when_full = "spill"
"#,
        expect![[r#"
            orders
              counts ← orders files
              archive ← counts
            files
              counts ← orders files
              archive ← counts
        "#]],
    );
}

#[test]
fn a_relay_is_for_several_daemons() {
    check(
        r#"
[sources.orders]
type = "topic"
topic = "orders"

[operators.by_host]
type = "through"
inputs = ["orders"]
key = [".host"]

[sinks.copy]
type = "produce"
inputs = ["by_host"]
topic = "copy"
"#,
        expect![[r#"
            a.toml:6:1: error: `by_host` is for daemons that share the work, and there is no `daemon.checkpoint_store`
            6 | [operators.by_host]
              | ^^^^^^^^^^^^^^^^^^^
            help: remove it and name what it reads in the `inputs` of its readers; or set `daemon.checkpoint_store`, so that several daemons can run this

            1 problem
        "#]],
    );
}

#[test]
fn a_file_that_could_not_be_read_may_say_that_there_are_several_daemons() {
    let file = |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.to_owned() };
    let relay = "[sources.orders]\ntype = \"topic\"\ntopic = \"orders\"\n\n[operators.by_host]\ntype = \"through\"\ninputs = \
                 [\"orders\"]\nkey = [\".host\"]\n\n[sinks.out]\ntype = \"print\"\ninputs = [\"by_host\"]\n";
    let files = [file("daemon.toml", "[daemon\ncheckpoint_store = \"s3://state\""), file("a.toml", relay)];
    let report = crate::check(&files, &EmptyEnvironment, &CATALOG, &[]).err().unwrap();
    expect![[r#"
        daemon.toml:1:8: error: not TOML: unclosed table, expected `]`
        1 | [daemon
          |        ^

        1 problem
    "#]]
    .assert_eq(&report.render(false));
}

#[test]
fn two_transactions_are_told_of() {
    check(
        r#"
[sources.orders]
type = "topic"
topic = "orders"

[sources.others]
type = "topic"
topic = "others"

[sinks.one]
type = "produce"
inputs = ["orders"]
topic = "one"

[sinks.two]
type = "produce"
inputs = ["others"]
topic = "two"

[sinks.three]
type = "produce"
inputs = ["others"]
topic = "three"
"#,
        expect![[r#"
            a.toml:15:1: error: `one` and `two` both write in transactions, and no protocol makes two transactions one
            15 | [sinks.two]
               | ^^^^^^^^^^^
            a.toml:10:1: note: `one` is here
            10 | [sinks.one]
               | ^^^^^^^^^^^
            help: split the pipeline: let one write to a topic, and another read that topic and write the rest

            a.toml:20:1: error: `one` and `three` both write in transactions, and no protocol makes two transactions one
            20 | [sinks.three]
               | ^^^^^^^^^^^^^
            a.toml:10:1: note: `one` is here
            10 | [sinks.one]
               | ^^^^^^^^^^^
            help: split the pipeline: let one write to a topic, and another read that topic and write the rest

            2 problems
        "#]],
    );
}

#[test]
fn what_waits_on_disk_is_part_of_no_transaction() {
    check(
        r#"
[sources.orders]
type = "topic"
topic = "orders"

[sinks.one]
type = "produce"
inputs = ["orders"]
topic = "one"
buffer = { when_full = "spill" }
"#,
        expect![[r#"
            a.toml:10:24: error: `one` writes in transactions, and what waits on disk is part of none
            10 | buffer = { when_full = "spill" }
               |                        ^^^^^^^
            help: leave out `when_full`: what it cannot write just now waits in the topics and files that it is read from

            1 problem
        "#]],
    );
}
