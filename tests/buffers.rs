//! Buffers on disk in the whole daemon: a peer that is away while much passes costs disk and no memory, holds up neither another
//! sink nor the checkpoints, and gets every record when it is back, whatever was killed meanwhile.
//!
//! `TOCSIN_BUFFER_MB` (default 200) sets how much passes.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Daemon, tocsin};

const PIPELINE: &str = r#"
[daemon]
memory = "16MiB"
threads = 2
checkpoint_interval = "100ms"

[sources.log]
type = "file"
paths = ["${CASE}/app.log"]
read_from = "beginning"

[sinks.away]
type = "http"
inputs = ["log"]
url = "http://${ADDRESS}/"
encoding = "ndjson"
retry = { initial = "20ms", max = "50ms" }
buffer = { max = "8MiB", when_full = "spill" }

[sinks.kept]
type = "file"
inputs = ["log"]
path = "${CASE}/kept.log"
buffer = { max = "8MiB", when_full = "spill" }
"#;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn daemon(folder: &Path, address: SocketAddr) -> Command {
    let mut command = tocsin(&["run"]);
    command.arg(folder.join("pipeline.toml")).arg("--data-dir").arg(folder.join("state"));
    command.env("ADDRESS", address.to_string()).env("CASE", folder);
    command
}

/// Waits until something has come true: for minutes, as much has to pass.
fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("waited in vain for {what}");
}

/// The memory of a process, in bytes.
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The number of the last complete checkpoint.
fn epoch(folder: &Path) -> u64 {
    let names = fs::read_dir(folder.join("state/checkpoints")).into_iter().flatten();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    names.filter_map(|entry| name(entry).strip_prefix("manifest-")?.parse().ok()).max().unwrap_or(0)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The peer, back again: takes requests and remembers the numbers of the records in them.
fn serve(listener: TcpListener, taken: Arc<Mutex<BTreeSet<u64>>>) {
    for stream in listener.incoming() {
        let taken = Arc::clone(&taken);
        std::thread::spawn(move || answer(stream.unwrap(), &taken));
    }
}

fn answer(mut stream: TcpStream, taken: &Mutex<BTreeSet<u64>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let numbers = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| {
            let line = std::str::from_utf8(line).unwrap().trim_start_matches("{\"message\":\"");
            line.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        taken.lock().unwrap().extend(numbers);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

#[test]
fn a_peer_that_is_away_costs_disk_and_nothing_else_and_gets_everything_in_the_end() {
    let megabytes = number("TOCSIN_BUFFER_MB", 200);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("pipeline.toml"), PIPELINE).unwrap();
    let (log, kept) = (folder.join("app.log"), folder.join("kept.log"));
    let mut file = BufWriter::new(File::create(&log).unwrap());
    let records = megabytes * 1_000;
    for record in 0..records {
        writeln!(file, "{record:06} {:x>990}", "").unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
    // Nobody listens there yet.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let whole = length(&log);

    let running = Daemon::start(&mut daemon(folder, address));
    wait_for("a tenth", || length(&kept) > whole / 10);
    let (early, begun) = (resident(running.id()), epoch(folder));
    wait_for("half of it", || length(&kept) > whole / 2);
    let half = resident(running.id());
    wait_for("a checkpoint, though the peer is away", || epoch(folder) > begun);
    running.kill();

    let running = Daemon::start(&mut daemon(folder, address));
    wait_for("all of it", || length(&kept) >= whole);
    let (end, complete) = (resident(running.id()), epoch(folder));
    println!("resident: {early} bytes after a tenth, {half} after half, {end} after all of {whole}");
    assert!(end.max(half) < early + (64 << 20), "memory grows with what passes");
    wait_for("checkpoints of the rest", || epoch(folder) >= complete + 2);
    let buffer = folder.join("state/sinks/away/buffer");
    let on_disk: u64 = fs::read_dir(&buffer).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk > whole * 9 / 10, "{on_disk} bytes on disk");
    running.kill();

    let taken = Arc::new(Mutex::new(BTreeSet::new()));
    let peer = Arc::clone(&taken);
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || serve(listener, peer));
    let running = Daemon::start(&mut daemon(folder, address));
    wait_for("a quarter at the peer", || taken.lock().unwrap().len() as u64 > records / 4);
    running.kill();
    let running = Daemon::start(&mut daemon(folder, address));
    wait_for("everything at the peer", || taken.lock().unwrap().len() as u64 == records);
    assert!(running.terminate().success());
    assert!(fs::read(&log).unwrap() == fs::read(&kept).unwrap(), "the file holds every record once, in order");
}
