//! Where records come from, and how their bytes become fields.

pub mod codec;
mod framing;
#[cfg(test)]
mod conformance;
