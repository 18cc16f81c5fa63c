//! The parts of a configuration that run for a partition each.

use tocsin_pipeline::graph::{Graph, Target};

use super::super::fakes::BUILT;
use super::*;
use crate::build::{build, build_lane};
use crate::component::AssignedPartition;

#[test]
fn several_daemons_have_a_transaction_for_each_section() {
    check(
        &several(
            BY_HOST,
            r#"
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
"#,
        ),
        expect![[r#"
            orders
              one ← orders
            others
              two ← others
        "#]],
    );
    check(
        &several(
            BY_HOST,
            r#"
[operators.by_path]
type = "through"
inputs = ["orders"]
key = [".path"]

[sinks.one]
type = "produce"
inputs = ["orders"]
topic = "one"

[sinks.two]
type = "produce"
inputs = ["by_path"]
topic = "two"
"#,
        ),
        expect![[r#"
            a.toml:13:1: error: `by_path` and `one` both write in transactions, and no protocol makes two transactions one
            13 | [sinks.one]
               | ^^^^^^^^^^^
            a.toml:8:1: note: `by_path` is here
            8 | [operators.by_path]
              | ^^^^^^^^^^^^^^^^^^^
            help: split the pipeline: let one write to a topic, and another read that topic and write the rest

            1 problem
        "#]],
    );
}

/// Two topics, and what is counted of both.
const TWO: &str = r#"
[sources.payments]
type = "topic"
topic = "payments"
keyed_by = [".host"]

[operators.tidy]
type = "edit"
inputs = ["orders", "payments"]
assigns = []

[sinks.out]
type = "print"
inputs = ["*", "*.rejected"]
"#;

#[test]
fn what_keeps_nothing_belongs_to_every_section_that_leads_to_it() {
    check(
        &several(BY_HOST, TWO),
        expect![[r#"
        orders
          tidy ← orders payments
          out ← orders payments tidy orders.rejected payments.rejected tidy.rejected
        payments
          tidy ← orders payments
          out ← orders payments tidy orders.rejected payments.rejected tidy.rejected
    "#]],
    );
}

#[test]
fn two_topics_do_not_meet_in_a_state() {
    check(
        &several(
            BY_HOST,
            &format!(
                "{TWO}\n[operators.counts]\ntype = \"count\"\ninputs = [\"orders\", \"payments\"]\ngroup_by = \
                 [\".host\"]\n\n[operators.rule]\ntype = \"rule\"\ninputs = [\"counts\"]\n\n[operators.sorted]\ntype = \
                 \"sort\"\ninputs = [\"tidy\"]\n"
            ),
        ),
        expect![[r#"
            a.toml:24:21: error: `counts` keeps state, and what `orders` and `payments` read does not meet in it: each partition has a state of its own
            24 | inputs = ["orders", "payments"]
               |                     ^^^^^^^^^^
            help: let both go through one topic before it: `[operators.by_host]` with `type = "repartition"`, `inputs = ["orders", "payments"]` and `key = [".host"]`; or leave out `daemon.checkpoint_store` and run one daemon

            a.toml:31:1: error: `sorted` keeps state, and what `orders` and `payments` read does not meet in it: each partition has a state of its own
            31 | [operators.sorted]
               | ^^^^^^^^^^^^^^^^^^
            help: let each have an operator of its own; or leave out `daemon.checkpoint_store` and run one daemon

            2 problems
        "#]],
    );
}

/// Two topics that meet in a third, and a fourth behind that.
const RELAYS: &str = r#"
[sources.payments]
type = "topic"
topic = "payments"
keyed_by = [".user"]

[operators.by_host]
type = "through"
inputs = ["orders", "payments"]
key = [".host"]
partitions = 12

[operators.counts]
type = "count"
inputs = ["by_host"]
group_by = [".host"]

[operators.by_path]
type = "through"
inputs = ["by_host"]
key = [".path"]
topic = "paths"

[operators.once]
type = "unique"
inputs = ["by_path"]
key = [".path"]

[sinks.out]
type = "print"
inputs = ["counts", "once"]

[sinks.dead]
type = "print"
inputs = ["*.rejected"]
"#;

#[test]
fn relays_part_a_configuration_into_sections() {
    check(
        &several("password = \"swordfish\"", RELAYS),
        expect![[r#"
        orders
          by_host ← orders payments
          dead ← orders.rejected payments.rejected by_host.rejected counts.rejected by_path.rejected once.rejected out.rejected
        payments
          by_host ← orders payments
          dead ← orders.rejected payments.rejected by_host.rejected counts.rejected by_path.rejected once.rejected out.rejected
        by_host:out
          counts ← by_host:out
          by_path ← by_host:out
          out ← counts once
          dead ← orders.rejected payments.rejected by_host.rejected counts.rejected by_path.rejected once.rejected out.rejected
        by_path:out
          once ← by_path:out
          out ← counts once
          dead ← orders.rejected payments.rejected by_host.rejected counts.rejected by_path.rejected once.rejected out.rejected
    "#]],
    );
}

#[test]
fn a_relay_may_be_written_before_what_leads_to_it() {
    let (before, first) = RELAYS.split_once("[operators.by_host]").unwrap();
    let (first, rest) = first.split_once("[operators.counts]").unwrap();
    let turned = format!("{before}[operators.counts]{rest}\n[operators.by_host]{first}");
    let plan = outcome(&several("", &turned)).unwrap();
    let names: Vec<_> = plan.relays.iter().map(|relay| &*plan.sources[relay.source].name).collect();
    assert_eq!(names, ["by_host:out", "by_path:out"]);
}

#[test]
fn the_ends_of_a_relay_are_made_of_what_its_source_says() {
    let plan = outcome(&several("password = \"swordfish\"", RELAYS)).unwrap();
    let mut text = String::new();
    for relay in &plan.relays {
        let (sink, source) = (&plan.sinks[relay.sink], &plan.sources[relay.source]);
        let _ = writeln!(text, "{} ({}) → {} ({})", sink.name, sink.type_name, source.name, source.type_name);
        let _ = writeln!(
            text,
            "  line {}, codec {}, {:?}",
            source.place.line,
            source.codec_name,
            source.options.partitioned()
        );
    }
    expect![[r#"
        by_host (produce) → by_host:out (topic)
          line 13, codec text, Some(Partitioned { group: "g", keyed_by: Some([".host"]) })
        by_path (produce) → by_path:out (topic)
          line 24, codec text, Some(Partitioned { group: "g", keyed_by: Some([".path"]) })
    "#]]
    .assert_eq(&text);
}

#[test]
fn what_a_relay_cannot_be_made_of_is_told_at_its_operator() {
    check(
        &several(
            "password = \"swordfish\"\nis_writable = false",
            "[operators.by_host]\ntype = \"through\"\ninputs = [\"orders\"]\nkey = [\".host\"]\n\n[operators.again]\ntype = \
             \"through\"\ninputs = [\"by_host\"]\nkey = [\".path\"]\n\n[sinks.out]\ntype = \"print\"\ninputs = [\"again\"]",
        ),
        expect![[r#"
            a.toml:8:1: error: `orders` reads from no servers that have topics, so nothing can go through one there
            8 | [operators.by_host]
              | ^^^^^^^^^^^^^^^^^^^
            help: write what it reads to a topic with a `kafka` sink in a pipeline of its own, and read that topic here

            1 problem
        "#]],
    );
    // It is in the options that are made, and of no more partitions than the fake can count.
    check(
        &several(
            "password = \"swordfish\"",
            "[operators.by_host]\ntype = \"through\"\ninputs = [\"orders\"]\nkey = [\".host\"]\npartitions = 1000\n\n[sinks.out]\n\
             type = \"print\"\ninputs = [\"by_host\"]",
        ),
        expect![[r#"
            a.toml:7:1: error: expected a whole number, found the number 1000
            7 | [operators.by_host]
              | ^^^^^^^^^^^^^^^^^^^

            1 problem
        "#]],
    );
}

fn shape(graph: &Graph) -> String {
    let mut text = String::new();
    let target = |target: &Target| match target {
        Target::Operator { index, input } => format!("{} ({input})", graph.operators[*index].name),
        Target::Sink(sink) => graph.sinks[*sink].name.to_string(),
    };
    let targets = |targets: &[Target]| targets.iter().map(target).collect::<Vec<_>>().join(", ");
    for source in &graph.sources {
        let _ = writeln!(text, "{} → {} | {}", source.name, targets(&source.outputs), targets(&source.rejected));
    }
    for operator in &graph.operators {
        let outputs: Vec<_> = operator.outputs.iter().map(|output| targets(output)).collect();
        let _ = writeln!(text, "{} → {}", operator.name, outputs.join(" | "));
    }
    for sink in &graph.sinks {
        let _ = writeln!(text, "{} → | {}", sink.name, targets(&sink.rejected));
    }
    text
}

#[test]
fn a_lane_is_the_graph_of_its_section() {
    let plan = outcome(&several("", RELAYS)).unwrap();
    BUILT.take();
    let sections = sections(&plan);
    let partition = AssignedPartition { topic: "orders.by_host".to_owned(), partition: 7, of: 1 };
    let mut text = shape(&build_lane(&plan, &sections[2], &partition));
    let _ = writeln!(text, "{:#?}", BUILT.take());
    expect![[r#"
        by_host:out → counts (0), by_path | 
        counts → out |  | dead
        by_path → | dead
        out → | dead
        dead → | 
        [
            "by_host:out of orders.by_host/7",
            "counts of orders.by_host/7",
            "by_path of orders.by_host/7",
            "out of orders.by_host/7",
            "dead of orders.by_host/7",
        ]
    "#]]
    .assert_eq(&text);
}

#[test]
fn in_one_process_nothing_goes_through_a_topic() {
    let plan = outcome(&several("", RELAYS)).unwrap();
    BUILT.take();
    let mut text = shape(&build(&plan));
    let _ = writeln!(text, "{:?}", BUILT.take());
    expect![[r#"
        orders → by_host, counts (0), by_path, once (0) | dead
        payments → by_host, counts (0), by_path, once (0) | dead
        counts → out |  | dead
        once → out | dead
        by_host → | dead
        by_path → | dead
        out → | dead
        dead → | 
        ["orders of everything", "payments of everything", "counts of everything", "once of everything", "by_host of everything", "by_path of everything", "out of everything", "dead of everything"]
    "#]].assert_eq(&text);
}
