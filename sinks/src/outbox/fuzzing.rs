//! See the module of this name at the root.

use std::time::Duration;

use super::book::Book;
use super::journal::{self, Entry};
use super::queue::Limits;

fn book() -> Book {
    Book::new(Limits::of(8, 1 << 20, Duration::from_secs(60)), true)
}

pub fn journal(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let mut bytes = journal::HEADER.to_vec();
    match how & 1 {
        0 => bytes = rest.to_vec(),
        _ => journal::append_frame(rest, &mut bytes),
    }
    let Ok(contents) = journal::read(&bytes) else { return };
    assert!(contents.whole <= bytes.len());
    assert_eq!(journal::read(&bytes[..contents.whole]).as_ref(), Ok(&contents), "what is whole is read again");
    let mut written = journal::HEADER.to_vec();
    contents.entries.iter().for_each(|entry| entry.append(&mut written));
    let again = journal::read(&written).expect("what was written is read");
    assert_eq!(again.entries, contents.entries);
    let mut book = book();
    contents.entries.into_iter().for_each(|entry| book.roll_forward(entry));
    // What is written anew says the same.
    let mut whole = journal::HEADER.to_vec();
    whole.extend(book.whole());
    let entries: Vec<Entry> = journal::read(&whole).expect("what was written is read").entries;
    let mut again = self::book();
    entries.into_iter().for_each(|entry| again.roll_forward(entry));
    assert_eq!(again.state(), book.state());
}

pub fn state(data: &[u8]) {
    let mut book = book();
    if book.restore(data).is_some() {
        let state = book.state().expect("a new book has changed");
        let mut again = self::book();
        again.restore(&state).expect("what was written is read");
        assert_eq!(again.state(), Some(state));
    }
}
