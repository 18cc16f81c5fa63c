//! The raw pre-filter: finds the lines of a block that can matter by a substring search, before anything is split.

use aho_corasick::AhoCorasick;
use memchr::memmem::Finder;

use crate::codec::Codec;
use crate::event::Span;
use crate::intake::push_line;

/// What a line must contain to be looked at: one of some literals, or a backslash where the codec could spell a literal
/// with escapes.
#[derive(Clone, Debug)]
pub struct Prefilter {
    search: Search,
    literals: Vec<Vec<u8>>,
    or_backslash: bool,
}

#[derive(Clone, Debug)]
enum Search {
    One(Box<Finder<'static>>),
    Many(Box<AhoCorasick>),
}

impl Prefilter {
    /// `None` where it would let everything through or be of no use: no literal, or one that is empty.
    pub fn new(literals: Vec<Vec<u8>>, codec: &dyn Codec) -> Option<Self> {
        if literals.is_empty() || literals.iter().any(|literal| literal.is_empty() || literal.contains(&b'\n')) {
            return None;
        }
        if !codec.keeps_text() {
            return None;
        }
        let search = match &literals[..] {
            [one] => Search::One(Box::new(Finder::new(one).into_owned())),
            many => Search::Many(Box::new(AhoCorasick::new(many).ok()?)),
        };
        Some(Self { search, literals, or_backslash: codec.escapes() })
    }

    /// Adds the lines of `block` that can matter to `spans`, in order, each once.
    pub fn candidates(&self, block: &[u8], spans: &mut Vec<Span>) {
        let mut at = 0;
        let mut literal = self.find(block, 0);
        let mut backslash = self.find_backslash(block, 0);
        while let Some(hit) = [literal, backslash].into_iter().flatten().min() {
            let start = memchr::memrchr(b'\n', &block[at..hit]).map_or(at, |newline| at + newline + 1);
            let end = memchr::memchr(b'\n', &block[hit..]).map_or(block.len(), |newline| hit + newline);
            push_line(block, start, end, spans);
            at = (end + 1).min(block.len());
            if literal.is_some_and(|hit| hit < at) {
                literal = self.find(block, at);
            }
            if backslash.is_some_and(|hit| hit < at) {
                backslash = self.find_backslash(block, at);
            }
        }
    }

    fn find(&self, block: &[u8], from: usize) -> Option<usize> {
        match &self.search {
            Search::One(finder) => finder.find(&block[from..]).map(|at| from + at),
            Search::Many(searcher) => searcher.find(&block[from..]).map(|found| from + found.start()),
        }
    }

    fn find_backslash(&self, block: &[u8], from: usize) -> Option<usize> {
        if !self.or_backslash {
            return None;
        }
        memchr::memchr(b'\\', &block[from..]).map(|at| from + at)
    }

    /// What it looks for, for `tocsin explain`.
    pub fn describe(&self) -> String {
        let literals: Vec<_> =
            self.literals.iter().map(|literal| format!("{:?}", String::from_utf8_lossy(literal))).collect();
        let backslash = if self.or_backslash { " or a backslash" } else { "" };
        format!("raw pre-filter: lines with {}{backslash}", literals.join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TextCodec;

    fn check(literals: &[&str], or_backslash: bool, block: &str) -> Vec<String> {
        let literals = literals.iter().map(|literal| literal.as_bytes().to_vec()).collect();
        let mut prefilter = Prefilter::new(literals, &TextCodec).unwrap();
        prefilter.or_backslash = or_backslash;
        let mut spans = Vec::new();
        prefilter.candidates(block.as_bytes(), &mut spans);
        spans.iter().map(|span| String::from_utf8_lossy(span.of(block.as_bytes())).into_owned()).collect()
    }

    #[test]
    fn a_line_is_found_once_however_often_it_matches() {
        assert_eq!(check(&["xx"], false, "a\nbxxcxx\nd\nxx\r\n\nexx"), ["bxxcxx", "xx", "exx"]);
        assert_eq!(check(&["xx", "d"], false, "a\nbxxcxx\nd\nxx\n"), ["bxxcxx", "d", "xx"]);
    }

    #[test]
    fn lines_with_a_backslash_pass_where_text_can_be_escaped() {
        assert_eq!(check(&["xx"], true, "a\\u0078\nb\nxx\\\nc"), ["a\\u0078", "xx\\"]);
        assert_eq!(check(&["xx"], false, "a\\u0078\nb\n"), Vec::<String>::new());
    }
}
