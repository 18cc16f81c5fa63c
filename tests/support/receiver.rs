//! An HTTP receiver that behaves well, or as badly as it is told, and remembers what it took.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::random::Random;

/// How requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Well,
    /// Taken, and no answer comes.
    Hang,
    /// Read, and the connection is reset instead of an answer.
    Reset,
    /// 429, to be tried again after some seconds.
    Busy {
        seconds: u64,
    },
    /// 503.
    Broken,
    /// 410: it never will.
    Refuse,
    /// The answer comes a byte at a time.
    Drip,
    /// One of these by chance for each request, and often well.
    Flapping,
}

/// A request that was read whole.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// What `Idempotency-Key` says.
    pub id: String,
    pub body: Vec<u8>,
    /// Whether the receiver said that it has taken it.
    pub is_accepted: bool,
}

struct Shared {
    manner: Mutex<Manner>,
    random: Mutex<Random>,
    requests: Mutex<Vec<Request>>,
}

/// A running receiver; it stops when dropped.
pub struct Receiver {
    shared: Arc<Shared>,
    port: u16,
    // Ends the tasks when dropped.
    _runtime: tokio::runtime::Runtime,
}

impl Receiver {
    pub fn start(seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Well),
            random: Mutex::new(Random(seed)),
            requests: Mutex::default(),
        });
        let kept = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&kept)));
            }
        });
        Self { shared, port, _runtime: runtime }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub fn accepted(&self, path: &str) -> Vec<Request> {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|request| request.is_accepted && request.path == path).cloned().collect()
    }
}

/// Requests of one connection, one after the other, until it ends.
async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut bytes = Vec::new();
    while let Some((path, id, body)) = read(&mut stream, &mut bytes).await {
        let manner = match *shared.manner.lock().unwrap() {
            Manner::Flapping => {
                let all = [Manner::Well, Manner::Well, Manner::Well, Manner::Hang, Manner::Reset, Manner::Broken];
                let rest = [Manner::Drip, Manner::Busy { seconds: 1 }];
                *shared.random.lock().unwrap().pick(&[&all[..], &rest[..]].concat())
            }
            manner => manner,
        };
        let is_accepted = matches!(manner, Manner::Well | Manner::Drip);
        shared.requests.lock().unwrap().push(Request { path, id, body, is_accepted });
        let answer = match manner {
            Manner::Well | Manner::Drip | Manner::Flapping => "200 OK\r\n".to_owned(),
            Manner::Busy { seconds } => format!("429 Too Many Requests\r\nretry-after: {seconds}\r\n"),
            Manner::Refuse => "410 Gone\r\n".to_owned(),
            Manner::Broken => "503 Service Unavailable\r\n".to_owned(),
            Manner::Hang => return std::future::pending().await,
            Manner::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
        };
        let answer = format!("HTTP/1.1 {answer}content-length: 0\r\n\r\n");
        if manner == Manner::Drip {
            for byte in answer.as_bytes() {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        } else if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Path, identity and body of the next request; `None` where the connection ends before it is whole.
async fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<(String, String, Vec<u8>)> {
    loop {
        if let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let header = |name: &str| {
                let mut lines = head.lines().filter_map(|line| line.split_once(": "));
                lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
            };
            let length: usize = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let whole = end + 4 + length;
            if bytes.len() >= whole {
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let body = bytes[end + 4..whole].to_vec();
                let id = header("idempotency-key").unwrap_or_default();
                bytes.drain(..whole);
                return Some((path, id, body));
            }
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Takes lines over TCP, from any number of connections.
pub struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl Lines {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&lines);
        runtime.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut text = Vec::new();
                    while stream.read_buf(&mut text).await.is_ok_and(|count| count > 0) {
                        while let Some(end) = memchr::memchr(b'\n', &text) {
                            let line: Vec<u8> = text.drain(..=end).collect();
                            kept.lock().unwrap().push(String::from_utf8_lossy(&line[..end]).into_owned());
                        }
                    }
                });
            }
        });
        Self { lines, port, _runtime: runtime }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}
