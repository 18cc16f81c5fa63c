//! Asking the running pipeline to take up a changed configuration: by SIGHUP, by a file that has changed, at the admin address;
//! and `tocsin reload`, which does the last.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use hyper::Method;
use inotify::{Inotify, WatchMask};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::cli::ReloadArguments;
use crate::client;
use crate::commands::{address, print};

/// Where it is asked for at the admin address.
pub const PATH: &str = "/api/v1/reload";
/// How many requests may wait: they are answered together, so more would say nothing new.
const WAITING: usize = 16;
/// After a change, how long nothing more must change: an editor writes a file in several steps.
const QUIET: Duration = Duration::from_millis(200);

/// What became of a reload: what is to be told of it, as an error where everything went on as it was.
pub type Answer = Result<String, String>;

/// A request to reload; `None` where nobody waits for the answer, since it is logged as well.
pub type Request = Option<oneshot::Sender<Answer>>;

/// Where to ask for a reload.
#[derive(Clone)]
pub struct Reloads(mpsc::Sender<Request>);

impl Reloads {
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Asks, and leaves it at that. Where enough wait already, one of them does what this one would.
    fn ask(&self) {
        let _ = self.0.try_send(None);
    }

    /// Asks and waits for the answer.
    pub async fn answered(&self) -> Answer {
        let (sender, answer) = oneshot::channel();
        let gone = || "the daemon is stopping".to_owned();
        self.0.send(Some(sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// SIGHUP asks for a reload.
pub fn on_signal(reloads: Reloads) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            reloads.ask();
        }
    });
    Ok(())
}

/// A change of the configuration's files asks for a reload. What they name (`${file:…}`, `program_file`) is read again then,
/// and not watched.
pub fn on_change(reloads: Reloads, files: Vec<PathBuf>) -> anyhow::Result<()> {
    let mut inotify = Inotify::init().context("watching the configuration")?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE;
    for path in &files {
        // The folder of a file, as editors put another file in its place.
        let folder = match path.parent() {
            _ if path.is_dir() => path,
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let watched = inotify.watches().add(folder, mask);
        watched.with_context(|| format!("watching {}", folder.display()))?;
    }
    let mut known = content(&files);
    // A thread of its own: it waits for ever and goes with the process.
    std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            if inotify.read_events_blocking(&mut buffer).is_err() {
                tracing::error!("the configuration cannot be watched any more; SIGHUP reloads it");
                return;
            }
            loop {
                std::thread::sleep(QUIET);
                // What is not an event by now has settled.
                if !inotify.read_events(&mut buffer).is_ok_and(|mut events| events.next().is_some()) {
                    break;
                }
            }
            let now = content(&files);
            if now != known {
                known = now;
                reloads.ask();
            }
        }
    })?;
    Ok(())
}

/// What the files hold, to tell a change of the configuration from one of its neighbours; `None` where they cannot be read.
fn content(files: &[PathBuf]) -> Option<Vec<(String, String)>> {
    Some(tocsin_config::load(files).ok()?.into_iter().map(|file| (file.name, file.text)).collect())
}

/// `tocsin reload`: asks a running daemon.
pub fn reload(arguments: &ReloadArguments) -> anyhow::Result<ExitCode> {
    let otherwise = "send the daemon SIGHUP instead";
    let Some(address) = address(arguments.admin, &arguments.files, otherwise)? else { return Ok(ExitCode::from(1)) };
    let told = client::request(Method::POST, address, PATH)?;
    print(&String::from_utf8_lossy(&told))
}
