//! Whole-program benchmarks: drives the real binary over generated data and prints one table. Nothing here asserts a time.
//!
//! `cargo bench --bench whole_program [-- p1 p3 …]`. `TOCSIN_BENCH_MB` sets the size of the data (default 500), and
//! `TOCSIN_BENCH_RUNS` how often each is run (default 3, the fastest is printed).
#![expect(clippy::disallowed_methods, reason = "benchmarks measure real time")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TOCSIN: &str = env!("CARGO_BIN_EXE_tocsin");

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let folder = std::env::temp_dir().join(format!("tocsin-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a temporary folder");
    let bench = Bench {
        folder: folder.clone(),
        megabytes: number("TOCSIN_BENCH_MB", 500),
        runs: number("TOCSIN_BENCH_RUNS", 3),
    };
    println!("{:<34} {:>9} {:>12} {:>7} {:>9}", "", "MB/s", "records/s", "CPU s", "peak MiB");
    if ["p1", "p3", "p4", "p5"].iter().any(|name| is_wanted(name)) {
        let (path, records) = bench.json();
        bench.yardsticks(&path, records);
        if is_wanted("p1") {
            bench.throughput("P1 JSON filter 1 %", "p1-filter.toml", &path, records, &[]);
        }
        if is_wanted("p3") {
            bench.throughput("P3 window 10 s, no checkpoints", "p3-window.toml", &path, records, &[]);
            let state = folder.join("state");
            let state = state.to_str().expect("a temporary path is UTF-8");
            bench.throughput("P3 window 10 s, checkpoints", "p3-window.toml", &path, records, &["--data-dir", state]);
        }
        if is_wanted("p4") {
            bench.throughput("P4 hopping 60 s / 1 s", "p4-hopping.toml", &path, records, &[]);
        }
        if is_wanted("p5") {
            bench.throughput("P5 remap", "p5-remap.toml", &path, records, &[]);
        }
        fs::remove_file(path).expect("it was written above");
    }
    if is_wanted("p2") {
        let (path, records) = bench.access();
        bench.throughput("P2 access log, status >= 500", "p2-access.toml", &path, records, &[]);
        fs::remove_file(path).expect("it was written above");
    }
    if is_wanted("p6") {
        bench.latency();
    }
    if is_wanted("p10") {
        bench.idle();
    }
    fs::remove_dir_all(folder).expect("the temporary folder is ours");
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

struct Bench {
    folder: PathBuf,
    megabytes: usize,
    runs: usize,
}

/// What a run of a program took.
struct Cost {
    wall: Duration,
    cpu: f64,
    peak_mib: f64,
}

impl Bench {
    /// JSON lines of about 224 bytes, one in a hundred an ERROR.
    fn json(&self) -> (PathBuf, usize) {
        let services = ["checkout", "catalog", "search", "payment", "basket", "account", "mailer", "gateway"];
        let mut random = Random(1);
        self.write("lines.ndjson", |line, number| {
            let level = if random.below(100) == 0 { "ERROR" } else { "INFO" };
            let (millis, micros) = (number / 20, number % 20 * 50);
            let (minute, second, milli) = (millis / 60_000 % 60, millis / 1000 % 60, millis % 1000);
            write!(
                line,
                "{{\"ts\":\"2026-11-20T{:02}:{minute:02}:{second:02}.{milli:03}{micros:03}Z\",\"level\":\"{level}\",\
                 \"service\":\"{}\",\"host\":\"web-{:02}\",\"trace_id\":\"{:016x}{:016x}\",\"latency_ms\":{}.{:03},\
                 \"status\":{},\"msg\":\"GET /cart/{} completed\"}}",
                12 + millis / 3_600_000,
                services[random.below(8)],
                random.below(40),
                random.next(),
                random.next(),
                random.below(400),
                random.below(1000),
                [200, 200, 200, 204, 301, 404, 500][random.below(7)],
                random.below(1_000_000),
            )
            .expect("writing to memory");
        })
    }

    /// A combined access log; about one line in a hundred has a status of 500 or more.
    fn access(&self) -> (PathBuf, usize) {
        let mut random = Random(2);
        self.write("access.log", |line, number| {
            let status = if random.below(100) == 0 { 500 + random.below(4) } else { [200, 200, 304, 404][random.below(4)] };
            let second = number / 5000;
            write!(
                line,
                "{}.{}.{}.{} - - [20/Nov/2026:{:02}:{:02}:{:02} +0000] \"GET /products/{}/reviews?page={} HTTP/1.1\" {status} \
                 {} \"https://shop.example.org/products\" \"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 \
                 Firefox/140.0\"",
                random.below(223) + 1,
                random.below(256),
                random.below(256),
                random.below(256),
                12 + second / 3600,
                second / 60 % 60,
                second % 60,
                random.below(100_000),
                random.below(20),
                random.below(50_000),
            )
            .expect("writing to memory");
        })
    }

    fn write(&self, name: &str, mut line: impl FnMut(&mut Vec<u8>, usize)) -> (PathBuf, usize) {
        let path = self.folder.join(name);
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&path).expect("a temporary file"));
        let (mut bytes, mut records, mut text) = (0, 0, Vec::new());
        while bytes < self.megabytes * 1_000_000 {
            text.clear();
            line(&mut text, records);
            text.push(b'\n');
            file.write_all(&text).expect("space for the data");
            bytes += text.len();
            records += 1;
        }
        file.flush().expect("space for the data");
        (path, records)
    }

    /// What any machine can do with the same file.
    fn yardsticks(&self, path: &Path, records: usize) {
        let bytes = fs::metadata(path).expect("it was written above").len();
        let best = (0..self.runs.max(1))
            .map(|_| {
                let begun = Instant::now();
                let mut file = File::open(path).expect("it was written above");
                let (mut buffer, mut newlines) = (vec![0; 1 << 20], 0);
                loop {
                    let read = file.read(&mut buffer).expect("reading it");
                    if read == 0 {
                        break;
                    }
                    newlines += memchr::memchr_iter(b'\n', &buffer[..read]).count();
                }
                assert_eq!(newlines, records);
                begun.elapsed()
            })
            .min()
            .expect("at least one run");
        print_row("  yardstick: read + memchr", bytes, records, &Cost { wall: best, cpu: 0.0, peak_mib: 0.0 });
        let path = path.to_str().expect("a temporary path is UTF-8");
        for (name, program, arguments) in [
            ("  yardstick: rg -F", "rg", &["-F", "\"level\":\"ERROR\"", path][..]),
            ("  yardstick: grep -F", "grep", &["-F", "\"level\":\"ERROR\"", path][..]),
            ("  yardstick: jq", "jq", &["-c", "select(.level == \"ERROR\")", path][..]),
        ] {
            let mut command = Command::new(program);
            command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
            match measure(&mut command) {
                Some(cost) => print_row(name, bytes, records, &cost),
                None => println!("{name:<34} not installed"),
            }
        }
    }

    fn throughput(&self, name: &str, config: &str, input: &Path, records: usize, arguments: &[&str]) {
        let bytes = fs::metadata(input).expect("it was written above").len();
        let out = self.folder.join("out");
        let best = (0..self.runs.max(1))
            .map(|_| {
                for folder in [&out, &self.folder.join("state")] {
                    let _ = fs::remove_dir_all(folder);
                    fs::create_dir_all(folder).expect("a temporary folder");
                }
                let mut command = tocsin(config, &out);
                command.args(["--once"]).args(arguments).env("BENCH_JSON", input).env("BENCH_ACCESS", input);
                let cost = measure(&mut command).expect("the binary was built");
                let written: u64 = fs::read_dir(&out)
                    .expect("the output")
                    .map(|entry| entry.expect("an entry").metadata().expect("its size").len())
                    .sum();
                assert!(written > 0, "{name}: nothing was written");
                cost
            })
            .min_by_key(|cost| cost.wall)
            .expect("at least one run");
        print_row(name, bytes, records, &best);
    }

    /// From the write of a line to the read of it, at 100,000 lines a second; beside it the same without the daemon.
    fn latency(&self) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        print_latencies("  yardstick: one TCP connection", &mut latencies(stream, listener, || ()));
        let out = self.folder.join("out");
        fs::create_dir_all(&out).expect("a temporary folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let out_port = listener.local_addr().expect("it is bound").port();
        // The port is free again at once; the daemon takes it a moment later.
        let in_port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let mut command = tocsin("p6-tcp.toml", &out);
        command.env("BENCH_IN_PORT", in_port.to_string()).env("BENCH_OUT_PORT", out_port.to_string());
        let mut daemon = command.spawn().expect("the binary was built");
        let stream = loop {
            match TcpStream::connect(("127.0.0.1", in_port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let before = usage(daemon.id()).expect("it runs");
        let mut cpu = 0.0;
        let mut latencies = latencies(stream, listener, || {
            cpu = usage(daemon.id()).expect("it runs") - before;
            std::thread::sleep(Duration::from_millis(300));
            stop(&mut daemon);
        });
        print_latencies("P6 TCP in, filter, TCP out", &mut latencies);
        println!("{:<34} {:.0} % of a core", "  the daemon meanwhile", cpu / SECONDS as f64 * 100.0);
    }

    /// Start-up to the first event, and what a daemon with nothing to do costs.
    fn idle(&self) {
        let out = self.folder.join("idle");
        fs::create_dir_all(&out).expect("a temporary folder");
        fs::write(out.join("first.log"), "{\"level\":\"INFO\"}\n").expect("space for a line");
        let mut starts = Vec::new();
        for _ in 0..self.runs.max(1) {
            let _ = fs::remove_dir_all(out.join("state"));
            let begun = Instant::now();
            let mut daemon =
                tocsin("p10-idle.toml", &out).stdout(Stdio::piped()).spawn().expect("the binary was built");
            let mut line = String::new();
            BufReader::new(daemon.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
            starts.push(begun.elapsed());
            stop(&mut daemon);
        }
        let _ = fs::remove_dir_all(out.join("state"));
        let mut daemon = tocsin("p10-idle.toml", &out).stdout(Stdio::null()).spawn().expect("the binary was built");
        std::thread::sleep(Duration::from_secs(3));
        let before = usage(daemon.id()).expect("it runs");
        std::thread::sleep(Duration::from_secs(5));
        let after = usage(daemon.id()).expect("it runs");
        let resident = status_kib(daemon.id(), "VmRSS:").unwrap_or(0.0) / 1024.0;
        stop(&mut daemon);
        println!(
            "{:<34} first event after {:.0} ms; idle: {resident:.1} MiB, {:.2} % of a core",
            "P10 start and idle",
            starts.iter().min().expect("at least one run").as_secs_f64() * 1e3,
            (after - before) / 5.0 * 100.0
        );
    }
}

/// How many lines a second, for how long, the latency is measured at.
const RATE: u64 = 100_000;
const SECONDS: u64 = 5;

/// Writes lines to `stream` and reads them from whoever connects to `listener`: how many nanoseconds each was on its way.
fn latencies(mut stream: TcpStream, listener: TcpListener, finish: impl FnOnce()) -> Vec<u64> {
    stream.set_nodelay(true).expect("a TCP stream");
    let begun = Instant::now();
    let reader = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("somebody connects");
        let mut lines = BufReader::with_capacity(1 << 16, stream);
        let (mut line, mut latencies) = (Vec::new(), Vec::new());
        while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let now = begun.elapsed().as_nanos() as u64;
            // The number is the last field: up to the closing brace and the newline.
            let digits = line.len().saturating_sub(2);
            let start = line[..digits].iter().rposition(|byte| *byte == b':').expect("what was written") + 1;
            let sent: u64 =
                std::str::from_utf8(&line[start..digits]).ok().and_then(|sent| sent.parse().ok()).expect("a number");
            latencies.push(now - sent);
            line.clear();
        }
        latencies
    });
    let mut text = Vec::new();
    for number in 0..RATE * SECONDS {
        let due = Duration::from_nanos(number * 1_000_000_000 / RATE);
        let now = begun.elapsed();
        if now < due {
            stream.write_all(&text).expect("it is read");
            text.clear();
            std::thread::sleep(due - now);
        }
        let sent = begun.elapsed().as_nanos();
        writeln!(text, "{{\"keep\":true,\"pad\":\"{:0>150}\",\"sent\":{sent}}}", number).expect("writing to memory");
    }
    stream.write_all(&text).expect("it is read");
    drop(stream);
    finish();
    reader.join().expect("the reader")
}

fn print_latencies(name: &str, latencies: &mut [u64]) {
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    println!(
        "{name:<34} p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs over {} of {} lines",
        at(0.5),
        at(0.99),
        at(0.999),
        latencies.len(),
        RATE * SECONDS
    );
}

fn tocsin(config: &str, out: &Path) -> Command {
    let mut command = Command::new(TOCSIN);
    command
        .arg("run")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/configs").join(config))
        .env("BENCH_OUT", out)
        .env("TOCSIN_LOG", "error");
    command
}

/// Runs a command to its end, looking at it every few milliseconds; `None` if there is no such program.
fn measure(command: &mut Command) -> Option<Cost> {
    let begun = Instant::now();
    let mut child = command.spawn().ok()?;
    let (mut cpu, mut peak) = (0.0, 0.0f64);
    let status = loop {
        cpu = usage(child.id()).unwrap_or(cpu);
        peak = peak.max(status_kib(child.id(), "VmHWM:").unwrap_or(0.0) / 1024.0);
        if let Some(status) = child.try_wait().expect("it is ours") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let wall = begun.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    Some(Cost { wall, cpu, peak_mib: peak })
}

/// CPU seconds so far.
fn usage(process: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which is in parentheses and can hold anything, times are fields 12 and 13, in hundredths.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?) / 100.0)
}

fn status_kib(process: u32, name: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn stop(daemon: &mut Child) {
    daemon.kill().expect("it is ours");
    daemon.wait().expect("it is ours");
}

fn print_row(name: &str, bytes: u64, records: usize, cost: &Cost) {
    let seconds = cost.wall.as_secs_f64();
    println!(
        "{name:<34} {:>9.0} {:>12.0} {:>7.2} {:>9.1}",
        bytes as f64 / 1e6 / seconds,
        records as f64 / seconds,
        cost.cpu,
        cost.peak_mib
    );
}

/// SplitMix64 (Steele, Lea and Flood 2014): the same data every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
