//! Walks the lists of components: names, pages, examples, the reference.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use support::{tocsin, update_expected};

fn output(arguments: &[&str]) -> String {
    let output = tocsin(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The kinds of component and their types, as `tocsin help` lists them.
fn components() -> Vec<(String, Vec<String>)> {
    output(&["help"])
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .filter(|(kind, _)| ["sources", "codecs", "operators", "sinks"].contains(kind))
        .map(|(kind, names)| (kind.to_owned(), names.split_whitespace().map(str::to_owned).collect()))
        .collect()
}

#[test]
fn names_are_words_and_no_kind_has_one_twice() {
    let components = components();
    assert_eq!(components.len(), 4);
    for (kind, names) in components {
        assert!(!names.is_empty(), "{kind}");
        let distinct: BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{kind}");
        for name in names {
            assert!(name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'), "{name}");
        }
    }
}

#[test]
fn every_component_has_a_page_with_what_a_crash_does_and_an_example() {
    for (kind, names) in components() {
        for name in names {
            let page = output(&["help", &name]);
            assert!(page.lines().count() > 5, "the page of {name} is empty");
            assert!(page.contains("```toml") || kind == "codecs", "the page of {name} has no example");
            if kind != "codecs" {
                assert!(page.contains("After a crash"), "the page of {name} does not say what a crash does");
            }
        }
    }
}

/// The example of a page as a whole configuration: what it reads comes from a source of its own, what nobody reads goes to
/// a sink of its own.
fn complete(example: &str) -> String {
    let table: toml::Table = example.parse().unwrap_or_else(|error| panic!("{error}\n{example}"));
    let mut names = BTreeSet::new();
    let mut read = BTreeSet::new();
    for kind in ["sources", "operators", "sinks"] {
        let Some(toml::Value::Table(components)) = table.get(kind) else { continue };
        for (name, component) in components {
            names.insert((kind, name.clone()));
            if let Some(toml::Value::Array(inputs)) = component.get("inputs") {
                read.extend(inputs.iter().map(|input| input.as_str().unwrap().to_owned()));
            }
        }
    }
    let mut whole = example.to_owned();
    let roots: BTreeSet<String> = read.iter().map(|input| input.split('.').next().unwrap().to_owned()).collect();
    let missing: Vec<_> =
        roots.iter().filter(|root| !root.contains('*') && !names.iter().any(|(_, name)| name == *root)).collect();
    for name in missing {
        whole.push_str(&format!("\n[sources.{name}]\ntype = \"stdin\"\ncodec = \"json\"\n"));
    }
    let unread: Vec<String> = names
        .iter()
        .filter(|(kind, name)| *kind != "sinks" && !roots.contains(name))
        .map(|(_, name)| format!("{name:?}"))
        .collect();
    if !unread.is_empty() {
        whole.push_str(&format!("\n[sinks.example_end]\ntype = \"blackhole\"\ninputs = [{}]\n", unread.join(", ")));
    }
    whole
}

/// The TOML blocks of a page.
fn examples(page: &str) -> Vec<String> {
    let mut examples = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find("```toml\n") {
        let body = &rest[start + 8..];
        let end = body.find("```").expect("a block ends");
        examples.push(body[..end].to_owned());
        rest = &body[end + 3..];
    }
    examples
}

#[test]
fn the_examples_of_the_pages_are_fine() {
    let folder = tempfile::tempdir().unwrap();
    for (_, names) in components() {
        for name in names {
            for example in examples(&output(&["help", &name])) {
                if !example.contains("\n[") && !example.starts_with('[') {
                    continue;
                }
                let path = folder.path().join(format!("{name}.toml"));
                // Secrets of examples are in files that are not there.
                let whole = complete(&example.replace("${file:/", "${NONE:-https://example.org/"));
                fs::write(&path, &whole).unwrap();
                // An example shows one component: what is around it may be hardly what anybody means.
                let output = tocsin(&["check", "--format", "json"]).arg(&path).output().unwrap();
                let told = String::from_utf8_lossy(&output.stdout);
                let is_wrong = told.lines().any(|line| !line.contains("\"level\":\"warning\""));
                assert!(!is_wrong && output.stderr.is_empty(), "the example of {name}: {told}\n{whole}");
            }
        }
    }
}

#[test]
fn the_reference_is_that_of_this_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let reference = output(&["help", "--all"]);
    if update_expected() {
        fs::write(&path, &reference).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == reference,
        "docs/reference.md is stale; run: UPDATE_EXPECT=1 cargo test --test components"
    );
}

#[test]
fn the_pages_of_the_checks_are_those_of_this_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/checks.md");
    let checks = output(&["help", "checks", "--all"]);
    if update_expected() {
        fs::write(&path, &checks).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == checks,
        "docs/checks.md is stale; run: UPDATE_EXPECT=1 cargo test --test components"
    );
    assert!(output(&["help", "T012"]).starts_with("# T012 not-tested\n"));
    assert_eq!(output(&["help", "not-tested"]), output(&["help", "t012"]));
}

#[test]
fn a_mistyped_component_gets_a_suggestion() {
    let output = tocsin(&["help", "windw"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("did you mean `window`?"), "{said}");
}

#[test]
fn the_schema_knows_every_component() {
    let schema = output(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let text = schema.to_string();
    for (_, names) in components() {
        for name in names {
            assert!(text.contains(&format!("\"const\":\"{name}\"")), "{name} is not in the schema");
        }
    }
}

#[test]
fn the_examples_and_the_starter_are_fine() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let pipeline = entry.unwrap().path().join("pipeline.toml");
        let pipeline = pipeline.to_str().unwrap();
        output(&["check", pipeline]);
        output(&["explain", pipeline]);
        for format in ["mermaid", "dot", "svg"] {
            output(&["graph", pipeline, "--format", format]);
        }
        if fs::read_to_string(pipeline).unwrap().contains("[[tests]]") {
            let said = output(&["test", pipeline]);
            assert!(said.contains(" passed, 0 failed"), "{said}");
        }
        count += 1;
    }
    assert!(count > 0);
    let folder = tempfile::tempdir().unwrap();
    let starter = folder.path().join("tocsin.toml");
    let starter = starter.to_str().unwrap();
    output(&["new", starter]);
    output(&["check", starter]);
    assert!(!tocsin(&["new", starter]).output().unwrap().status.success(), "a file that is there is not overwritten");
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(output(&["completions", shell]).contains("tocsin"), "{shell}");
    }
}

#[test]
fn wrong_usage_exits_with_two() {
    assert_eq!(tocsin(&["run"]).output().unwrap().status.code(), Some(2));
    assert_eq!(tocsin(&["frobnicate"]).output().unwrap().status.code(), Some(2));
}
