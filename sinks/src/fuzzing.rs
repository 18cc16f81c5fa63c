//! What fuzzers call: each function takes any bytes, and panics where a promise does not hold. See `fuzz/`.

/// The journal of an outbox: what is read is written as it was, up to where it is whole. With a first byte that is odd the
/// rest is put into a frame, so that what is in the frame is looked at.
pub use crate::outbox::fuzzing::{journal as outbox_journal, state as outbox_state};

pub use crate::file::fuzzing::{ledger as file_ledger, path as file_path};
