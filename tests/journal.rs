//! The ingest journal in the whole daemon: killed with SIGKILL while clients post, it loses nothing that was answered with
//! 200, and writes nothing twice.
//!
//! `TOCSIN_JOURNAL_KILLS` (default 6) sets the number of kills, `TOCSIN_JOURNAL_SEED` the moments; the seed is printed.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Daemon, tocsin, wait_for};

const PIPELINE: &str = r#"
[sources.events]
type = "http"
address = "${ADDRESS}"
acknowledge = true

[sinks.kept]
type = "file"
inputs = ["events"]
path = "${OUT}/kept.ndjson"
"#;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// An address that was free a moment ago; the daemon must be given one, so that clients find it again.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn daemon(folder: &Path, address: SocketAddr, interval: &str) -> Command {
    let mut command = tocsin(&["run", "--set", &format!("daemon.checkpoint_interval={interval}")]);
    command.arg(folder.join("pipeline.toml")).arg("--data-dir").arg(folder.join("state"));
    command.env("ADDRESS", address.to_string()).env("OUT", folder);
    command
}

/// One record on a connection that is made where there is none; `None`: nobody knows what became of it.
fn post(address: SocketAddr, connection: &mut Option<BufReader<TcpStream>>, body: &str) -> Option<u16> {
    if connection.is_none() {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        *connection = Some(BufReader::new(stream));
    }
    let answer = exchange(connection.as_mut().expect("just made"), body);
    if answer.is_none() {
        *connection = None;
    }
    answer
}

fn exchange(reader: &mut BufReader<TcpStream>, body: &str) -> Option<u16> {
    let request = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    reader.get_mut().write_all(request.as_bytes()).ok()?;
    let (mut status, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if status.is_none() {
            status = line.split(' ').nth(1)?.parse().ok();
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().ok()?;
        }
    }
    let mut rest = vec![0; length];
    reader.read_exact(&mut rest).ok()?;
    status
}

#[test]
fn what_was_answered_with_200_is_written_exactly_once_whatever_is_killed() {
    let kills = number("TOCSIN_JOURNAL_KILLS", 6);
    let seed = number("TOCSIN_JOURNAL_SEED", u64::from(std::process::id()));
    println!("TOCSIN_JOURNAL_KILLS={kills} TOCSIN_JOURNAL_SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pipeline.toml"), PIPELINE).unwrap();
    let address = free_address();
    let (next, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let answered = Arc::new(Mutex::new(BTreeSet::new()));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (next, is_over, answered) = (Arc::clone(&next), Arc::clone(&is_over), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut connection = None;
                while !is_over.load(Ordering::Relaxed) {
                    // No record is sent twice: one that nobody answered may be there or not.
                    let id = next.fetch_add(1, Ordering::Relaxed);
                    match post(address, &mut connection, &format!("{{\"id\":{id}}}")) {
                        Some(200) => drop(answered.lock().unwrap().insert(id)),
                        Some(503) => {}
                        Some(status) => panic!("answered with {status}"),
                        None => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            })
        })
        .collect();
    let count = || answered.lock().unwrap().len();
    let mut random = seed;
    // Checkpoints are rare: it is the journal that keeps what was answered.
    for round in 0..kills {
        let daemon = Daemon::start(&mut daemon(folder.path(), address, if round % 2 == 0 { "1h" } else { "30ms" }));
        let before = count();
        wait_for("an answer", || count() > before);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // How long the daemon lives is what this test is about.
        std::thread::sleep(Duration::from_millis(random >> 55));
        daemon.kill();
    }
    is_over.store(true, Ordering::Relaxed);
    let last = Daemon::start(&mut daemon(folder.path(), address, "1h"));
    let file = folder.path().join("kept.ndjson");
    wait_for("the daemon", || TcpStream::connect(address).is_ok());
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert!(last.terminate().success());
    let written: Vec<u64> = fs::read_to_string(&file)
        .unwrap()
        .lines()
        .map(|line| line.trim_start_matches("{\"id\":").trim_end_matches('}').parse().unwrap())
        .collect();
    let distinct: BTreeSet<u64> = written.iter().copied().collect();
    let answered = answered.lock().unwrap();
    let lost: Vec<_> = answered.difference(&distinct).collect();
    println!("{kills} kills, {} answered, {} written", answered.len(), written.len());
    assert!(lost.is_empty(), "{} answered records are lost: {lost:?}", lost.len());
    assert_eq!(written.len(), distinct.len(), "some are written twice");
}
