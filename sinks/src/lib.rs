//! Where records and alerts go.

mod blackhole;
mod client;
#[cfg(test)]
mod conformance;
mod console;
mod email;
mod encoding;
mod file;
mod http;
mod outbox;
mod receipts;
mod retry;
mod socket;
mod webhook;

use tocsin_config::component::SinkType;

/// Every kind of sink there is.
pub static SINKS: &[SinkType] = &[
    SinkType::of::<blackhole::Config>(),
    SinkType::of::<console::Config>(),
    SinkType::of::<email::Config>(),
    SinkType::of::<file::Config>(),
    SinkType::of::<http::Config>(),
    SinkType::of::<socket::Config>(),
    SinkType::of::<webhook::Config>(),
];
