use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::sink::SinkState;

use super::*;
use crate::conformance::{NOON, Running, json_lines, lines, records, sink, withstands};

/// All files of a folder, by name, decompressed.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let mut text = String::new();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
        } else if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            zstd::stream::read::Decoder::new(&bytes[..]).unwrap().read_to_string(&mut text).unwrap();
        } else {
            text = String::from_utf8(bytes).unwrap();
        }
        found.insert(path.file_name().unwrap().to_string_lossy().into_owned(), text);
    }
    found
}

fn text(folder: &Path, name: &str) -> String {
    files(folder).remove(name).unwrap_or_default()
}

/// A folder for output and one for the journal.
fn folders() -> (tempfile::TempDir, tempfile::TempDir) {
    (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
}

#[tokio::test]
async fn it_withstands_what_every_sink_must() {
    for compression in ["none", "gzip", "zstd"] {
        let (out, data) = folders();
        let options = format!(r#"{{"path": "out.log", "compression": "{compression}"}}"#);
        let read = async || text(out.path(), "out.log");
        let make = || sink::<Config>(&options, out.path());
        withstands(make, Some(data.path()), read, "one\ntwo\n{\"three\":3}\nfive\n").await;
    }
}

#[tokio::test]
async fn what_came_after_the_checkpoint_is_cut_off() {
    let (out, data) = folders();
    let make = || sink::<Config>(r#"{"path": "out.log"}"#, out.path());
    let running = Running::start(make(), None, Some(data.path().to_owned())).await.unwrap();
    running.send(lines("one\n")).await;
    let state = running.state(1).await;
    running.commit(1).await;
    running.send(lines("two\nthree\n")).await;
    running.until(|metrics| metrics.sent_events() == 3).await;
    running.crash().await;
    assert_eq!(text(out.path(), "out.log"), "one\ntwo\nthree\n");

    let running = Running::start(make(), Some(state), Some(data.path().to_owned())).await.unwrap();
    assert_eq!(text(out.path(), "out.log"), "one\n");
    running.send(lines("two\nthree\n")).await;
    running.end().await.unwrap();
    assert_eq!(text(out.path(), "out.log"), "one\ntwo\nthree\n");
}

#[tokio::test]
async fn lines_can_be_read_before_any_checkpoint() {
    let (out, _) = folders();
    let running = Running::start(sink::<Config>(r#"{"path": "out.log"}"#, out.path()), None, None).await.unwrap();
    let long = "x".repeat(200_000);
    running.send(lines(&format!("one\n{long}\ntwo\n"))).await;
    running.until(|metrics| metrics.sent_events() == 3).await;
    assert_eq!(text(out.path(), "out.log"), format!("one\n{long}\ntwo\n"));
    running.end().await.unwrap();
}

#[tokio::test]
async fn nothing_new_is_said_at_a_barrier_when_nothing_came() {
    let (out, data) = folders();
    let make = || sink::<Config>(r#"{"path": "out.log"}"#, out.path());
    let running = Running::start(make(), None, Some(data.path().to_owned())).await.unwrap();
    running.send(lines("one\n")).await;
    running.state(1).await;
    // The checkpoint was abandoned, so the state must be said again.
    running.state(2).await;
    running.commit(2).await;
    assert_eq!(running.barrier(3).await, SinkState::Unchanged);
    running.send(lines("two\n")).await;
    running.state(4).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_file_that_someone_cut_or_replaced_is_refused() {
    let (out, data) = folders();
    let make = || sink::<Config>(r#"{"path": "out.log"}"#, out.path());
    let running = Running::start(make(), None, Some(data.path().to_owned())).await.unwrap();
    running.send(lines("one\n")).await;
    let state = running.state(1).await;
    running.commit(1).await;
    running.end().await.unwrap();
    let start = async || match Running::start(make(), Some(state.clone()), Some(data.path().to_owned())).await {
        Ok(_) => panic!("it must not start"),
        Err(error) => error.to_string().replace(&out.path().display().to_string(), "OUT"),
    };
    std::fs::write(out.path().join("out.log"), "on").unwrap();
    assert_eq!(
        start().await,
        "cutting OUT/out.log back to the checkpoint: it holds 2 bytes and the checkpoint says 4: someone cut it; move it away"
    );
    // Beside it first, so that the new file cannot be given the number of the old one.
    std::fs::write(out.path().join("other"), "one\n").unwrap();
    std::fs::rename(out.path().join("other"), out.path().join("out.log")).unwrap();
    assert_eq!(
        start().await,
        "cutting OUT/out.log back to the checkpoint: it is another file than the one the checkpoint speaks of; move it away"
    );
    std::fs::remove_file(out.path().join("out.log")).unwrap();
    assert!(Running::start(make(), Some(state.clone()), Some(data.path().to_owned())).await.is_ok());
}

#[tokio::test]
async fn a_state_that_is_none_is_refused() {
    let (out, _) = folders();
    for state in ["{", r#"{"version": 9, "epoch": 1, "files": []}"#] {
        let made = sink::<Config>(r#"{"path": "out.log"}"#, out.path());
        let started = Running::start(made, Some(state.as_bytes().into()), None).await;
        assert!(started.is_err(), "{state}");
    }
}

#[tokio::test]
async fn a_file_moved_away_is_made_again() {
    let (out, data) = folders();
    let made = sink::<Config>(r#"{"path": "out.log"}"#, out.path());
    let running = Running::start(made, None, Some(data.path().to_owned())).await.unwrap();
    running.send(lines("one\n")).await;
    running.state(1).await;
    std::fs::rename(out.path().join("out.log"), out.path().join("old.log")).unwrap();
    running.send(lines("two\n")).await;
    running.state(2).await;
    running.send(lines("three\n")).await;
    running.end().await.unwrap();
    assert_eq!(text(out.path(), "old.log"), "one\ntwo\n");
    assert_eq!(text(out.path(), "out.log"), "three\n");
}

#[tokio::test]
async fn records_go_where_their_date_and_fields_say() {
    let (out, _) = folders();
    let made = sink::<Config>(r#"{"path": "%H/{{ host }}.log", "encoding": "logfmt"}"#, out.path());
    let running = Running::start(made, None, None).await.unwrap();
    running
        .send(records(&[r#"{"host": "a", "n": 1}"#, r#"{"host": "../b", "n": 2}"#, r#"{"host": "a", "n": 3}"#]))
        .await;
    running.end().await.unwrap();
    let found = files(&out.path().join("12"));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["%2E.%2Fb.log", "a.log"]);
    assert_eq!(found["a.log"], "host=a n=1\nhost=a n=3\n");
}

#[tokio::test]
async fn a_name_that_cannot_be_a_file_is_a_dead_letter() {
    let (out, _) = folders();
    let made = sink::<Config>(r#"{"path": "x/{{ host }}"}"#, out.path());
    let running = Running::start(made, None, None).await.unwrap();
    std::fs::create_dir(out.path().join("x/folder")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", out.path().join("x/link")).unwrap();
    running.send(records(&[r#"{"host": "folder"}"#, r#"{"host": "link"}"#, r#"{"host": "fine"}"#])).await;
    running.until(|metrics| metrics.dropped_events(Reason::Refused) == 2 && metrics.sent_events() == 1).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_new_file_begins_when_one_is_full_and_old_ones_go() {
    let (out, data) = folders();
    let made = sink::<Config>(r#"{"path": "out.log", "rotate": {"size": "10", "keep": 1}}"#, out.path());
    let running = Running::start(made, None, Some(data.path().to_owned())).await.unwrap();
    running.send(lines("1111\n2222\n3333\n4444\n")).await;
    running.send(lines("5555\n")).await;
    running.state(1).await;
    running.commit(1).await;
    // The answer comes after the deed.
    running.barrier(2).await;
    let names = || {
        files(out.path())
            .into_iter()
            .map(|(name, text)| format!("{name}: {}", text.replace('\n', " ")))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(), ["out.log.2: 3333 4444 ", "out.log.3: 5555 "]);
    running.end().await.unwrap();
}

#[tokio::test]
async fn what_should_have_been_deleted_before_a_crash_is_deleted_after_it() {
    let (out, data) = folders();
    let make = || sink::<Config>(r#"{"path": "out.log", "rotate": {"size": "10", "keep": 1}}"#, out.path());
    let running = Running::start(make(), None, Some(data.path().to_owned())).await.unwrap();
    running.send(lines("1111\n2222\n3333\n4444\n")).await;
    running.send(lines("5555\n")).await;
    let state = running.state(1).await;
    // The daemon dies before the sink hears that the checkpoint is complete.
    running.crash().await;
    let running = Running::start(make(), Some(state), Some(data.path().to_owned())).await.unwrap();
    running.send(lines("6666\n")).await;
    running.state(2).await;
    running.commit(2).await;
    running.barrier(3).await;
    let names: Vec<_> = files(out.path()).into_keys().collect();
    assert_eq!(names, ["out.log.2", "out.log.3"]);
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_new_file_begins_with_each_stretch_of_event_time() {
    let (out, _) = folders();
    let made = sink::<Config>(r#"{"path": "out.log", "rotate": {"every": "2s"}}"#, out.path());
    let running = Running::start(made, None, None).await.unwrap();
    running.send(records(&["0", "1", "2", "3", "4"])).await;
    // A late one.
    running.send(records(&["\"late\""])).await;
    running.end().await.unwrap();
    let found: Vec<_> = files(out.path()).into_values().map(|text| text.replace('\n', " ")).collect();
    assert_eq!(found, ["0 1 ", "2 3 ", "4 \"late\" "]);
}

#[tokio::test]
async fn json_is_copied_as_it_came() {
    let (out, _) = folders();
    let made = sink::<Config>(r#"{"path": "out.log", "encoding": "json"}"#, out.path());
    let running = Running::start(made, None, None).await.unwrap();
    running.send(json_lines("{\"a\":  1}\n{ }\n")).await;
    running.end().await.unwrap();
    assert_eq!(text(out.path(), "out.log"), "{\"a\":  1}\n{ }\n");
}

#[tokio::test]
async fn an_idle_file_is_closed_and_opened_again() {
    let (out, data) = folders();
    let made = sink::<Config>(r#"{"path": "{{ k }}", "idle_close": "1m"}"#, out.path());
    let running = Running::start(made, None, Some(data.path().to_owned())).await.unwrap();
    running.send(records(&[r#"{"k": "a"}"#])).await;
    running.until(|metrics| metrics.sent_events() == 1).await;
    running.clock.set(NOON.saturating_add(Duration::from_secs(61)));
    running.send(records(&[r#"{"k": "b"}"#])).await;
    running.until(|metrics| metrics.sent_events() == 2).await;
    let state = String::from_utf8(running.state(1).await.to_vec()).unwrap();
    assert!(state.contains(r#""path":"b""#) && !state.contains(r#""path":"a""#), "{state}");
    running.send(records(&[r#"{"k": "a"}"#])).await;
    running.end().await.unwrap();
    assert_eq!(text(out.path(), "a").lines().count(), 2);
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Writes 120 records with crashes in between, each time going on from the last checkpoint or the one before, and compares
/// what stands in the files with what would without.
async fn crash_now_and_then(options: &str, seed: u64) {
    // In memory where that is possible: it is about order, not about the disk, which would make it take minutes.
    let folder = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (out, data) = (folder(), folder());
    let data_dir = || Some(data.path().to_owned());
    let mut numbers = Numbers(seed * 0x9e37_79b9 + 1);
    let record = |number: usize| format!(r#"{{"k":"{}","n":{number}}}"#, number * 7 % 5);
    let (mut position, mut epoch) = (0, 0);
    // Complete checkpoints: where the source stood, and what the sink said.
    let mut checkpoints: Vec<(usize, bytes::Bytes)> = Vec::new();
    let mut running = Running::start(sink::<Config>(options, out.path()), None, data_dir()).await.unwrap();
    while position < 120 {
        match numbers.below(10) {
            0..5 => {
                let end = (position + 1 + numbers.below(6) as usize).min(120);
                let batch: Vec<_> = (position..end).map(record).collect();
                running.send(records(&batch.iter().map(|record| &**record).collect::<Vec<_>>())).await;
                position = end;
            }
            5..8 => {
                epoch += 1;
                let state = match running.barrier(epoch).await {
                    SinkState::State(state) => state,
                    SinkState::Unchanged => checkpoints.last().unwrap().1.clone(),
                    SinkState::Failed(message) => panic!("seed {seed}: {message}"),
                };
                // Some checkpoints are abandoned.
                if numbers.below(4) > 0 {
                    checkpoints.push((position, state));
                    running.commit(epoch).await;
                }
            }
            _ => {
                running.crash().await;
                if checkpoints.len() > 1 && numbers.below(3) == 0 {
                    // The last one could not be read.
                    checkpoints.pop();
                }
                let (back, state) = checkpoints.last().cloned().map_or((0, None), |(back, state)| (back, Some(state)));
                position = back;
                running = Running::start(sink::<Config>(options, out.path()), state, data_dir()).await.unwrap();
            }
        }
    }
    running.end().await.unwrap();
    let mut found: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
    for (name, text) in files(out.path()) {
        let (key, sequence) = name.split_once('.').map_or((&*name, 0), |(key, number)| (key, number.parse().unwrap()));
        found.entry(key.to_owned()).or_default().insert(sequence, text);
    }
    for (key, parts) in found {
        let expected: String = (0..120)
            .map(record)
            .filter(|record| record.contains(&format!("\"k\":\"{key}\"")))
            .map(|record| record + "\n")
            .collect();
        let found: String = parts.into_values().collect();
        assert_eq!(found, expected, "seed {seed}, key {key}, {options}");
    }
}

#[tokio::test]
async fn every_record_stands_in_the_files_once_whatever_crashes() {
    for seed in 1..=12 {
        for options in [
            r#"{"path": "{{ k }}", "max_open_files": 2}"#,
            r#"{"path": "{{ k }}", "rotate": {"size": "60"}}"#,
            r#"{"path": "{{ k }}", "compression": "gzip", "max_open_files": 3}"#,
            r#"{"path": "{{ k }}", "compression": "zstd", "rotate": {"size": "60", "every": "3s"}}"#,
        ] {
            crash_now_and_then(options, seed).await;
        }
    }
}

#[test]
fn options_that_make_no_sense_are_told() {
    let told = |options: &str| {
        let config: Config = serde_json::from_str(options).unwrap();
        config
            .problems()
            .into_iter()
            .map(|problem| format!("{}: {}", problem.option, problem.message))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        told(r#"{"path": "x", "mode": "rw", "max_open_files": 0, "rotate": {"keep": 3}}"#),
        ["mode: \"rw\" are no permissions", "max_open_files: must be at least 1", "rotate: needs `size` or `every`",]
    );
    assert_eq!(told(r#"{"path": "%Y/"}"#), ["path: does not end in the name of a file"]);
}
