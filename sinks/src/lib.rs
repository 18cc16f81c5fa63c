//! Where records and alerts go.

mod alertmanager;
mod blackhole;
mod client;
#[cfg(test)]
mod conformance;
mod console;
mod delivery;
mod discord;
mod email;
mod encoding;
mod exec;
mod file;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod kafka;
mod notice;
mod opsgenie;
mod outbox;
mod pagerduty;
mod receipts;
mod retry;
mod service;
mod slack;
mod socket;
mod teams;
mod telegram;
mod webhook;

use tocsin_config::component::SinkType;

/// Every kind of sink there is.
pub static SINKS: &[SinkType] = &[
    SinkType::of::<alertmanager::Config>(),
    SinkType::of::<blackhole::Config>(),
    SinkType::of::<console::Config>(),
    SinkType::of::<discord::Config>(),
    SinkType::of::<email::Config>(),
    SinkType::of::<exec::Config>(),
    SinkType::of::<file::Config>(),
    SinkType::of::<http::Config>(),
    SinkType::of::<kafka::Config>(),
    SinkType::of::<opsgenie::Config>(),
    SinkType::of::<pagerduty::Config>(),
    SinkType::of::<slack::Config>(),
    SinkType::of::<socket::Config>(),
    SinkType::of::<teams::Config>(),
    SinkType::of::<telegram::Config>(),
    SinkType::of::<webhook::Config>(),
];

/// Reads a file that a sink keeps in its folder of the data directory: where it is damaged, and how. `None`: no sink has a file of
/// this name.
pub fn verify(name: &str, content: &[u8]) -> Option<Result<(), (u64, String)>> {
    match name {
        outbox::journal::NAME => Some(outbox::journal::verify(content)),
        file::ledger::NAME => Some(file::ledger::verify(content)),
        _ => None,
    }
}
