//! Where records and alerts go.

mod client;
#[cfg(test)]
mod conformance;
mod encoding;
mod retry;
