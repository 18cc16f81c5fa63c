//! JSON as the data plane needs it: fields found without building a tree, values read and written.
//!
//! What is accepted is RFC 8259, checked in full for every record, whether its fields are used or not, with one exception:
//! bytes that are not UTF-8 within strings are accepted and kept as they are, because a log line must not be lost over the
//! charset of a user agent. Where the RFC leaves the choice:
//!
//! - Any value may be a record; the fields of one that is no object are missing.
//! - Of several equal keys in an object the last one counts.
//! - A number written without point and exponent is an integer if 64 bits hold it (`-0` is `0`), else the nearest double. A
//!   number beyond every double is refused (`number_out_of_range`) rather than made infinite, which could not be written.
//! - A surrogate escape without its other half stands for U+FFFD. So does what is not UTF-8 in a key: keys are text.
//! - Arrays and objects nested more than 128 deep are refused (`too_deep`). A byte order mark is refused.

mod codec;
mod scan;
#[cfg(test)]
mod tests;
mod value;
mod write;

pub use codec::JsonCodec;
pub use value::parse_value;
pub use write::{float_text, is_json, write_text, write_value};
