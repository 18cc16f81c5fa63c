//! Where records come from, and how their bytes become fields.

mod framing;
#[cfg(test)]
mod conformance;
