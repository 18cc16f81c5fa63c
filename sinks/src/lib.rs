//! Where records and alerts go.

mod blackhole;
mod client;
#[cfg(test)]
mod conformance;
mod console;
mod encoding;
mod file;
mod http;
mod receipts;
mod retry;
mod socket;

use tocsin_config::component::SinkType;

/// Every kind of sink there is.
pub static SINKS: &[SinkType] = &[
    SinkType::of::<blackhole::Config>(),
    SinkType::of::<console::Config>(),
    SinkType::of::<file::Config>(),
    SinkType::of::<http::Config>(),
    SinkType::of::<socket::Config>(),
];
