//! A server that speaks the protocol of S3: moto, as a Python program that `tests/servers/s3` installs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::support::wait_for;

/// Where the script puts it.
fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/moto/bin/moto_server")
}

/// Whether a test with an object store cannot be run here; where it must be, that is an error.
pub fn is_missing(test: &str) -> bool {
    if program().exists() {
        return false;
    }
    assert!(std::env::var_os("TOCSIN_NO_SKIP").is_none(), "{test}: moto is not installed; run tests/servers/s3");
    println!("skipped: {test}: moto is not installed; run tests/servers/s3");
    true
}

/// A running server with an empty bucket; killed when dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    pub fn start() -> anyhow::Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let child = Command::new(program())
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting moto")?;
        let server = Self { child, address };
        wait_for("moto", || TcpStream::connect(address).is_ok());
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(b"PUT /logs HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.contains(" 200 "), "the bucket cannot be made: {answer}");
        Ok(server)
    }

    /// A folder in its bucket.
    pub fn store(&self) -> String {
        "s3://logs/state".to_owned()
    }

    /// What clients must be told, in their environment.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", "tests".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "tests".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
