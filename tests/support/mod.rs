//! What the tests of the whole program share.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests of the whole program live in real time")]

pub mod admin;
pub mod campaign;
pub mod kafka;
pub mod proxy;
pub mod random;
pub mod receiver;

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The program with arguments; its log says only what stopped something.
pub fn tocsin(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tocsin"));
    command.args(arguments).env("TOCSIN_LOG", "error").env("NO_COLOR", "1");
    command
}

/// Whether what is expected is to be rewritten.
pub fn update_expected() -> bool {
    std::env::var_os("UPDATE_EXPECT").is_some()
}

/// The shared logs and conformance vectors, if they are there.
pub fn corpus(name: &str) -> Option<std::path::PathBuf> {
    let folder = std::env::var_os("TOCSIN_CORPUS").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
        std::path::PathBuf::from,
    );
    let folder = folder.join(name);
    if folder.exists() {
        return Some(folder);
    }
    println!("skipped: {} is not there", folder.display());
    None
}

/// What the audit of a data directory says if not every record is accounted for.
pub fn imbalance(state: &std::path::Path) -> Option<String> {
    let output = tocsin(&["audit", "--data-dir"]).arg(state).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (!output.status.success()).then(|| format!("the audit does not balance:\n{}", String::from_utf8_lossy(&told)))
}

/// Every record is accounted for in a data directory whose daemon has come to its end, and none is in flight.
pub fn require_balance(state: &std::path::Path, what: &str) {
    let output = tocsin(&["audit", "--data-dir"]).arg(state).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let is_balanced = output.status.success() && told.ends_with("\nbalanced\n");
    assert!(is_balanced, "{what}\n{told}{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until something has come true, for at most half a minute.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..15_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("waited in vain for {what}");
}

/// A running daemon; killed when dropped.
pub struct Daemon(Option<Child>);

impl Daemon {
    pub fn start(command: &mut Command) -> Self {
        Self(Some(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()))
    }

    pub fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(mut self) {
        let mut child = self.0.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal("TERM");
        self.0.take().unwrap().wait().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.as_mut().unwrap().try_wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Adds to the end of a file.
pub fn append(path: &std::path::Path, text: &str) {
    use std::io::Write;
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// A peer of sinks: takes requests at an address of the loopback, answers each with 200 and remembers its body.
pub struct Receiver {
    address: std::net::SocketAddr,
    bodies: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Receiver {
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bodies = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let taken = std::sync::Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let taken = std::sync::Arc::clone(&taken);
                std::thread::spawn(move || serve(stream.unwrap(), &taken));
            }
        });
        Self { address, bodies }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What has been told so far.
    pub fn bodies(&self) -> Vec<String> {
        self.bodies.lock().unwrap().clone()
    }
}

fn serve(mut stream: std::net::TcpStream, taken: &std::sync::Mutex<Vec<String>>) {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        taken.lock().unwrap().push(String::from_utf8(body).unwrap());
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}
