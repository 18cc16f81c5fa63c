//! See the module of this name at the root.

use tocsin_pipeline::event::Field;

use super::ledger;
use super::path::{Parsed, append_confined};

/// The journal of opened files: what is read is written as it was. With a first byte that is odd each line of the rest is
/// given its checksum, so that what is in it is looked at.
pub fn ledger(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let mut text = rest.to_vec();
    if how & 1 == 1 {
        text = Vec::new();
        for line in rest.split(|byte| *byte == b'\n') {
            ledger::append_checked(line, &mut text);
        }
    }
    let Ok(lines) = ledger::read(&text) else { return };
    let mut written = Vec::new();
    lines.iter().for_each(|line| ledger::write_line(line, &mut written));
    let again = ledger::read(&written).expect("what was written is read");
    assert_eq!(format!("{again:?}"), format!("{lines:?}"));
}

/// A path with fields in it parses or not, and what a field holds cannot leave the folder.
pub fn path(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (Some(template), Some(field)) = (parts.next(), parts.next()) else { return };
    if let Ok(template) = std::str::from_utf8(template) {
        let _ = Parsed::parse(template);
    }
    let mut confined = String::new();
    append_confined(Field::Text(field), &mut confined);
    assert!(!confined.contains(['/', '\0']) && !confined.starts_with('.'), "{confined}");
}
