//! The grammar of syslog messages: where in a record each part stands.
//!
//! Whoever is not strict gets the parts up to the first fault and the rest as the message: nothing of a record is lost.

use std::collections::BTreeSet;
use std::ops::Range;

use memchr::{memchr, memchr3};
use tocsin_pipeline::codec::DecodeError;
use tocsin_pipeline::time::Timestamp;
use tocsin_pipeline::timestamp::{parse_iso, parse_syslog_prefix};

use super::super::malformed;
use super::Mode;

/// Where the parts of a message stand; what it does not have, or has as `-`, is `None`.
#[derive(Debug, Default)]
pub(super) struct Message {
    /// Eight times the facility, plus the severity; at most 191.
    pub priority: Option<u8>,
    pub version: Option<i64>,
    pub timestamp: Option<When>,
    pub host: Option<Range<usize>>,
    pub app: Option<Range<usize>>,
    pub pid: Option<Range<usize>>,
    pub msgid: Option<Range<usize>>,
    /// Where the structured data begins: [`elements`] finds its end.
    pub structured_data: Option<usize>,
    pub message: Option<Range<usize>>,
}

#[derive(Debug)]
pub(super) enum When {
    Time(Timestamp),
    /// A BSD time, of which neither year nor zone is known.
    Bsd(Range<usize>),
}

/// A broken rule: what is wrong at which byte, and where the part begins that is wrong.
pub(super) struct Fault {
    message: &'static str,
    at: usize,
    part: usize,
}

fn fault<T>(message: &'static str, at: usize, part: usize) -> Result<T, Fault> {
    Err(Fault { message, at, part })
}

/// Finds the parts of a message.
pub(super) fn message(record: &[u8], mode: Mode, strict: bool) -> Result<Message, DecodeError> {
    let mut message = Message::default();
    let outcome = match mode {
        Mode::Rfc5424 => rfc5424(record, strict, &mut message),
        Mode::Rfc3164 => rfc3164(record, strict, &mut message),
        Mode::Auto if has_version(record) => rfc5424(record, strict, &mut message),
        Mode::Auto => rfc3164(record, strict, &mut message),
    };
    let rest = match outcome {
        Ok(rest) => rest,
        Err(fault) if strict => return Err(malformed(fault.message, fault.at)),
        Err(fault) => fault.part,
    };
    message.message = (rest < record.len()).then_some(rest..record.len());
    Ok(message)
}

/// Whether a record begins as RFC 5424 has it: a priority, a version and then a time or none.
fn has_version(record: &[u8]) -> bool {
    let Ok((_, at)) = priority(record) else { return false };
    let digits = record[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    (1..=3).contains(&digits)
        && record[at] != b'0'
        && record.get(at + digits) == Some(&b' ')
        && match &record[at + digits + 1..] {
            [b'-', ..] => true,
            time => time.len() >= 5 && time[..4].iter().all(u8::is_ascii_digit) && time[4] == b'-',
        }
}

/// `<n>` at the start, and where it ends.
fn priority(record: &[u8]) -> Result<(u8, usize), Fault> {
    if record.first() != Some(&b'<') {
        return fault("no priority", 0, 0);
    }
    let digits = record[1..].iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
    let value = record[1..=digits].iter().fold(0u16, |value, digit| value * 10 + u16::from(digit - b'0'));
    if digits == 0 || value > 191 || (digits > 1 && record[1] == b'0') || record.get(digits + 1) != Some(&b'>') {
        return fault("the priority is not a number from 0 to 191 in angle brackets", digits + 1, 0);
    }
    Ok((value as u8, digits + 2))
}

/// Fills in the header; the result is where the message begins.
fn rfc5424(record: &[u8], strict: bool, message: &mut Message) -> Result<usize, Fault> {
    let (priority, start) = priority(record)?;
    message.priority = Some(priority);
    let digits = record[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=3).contains(&digits) || record[start] == b'0' {
        return fault("the version is not a number from 1 to 999", start + digits.min(3), start);
    }
    message.version =
        Some(record[start..start + digits].iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')));
    let mut at = space(record, start + digits)?;

    let len = token(record, at);
    let text = &record[at..at + len];
    if text != b"-" {
        let Some(time) = time(text, strict) else { return fault("no time such as 2026-11-20T12:00:00Z", at, at) };
        message.timestamp = Some(When::Time(time));
    }
    at = space(record, at + len)?;

    message.host = name(record, &mut at, 255, "the host is not 1 to 255 printable characters")?;
    message.app = name(record, &mut at, 48, "the app is not 1 to 48 printable characters")?;
    message.pid = name(record, &mut at, 128, "the process is not 1 to 128 printable characters")?;
    message.msgid = name(record, &mut at, 32, "the message id is not 1 to 32 printable characters")?;

    let data = at;
    match record.get(at) {
        Some(b'-') => at += 1,
        Some(b'[') => {
            message.structured_data = Some(at);
            at = elements(record, at, strict, |_, _| {})?;
        }
        _ => return fault("no structured data", at, at),
    }
    match record.get(at) {
        None => return Ok(at),
        Some(b' ') => at += 1,
        // What follows a dash without a space is nothing with it.
        Some(_) => {
            return fault("no space after the structured data", at, if record[data] == b'-' { data } else { at });
        }
    }
    let text = &record[at..];
    if strict
        && text.starts_with("\u{feff}".as_bytes())
        && let Err(error) = std::str::from_utf8(text)
    {
        return fault("the message says that it is UTF-8 and is not,", at + error.valid_up_to(), at);
    }
    Ok(at)
}

fn space(record: &[u8], at: usize) -> Result<usize, Fault> {
    if record.get(at) == Some(&b' ') { Ok(at + 1) } else { fault("no space after a part", at, at) }
}

/// How much stands before the next space.
fn token(record: &[u8], at: usize) -> usize {
    memchr(b' ', &record[at..]).unwrap_or(record.len() - at)
}

/// The time of RFC 5424, which allows six decimals; some senders give nine.
fn time(text: &[u8], strict: bool) -> Option<Timestamp> {
    if text.len() < 20 || text[10] != b'T' || text.last() == Some(&b'z') {
        return None;
    }
    let decimals = text[19..].iter().skip(1).take_while(|byte| byte.is_ascii_digit()).count();
    let most = if strict { 6 } else { 9 };
    if text[19] == b'.' && decimals > most { None } else { Timestamp::parse_rfc3339(text) }
}

/// A part of the header and the space after it.
fn name(record: &[u8], at: &mut usize, most: usize, rule: &'static str) -> Result<Option<Range<usize>>, Fault> {
    let start = *at;
    let len = token(record, start);
    let text = &record[start..start + len];
    if let Some(wrong) = text.iter().position(|byte| !(33..=126).contains(byte)) {
        return fault(rule, start + wrong, start);
    }
    if len == 0 || len > most {
        return fault(rule, start + len.min(most), start);
    }
    *at = space(record, start + len)?;
    Ok((text != b"-").then_some(start..start + len))
}

/// A parameter of structured data: its name, and its value as it stands.
type Param<'a> = (&'a [u8], &'a [u8]);

/// Goes over the structured data that begins at `start` and tells each element (without a parameter) and each parameter.
/// The result is where it ends, or the fault and where what is wrong begins.
pub(super) fn elements<'a>(
    record: &'a [u8],
    start: usize,
    strict: bool,
    mut found: impl FnMut(&'a [u8], Option<Param<'a>>),
) -> Result<usize, Fault> {
    let mut seen = Seen::default();
    let mut at = start;
    while record.get(at) == Some(&b'[') {
        let part = at;
        at += 1;
        let id = word(record, &mut at, part)?;
        if !seen.is_new(id) {
            return fault("an element of structured data comes twice,", part, part);
        }
        found(id, None);
        loop {
            match record.get(at) {
                Some(b']') => break,
                Some(b' ') => at += 1,
                _ => return fault("an element of structured data is not closed", at, part),
            }
            let name = word(record, &mut at, part)?;
            if record.get(at) != Some(&b'=') {
                return fault("no = after the name of a parameter", at, part);
            }
            // Spaces before a value are a mistake that is seen in the wild and leaves no doubt.
            at += 1 + if strict { 0 } else { spaces(record, at + 1) };
            if record.get(at) != Some(&b'"') {
                return fault("no quoted value of a parameter", at, part);
            }
            at += 1;
            let value = value(record, &mut at, part)?;
            if !matches!(record.get(at), Some(b' ' | b']')) {
                return fault("text after the value of a parameter", at, part);
            }
            found(id, Some((name, value)));
        }
        at += 1;
    }
    Ok(at)
}

/// The elements seen so far, in memory only from the second on: most messages have one.
#[derive(Default)]
struct Seen<'a> {
    first: Option<&'a [u8]>,
    others: BTreeSet<&'a [u8]>,
}

impl<'a> Seen<'a> {
    fn is_new(&mut self, id: &'a [u8]) -> bool {
        match self.first {
            None => {
                self.first = Some(id);
                true
            }
            Some(first) => first != id && self.others.insert(id),
        }
    }
}

/// The name of an element or parameter.
fn word<'a>(record: &'a [u8], at: &mut usize, part: usize) -> Result<&'a [u8], Fault> {
    let start = *at;
    let is_part = |byte: &&u8| (33..=126).contains(*byte) && !matches!(byte, b'=' | b']' | b'"');
    let len = record[start..].iter().take(33).take_while(is_part).count();
    if len == 0 || len > 32 {
        return fault("a name in structured data is not 1 to 32 printable characters,", start + len.min(32), part);
    }
    *at = start + len;
    Ok(&record[start..start + len])
}

/// The value of a parameter, up to and without its closing quote.
fn value<'a>(record: &'a [u8], at: &mut usize, part: usize) -> Result<&'a [u8], Fault> {
    let start = *at;
    loop {
        let rest = record.get(*at..).unwrap_or_default();
        let Some(next) = memchr3(b'"', b'\\', b']', rest) else {
            return fault("the value of a parameter has no end,", record.len(), part);
        };
        *at += next;
        match record[*at] {
            b'"' => break,
            b'\\' => *at += 2,
            _ => return fault("a ] in the value of a parameter has no backslash before it,", *at, part),
        }
    }
    let value = &record[start..*at];
    if let Err(error) = std::str::from_utf8(value) {
        return fault("the value of a parameter is not UTF-8", start + error.valid_up_to(), part);
    }
    *at += 1;
    Ok(value)
}

/// Takes the backslashes away that `"`, `\` and `]` must have before them; before anything else a backslash is itself.
pub(super) fn unescape(value: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(value.len());
    let mut at = 0;
    while at < value.len() {
        if value[at] == b'\\' && matches!(value.get(at + 1), Some(b'"' | b'\\' | b']')) {
            at += 1;
        }
        text.push(value[at]);
        at += 1;
    }
    text
}

/// Fills in the header; the result is where the message begins. Who is not strict takes what the relatives of RFC 3164 write.
fn rfc3164(record: &[u8], strict: bool, message: &mut Message) -> Result<usize, Fault> {
    let start = match priority(record) {
        Ok((priority, at)) => {
            message.priority = Some(priority);
            at
        }
        Err(fault) if strict => return Err(fault),
        Err(_) => 0,
    };
    let blanks = if strict { 0 } else { spaces(record, start) };
    let Some((when, len)) = bsd_time(record, start + blanks, strict) else {
        if strict {
            return fault("no time such as Nov 20 12:00:00", start, start);
        }
        // A word with a colon is the name of a program only in what is known to be syslog.
        return Ok(match tag(record, start).filter(|tag| tag.has_colon && message.priority.is_some()) {
            Some(tag) => tag.fill(record, message),
            None => start,
        });
    };
    message.timestamp = Some(when);
    let mut at = start + blanks + len;
    if !strict && record.get(at) == Some(&b':') {
        at += 1;
    }
    if at == record.len() {
        return Ok(at);
    }
    at = space(record, at)?;
    if !strict {
        at += spaces(record, at);
    }

    let len = token(record, at);
    let host = &record[at..at + len];
    if strict && (len == 0 || !host.iter().all(|byte| (33..=126).contains(byte))) {
        return fault("the host is not printable characters,", at, at);
    }
    if len > 0 && (strict || is_host(host)) {
        message.host = Some(at..at + len);
        at += len;
        if at == record.len() {
            return Ok(at);
        }
        at += 1;
        // A second space where the tag should begin: there is none.
        if record.get(at) == Some(&b' ') && !strict {
            return Ok(at + spaces(record, at));
        }
    }
    Ok(match tag(record, at).filter(|tag| tag.has_colon || !strict) {
        Some(tag) => tag.fill(record, message),
        None => at,
    })
}

fn spaces(record: &[u8], at: usize) -> usize {
    record[at..].iter().take_while(|byte| **byte == b' ').count()
}

/// The time of a BSD message at `at`, and how long it is.
fn bsd_time(record: &[u8], at: usize, strict: bool) -> Option<(When, usize)> {
    let is_end = |end: usize| matches!(record.get(end), None | Some(b' ')) || (!strict && record[end] == b':');
    // Routers mark the time of a clock that is not synchronised.
    let mark = usize::from(!strict && matches!(record.get(at), Some(b'*' | b'.')));
    if let Some((_, len)) = parse_syslog_prefix(&record[at + mark..]) {
        let start = at + mark;
        return is_end(start + len).then_some((When::Bsd(start..start + len), mark + len));
    }
    let len = token(record, at);
    let text = record[at..at + len].strip_suffix(b":").unwrap_or(&record[at..at + len]);
    // Without a zone it would be in one that nobody knows; such times are rare where a zone can be written.
    let time = if strict { None } else { parse_iso(text, chrono_tz::UTC) }?;
    Some((When::Time(time), text.len()))
}

/// Whether a word after the time can be the name of a host, and not that of a program.
fn is_host(word: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte >= 0x80 || b".-_/:@[]".contains(byte);
    word.last() != Some(&b':') && memchr(b'[', word).is_none_or(|at| at == 0) && word.iter().all(is_part)
}

/// The name of a program, perhaps with its process.
struct Tag {
    app: Range<usize>,
    pid: Option<Range<usize>>,
    has_colon: bool,
    /// Behind the name, the process and the colon.
    end: usize,
}

impl Tag {
    /// Fills in what it tells; the result is where the message begins.
    fn fill(self, record: &[u8], message: &mut Message) -> usize {
        message.app = Some(self.app);
        message.pid = self.pid.filter(|pid| !pid.is_empty());
        self.end + usize::from(record.get(self.end) == Some(&b' '))
    }
}

fn tag(record: &[u8], at: usize) -> Option<Tag> {
    let len = memchr3(b' ', b':', b'[', &record[at..]).unwrap_or(record.len() - at);
    // Nothing, or what more likely begins JSON, a quotation or a remark than the name of a program.
    if len == 0 || b"{\"'(<=".contains(&record[at]) {
        return None;
    }
    let app = at..at + len;
    let mut end = at + len;
    let mut pid = None;
    if record.get(end) == Some(&b'[')
        && let Some(close) = memchr3(b']', b'[', b' ', &record[end + 1..])
        && record[end + 1 + close] == b']'
    {
        pid = Some(end + 1..end + 1 + close);
        end += close + 2;
    }
    let has_colon = record.get(end) == Some(&b':');
    Some(Tag { app, pid, has_colon, end: end + usize::from(has_colon) })
}
