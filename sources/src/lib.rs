//! Where records come from, and how their bytes become fields.

mod codec;
mod framing;
#[cfg(test)]
mod conformance;

pub use self::codec::CODECS;
