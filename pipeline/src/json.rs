//! JSON as the data plane needs it: fields found without building a tree, and values written back.

use vrl::value::Value;

use crate::codec::DecodeError;

/// Parses one JSON text.
pub fn parse_value(text: &[u8]) -> Result<Value, DecodeError> {
    serde_json::from_slice(text).map_err(|error| DecodeError::new("invalid_json", error.to_string()))
}

/// Appends a value as compact JSON.
pub fn write_value(value: &Value, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("values have string keys");
}

/// The shortest text that reads back as the same number.
pub fn float_text(value: f64) -> String {
    serde_json::Number::from_f64(value).map_or_else(|| "null".to_owned(), |number| number.to_string())
}
