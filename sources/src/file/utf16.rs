//! UTF-16 as some programs write their logs, turned into UTF-8 while it is read.

use std::io::{self, Read};

/// Reads UTF-16 that begins with a byte order mark and gives UTF-8 without one. What is not UTF-16 becomes U+FFFD.
pub(super) struct ToUtf8<R> {
    raw: R,
    is_big_endian: bool,
    is_begun: bool,
    /// The first byte of a unit whose second has not come yet.
    half: Option<u8>,
    /// The first unit of a pair whose second has not come yet.
    high: Option<u16>,
    /// Converted and not handed out yet: at most a few bytes for each unit of one read.
    ready: Vec<u8>,
    taken: usize,
}

impl<R: Read> ToUtf8<R> {
    pub(super) fn new(raw: R, is_big_endian: bool) -> Self {
        Self { raw, is_big_endian, is_begun: false, half: None, high: None, ready: Vec::new(), taken: 0 }
    }

    fn unit(&mut self, unit: u16) {
        let begins = !std::mem::replace(&mut self.is_begun, true);
        if begins && unit == 0xfeff {
            return;
        }
        let units = self.high.take().into_iter().chain([unit]);
        for decoded in char::decode_utf16(units) {
            match decoded {
                // The high half at the end of what has come is kept for its other half.
                Err(error) if error.unpaired_surrogate() == unit && (0xd800..0xdc00).contains(&unit) => {
                    self.high = Some(unit);
                }
                decoded => {
                    let char = decoded.unwrap_or(char::REPLACEMENT_CHARACTER);
                    self.ready.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
    }
}

impl<R: Read> Read for ToUtf8<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.ready.len() {
            self.ready.clear();
            self.taken = 0;
            let mut raw = [0; 16 << 10];
            let length = self.raw.read(&mut raw)?;
            if length == 0 || buffer.is_empty() {
                return Ok(0);
            }
            for &byte in &raw[..length] {
                match self.half.take() {
                    None => self.half = Some(byte),
                    Some(first) if self.is_big_endian => self.unit(u16::from_be_bytes([first, byte])),
                    Some(first) => self.unit(u16::from_le_bytes([first, byte])),
                }
            }
        }
        let length = buffer.len().min(self.ready.len() - self.taken);
        buffer[..length].copy_from_slice(&self.ready[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes one by one, and then again when it is asked after its end: as a file that grows.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(1);
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    #[test]
    fn any_text_comes_through_in_any_pieces() {
        let text = "zażółć 🙂\r\n\u{10ffff}\n";
        for is_big_endian in [false, true] {
            let bytes: Vec<u8> = std::iter::once(0xfeff)
                .chain(text.encode_utf16())
                .flat_map(|unit| if is_big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() })
                .collect();
            let mut told = String::new();
            ToUtf8::new(Slow(&bytes), is_big_endian).read_to_string(&mut told).unwrap();
            assert_eq!(told, text);
        }
    }

    #[test]
    fn lone_halves_are_replaced() {
        let bytes: Vec<u8> = [0xfeff, 0xd800, 0x41, 0xdc00, 0x42, 0xd800, 0xd83d, 0xde42]
            .iter()
            .flat_map(|unit: &u16| unit.to_le_bytes())
            .collect();
        let mut told = String::new();
        ToUtf8::new(&bytes[..], false).read_to_string(&mut told).unwrap();
        assert_eq!(told, "\u{fffd}A\u{fffd}B\u{fffd}🙂");
    }
}
