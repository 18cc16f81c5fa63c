//! A daemon with an admin address, and those who ask there.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;

use serde_json::Value as Json;

use super::{Daemon, tocsin, wait_for};

/// A folder with a configuration that has an admin address and a data directory.
pub struct Place {
    folder: tempfile::TempDir,
    pub admin: SocketAddr,
}

impl Place {
    /// `{ADMIN}` in the configuration is the address.
    pub fn new(pipeline: &str) -> Self {
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let place = Self { folder: tempfile::tempdir().unwrap(), admin };
        place.configure(pipeline);
        place
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn configure(&self, pipeline: &str) {
        let admin = self.admin.to_string();
        let daemon = format!("[daemon]\nadmin = \"{admin}\"\ndata_dir = \"state\"\ncheckpoint_interval = \"50ms\"\n");
        let text = daemon + &pipeline.replace("{ADMIN}", &admin);
        fs::write(self.path().join("pipeline.new"), text).unwrap();
        fs::rename(self.path().join("pipeline.new"), self.path().join("pipeline.toml")).unwrap();
    }

    pub fn start(&self) -> Daemon {
        let daemon = Daemon::start(tocsin(&["run", "pipeline.toml"]).current_dir(self.path()));
        wait_for("the daemon to be ready", || {
            self.try_ask("GET", "/-/ready", &[], "").is_some_and(|told| told.0 == 200)
        });
        daemon
    }

    /// Runs a command beside the daemon.
    pub fn command(&self, arguments: &[&str]) -> Output {
        tocsin(arguments).current_dir(self.path()).output().unwrap()
    }

    /// The lines of an output file.
    pub fn lines(&self, name: &str) -> Vec<Json> {
        let text = fs::read_to_string(self.path().join(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn get(&self, path: &str) -> (u16, Json) {
        let (status, body) = self.ask("GET", path, &[], "");
        (status, json(&body))
    }

    pub fn post(&self, path: &str, body: &Json) -> (u16, Json) {
        let (status, body) = self.ask("POST", path, &[("content-type", "application/json")], &body.to_string());
        (status, json(&body))
    }

    /// Status and body of an answer.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        self.try_ask(method, path, headers, body).unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }

    fn try_ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let host = self.admin;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}

/// A body in JSON; an empty one is null.
fn json(body: &str) -> Json {
    if body.is_empty() { Json::Null } else { serde_json::from_str(body).unwrap_or_else(|_| panic!("{body}")) }
}

/// A text as part of a query.
pub fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}
