//! Small stand-ins for tests of the engine itself.

use vrl::value::{ObjectMap, Value};

use crate::codec::{Codec, DecodeError, Row};

/// The record is the field `.message`.
#[derive(Debug)]
pub struct TextCodec;

impl Codec for TextCodec {
    fn name(&self) -> &'static str {
        "text"
    }

    fn decode(&self, record: &[u8], row: &mut Row<'_>) -> Result<(), DecodeError> {
        if let Some(slot) = row.projection().slot(b"message") {
            row.text(slot, 0, record.len());
        }
        Ok(())
    }

    fn value(&self, record: &[u8]) -> Result<Value, DecodeError> {
        let mut value = ObjectMap::new();
        value.insert("message".into(), Value::from(record));
        Ok(Value::Object(value))
    }

    fn accepts_all(&self) -> bool {
        true
    }

    fn escapes(&self) -> bool {
        false
    }
}
