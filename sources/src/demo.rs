//! The source `demo`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tocsin_config::component::{BuildContext, Problem, SourceConfig};
use tocsin_config::types::Duration;
use tocsin_pipeline::event::Origin;
use tocsin_pipeline::source::{Block, Framing, Source, SourceContext, SourceError, SourceEvent};
use tocsin_pipeline::time::Timestamp;

/// Blocks are cut here, so that stopping never waits long.
const BLOCK_BYTES: usize = 256 << 10;
/// A wait shorter than this is not worth telling the engine of.
const IDLE_AFTER: StdDuration = StdDuration::from_millis(100);

/// Makes up records that look real: web server access logs, JSON of services, or syslog of hosts.
///
/// The n-th record is always the same for the same options and the same start, so that a run can be repeated to the byte. A
/// burst of errors begins a quarter of `every` after the start, and again each `every`.
///
/// **State:** the number of the next record, and when the first was.
///
/// **Late events:** none: times rise by 1/`rate` from record to record.
///
/// **After a crash:** goes on with the record after the last checkpoint, the same as before; nothing repeats and nothing is
/// lost. What fell due while it was down is made up for at once.
///
/// ```toml
/// [sources.access]
/// type = "demo"
/// format = "combined"
/// rate = 50
/// burst = { every = "20s", length = "5s", error_rate = 0.5 }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// What the records are: `"combined"` (access logs), `"json"` or `"syslog"` (RFC 5424). The codec of that name reads
    /// them unless another is named.
    #[serde(default)]
    format: Format,
    /// How many records a second.
    #[serde(default = "ten")]
    rate: f64,
    /// How many records in all; without it they go on until the daemon stops.
    #[serde(default)]
    count: Option<u64>,
    /// Other numbers give other records.
    #[serde(default)]
    seed: u64,
    /// The time of the first record, as in `"2026-11-20T12:00:00Z"`. Without it that is now, and each record comes when its
    /// time has come; with it, records come as fast as they are taken.
    #[serde(default)]
    start: Option<String>,
    /// Which part of the records are errors: a status of 500 and above, `ERROR`, a login that failed.
    #[serde(default = "one_percent")]
    error_rate: f64,
    /// When there are more of them.
    #[serde(default)]
    burst: Option<Burst>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Burst {
    /// From the begin of one to that of the next.
    every: Duration,
    /// How long one lasts.
    length: Duration,
    /// Which part of the records are errors meanwhile.
    error_rate: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Combined,
    Json,
    Syslog,
}

fn ten() -> f64 {
    10.0
}

fn one_percent() -> f64 {
    0.01
}

impl SourceConfig for Config {
    const NAME: &'static str = "demo";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !(0.001..=10_000_000.0).contains(&self.rate) {
            problems.push(Problem::new("rate", format!("{} is not between 0.001 and 10000000", self.rate)));
        }
        let rates =
            [("error_rate", Some(self.error_rate)), ("burst.error_rate", self.burst.map(|burst| burst.error_rate))];
        for (option, rate) in rates {
            if let Some(rate) = rate.filter(|rate| !(0.0..=1.0).contains(rate)) {
                problems.push(Problem::new(option, format!("{rate} is no part: it must be between 0 and 1")));
            }
        }
        if let Some(burst) = self.burst
            && (burst.every.0.is_zero() || burst.length > burst.every)
        {
            problems.push(Problem::new("burst", "`length` must fit into `every`"));
        }
        if let Some(start) = &self.start
            && Timestamp::parse_rfc3339(start.as_bytes()).is_none()
        {
            let problem = Problem::new("start", format!("{start:?} is no time"));
            problems.push(problem.help("write it as in \"2026-11-20T12:00:00Z\""));
        }
        problems
    }

    fn is_replayable(&self) -> bool {
        true
    }

    fn default_codec(&self) -> &'static str {
        match self.format {
            Format::Combined => "combined",
            Format::Json => "json",
            Format::Syslog => "syslog",
        }
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Source> {
        Box::new(Demo { config: self.clone() })
    }
}

struct Demo {
    config: Config,
}

impl Source for Demo {
    fn open<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            if context.once && self.config.count.is_none() {
                return Err(SourceError("reading to the end needs `count`: without it there is no end".to_owned()));
            }
            Ok(())
        })
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let config = self.config;
            let lane = context.lane("", Origin::Stream);
            let mut progress = match context.positions.get("") {
                Some(position) => Progress::read(position)
                    .ok_or_else(|| SourceError(format!("the checkpoint holds no position of demo: {position}")))?,
                None => {
                    let start = config.start.as_ref().and_then(|start| Timestamp::parse_rfc3339(start.as_bytes()));
                    Progress { events: 0, bytes: 0, start: start.unwrap_or_else(|| context.clock.now()) }
                }
            };
            let is_paced = config.start.is_none();
            let count = config.count.unwrap_or(u64::MAX);
            let mut writer = Writer::new(&config, progress.start);
            while progress.events < count && !context.stop.is_cancelled() {
                let arrival = context.clock.now();
                let mut text = String::new();
                let base = progress.bytes;
                while progress.events < count && text.len() < BLOCK_BYTES {
                    if is_paced && writer.time(progress.events) > arrival {
                        break;
                    }
                    writer.write(progress.events, &mut text);
                    progress.events += 1;
                }
                if text.is_empty() {
                    let wait = writer.time(progress.events).since(arrival);
                    if wait > IDLE_AFTER {
                        context.emit(SourceEvent::Idle(Arc::clone(&lane))).await?;
                    }
                    tokio::select! {
                        () = context.stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(wait) => continue,
                    }
                }
                progress.bytes += text.len() as u64;
                let block = Block {
                    bytes: Bytes::from(text),
                    framing: Framing::Lines,
                    base,
                    position: progress.write(),
                    arrival,
                    acknowledgement: None,
                    notes: None,
                };
                context.emit(SourceEvent::Block(Arc::clone(&lane), block)).await?;
            }
            if progress.events >= count {
                context.emit(SourceEvent::Closed { lane, keep: Some(progress.write()) }).await?;
            }
            Ok(())
        })
    }
}

/// How far it has come.
struct Progress {
    events: u64,
    bytes: u64,
    start: Timestamp,
}

impl Progress {
    fn read(position: &Json) -> Option<Self> {
        let start = Timestamp(position["start"].as_i64()?);
        Some(Self { events: position["events"].as_u64()?, bytes: position["bytes"].as_u64()?, start })
    }

    fn write(&self) -> Json {
        json!({ "events": self.events, "bytes": self.bytes, "start": self.start.0 })
    }
}

/// Writes the record of any number.
struct Writer {
    format: Format,
    seed: u64,
    start: Timestamp,
    /// Between two records, in nanoseconds.
    spacing: f64,
    error_rate: f64,
    burst: Option<Burst>,
    /// The last second that was written out, and how: writing a date takes longer than the rest of a record.
    second: (i64, String),
}

impl Writer {
    fn new(config: &Config, start: Timestamp) -> Self {
        Self {
            format: config.format,
            seed: mix(config.seed),
            start,
            spacing: 1e9 / config.rate,
            error_rate: config.error_rate,
            burst: config.burst,
            second: (i64::MIN, String::new()),
        }
    }

    fn time(&self, event: u64) -> Timestamp {
        self.start.saturating_add(self.since_start(event))
    }

    /// Multiplied, not summed up, so that it does not depend on where a run began.
    fn since_start(&self, event: u64) -> StdDuration {
        StdDuration::from_nanos((event as f64 * self.spacing).round() as u64)
    }

    fn error_rate(&self, event: u64) -> f64 {
        let Some(burst) = self.burst else { return self.error_rate };
        let every = burst.every.0.as_nanos();
        let into = (self.since_start(event).as_nanos() + every - every / 4) % every;
        if into < burst.length.0.as_nanos() { burst.error_rate } else { self.error_rate }
    }

    fn write(&mut self, event: u64, text: &mut String) {
        let mut random = Random(self.seed ^ mix(event));
        let is_error = random.part() < self.error_rate(event);
        let time = self.time(event);
        let (second, millis) = (time.0.div_euclid(1_000_000_000), time.0.rem_euclid(1_000_000_000) / 1_000_000);
        if self.second.0 != second {
            let format = match self.format {
                Format::Combined => "%d/%b/%Y:%H:%M:%S +0000",
                Format::Json | Format::Syslog => "%Y-%m-%dT%H:%M:%S",
            };
            self.second = (second, Timestamp::from_secs(second).to_datetime().format(format).to_string());
        }
        let second = &self.second.1;
        let written = match self.format {
            Format::Combined => combined(text, second, is_error, &mut random),
            Format::Json => service(text, second, millis, is_error, &mut random),
            Format::Syslog => syslog(text, second, millis, is_error, &mut random),
        };
        written.expect("writing to a string cannot fail");
        text.push('\n');
    }
}

fn combined(text: &mut String, second: &str, is_error: bool, random: &mut Random) -> std::fmt::Result {
    let client = client(random);
    let (method, path) = *random.of(&[
        ("GET", "/"),
        ("GET", "/products"),
        ("GET", "/products/"),
        ("GET", "/cart"),
        ("POST", "/api/orders"),
        ("POST", "/api/login"),
        ("GET", "/api/orders/"),
        ("GET", "/static/app.js"),
        ("GET", "/static/style.css"),
        ("GET", "/images/banner.webp"),
    ]);
    let id =
        if path.len() > 1 && path.ends_with('/') { (1000 + random.below(9000)).to_string() } else { String::new() };
    let status = if is_error {
        *random.of(&[500, 502, 502, 503, 504])
    } else {
        *random.of(&[200, 200, 200, 200, 200, 200, 200, 200, 201, 204, 301, 304, 304, 404])
    };
    let bytes = match status {
        204 | 304 => 0,
        500.. => 150 + random.below(50),
        _ => 200 + random.below(200) * random.below(200),
    };
    let referrer =
        random.of(&["-", "https://shop.example/", "https://shop.example/products", "https://search.example/"]);
    let agent = random.of(&[
        "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
        "curl/8.16.0",
    ]);
    write!(text, "{client} - - [{second}] \"{method} {path}{id} HTTP/1.1\" {status} {bytes} \"{referrer}\" \"{agent}\"")
}

fn service(text: &mut String, second: &str, millis: i64, is_error: bool, random: &mut Random) -> std::fmt::Result {
    let service = random.of(&["checkout", "catalog", "payments", "search", "auth", "shipping"]);
    let host = 1 + random.below(12);
    let trace = (random.next(), random.next());
    // Mostly some ten milliseconds, now and then some hundred; errors are slow as they mostly are timeouts.
    let mut tenths = 20 + random.below(180) + random.below(180);
    if random.below(20) == 0 {
        tenths += random.below(4000);
    }
    let (level, status, message) = if is_error {
        tenths += 5000 + random.below(20_000);
        let message = *random.of(&[
            "upstream timed out while reading the response header from the backend",
            "connection pool exhausted, no connection became free in time",
            "the database refused the transaction: could not serialize access",
        ]);
        ("ERROR", *random.of(&[500, 502, 503, 504]), message)
    } else {
        let level = *random.of(&["INFO", "INFO", "INFO", "INFO", "INFO", "INFO", "DEBUG", "DEBUG", "WARN"]);
        let message = *random.of(&[
            "request handled for a returning customer from the front page",
            "cache hit, answered without asking the backend for the item",
            "order accepted and queued for the warehouse to be picked up",
            "session refreshed after the token was found to be expiring",
        ]);
        (level, *random.of(&[200, 200, 200, 200, 200, 201, 204, 304, 404]), message)
    };
    write!(
        text,
        "{{\"ts\":\"{second}.{millis:03}Z\",\"level\":\"{level}\",\"service\":\"{service}\",\"host\":\"web-{host:02}\",\
         \"trace_id\":\"{:016x}{:016x}\",\"latency_ms\":{}.{},\"status\":{status},\"msg\":\"{message}\"}}",
        trace.0,
        trace.1,
        tenths / 10,
        tenths % 10
    )
}

fn syslog(text: &mut String, second: &str, millis: i64, is_error: bool, random: &mut Random) -> std::fmt::Result {
    let host = 1 + random.below(12);
    let process = 300 + random.below(30_000);
    // The facilities are auth (4), cron (9) and daemon (3); severities are info (6) and warning (4).
    let head = |priority: u8, program: &str| {
        format!("<{priority}>1 {second}.{millis:03}Z host-{host:02} {program} {process} - -")
    };
    let port = 32_768 + random.below(28_000);
    if is_error {
        let user = random.of(&["root", "admin", "oracle", "test", "ubuntu"]);
        let client = client(random);
        return write!(
            text,
            "{} Failed password for invalid user {user} from {client} port {port} ssh2",
            head(36, "sshd")
        );
    }
    match random.below(4) {
        0 => {
            let user = random.of(&["deploy", "backup", "ansible"]);
            let client = client(random);
            write!(text, "{} Accepted publickey for {user} from {client} port {port} ssh2: ED25519", head(38, "sshd"))
        }
        1 => write!(text, "{} (root) CMD (run-parts --report /etc/cron.hourly)", head(78, "CRON")),
        2 => {
            let session = random.below(5000);
            write!(text, "{} Started session-{session}.scope - Session {session} of User deploy.", head(30, "systemd"))
        }
        _ => {
            let millis = random.below(400);
            write!(text, "{} GET /healthz 200 {millis}ms", head(30, "gateway"))
        }
    }
}

/// One of 400 addresses kept for documentation, some of them far more often than others.
fn client(random: &mut Random) -> String {
    let number = random.below(400).min(random.below(400));
    let network = ["192.0.2", "203.0.113"][(number / 200) as usize];
    format!("{network}.{}", 1 + number % 200)
}

/// SplitMix64: small, quick, and good enough to make up logs. Seeded for each record by its number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From 0 up to 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn of<'a, T>(&mut self, choice: &'a [T]) -> &'a T {
        &choice[self.below(choice.len() as u64) as usize]
    }
}

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use tocsin_pipeline::time::ManualClock;

    use super::*;
    use crate::testing::{Running, build, context};

    fn config(options: &str) -> Config {
        let config: Config = toml::from_str(options).unwrap();
        assert!(SourceConfig::problems(&config).is_empty());
        config
    }

    fn write(options: &str, events: std::ops::Range<u64>) -> String {
        let mut writer = Writer::new(&config(options), Timestamp::from_secs(1_795_000_000));
        let mut text = String::new();
        for event in events {
            writer.write(event, &mut text);
        }
        text
    }

    fn check(options: &str, expect: Expect) {
        expect.assert_eq(&write(options, 0..3));
    }

    #[test]
    fn records_look_like_the_real_ones() {
        check(
            "error_rate = 0.5",
            expect![[r#"
            192.0.2.80 - - [18/Nov/2026:11:06:40 +0000] "POST /api/orders HTTP/1.1" 204 0 "https://shop.example/products" "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
            203.0.113.96 - - [18/Nov/2026:11:06:40 +0000] "POST /api/orders HTTP/1.1" 404 27560 "https://shop.example/products" "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
            192.0.2.181 - - [18/Nov/2026:11:06:40 +0000] "GET / HTTP/1.1" 500 190 "-" "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0"
        "#]],
        );
        check(
            "format = \"json\"\nerror_rate = 0.5\nrate = 1000",
            expect![[r#"
            {"ts":"2026-11-18T11:06:40.000Z","level":"INFO","service":"checkout","host":"web-08","trace_id":"f88bb8a8724c81ec1b39896a51a8749b","latency_ms":346.2,"status":200,"msg":"cache hit, answered without asking the backend for the item"}
            {"ts":"2026-11-18T11:06:40.001Z","level":"DEBUG","service":"search","host":"web-08","trace_id":"f440fe3b62c79d2c33ba2f29e7c168bb","latency_ms":13.4,"status":200,"msg":"request handled for a returning customer from the front page"}
            {"ts":"2026-11-18T11:06:40.002Z","level":"ERROR","service":"catalog","host":"web-01","trace_id":"bf429ac58196f44a89826b73d04dcb58","latency_ms":722.9,"status":502,"msg":"the database refused the transaction: could not serialize access"}
        "#]],
        );
        check(
            "format = \"syslog\"\nerror_rate = 0.5\nrate = 1000",
            expect![[r#"
            <30>1 2026-11-18T11:06:40.000Z host-01 gateway 15979 - - GET /healthz 200 90ms
            <30>1 2026-11-18T11:06:40.001Z host-04 gateway 17827 - - GET /healthz 200 390ms
            <36>1 2026-11-18T11:06:40.002Z host-02 sshd 23280 - - Failed password for invalid user root from 192.0.2.91 port 48458 ssh2
        "#]],
        );
    }

    #[test]
    fn a_record_depends_on_its_number_and_the_seed_alone() {
        for format in ["combined", "json", "syslog"] {
            let options = format!("format = \"{format}\"\nrate = 7");
            let all = write(&options, 0..100);
            assert_eq!(write(&options, 0..60) + &write(&options, 60..100), all);
            assert_ne!(write(&format!("{options}\nseed = 1"), 0..100), all);
        }
    }

    #[test]
    fn a_burst_begins_a_quarter_after_the_start_and_ends() {
        let options = "rate = 10\nerror_rate = 0\nburst = { every = \"20s\", length = \"5s\", error_rate = 1 }";
        let text = write(options, 0..400);
        let is_error: Vec<bool> = text.lines().map(|line| line.contains("\" 50")).collect();
        let in_burst = |event: usize| (50..100).contains(&(event % 200));
        for (event, is_error) in is_error.into_iter().enumerate() {
            assert_eq!(is_error, in_burst(event), "record {event}");
        }
    }

    #[tokio::test]
    async fn it_goes_on_after_a_restart_with_the_very_next_byte() {
        let options = "format = \"json\"\ncount = 3000\nstart = \"2026-11-20T12:00:00Z\"";
        let mut whole = Running::start(build(&config(options)), context()).await;
        let expected = whole.bytes_to_the_end().await;
        assert_eq!(expected.iter().filter(|byte| **byte == b'\n').count(), 3000);

        let mut first = Running::start(build(&config(options)), context()).await;
        let (mut bytes, position) = first.block().await;
        first.stop().await.unwrap();
        let mut again = context();
        again.source.positions.insert(String::new(), position);
        let mut second = Running::start(build(&config(options)), again).await;
        bytes.extend(second.bytes_to_the_end().await);
        assert!(bytes == expected, "the same bytes with and without a restart");
    }

    #[tokio::test]
    async fn records_come_when_their_time_has_come() {
        let clock = Arc::new(ManualClock::new(Timestamp::from_secs(100)));
        let mut paced = context();
        paced.source.clock = Arc::clone(&clock) as _;
        let mut running = Running::start(build(&config("rate = 1000")), paced).await;
        let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(lines(&running.block().await.0), 1);
        clock.set(Timestamp(100_004_500_000));
        assert_eq!(lines(&running.block().await.0), 4);
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn without_an_end_there_is_no_reading_to_it() {
        let mut once = context();
        once.source.once = true;
        let error = build(&config("")).open(&once.source).await.unwrap_err();
        assert!(error.to_string().contains("`count`"), "{error}");
    }
}
