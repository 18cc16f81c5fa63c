use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use expect_test::expect;
use tempfile::TempDir;
use tocsin_config::component::BuildContext;
use tocsin_pipeline::codec::PathTable;
use tocsin_pipeline::source::{Multiline, MultilineMode, RecordOptions, TooLong};

use super::*;
use crate::conformance::{Running, Start, corpus, goes_on_from_every_position, stops_though_nobody_listens, texts};

/// A folder with logs, and the source that reads them.
struct Logs {
    folder: TempDir,
    options: serde_json::Value,
}

impl Logs {
    fn new(options: serde_json::Value) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), options }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn source(&self) -> Box<dyn Source> {
        let mut options = serde_json::json!({ "poll_interval": "20ms", "rotate_wait": "40ms" });
        options.as_object_mut().unwrap().extend(self.options.as_object().unwrap().clone());
        let config: Config = serde_json::from_value(options).unwrap();
        assert_eq!(SourceConfig::problems(&config), []);
        let mut paths = PathTable::default();
        let mut context = BuildContext {
            name: "logs".into(),
            paths: &mut paths,
            folder: self.folder.path().to_path_buf(),
            connected: Vec::new(),
            silences: [].into(),
            partition: None,
        };
        SourceConfig::build(&config, &mut context)
    }

    async fn start(&self) -> Running {
        Running::new(self.source(), Start::default()).await
    }

    async fn go_on(&self, positions: std::collections::BTreeMap<String, serde_json::Value>) -> Running {
        Running::new(self.source(), Start { positions: Some(positions), ..Start::default() }).await
    }

    async fn once(&self) -> Vec<String> {
        let (told, _, _, outcome) =
            Running::new(self.source(), Start { once: true, ..Start::default() }).await.read_to_end().await;
        outcome.unwrap();
        texts(&told)
    }

    fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        let mut file = OpenOptions::new().append(true).create(true).open(self.path(name)).unwrap();
        file.write_all(text.as_ref()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn copy_and_truncate(&self, name: &str, to: &str) {
        fs::copy(self.path(name), self.path(to)).unwrap();
        OpenOptions::new().write(true).open(self.path(name)).unwrap().set_len(0).unwrap();
    }

    fn gzip(&self, from: &str, to: &str) {
        let mut encoder =
            flate2::write::GzEncoder::new(File::create(self.path(to)).unwrap(), flate2::Compression::fast());
        encoder.write_all(&fs::read(self.path(from)).unwrap()).unwrap();
        encoder.finish().unwrap();
        fs::remove_file(self.path(from)).unwrap();
    }
}

fn one() -> Logs {
    Logs::new(serde_json::json!({ "paths": ["app.log"] }))
}

fn all() -> Logs {
    Logs::new(serde_json::json!({ "paths": ["app.log*"] }))
}

/// Lines `from..to` that are long enough, and different enough, for the guards to tell them apart.
fn lines(from: usize, to: usize) -> (String, Vec<String>) {
    let lines: Vec<_> = (from..to).map(|number| format!("{number} of the lines that stand in this log")).collect();
    (lines.iter().map(|line| format!("{line}\n")).collect(), lines)
}

#[tokio::test]
async fn a_file_is_read_and_followed() {
    let logs = one();
    logs.append("app.log", "one\ntwo\n");
    let mut running = logs.start().await;
    assert_eq!(running.records(2).await, ["one", "two"]);
    running.note("idle").await;
    logs.append("app.log", "three\n");
    assert_eq!(running.records(1).await, ["three"]);
    assert_eq!(running.stop().await.0, [""; 0]);
}

#[tokio::test]
async fn a_file_may_come_later() {
    let logs = Logs::new(serde_json::json!({ "paths": ["first.log", "later/*/app.log"], "read_from": "end" }));
    logs.append("first.log", "passed over\n");
    let mut running = logs.start().await;
    running.note("idle").await;
    fs::create_dir_all(logs.path("later/x")).unwrap();
    logs.append("later/x/app.log", "one\n");
    assert_eq!(running.records(1).await, ["one"]);
}

#[tokio::test]
async fn the_last_line_waits_for_its_newline() {
    let logs = one();
    logs.append("app.log", "one\ntw");
    let mut running = logs.start().await;
    assert_eq!(running.records(1).await, ["one"]);
    running.note("idle").await;
    let (rest, positions) = running.stop().await;
    assert_eq!(rest, [""; 0]);
    let mut running = logs.go_on(positions).await;
    running.note("idle").await;
    logs.append("app.log", "o");
    logs.append("app.log", "\nthree\n");
    assert_eq!(running.records(2).await, ["two", "three"]);
}

#[tokio::test]
async fn once_is_the_end_of_the_last_line_too() {
    let logs = one();
    logs.append("app.log", "one\r\n\ntwo");
    assert_eq!(logs.once().await, ["one", "two"]);
}

#[tokio::test]
async fn once_reads_rotated_files_from_the_oldest_to_the_newest() {
    let logs = Logs::new(serde_json::json!({ "paths": ["*.log*"], "once": true }));
    for name in ["b.log", "app.log", "app.log.1", "app.log.2", "app.log.10"] {
        logs.append(name, format!("{name}\n"));
    }
    logs.gzip("app.log.2", "app.log.2.gz");
    assert_eq!(logs.once().await, ["app.log.10", "app.log.2", "app.log.1", "app.log", "b.log"]);
}

#[tokio::test]
async fn reading_may_begin_at_the_end() {
    let logs = Logs::new(serde_json::json!({ "paths": ["app.log*"], "read_from": "end" }));
    logs.append("app.log", "one\ntw");
    logs.append("app.log.1", "zero\n");
    logs.gzip("app.log.1", "app.log.1.gz");
    let mut running = logs.start().await;
    running.note("idle").await;
    logs.append("app.log", "o\n");
    assert_eq!(running.records(1).await, ["two"]);
    let (_, positions) = running.stop().await;
    logs.append("app.log", "three\n");
    let mut running = logs.go_on(positions).await;
    assert_eq!(running.records(1).await, ["three"]);
    assert_eq!(running.stop().await.0, [""; 0]);
}

#[tokio::test]
async fn a_renamed_log_is_read_to_its_end_before_its_successor() {
    for logs in [one(), all()] {
        logs.append("app.log", "one\n");
        let mut running = logs.start().await;
        assert_eq!(running.records(1).await, ["one"]);
        let mut writer = OpenOptions::new().append(true).open(logs.path("app.log")).unwrap();
        logs.rename("app.log", "app.log.1");
        writer.write_all(b"two\n").unwrap();
        assert_eq!(running.records(1).await, ["two"]);
        logs.append("app.log", "four\n");
        writer.write_all(b"three").unwrap();
        let mut records = running.records(2).await;
        records.sort();
        assert_eq!(records, ["four", "three"]);
        running.note("closed").await;
        let (rest, positions) = running.stop().await;
        assert_eq!(rest, [""; 0]);
        logs.append("app.log", "five\n");
        let mut running = logs.go_on(positions).await;
        assert_eq!(running.records(1).await, ["five"]);
        assert_eq!(running.stop().await.0, [""; 0]);
    }
}

#[tokio::test]
async fn a_log_that_was_renamed_while_down_is_finished_first() {
    for logs in [one(), all()] {
        logs.append("app.log", "one\n");
        let mut running = logs.start().await;
        assert_eq!(running.records(1).await, ["one"]);
        let (_, positions) = running.stop().await;
        logs.append("app.log", "two\n");
        logs.rename("app.log", "app.log.1");
        logs.append("app.log", "three\n");
        let mut running = logs.go_on(positions).await;
        assert_eq!(running.records(2).await, ["two", "three"]);
        assert!(running.told[0].file.ends_with("app.log"), "a coordinate tells where a record was first seen");
        assert_eq!(running.stop().await.0, [""; 0]);
    }
}

#[tokio::test]
async fn a_log_that_was_copied_and_truncated_goes_on_in_the_copy() {
    for logs in [one(), all()] {
        let (text, expected) = lines(0, 20);
        logs.append("app.log", &text);
        let mut running = logs.start().await;
        assert_eq!(running.records(20).await, expected);
        logs.copy_and_truncate("app.log", "app.log.1");
        let (text, expected) = lines(20, 23);
        logs.append("app.log", &text);
        assert_eq!(running.records(3).await, expected);
        let (rest, positions) = running.stop().await;
        assert_eq!(rest, [""; 0]);

        // The same while nobody looks, with something in the copy that had not been read.
        let (more, mut expected) = lines(23, 40);
        logs.append("app.log", &more);
        logs.rename("app.log.1", "app.log.2");
        logs.copy_and_truncate("app.log", "app.log.1");
        let (text, new) = lines(40, 60);
        logs.append("app.log", &text);
        expected.extend(new);
        let mut running = logs.go_on(positions).await;
        assert_eq!(running.records(37).await, expected);
        let (rest, positions) = running.stop().await;
        assert_eq!(rest, [""; 0]);
        let running = logs.go_on(positions).await;
        assert_eq!(running.stop().await.0, [""; 0]);
    }
}

#[tokio::test]
async fn a_truncated_log_that_has_grown_past_the_offset_is_noticed() {
    let logs = one();
    logs.append("app.log", "one\n");
    let mut running = logs.start().await;
    assert_eq!(running.records(1).await, ["one"]);
    let (_, positions) = running.stop().await;
    fs::write(logs.path("app.log"), "two\nthree\nfour\n").unwrap();
    let mut running = logs.go_on(positions).await;
    assert_eq!(running.records(3).await, ["two", "three", "four"]);
    fs::write(logs.path("app.log"), "five\nsix\nseven\neight\n").unwrap();
    assert_eq!(running.records(4).await, ["five", "six", "seven", "eight"]);
    assert_eq!(running.stop().await.0, [""; 0]);
}

#[tokio::test]
async fn a_copy_that_lacks_what_was_written_before_the_truncation_is_not_read_again() {
    let logs = all();
    let (text, expected) = lines(0, 50);
    logs.append("app.log", &text);
    let mut running = logs.start().await;
    assert_eq!(running.records(50).await, expected);
    fs::copy(logs.path("app.log"), logs.path("app.log.1")).unwrap();
    logs.append("app.log", "in no file after this\n");
    assert_eq!(running.records(1).await, ["in no file after this"]);
    OpenOptions::new().write(true).open(logs.path("app.log")).unwrap().set_len(0).unwrap();
    logs.append("app.log", "new\n");
    assert_eq!(running.records(1).await, ["new"]);
    let (rest, positions) = running.stop().await;
    assert_eq!(rest, [""; 0]);
    let mut running = logs.go_on(positions).await;
    logs.append("app.log", "newer\n");
    assert_eq!(running.records(1).await, ["newer"]);
    assert_eq!(running.stop().await.0, [""; 0]);
}

#[tokio::test]
async fn a_checkpoint_between_a_truncation_and_its_first_record_does_not_begin_the_file_twice() {
    let logs = all();
    let (text, expected) = lines(0, 50);
    logs.append("app.log", &text);
    let mut running = logs.start().await;
    assert_eq!(running.records(50).await, expected);
    let (_, before) = running.stop().await;
    OpenOptions::new().write(true).open(logs.path("app.log")).unwrap().set_len(0).unwrap();
    logs.append("app.log", "new\n");
    let mut running = logs.go_on(before.clone()).await;
    assert_eq!(running.records(1).await, ["new"]);
    let (_, mut positions) = running.stop().await;
    // As a checkpoint has them that was taken when the new generation had been told of and nothing of it read, and nothing
    // said yet of the end of the old one.
    for (lane, position) in &mut positions {
        match before.get(lane) {
            Some(old) => position.clone_from(old),
            None => {
                let nothing = serde_json::json!({ "offset": 0, "head": "", "head_len": 0, "tail": 0 });
                position.as_object_mut().unwrap().extend(nothing.as_object().unwrap().clone());
            }
        }
    }
    assert_eq!(positions.len(), 2);
    let mut running = logs.go_on(positions).await;
    assert_eq!(running.records(1).await, ["new"]);
    logs.append("app.log", "newer\n");
    assert_eq!(running.records(1).await, ["newer"]);
    assert_eq!(running.stop().await.0, [""; 0]);
}

#[tokio::test]
async fn a_copy_beside_a_log_is_not_read_again() {
    let logs = all();
    let (text, expected) = lines(0, 30);
    logs.append("app.log", &text);
    let mut running = logs.start().await;
    assert_eq!(running.records(30).await, expected);
    fs::copy(logs.path("app.log"), logs.path("app.log.bak")).unwrap();
    fs::copy(logs.path("app.log"), logs.path("app.log.1")).unwrap();
    logs.append("app.log", "last\n");
    assert_eq!(running.records(1).await, ["last"]);
    let (rest, positions) = running.stop().await;
    assert_eq!(rest, [""; 0]);
    let mut running = logs.go_on(positions).await;
    logs.append("app.log", "after\n");
    assert_eq!(running.records(1).await, ["after"]);
}

#[tokio::test]
async fn a_deleted_log_that_comes_back_is_another() {
    let logs = one();
    let (text, expected) = lines(0, 40);
    logs.append("app.log", &text);
    let mut running = logs.start().await;
    assert_eq!(running.records(40).await, expected);
    for _ in 0..3 {
        // As likely as not in the inode that has just become free, and with the same head.
        fs::remove_file(logs.path("app.log")).unwrap();
        logs.append("app.log", &text);
        assert_eq!(running.records(40).await, expected);
        running.note("closed").await;
    }
    let (rest, positions) = running.stop().await;
    assert_eq!(rest, [""; 0]);
    fs::remove_file(logs.path("app.log")).unwrap();
    logs.append("app.log", &text);
    let mut running = logs.go_on(positions).await;
    assert_eq!(running.records(40).await, expected);
    assert_eq!(running.stop().await.0, [""; 0]);
}

#[tokio::test]
async fn a_link_is_followed_to_where_it_leads_now() {
    let logs = one();
    logs.append("a", "one\n");
    logs.append("b", "two\n");
    std::os::unix::fs::symlink(logs.path("a"), logs.path("app.log")).unwrap();
    let mut running = logs.start().await;
    assert_eq!(running.records(1).await, ["one"]);
    std::os::unix::fs::symlink(logs.path("b"), logs.path("link")).unwrap();
    logs.rename("link", "app.log");
    assert_eq!(running.records(1).await, ["two"]);
    let (rest, positions) = running.stop().await;
    assert_eq!(rest, [""; 0]);
    logs.append("b", "three\n");
    let mut running = logs.go_on(positions).await;
    assert_eq!(running.records(1).await, ["three"]);
}

#[tokio::test]
async fn a_small_compressed_log_that_begins_like_another_is_read() {
    let logs = all();
    let begin = "=".repeat(700);
    logs.append("app.log", format!("{begin}\n{}\nnew\n", "+".repeat(1000)));
    let mut running = logs.start().await;
    assert_eq!(running.records(3).await[2], "new");
    let (_, positions) = running.stop().await;
    logs.append("app.log.1", format!("{begin}\nold one\nold two\n"));
    logs.gzip("app.log.1", "app.log.1.gz");
    assert!(fs::metadata(logs.path("app.log.1.gz")).unwrap().len() < 700);
    let mut running = logs.go_on(positions).await;
    assert_eq!(running.records(3).await, [begin.as_str(), "old one", "old two"]);
    running.stop().await;
}

#[tokio::test]
async fn a_log_that_was_compressed_while_down_is_finished() {
    for logs in [one(), all()] {
        for zstd in [false, true] {
            let (text, expected) = lines(0, 50);
            logs.append("app.log", &text);
            let mut running = logs.start().await;
            assert_eq!(running.records(50).await, expected);
            let (rest, positions) = running.stop().await;
            assert_eq!(rest, [""; 0]);
            let (text, mut expected) = lines(50, 90);
            logs.append("app.log", text);
            if zstd {
                let compressed = zstd::encode_all(File::open(logs.path("app.log")).unwrap(), 1).unwrap();
                fs::write(logs.path("app.log.1.zst"), compressed).unwrap();
                fs::remove_file(logs.path("app.log")).unwrap();
            } else {
                logs.gzip("app.log", "app.log.1.gz");
            }
            let (text, new) = lines(90, 100);
            logs.append("app.log", text);
            expected.extend(new);
            let mut running = logs.go_on(positions).await;
            assert_eq!(running.records(50).await, expected);
            let (rest, positions) = running.stop().await;
            assert_eq!(rest, [""; 0]);
            let mut running = logs.go_on(positions).await;
            logs.append("app.log", "last\n");
            assert_eq!(running.records(1).await, ["last"]);
            assert_eq!(running.stop().await.0, [""; 0]);
            for entry in fs::read_dir(logs.folder.path()).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_log_that_is_compressed_while_it_is_known_is_not_read_again() {
    let logs = all();
    let (text, expected) = lines(0, 50);
    logs.append("app.log", &text);
    let mut running = logs.start().await;
    assert_eq!(running.records(50).await, expected);
    logs.rename("app.log", "app.log.1");
    logs.append("app.log", "new\n");
    assert_eq!(running.records(1).await, ["new"]);
    running.note("closed").await;
    logs.gzip("app.log.1", "app.log.2.gz");
    logs.append("app.log", "newer\n");
    assert_eq!(running.records(1).await, ["newer"]);
    running.note("closed").await;
    let (rest, positions) = running.stop().await;
    assert_eq!(rest, [""; 0]);
    let running = logs.go_on(positions).await;
    assert_eq!(running.stop().await.0, [""; 0]);
}

#[tokio::test]
async fn a_damaged_archive_gives_what_is_good_and_holds_nothing_up() {
    let logs = Logs::new(serde_json::json!({ "paths": ["*.log*"] }));
    let (text, expected) = lines(0, 20_000);
    logs.append("a.log", text);
    logs.gzip("a.log", "a.log.gz");
    let length = fs::metadata(logs.path("a.log.gz")).unwrap().len();
    OpenOptions::new().write(true).open(logs.path("a.log.gz")).unwrap().set_len(length / 2).unwrap();
    logs.append("b.log", "good\n");
    let mut twice =
        flate2::write::GzEncoder::new(File::create(logs.path("c.log")).unwrap(), flate2::Compression::fast());
    twice.write_all(&fs::read(logs.path("a.log.gz")).unwrap()).unwrap();
    twice.finish().unwrap();
    let (told, notes, _, outcome) =
        Running::new(logs.source(), Start { once: true, ..Start::default() }).await.read_to_end().await;
    let told = texts(&told);
    assert!(told.len() > 1000 && told.len() < expected.len(), "{}", told.len());
    assert_eq!((&told[..told.len() - 1], told.last().unwrap().as_str()), (&expected[..told.len() - 1], "good"));
    assert!(notes.contains(&"stalled".to_owned()));
    // The one that is hopeless is given up at once.
    assert!(outcome.unwrap_err().to_string().contains("c.log: compressed twice"));
}

#[tokio::test]
async fn what_is_no_regular_file_is_left_alone() {
    let logs = all();
    fs::create_dir(logs.path("app.log.d")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, logs.path("app.log.fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    std::os::unix::fs::symlink("/dev/zero", logs.path("app.log.zero")).unwrap();
    std::os::unix::fs::symlink(logs.path("nowhere"), logs.path("app.log.broken")).unwrap();
    logs.append("app.log", "one\n");
    assert_eq!(logs.once().await, ["one"]);
}

#[tokio::test]
async fn any_bytes_pass_unchanged() {
    let logs = one();
    logs.append("app.log", b"a\0b\n\xff\xfe\x80\n\0\n");
    let (told, ..) = Running::new(logs.source(), Start { once: true, ..Start::default() }).await.read_to_end().await;
    let records: Vec<_> = told.iter().map(|told| &told.record[..]).collect();
    assert_eq!(records, [&b"a\0b"[..], b"\xff\xfe\x80", b"\0"]);
}

#[tokio::test]
async fn a_line_that_is_too_long_is_refused_once() {
    let logs = one();
    logs.append("app.log", "one\n");
    logs.append("app.log", vec![b'x'; 10 << 20]);
    logs.append("app.log", "\ntwo\n");
    let (told, notes, ..) =
        Running::new(logs.source(), Start { once: true, ..Start::default() }).await.read_to_end().await;
    assert_eq!(texts(&told), ["one", "two"]);
    expect![[r#"
        [
            "rejected at 4, 4096 bytes of it kept: too_long: a record of 10485760 bytes is longer than max_record_bytes, which is 1048576",
            "closed",
        ]
    "#]]
    .assert_debug_eq(&notes);
    let records = RecordOptions { max_record_bytes: 20 << 20, too_long: TooLong::Reject, multiline: None };
    let start = Start { once: true, records, ..Start::default() };
    let (told, ..) = Running::new(logs.source(), start).await.read_to_end().await;
    assert_eq!(told.iter().map(|told| told.record.len()).collect::<Vec<_>>(), [3, 10 << 20, 3]);
}

#[tokio::test]
async fn lines_that_belong_together_end_when_nothing_comes() {
    let logs = one();
    let pattern = regex::bytes::Regex::new("^[a-z]").unwrap();
    let multiline =
        Multiline { pattern, mode: MultilineMode::Start, timeout: time::Duration::from_millis(50), max_lines: 100 };
    let start =
        Start { records: RecordOptions { multiline: Some(multiline), ..RecordOptions::default() }, ..Start::default() };
    logs.append("app.log", "one\n 1\ntwo\n 2\n");
    let mut running = Running::new(logs.source(), start.clone()).await;
    assert_eq!(running.records(2).await, ["one\n 1", "two\n 2"]);
    logs.append("app.log", "three\n");
    running.note("idle").await;
    let (rest, positions) = running.stop().await;
    let mut running = Running::new(logs.source(), Start { positions: Some(positions), ..start }).await;
    if rest.is_empty() {
        assert_eq!(running.records(1).await, ["three"]);
    }
    logs.append("app.log", "four\nfive\n");
    assert_eq!(running.records(1).await, ["four"]);
}

#[tokio::test]
async fn more_files_than_may_be_open_are_followed() {
    let logs = Logs::new(serde_json::json!({ "paths": ["*.log"], "max_open_files": 3 }));
    let names: Vec<_> = (0..20).map(|number| format!("{number:02}.log")).collect();
    for name in &names {
        logs.append(name, format!("{name}\nunfinished "));
    }
    let mut running = logs.start().await;
    let mut records = running.records(20).await;
    records.sort();
    assert_eq!(records, names);
    for name in &names {
        logs.append(name, format!("{name}\n"));
    }
    let mut records = running.records(20).await;
    records.sort();
    assert_eq!(records, names.iter().map(|name| format!("unfinished {name}")).collect::<Vec<_>>());
    assert_eq!(running.stop().await.0, [""; 0]);
}

#[tokio::test]
async fn old_files_may_be_left_alone() {
    let logs = Logs::new(serde_json::json!({ "paths": ["*.log"], "ignore_older": "1h" }));
    logs.append("old.log", "old\n");
    logs.append("new.log", "new\n");
    let day_ago = File::open(logs.path("old.log")).unwrap().metadata().unwrap().modified().unwrap()
        - time::Duration::from_secs(86_400);
    OpenOptions::new().append(true).open(logs.path("old.log")).unwrap().set_modified(day_ago).unwrap();
    let mut running = logs.start().await;
    assert_eq!(running.records(1).await, ["new"]);
    running.note("idle").await;
    logs.append("old.log", "changed\n");
    assert_eq!(running.records(2).await, ["old", "changed"]);
}

#[tokio::test]
async fn a_position_is_forgotten_long_after_its_file_is_gone() {
    let logs = Logs::new(serde_json::json!({ "paths": ["app.log"], "forget_after": "0s" }));
    logs.append("app.log", "one\n");
    let mut running = logs.start().await;
    running.records(1).await;
    let (_, positions) = running.stop().await;
    assert_eq!(positions.len(), 1);
    fs::remove_file(logs.path("app.log")).unwrap();
    let mut running = logs.go_on(positions.clone()).await;
    running.note("forgotten").await;
    assert_eq!(running.stop().await.1.len(), 0);
    let kept = Logs { folder: logs.folder, options: serde_json::json!({ "paths": ["app.log"] }) };
    let mut running = kept.go_on(positions).await;
    running.note("closed").await;
    assert_eq!(running.stop().await.1.len(), 1);
}

#[tokio::test]
async fn it_goes_on_from_every_position_exactly_there() {
    let logs = all();
    let (text, _) = lines(0, 60_000);
    logs.append("app.log.2", &text);
    logs.gzip("app.log.2", "app.log.2.gz");
    logs.append("app.log.1", &lines(60_000, 120_000).0);
    logs.append("app.log", &lines(120_000, 160_000).0);
    logs.append("app.log", vec![b'x'; 3 << 20]);
    logs.append("app.log", "\nlast");
    goes_on_from_every_position(|| logs.source(), Start::default()).await;
}

#[tokio::test]
async fn it_stops_though_nobody_listens() {
    let logs = one();
    logs.append("app.log", &lines(0, 200_000).0);
    stops_though_nobody_listens(logs.source()).await;
}

/// Many short stories, each from its seed: whatever happens to a log, every line is told once, in the order of its writing.
#[tokio::test]
async fn whatever_happens_to_a_log_every_line_is_told_once() {
    for seed in 0..40u64 {
        let logs = if seed % 2 == 0 { one() } else { all() };
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut dice = move |sides: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % sides
        };
        let (mut written, mut told, mut story) = (0, Vec::new(), Vec::new());
        let (mut running, mut rotated) = (Some(logs.start().await), 0);
        // While down, only a log that is known is rotated, and once: what came and went unseen is not in `paths`.
        let (mut down, mut may_rotate, mut may_copy) = (None, true, true);
        // What has less than the head of a copy cannot be told in one.
        let is_long = || fs::metadata(logs.path("app.log")).is_ok_and(|metadata| metadata.len() >= 64);
        for _ in 0..12 {
            let step = dice(6);
            story.push(step);
            match step {
                0..=2 => {
                    let count = 1 + dice(30) as usize;
                    logs.append("app.log", lines(written, written + count).0);
                    written += count;
                }
                3 if may_rotate && logs.path("app.log").exists() => {
                    may_rotate = running.is_some();
                    rotated += 1;
                    logs.rename("app.log", &format!("app.log.{}", 100 - rotated));
                }
                4 if may_rotate && is_long() && (running.is_some() || may_copy) => {
                    may_rotate = running.is_some();
                    if let Some(running) = &mut running {
                        // What is copied before it is truncated and what is not is the business of who does it.
                        told.extend(running.records(written - told.len()).await);
                    }
                    rotated += 1;
                    logs.copy_and_truncate("app.log", &format!("app.log.{}", 100 - rotated));
                }
                5 => match running.take() {
                    Some(mut up) => {
                        let missing = written - told.len();
                        if dice(2) == 0 {
                            told.extend(up.records(missing).await);
                        }
                        let (rest, positions) = up.stop().await;
                        told.extend(rest);
                        down = Some(positions);
                        (may_rotate, may_copy) = (logs.path("app.log").exists(), is_long());
                    }
                    None => {
                        running = Some(logs.go_on(down.take().unwrap()).await);
                        may_rotate = true;
                    }
                },
                _ => {}
            }
            if let Some(running) = &mut running {
                println!("seed {seed}: {story:?}, {} of {written}", told.len());
                told.extend(running.records(written - told.len()).await);
            }
        }
        if let Some(positions) = down {
            running = Some(logs.go_on(positions).await);
        }
        let mut running = running.unwrap();
        println!("seed {seed}: {story:?}, {} of {written}", told.len());
        told.extend(running.records(written - told.len()).await);
        let (rest, _) = running.stop().await;
        told.extend(rest);
        told.sort_by_key(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap());
        assert!(told == lines(0, written).1, "seed {seed}, {story:?}: {} of {written}", told.len());
    }
}

#[tokio::test]
async fn published_files_in_other_forms_are_read_as_text() {
    let logs = Logs::new(serde_json::json!({ "paths": ["*"] }));
    let utf16 = corpus("file_encodings/vector/utf-16le.log");
    let gzip = corpus("file_encodings/vector/gzipped.log");
    let members = corpus("file_encodings/vector/multipart-gzip.log.gz");
    let (Some(utf16), Some(gzip), Some(members)) = (utf16, gzip, members) else { return };
    let expected: Vec<u16> = utf16[2..].chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    let mut expected = vec![String::from_utf16(&expected).unwrap()];
    for packed in [&gzip, &members] {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(&packed[..]), &mut text).unwrap();
        expected.push(text);
    }
    let expected: Vec<_> = expected.iter().flat_map(|text| text.lines()).filter(|line| !line.is_empty()).collect();
    for (name, bytes) in [("a", &utf16), ("b", &gzip), ("c", &members)] {
        fs::write(logs.path(name), bytes).unwrap();
    }
    let told = logs.once().await;
    println!("file_encodings: 3 files, {} lines", told.len());
    assert_eq!(told, expected);
}
