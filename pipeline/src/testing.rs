//! Small stand-ins for tests of the engine itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use vrl::value::{ObjectMap, Value};

use crate::codec::{Codec, DecodeError, Row};
use crate::event::{Batch, Lane, Origin};
use crate::time::Timestamp;

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

/// A lane of lines.
pub fn text_lane(source: &str) -> Arc<Lane> {
    Arc::new(Lane {
        source: source.into(),
        partition: String::new(),
        origin: Origin::Stream,
        codec: Arc::new(TextCodec),
        out_of_order: Duration::ZERO,
    })
}

/// The lines of a text as a batch.
pub fn text_batch(lane: &Arc<Lane>, text: &str) -> Batch {
    let block = Bytes::copy_from_slice(text.as_bytes());
    let spans = crate::intake::lines(&block);
    Batch::new(Arc::clone(lane), block, 0, spans, Timestamp(0))
}
