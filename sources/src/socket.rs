//! The source `socket`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, Problem, SourceConfig};
use tocsin_config::types::{ByteSize, Duration};
use tocsin_pipeline::source::Source;

use crate::framing::Delimiter;
use crate::net::{TlsOptions, address_problem, permissions};
use crate::octets::Style;
use crate::streams::{Endpoint, Records, Streams};

/// Reads records that others send over TCP, UDP or a unix socket.
///
/// Whatever has arrived is handed on at once. A record that is not complete when its connection ends is a record all the same
/// if the other side closed the connection, and a dead letter if the connection broke. A client that sends nonsense where
/// octets are counted is cut off. While the pipeline is busy, connections are not read, so TCP and unix stream clients
/// wait; datagrams that the kernel cannot keep in the meantime are lost, and counted as `kernel_drop` in
/// `tocsin_component_errors_total`.
///
/// **State:** a byte counter. While it runs, for each connection an unfinished record (`max_record_bytes` at most) and a
/// buffer of 8 to 256 KiB.
///
/// **Late events:** the connections of a source are one stream: a client that is behind the others needs `out_of_order`.
///
/// **After a crash:** nothing repeats. What had been received and was not yet in a checkpoint is lost, and what clients send
/// while nobody listens: sockets cannot be read again. With `journal = true` only what was not yet in the journal is lost, the
/// last 5 milliseconds or 64 KiB. Where nothing may be, send to `http` with `acknowledge = true`.
///
/// ```toml
/// [sources.in]
/// type = "socket"
/// mode = "tcp"
/// address = "0.0.0.0:9000"
/// codec = "json"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// What to listen on: `"tcp"`, `"udp"`, `"unix"` (stream) or `"unix_datagram"`.
    mode: Mode,
    /// Host and port to listen on, for `tcp` and `udp`.
    #[serde(default)]
    address: Option<String>,
    /// The file of the socket, for `unix` and `unix_datagram`. One that a dead process left is replaced.
    #[serde(default)]
    path: Option<PathBuf>,
    /// The permissions of that file, in octal.
    #[serde(default = "group_may_write")]
    permissions: String,
    /// What ends a record: `"newline"`, `"nul"`, or `"octet_counted"`: the number of its bytes and a space before it
    /// (RFC 6587), not for datagrams. A datagram's end also ends a record.
    #[serde(default)]
    framing: StreamFraming,
    /// Certificate and key, for `tcp`.
    #[serde(default)]
    tls: Option<TlsOptions>,
    /// How many connections there may be; more are closed at once.
    #[serde(default = "a_thousand")]
    max_connections: usize,
    /// How many of them from one address, or from one /64 of IPv6.
    #[serde(default = "two_hundred_fifty_six")]
    max_connections_per_address: usize,
    /// A connection on which nothing has come for so long is closed; `"0s"`: never.
    #[serde(default = "one_hour")]
    connection_timeout: Duration,
    /// How many bytes of datagrams the kernel should keep while the pipeline is busy, for `udp`.
    #[serde(default = "four_mebibytes")]
    receive_buffer: ByteSize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    Tcp,
    Udp,
    Unix,
    UnixDatagram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum StreamFraming {
    #[default]
    Newline,
    Nul,
    OctetCounted,
}

pub(crate) fn group_may_write() -> String {
    "0660".to_owned()
}

pub(crate) fn a_thousand() -> usize {
    1000
}

pub(crate) fn two_hundred_fifty_six() -> usize {
    256
}

pub(crate) fn one_hour() -> Duration {
    Duration(std::time::Duration::from_secs(3600))
}

pub(crate) fn four_mebibytes() -> ByteSize {
    ByteSize(4 << 20)
}

impl Mode {
    pub(crate) fn is_unix(self) -> bool {
        matches!(self, Self::Unix | Self::UnixDatagram)
    }

    /// What is wrong with where to listen, for `socket` and `syslog` alike.
    pub(crate) fn problems(
        self,
        address: Option<&str>,
        path: Option<&PathBuf>,
        mode: &str,
        has_tls: bool,
        limits: [usize; 2],
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (self.is_unix(), address, path) {
            (false, Some(address), None) => problems.extend(address_problem("address", address)),
            (true, None, Some(_)) => {}
            (false, None, _) => problems.push(
                Problem::new("", "`address` is missing").help("say where to listen, as in address = \"0.0.0.0:9000\""),
            ),
            (false, _, Some(_)) => {
                problems.push(Problem::new("path", "`path` is for unix sockets").help("leave it out"))
            }
            (true, _, None) => problems.push(
                Problem::new("", "`path` is missing").help("say which file, as in path = \"/run/tocsin/in.sock\""),
            ),
            (true, Some(_), _) => {
                problems.push(Problem::new("address", "`address` is for tcp and udp").help("leave it out"));
            }
        }
        problems.extend(permissions("permissions", mode).err());
        if has_tls && self != Self::Tcp {
            problems.push(Problem::new("tls", "TLS needs `mode = \"tcp\"`"));
        }
        for (option, limit) in ["max_connections", "max_connections_per_address"].into_iter().zip(limits) {
            if limit == 0 {
                problems.push(Problem::new(option, "must be at least 1"));
            }
        }
        problems
    }

    /// Only called when there are no problems.
    pub(crate) fn endpoint(self, address: Option<&String>, path: Option<&PathBuf>, mode: &str) -> Endpoint {
        let address = address.cloned().unwrap_or_default();
        let path = path.cloned().unwrap_or_default();
        let permissions = permissions("permissions", mode).unwrap_or(0o660);
        match self {
            Self::Tcp => Endpoint::Tcp(address),
            Self::Udp => Endpoint::Udp(address),
            Self::Unix => Endpoint::Unix { path, permissions },
            Self::UnixDatagram => Endpoint::UnixDatagram { path, permissions },
        }
    }
}

impl Config {
    fn streams(&self, context: &BuildContext<'_>) -> Streams {
        Streams {
            endpoint: self.mode.endpoint(self.address.as_ref(), self.path.as_ref(), &self.permissions),
            records: match self.framing {
                StreamFraming::Newline => Records::Delimited(Delimiter::Newline),
                StreamFraming::Nul => Records::Delimited(Delimiter::Nul),
                StreamFraming::OctetCounted => Records::Octets(Style::OctetCounted),
            },
            tls: self.tls.as_ref().map(|tls| tls.within(&context.folder)),
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            connection_timeout: self.connection_timeout.0,
            receive_buffer: usize::try_from(self.receive_buffer.0).unwrap_or(usize::MAX),
            bound: None,
        }
    }
}

impl SourceConfig for Config {
    const NAME: &'static str = "socket";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.mode.problems(
            self.address.as_deref(),
            self.path.as_ref(),
            &self.permissions,
            self.tls.is_some(),
            [self.max_connections, self.max_connections_per_address],
        );
        let is_datagrams = matches!(self.mode, Mode::Udp | Mode::UnixDatagram);
        if is_datagrams && self.framing == StreamFraming::OctetCounted {
            let problem = Problem::new("framing", "datagrams are not counted");
            problems.push(problem.help("leave it out: the end of a datagram ends a record"));
        }
        problems
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Source> {
        Box::new(self.streams(context))
    }
}

#[cfg(test)]
mod tests;
