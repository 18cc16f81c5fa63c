//! Where records come from, and how their bytes become fields.

mod alerts;
mod codec;
mod commands;
#[cfg(test)]
mod conformance;
mod demo;
pub mod desk;
mod file;
mod framing;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod internal;
mod kafka;
pub mod listeners;
mod net;
mod octets;
mod socket;
mod stdin;
mod streams;
mod syslog;
#[cfg(test)]
mod testing;

use tocsin_config::component::SourceType;

pub use self::codec::CODECS;
/// Old logs, read outside of any pipeline.
pub mod archive {
    pub use crate::file::{Archive, find};
}
pub use self::file::{reread, rotated};

/// All sources there are.
pub static SOURCES: &[SourceType] = &[
    SourceType::of::<alerts::Config>(),
    SourceType::of::<commands::Config>(),
    SourceType::of::<demo::Config>(),
    SourceType::of::<file::Config>(),
    SourceType::of::<http::Config>(),
    SourceType::of::<internal::Config>(),
    SourceType::of::<kafka::Config>(),
    SourceType::of::<socket::Config>(),
    SourceType::of::<stdin::Config>(),
    SourceType::of::<syslog::Config>(),
];
