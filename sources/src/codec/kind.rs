//! What kind of value a piece of text is read as, for codecs whose formats know only text.

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_pipeline::codec::DecodeError;

use super::{Fields, Piece};

/// What the text of a field is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// As it is.
    #[default]
    Text,
    /// Digits, with a sign or without.
    Integer,
    /// A number, with decimals and exponent or without.
    Float,
    /// `true`, `yes`, `on`, `1`, or `false`, `no`, `off`, `0`, in any case.
    Boolean,
}

impl Kind {
    /// Reads text as this kind; `None` where it is not.
    pub(super) fn read(self, text: &[u8]) -> Option<Piece<'_>> {
        match self {
            Self::Text => Some(Piece::Text(text)),
            Self::Integer => std::str::from_utf8(text).ok()?.parse().ok().map(Piece::Integer),
            Self::Float => {
                // Rust also reads `inf` and `nan`, which no number of an event can be.
                let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
                value.is_finite().then_some(Piece::Float(value))
            }
            Self::Boolean => {
                let is = |word: &&str| text.eq_ignore_ascii_case(word.as_bytes());
                if ["true", "yes", "on", "1"].iter().any(is) {
                    Some(Piece::Bool(true))
                } else {
                    ["false", "no", "off", "0"].iter().any(is).then_some(Piece::Bool(false))
                }
            }
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "an integer",
            Self::Float => "a number",
            Self::Boolean => "a boolean",
        }
    }

    /// Tells text that stands in the record, or `owned` in its place, as a field of this kind. Text that is not of the kind
    /// makes the whole record unreadable: a field that is silently missing would make conditions on it silently false.
    pub(super) fn put(
        self,
        field: usize,
        name: &str,
        (start, text): (usize, &[u8]),
        owned: Option<&[u8]>,
        fields: &mut impl Fields,
    ) -> Result<(), DecodeError> {
        if self == Self::Text {
            match owned {
                Some(text) => fields.put(field, Piece::Text(text)),
                None => fields.put(field, Piece::At { start, len: text.len() }),
            }
            return Ok(());
        }
        let text = owned.unwrap_or(text);
        match self.read(text) {
            Some(piece) => {
                fields.put(field, piece);
                Ok(())
            }
            None => {
                let shown = String::from_utf8_lossy(&text[..text.len().min(40)]);
                Err(DecodeError::new("wrong_type", format!("{name} is not {}: {shown:?}", self.noun())))
            }
        }
    }
}
