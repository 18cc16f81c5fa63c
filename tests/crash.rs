//! The daemon killed with SIGKILL at random moments and started again: its output must be byte for byte that of a run that
//! nobody disturbed.
//!
//! `TOCSIN_CRASH_MB` (default 20) sets the size of the input, `TOCSIN_CRASH_KILLS` (default 12) the number of kills,
//! `TOCSIN_CRASH_SEED` the moments; the seed of a run is printed.

mod support;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::tocsin;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

const PIPELINE: &str = r#"
[sources.log]
type = "file"
paths = ["${CASE}/*.log"]
codec = "json"
timestamp = { field = ".ts" }
out_of_order = "1s"

[operators.kept]
type = "filter"
inputs = ["log"]
condition = '.level != "DEBUG"'

[operators.by_service]
type = "window"
inputs = ["kept"]
tumbling = "10s"
group_by = [".service", ".host"]
aggregates = { count = "count()", mean = "mean(.latency_ms)", max = "max(.latency_ms)", p99 = "quantile(.latency_ms, 0.99)" }

[operators.slow]
type = "alert"
inputs = ["by_service"]
condition = ".max > 399.9"
labels = { severity = "warning" }

[sinks.windows_out]
type = "file"
inputs = ["by_service"]
path = "${OUT}/windows.ndjson"

[sinks.kept_out]
type = "file"
inputs = ["kept"]
path = "${OUT}/kept.ndjson"

[sinks.packed_out]
type = "file"
inputs = ["kept"]
path = "${OUT}/kept.ndjson.gz"
compression = "gzip"

[sinks.alerts_out]
type = "file"
inputs = ["slow"]
path = "${OUT}/alerts.ndjson"
"#;

fn write_input(folder: &Path, megabytes: u64, random: &mut Random) {
    let mut file = BufWriter::new(File::create(folder.join("app.log")).unwrap());
    let (mut bytes, mut millis) = (0, 0u64);
    while bytes < megabytes * 1_000_000 {
        millis += random.below(4);
        let (second, milli) = (millis / 1000, millis % 1000);
        let line = format!(
            "{{\"ts\":\"2026-11-{:02}T{:02}:{:02}:{:02}.{milli:03}Z\",\"level\":\"{}\",\"service\":\"s{}\",\"host\":\"web-{}\",\
             \"latency_ms\":{}.{:03},\"msg\":\"request {} of customer {} completed\"}}\n",
            20 + second / 86_400,
            second / 3600 % 24,
            second / 60 % 60,
            second % 60,
            ["DEBUG", "INFO", "INFO", "WARN", "ERROR"][random.below(5) as usize],
            random.below(8),
            random.below(20),
            random.below(400),
            random.below(1000),
            random.below(1_000_000),
            random.below(10_000),
        );
        file.write_all(line.as_bytes()).unwrap();
        bytes += line.len() as u64;
    }
    file.flush().unwrap();
}

/// The files of a folder with their content, those that are compressed unpacked: where members of a gzip file end depends on
/// when checkpoints were taken, what they hold does not.
fn outputs(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut outputs: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let mut content = fs::read(entry.path()).unwrap();
            if name.ends_with(".gz") {
                let mut unpacked = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&content[..]), &mut unpacked)
                    .unwrap();
                content = unpacked;
            }
            (name, content)
        })
        .collect();
    outputs.sort();
    outputs
}

#[test]
fn output_after_any_number_of_kills_is_that_of_an_undisturbed_run() {
    let (megabytes, kills) = (number("TOCSIN_CRASH_MB", 20), number("TOCSIN_CRASH_KILLS", 12));
    let seed = number("TOCSIN_CRASH_SEED", u64::from(std::process::id()));
    println!("TOCSIN_CRASH_MB={megabytes} TOCSIN_CRASH_KILLS={kills} TOCSIN_CRASH_SEED={seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    fs::create_dir(&input).unwrap();
    write_input(&input, megabytes, &mut random);
    let pipeline = folder.path().join("pipeline.toml");
    fs::write(&pipeline, PIPELINE).unwrap();
    let start = |out: &Path, state: &Path| {
        let mut command = tocsin(&["run", "--once", "--set", "daemon.checkpoint_interval=20ms"]);
        command.arg(&pipeline).arg("--data-dir").arg(state).env("CASE", &input).env("OUT", out);
        command.stdin(Stdio::null()).spawn().unwrap()
    };
    let prepare = |name: &str| {
        let (out, state) = (folder.path().join(name).join("out"), folder.path().join(name).join("state"));
        fs::create_dir_all(&out).unwrap();
        (out, state)
    };
    let (out, state) = prepare("undisturbed");
    assert!(start(&out, &state).wait().unwrap().success());
    let expected = outputs(&out);
    assert!(expected.iter().all(|(_, content)| !content.is_empty()), "every sink wrote something");
    let (mut killed, mut round) = (0, 0);
    while killed < kills {
        let (out, state) = prepare(&format!("round-{round}"));
        loop {
            let mut daemon = start(&out, &state);
            let pause = Duration::from_millis(10 + random.below(400));
            // How long the daemon lives is what this test is about.
            std::thread::sleep(pause);
            match daemon.try_wait().unwrap() {
                Some(status) => {
                    assert!(status.success(), "it stopped by itself: {status}");
                    break;
                }
                None if killed < kills => {
                    daemon.kill().unwrap();
                    daemon.wait().unwrap();
                    killed += 1;
                }
                None => {
                    assert!(daemon.wait().unwrap().success());
                    break;
                }
            }
        }
        let got = outputs(&out);
        for ((name, want), (got_name, got)) in expected.iter().zip(&got) {
            assert_eq!(name, got_name);
            let differs = want.iter().zip(got).position(|(want, got)| want != got);
            assert!(
                want == got,
                "{name} differs after {killed} kills: {} bytes, not {}; first at {differs:?}",
                got.len(),
                want.len()
            );
        }
        assert_eq!(expected.len(), got.len());
        fs::remove_dir_all(folder.path().join(format!("round-{round}"))).unwrap();
        round += 1;
    }
    println!("{killed} kills in {round} rounds over {megabytes} MB: every output is that of the undisturbed run");
}
