//! What fuzzers call: each function takes any bytes, and panics where a promise does not hold. See `fuzz/`.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::checkpoint::Checkpoints;
use crate::codec::PathTable;
use crate::event::{Batch, Field, Lane, Origin, Span};
use crate::expression::Condition;
use crate::json::{JsonCodec, parse_value, write_value};
use crate::store::log::{Log, SEGMENT_BYTES};
use crate::store::simulated::SimulatedDisk;
use crate::store::{FIRST_RECORD, FileReader, FileWriter, Kind, Storage};
use crate::template::{Escape, MAX_BYTES, Template};
use crate::time::Timestamp;
use crate::timestamp::{TimestampFormat, TimestampOptions};

/// The first line as text, and what follows it.
fn split(data: &[u8]) -> Option<(&str, &[u8])> {
    let at = memchr::memchr(b'\n', data)?;
    Some((std::str::from_utf8(&data[..at]).ok()?, &data[at + 1..]))
}

/// What was read from JSON and written again means the same.
pub fn json(data: &[u8]) {
    let Ok(value) = parse_value(data) else { return };
    let mut text = Vec::new();
    write_value(&value, &mut text);
    let again = parse_value(&text).expect("what was written is JSON");
    let mut text_again = Vec::new();
    write_value(&again, &mut text_again);
    assert_eq!(text, text_again, "{value}");
}

/// A format of time, and a time: read or not, the same each time.
pub fn timestamp(data: &[u8]) {
    let Some((format, text)) = split(data) else { return };
    let Ok(format) = TimestampFormat::parse(format) else { return };
    let arrival = Timestamp::from_secs(1_795_176_000);
    for timezone in [chrono_tz::Tz::UTC, chrono_tz::Tz::Europe__Berlin] {
        let options = TimestampOptions { path: None, format: format.clone(), timezone };
        let time = options.event_time(Field::Text(text), arrival);
        let mut parser = options.parser();
        for _ in 0..2 {
            assert_eq!(parser.event_time(Field::Text(text), arrival), time);
        }
        if let Some(time) = time {
            assert_eq!(Timestamp::parse_rfc3339(time.to_string().as_bytes()), Some(time), "what is written is read");
        }
    }
}

/// A template, and a record to render it from.
pub fn template(data: &[u8]) {
    let Some((source, record)) = split(data) else { return };
    let Ok(record) = parse_value(record) else { return };
    for escape in [Escape::None, Escape::Html] {
        if let Ok(template) = Template::compile(&source.replace('\\', "\n"), escape) {
            let rendered = template.render(&record);
            assert!(rendered.text.len() <= MAX_BYTES + 16, "{} bytes", rendered.text.len());
            assert_eq!(rendered, template.render(&record));
        }
    }
}

/// A data directory with a manifest and a segment, as they are or well framed, so that what is in the frame is looked at.
pub fn manifest(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let at = rest.len().min(usize::from(how >> 1) * 16);
    let (manifest, segment) = rest.split_at(at);
    let framed = |kind, payload: &[u8]| {
        let mut writer = FileWriter::new(1);
        writer.push(1, kind, payload);
        writer.content().to_vec()
    };
    let is_framed = how & 1 == 1;
    let content = if is_framed { framed(Kind::Manifest, manifest) } else { manifest.to_vec() };
    if let Ok(reader) = FileReader::new("manifest", 1, &content) {
        let read = reader.record(FIRST_RECORD, 1, Kind::Manifest);
        assert!(!is_framed || read.is_ok_and(|(payload, _)| payload == manifest));
    }
    let disk = SimulatedDisk::default();
    let folder = Path::new("/data/checkpoints");
    disk.create_dir(folder).expect("a disk that takes everything");
    let piece = if is_framed { framed(Kind::Piece, segment) } else { segment.to_vec() };
    for (name, content) in [("manifest-000000000001", content), ("segment-000000000001", piece)] {
        disk.write_new(&folder.join(name), &content).expect("a disk that takes everything");
    }
    // Gone on from, or told why not.
    let _ = Checkpoints::open(Arc::new(disk), Path::new("/data"));
}

/// A segment of a log, as it is or with a record well framed in front.
pub fn log(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let disk = SimulatedDisk::default();
    let folder = Path::new("/data/log");
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let mut whole = 0;
    if how & 1 == 1 {
        let (mut log, _) = Log::open(Arc::clone(&storage), folder, SEGMENT_BYTES, 0).expect("a new log");
        log.append(&[b"a record"]);
        log.write().and_then(|()| log.sync()).expect("a disk that takes everything");
        whole = 1;
    }
    disk.create_dir(folder).expect("a disk that takes everything");
    let names = disk.list(folder).expect("a disk that gives everything");
    let name = names.first().cloned().unwrap_or_else(|| "000000000001-00000000000000000000".to_owned());
    let mut content = disk.read(&folder.join(&name)).unwrap_or_default();
    content.extend_from_slice(rest);
    disk.write_new(&folder.join(&name), &content).expect("a disk that takes everything");
    let Ok((log, _)) = Log::open(storage, folder, SEGMENT_BYTES, 0) else { return };
    assert!(log.end() >= whole, "what was durable is there");
    let mut cursor = Log::cursor(0);
    let mut read = 0;
    while let Ok(Some(_)) = log.next(&mut cursor) {
        read += 1;
        assert!(read <= content.len() as u64, "a log ends");
    }
}

/// A condition and a record: what runs natively says of it what VRL does.
pub fn condition(data: &[u8]) {
    let Some((source, record)) = split(data) else { return };
    let mut paths = PathTable::default();
    let Ok((condition, vrl)) = Condition::both_ways(source, &mut paths) else { return };
    let lane = Lane {
        source: "fuzz".into(),
        partition: String::new(),
        origin: Origin::Stream,
        codec: Arc::new(JsonCodec),
        out_of_order: std::time::Duration::ZERO,
    };
    let spans = vec![Span::new(0, record.len())];
    let mut batch =
        Batch::new(Arc::new(lane), Bytes::copy_from_slice(record), 0, spans, Timestamp::from_secs(1_795_176_000));
    batch.decode(&condition.reads());
    batch.decode(&vrl.reads());
    for row in batch.rows() {
        let told = |condition: &Condition| {
            let mut errors = 0;
            (condition.is_true(&batch, row, &mut errors), errors)
        };
        assert_eq!(told(&condition), told(&vrl), "{source} of {}", String::from_utf8_lossy(record));
    }
}
