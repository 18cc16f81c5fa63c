//! The grammar of RFC 8259, walked without building anything.
//!
//! Every function takes the whole text and the place to start at, and gives the place after what it found. Bytes are looked
//! at eight at a time where that pays: strings make up most of a log record.

use crate::codec::DecodeError;

/// How deeply arrays and objects may be nested. Bounds the stack that a hostile record can take.
pub(super) const MAX_DEPTH: u32 = 128;

/// Where a text stops being JSON, and what was wrong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub at: usize,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Value,
    Literal,
    Key,
    Colon,
    MemberEnd,
    ElementEnd,
    Unterminated,
    Control,
    Escape,
    Number,
    Range,
    TooDeep,
    Trailing,
}

impl Fault {
    pub fn new<T>(at: usize, what: What) -> Result<T, Self> {
        Err(Self { at, what })
    }
}

impl From<Fault> for DecodeError {
    fn from(fault: Fault) -> Self {
        let (reason, what) = match fault.what {
            What::Value => ("invalid_json", "expected a value"),
            What::Literal => ("invalid_json", "expected true, false or null"),
            What::Key => ("invalid_json", "expected a key in quotes"),
            What::Colon => ("invalid_json", "expected a colon"),
            What::MemberEnd => ("invalid_json", "expected a comma or the end of the object"),
            What::ElementEnd => ("invalid_json", "expected a comma or the end of the array"),
            What::Unterminated => ("invalid_json", "a string does not end"),
            What::Control => ("invalid_json", "a control character within a string"),
            What::Escape => ("invalid_json", "an escape that JSON does not have"),
            What::Number => ("invalid_json", "not a number"),
            What::Range => ("number_out_of_range", "a number that no double can hold"),
            What::TooDeep => ("too_deep", "nested more than 128 deep"),
            What::Trailing => ("invalid_json", "text after the end of the value"),
        };
        Self::new(reason, format!("{what} at byte {}", fault.at))
    }
}

/// A string between its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub start: usize,
    /// Where the closing quote is.
    pub end: usize,
    pub is_escaped: bool,
}

impl Text {
    pub fn of(self, text: &[u8]) -> &[u8] {
        &text[self.start..self.end]
    }
}

pub(super) fn skip_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = text.get(at) {
        at += 1;
    }
    at
}

/// The eight bytes at `at`, the first of them lowest.
#[inline]
pub(super) fn word(text: &[u8], at: usize) -> Option<u64> {
    let bytes = text.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Has the high bit of a byte set where the byte ends or interrupts a string: a quote, a backslash, a control character. Only
/// the lowest set bit is exact; borrows may set bits above it.
#[inline]
pub(super) fn interruptions(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let found = (quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash)
        | (word.wrapping_sub(ONES * 0x20) & !word);
    found & HIGHS
}

/// The string whose first byte after the opening quote is at `start`.
#[inline]
pub(super) fn string(text: &[u8], start: usize) -> Result<Text, Fault> {
    let mut at = start;
    let mut is_escaped = false;
    loop {
        match word(text, at) {
            Some(word) => {
                let found = interruptions(word);
                if found == 0 {
                    at += 8;
                    continue;
                }
                at += found.trailing_zeros() as usize / 8;
            }
            None => {
                while text.get(at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20)) {
                    at += 1;
                }
            }
        }
        match text.get(at) {
            Some(b'"') => return Ok(Text { start, end: at, is_escaped }),
            Some(b'\\') => {
                is_escaped = true;
                at = escape(text, at)?;
            }
            Some(_) => return Fault::new(at, What::Control),
            None => return Fault::new(at, What::Unterminated),
        }
    }
}

/// The place after the escape whose backslash is at `at`.
fn escape(text: &[u8], at: usize) -> Result<usize, Fault> {
    match text.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') if text.get(at + 2..at + 6).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) => {
            Ok(at + 6)
        }
        _ => Fault::new(at, What::Escape),
    }
}

/// Appends what a string between its quotes stands for. It must have been through [`string`]. A surrogate without its other
/// half becomes U+FFFD; bytes that are not UTF-8 stay as they are.
pub(super) fn unescape(mut raw: &[u8], out: &mut Vec<u8>) {
    while let Some(backslash) = memchr::memchr(b'\\', raw) {
        out.extend_from_slice(&raw[..backslash]);
        raw = &raw[backslash + 1..];
        let plain = match raw[0] {
            b'u' => {
                let (char, len) = unicode(raw);
                out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                raw = &raw[len..];
                continue;
            }
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            same => same,
        };
        out.push(plain);
        raw = &raw[1..];
    }
    out.extend_from_slice(raw);
}

/// The character of an escape of four hexadecimal digits, or of the two of a surrogate pair, whose `u` is at the start of `raw`, and its length there.
fn unicode(raw: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        raw.get(at..at + 4)
            .map(|digits| digits.iter().fold(0, |unit, digit| unit << 4 | char::from(*digit).to_digit(16).unwrap_or(0)))
    };
    let first = unit(1).unwrap_or(0);
    if let (0xd800..0xdc00, Some(b"\\u"), Some(second @ 0xdc00..0xe000)) = (first, raw.get(5..7), unit(7)) {
        let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 5)
}

/// What a number stands for: an integer where it is written as one and an `i64` can hold it, otherwise a finite double.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Integer(i64),
    Float(f64),
}

/// The place after the digits that start at `at`; there must be one.
#[inline]
fn digits(text: &[u8], start: usize) -> Result<usize, Fault> {
    let mut at = start;
    while text.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    if at == start { Fault::new(start, What::Number) } else { Ok(at) }
}

/// Where the parts of a number end.
struct NumberParts {
    /// The first digit.
    start: usize,
    integer_end: usize,
    fraction_end: usize,
    end: usize,
}

#[inline]
fn number_parts(text: &[u8], at: usize) -> Result<NumberParts, Fault> {
    let start = at + usize::from(text.get(at) == Some(&b'-'));
    let integer_end = match text.get(start) {
        Some(b'0') => start + 1,
        _ => digits(text, start)?,
    };
    let mut end = integer_end;
    if text.get(end) == Some(&b'.') {
        end = digits(text, end + 1)?;
    }
    let fraction_end = end;
    if let Some(b'e' | b'E') = text.get(end) {
        let sign = usize::from(matches!(text.get(end + 1), Some(b'+' | b'-')));
        end = digits(text, end + 1 + sign)?;
    }
    Ok(NumberParts { start, integer_end, fraction_end, end })
}

/// The number at `at` and the place after it.
#[inline]
pub(super) fn number(text: &[u8], at: usize) -> Result<(Number, usize), Fault> {
    let parts = number_parts(text, at)?;
    let is_negative = parts.start > at;
    if parts.integer_end - parts.start <= 18 && parts.end == parts.integer_end {
        let magnitude = text[parts.start..parts.end].iter().fold(0i64, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        return Ok((Number::Integer(if is_negative { -magnitude } else { magnitude }), parts.end));
    }
    if let Some(float) = short_float(text, &parts) {
        return Ok((Number::Float(if is_negative { -float } else { float }), parts.end));
    }
    let written = std::str::from_utf8(&text[at..parts.end]).expect("digits, signs, points and exponents are ASCII");
    if parts.end == parts.integer_end
        && let Ok(integer) = written.parse()
    {
        return Ok((Number::Integer(integer), parts.end));
    }
    match written.parse::<f64>() {
        Ok(float) if float.is_finite() => Ok((Number::Float(float), parts.end)),
        _ => Fault::new(at, What::Range),
    }
}

/// A decimal fraction of at most 15 digits: both it as an integer and the power of ten are exact doubles, so that one
/// division is correctly rounded (Clinger 1990). Some five times as fast as the general way.
#[inline]
fn short_float(text: &[u8], parts: &NumberParts) -> Option<f64> {
    const POWERS: [f64; 16] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
    if parts.end != parts.fraction_end || parts.integer_end == parts.end || parts.end - parts.start > 16 {
        return None;
    }
    let decimals = parts.end - parts.integer_end - 1;
    let whole = &text[parts.start..parts.integer_end];
    let fraction = &text[parts.integer_end + 1..parts.end];
    let mantissa = whole.iter().chain(fraction).fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(mantissa as f64 / POWERS[decimals])
}

/// The place after the number at `at`.
#[inline]
fn skip_number(text: &[u8], at: usize) -> Result<usize, Fault> {
    let parts = number_parts(text, at)?;
    // Only these can be beyond a double; all others are below 10^300.
    let has_exponent = parts.end > parts.fraction_end;
    if has_exponent || parts.integer_end - parts.start > 300 {
        number(text, at)?;
    }
    Ok(parts.end)
}

/// The place after one of the three words.
#[inline]
pub(super) fn literal(text: &[u8], at: usize, word: &[u8]) -> Result<usize, Fault> {
    match text.get(at..at + word.len()) {
        Some(found) if found == word => Ok(at + word.len()),
        _ => Fault::new(at, What::Literal),
    }
}

/// The place after the value at `at`, which is `depth` arrays and objects deep.
#[inline]
pub(super) fn skip_value(text: &[u8], at: usize, depth: u32) -> Result<usize, Fault> {
    match text.get(at) {
        Some(b'"') => Ok(string(text, at + 1)?.end + 1),
        Some(b'-' | b'0'..=b'9') => skip_number(text, at),
        Some(b't') => literal(text, at, b"true"),
        Some(b'f') => literal(text, at, b"false"),
        Some(b'n') => literal(text, at, b"null"),
        Some(b'{') => skip_object(text, at, depth),
        Some(b'[') => skip_array(text, at, depth),
        _ => Fault::new(at, What::Value),
    }
}

pub(super) fn skip_object(text: &[u8], at: usize, depth: u32) -> Result<usize, Fault> {
    members(text, at, depth, &mut |_, at| skip_value(text, at, depth + 1))
}

pub(super) fn skip_array(text: &[u8], at: usize, depth: u32) -> Result<usize, Fault> {
    elements(text, at, depth, &mut |_, at| skip_value(text, at, depth + 1))
}

/// Walks the object at `at`: `member` is given each key and the place of its value, and gives the place after the value.
#[inline]
pub(super) fn members(
    text: &[u8],
    at: usize,
    depth: u32,
    member: &mut impl FnMut(Text, usize) -> Result<usize, Fault>,
) -> Result<usize, Fault> {
    if depth >= MAX_DEPTH {
        return Fault::new(at, What::TooDeep);
    }
    let mut at = skip_space(text, at + 1);
    if text.get(at) == Some(&b'}') {
        return Ok(at + 1);
    }
    loop {
        let (name, value) = key(text, at)?;
        at = skip_space(text, member(name, value)?);
        match text.get(at) {
            Some(b',') => at = skip_space(text, at + 1),
            Some(b'}') => return Ok(at + 1),
            _ => return Fault::new(at, What::MemberEnd),
        }
    }
}

/// The key at `at`, and the place of the value that follows its colon.
#[inline]
pub(super) fn key(text: &[u8], at: usize) -> Result<(Text, usize), Fault> {
    if text.get(at) != Some(&b'"') {
        return Fault::new(at, What::Key);
    }
    let key = string(text, at + 1)?;
    let at = skip_space(text, key.end + 1);
    if text.get(at) != Some(&b':') {
        return Fault::new(at, What::Colon);
    }
    Ok((key, skip_space(text, at + 1)))
}

/// Walks the array at `at`: `element` is given the number and the place of each, and gives the place after it.
#[inline]
pub(super) fn elements(
    text: &[u8],
    at: usize,
    depth: u32,
    element: &mut impl FnMut(usize, usize) -> Result<usize, Fault>,
) -> Result<usize, Fault> {
    if depth >= MAX_DEPTH {
        return Fault::new(at, What::TooDeep);
    }
    let mut at = skip_space(text, at + 1);
    if text.get(at) == Some(&b']') {
        return Ok(at + 1);
    }
    let mut index = 0;
    loop {
        at = skip_space(text, element(index, at)?);
        match text.get(at) {
            Some(b',') => at = skip_space(text, at + 1),
            Some(b']') => return Ok(at + 1),
            _ => return Fault::new(at, What::ElementEnd),
        }
        index += 1;
    }
}

/// That nothing but white space follows.
#[inline]
pub(super) fn end(text: &[u8], at: usize) -> Result<(), Fault> {
    let at = skip_space(text, at);
    if at == text.len() { Ok(()) } else { Fault::new(at, What::Trailing) }
}
