//! Where records and alerts go.

mod blackhole;
mod client;
#[cfg(test)]
mod conformance;
mod console;
mod encoding;
mod file;
mod receipts;
mod retry;

use tocsin_config::component::SinkType;

/// Every kind of sink there is.
pub static SINKS: &[SinkType] = &[
    SinkType::of::<blackhole::Config>(),
    SinkType::of::<console::Config>(),
    SinkType::of::<file::Config>(),
];
