//! What is fuzzed: a name each, and the function that takes any bytes. `tests/fuzz.rs` runs all of them over the corpus, too.

use tocsin_config::component::Catalog;
use tocsin_config::{EmptyEnvironment, SourceFile};
use tocsin_pipeline::fuzzing as pipeline;
use tocsin_sinks::fuzzing as sinks;
use tocsin_sources::fuzzing as sources;

/// A name, and what takes any bytes.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("codec_combined", sources::codec_combined),
    ("codec_common", sources::codec_common),
    ("codec_csv", sources::codec_csv),
    ("codec_json", sources::codec_json),
    ("codec_logfmt", sources::codec_logfmt),
    ("codec_regex", sources::codec_regex),
    ("codec_syslog", sources::codec_syslog),
    ("codec_text", sources::codec_text),
    ("condition", pipeline::condition),
    ("config", config),
    ("file_ledger", sinks::file_ledger),
    ("file_path", sinks::file_path),
    ("framing_multiline", sources::framing_multiline),
    ("framing_newline", sources::framing_newline),
    ("framing_nul", sources::framing_nul),
    ("framing_octets", sources::framing_octets),
    ("http_body", sources::http_body),
    ("json", pipeline::json),
    ("log", pipeline::log),
    ("manifest", pipeline::manifest),
    ("outbox_journal", sinks::outbox_journal),
    ("outbox_state", sinks::outbox_state),
    ("template", pipeline::template),
    ("timestamp", pipeline::timestamp),
];

static CATALOG: Catalog = Catalog {
    sources: tocsin_sources::SOURCES,
    codecs: tocsin_sources::CODECS,
    operators: tocsin_operators::OPERATORS,
    sinks: tocsin_sinks::SINKS,
};

/// A configuration is a graph, or a report with every place inside its text.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let files = [SourceFile { name: "a.toml".to_owned(), text: text.to_owned() }];
    match tocsin_config::check(&files, &EmptyEnvironment, &CATALOG, &[]) {
        Ok(plan) => drop(tocsin_config::build::build(&plan)),
        Err(report) => assert!(!report.render(false).is_empty()),
    }
}
