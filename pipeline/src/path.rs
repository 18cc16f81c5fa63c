//! Paths of fields as people write them.

use vrl::path::{OwnedTargetPath, OwnedValuePath};

/// No array is so long. VRL's reader of paths overflows with indices that are longer than a number.
const INDEX_DIGITS_MAX: usize = 9;

/// Reads the path of a field, as in `.a.b[0]`. `None` where it is none.
pub fn parse(text: &str) -> Option<OwnedValuePath> {
    has_bearable_indices(text).then(|| vrl::path::parse_value_path(text).ok()).flatten()
}

/// Reads a path of the record (`.a`) or of its metadata (`%a`).
pub fn parse_target(text: &str) -> Option<OwnedTargetPath> {
    has_bearable_indices(text).then(|| vrl::path::parse_target_path(text).ok()).flatten()
}

fn has_bearable_indices(text: &str) -> bool {
    text.split('[').skip(1).all(|index| {
        let digits = index.trim_start().trim_start_matches('-').trim_start();
        digits.bytes().take_while(u8::is_ascii_digit).count() <= INDEX_DIGITS_MAX
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_no_array_has_is_none() {
        assert!(parse(".a[999999999].b[-1]").is_some());
        assert!(parse(".a1234567890123").is_some());
        for text in
            [".a[9223372036854775808]", ".a[-9223372036854775809]", ".a[0][99999999999999999999]", "[1234567890]"]
        {
            assert_eq!((parse(text), parse_target(text)), (None, None), "{text}");
        }
    }
}
