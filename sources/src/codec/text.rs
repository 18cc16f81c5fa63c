//! `text`: the record as one field.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::CodecConfig;
use tocsin_pipeline::codec::{Codec, DecodeError};

use super::{Fields, Piece, Scan, Scanned};

/// Takes a record as it is: the field `message` is its text. Every record is accepted.
///
/// The record `disk sda1 is full` becomes
///
/// ```json
/// {"message": "disk sda1 is full"}
/// ```
///
/// **Event time:** the arrival, unless the source's `timestamp` says otherwise.
///
/// ```toml
/// [sources.notes]
/// type = "file"
/// paths = ["/var/log/notes.log"]
/// codec = "text"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {}

impl CodecConfig for Config {
    const NAME: &'static str = "text";

    fn build(&self) -> Arc<dyn Codec> {
        Arc::new(Scanned::new(Text, ["message"]))
    }
}

#[derive(Debug)]
struct Text;

impl Scan for Text {
    const NAME: &'static str = "text";
    type Scratch = ();

    fn scratch(&self) {}

    fn scan(&self, record: &[u8], (): &mut (), fields: &mut impl Fields) -> Result<(), DecodeError> {
        fields.put(0, Piece::At { start: 0, len: record.len() });
        Ok(())
    }

    fn accepts_all(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::agreement::{check_all, show};
    use super::*;

    #[test]
    fn the_message_is_the_record() {
        let codec = Config {}.build();
        assert_eq!(show(&*codec, "disk sda1 is full"), r#"{ "message": "disk sda1 is full" }"#);
        check_all(&*codec, &["disk sda1 is full", ""]);
    }
}
