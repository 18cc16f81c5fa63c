//! The source `syslog`: the transports of syslog. What the messages say is read by the codec of that name.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, Problem, SourceConfig};
use tocsin_config::types::{ByteSize, Duration};
use tocsin_pipeline::source::Source;

use crate::framing::Delimiter;
use crate::net::TlsOptions;
use crate::octets::Style;
use crate::socket::{Mode, a_thousand, four_mebibytes, group_may_write, one_hour, two_hundred_fifty_six};
use crate::streams::{Records, Streams};

/// Receives syslog messages over TCP (RFC 6587), TLS (RFC 5425), UDP (RFC 5426) or a unix socket such as `/dev/log`, in the
/// formats of RFC 5424 and RFC 3164.
///
/// On a connection each message may be counted or end in a newline or NUL, as its sender likes; a datagram is one message.
/// Messages are decoded by the codec `syslog` unless another is named. Otherwise like `socket`, which see for limits and
/// backpressure.
///
/// **State:** a byte counter. While it runs, for each connection an unfinished message (`max_record_bytes` at most) and a
/// buffer of 8 to 256 KiB.
///
/// **Late events:** all senders are one stream: where their clocks or delays differ, set `out_of_order`.
///
/// **After a crash:** nothing repeats. What had been received and was not yet in a checkpoint is lost, and what is sent by
/// UDP while nobody listens: the protocol has no acknowledgement. With `journal = true` only what was not yet in the journal
/// is lost, the last 5 milliseconds or 64 KiB.
///
/// ```toml
/// [sources.hosts]
/// type = "syslog"
/// mode = "tcp"
/// address = "0.0.0.0:5140"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// What to listen on: `"tcp"`, `"udp"`, `"unix"` (stream) or `"unix_datagram"` (what `/dev/log` is).
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
    /// What ends a message on a connection: `"auto"` finds out for each; `"newline"`, `"nul"` or `"octet_counted"` allow
    /// only that. Where `multiline` is set, `"auto"` means `"newline"`.
    #[serde(default)]
    framing: SyslogFraming,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum SyslogFraming {
    #[default]
    Auto,
    Newline,
    Nul,
    OctetCounted,
}

impl SourceConfig for Config {
    const NAME: &'static str = "syslog";

    fn problems(&self) -> Vec<Problem> {
        self.mode.problems(
            self.address.as_deref(),
            self.path.as_ref(),
            &self.permissions,
            self.tls.is_some(),
            [self.max_connections, self.max_connections_per_address],
        )
    }

    fn default_codec(&self) -> &'static str {
        "syslog"
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Source> {
        Box::new(Streams {
            endpoint: self.mode.endpoint(self.address.as_ref(), self.path.as_ref(), &self.permissions),
            records: match (self.mode, self.framing) {
                (Mode::Udp | Mode::UnixDatagram, _) => Records::Whole,
                (_, SyslogFraming::Auto) => Records::Octets(Style::Syslog),
                (_, SyslogFraming::Newline) => Records::Delimited(Delimiter::Newline),
                (_, SyslogFraming::Nul) => Records::Delimited(Delimiter::Nul),
                (_, SyslogFraming::OctetCounted) => Records::Octets(Style::OctetCounted),
            },
            tls: self.tls.as_ref().map(|tls| tls.within(&context.folder)),
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            connection_timeout: self.connection_timeout.0,
            receive_buffer: usize::try_from(self.receive_buffer.0).unwrap_or(usize::MAX),
            bound: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpStream, UnixDatagram};

    use super::*;
    use crate::testing::{Running, build, context};

    fn config(options: &str) -> Config {
        let config: Config = toml::from_str(options).unwrap();
        assert_eq!(config.problems(), []);
        config
    }

    #[tokio::test]
    async fn senders_may_count_or_not_on_a_connection() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let options = format!("mode = \"unix\"\npath = {:?}", path.to_str().unwrap());
        let mut running = Running::start(build(&config(&options)), context()).await;
        let mut counted = tokio::net::UnixStream::connect(&path).await.unwrap();
        counted.write_all(b"8 <1>two\nl<2>line\n").await.unwrap();
        assert_eq!(running.told(2).await, ["<1>two\nl", "<2>line"]);
        running.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_datagram_is_one_message_whatever_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let options = format!("mode = \"unix_datagram\"\npath = {:?}", path.to_str().unwrap());
        let mut running = Running::start(build(&config(&options)), context()).await;
        let client = UnixDatagram::unbound().unwrap();
        client.send_to(b"<13>Nov 20 12:00:00 tag: a\nb\n\0", &path).await.unwrap();
        assert_eq!(running.told(1).await, ["<13>Nov 20 12:00:00 tag: a\nb"]);
        running.stop().await.unwrap();
    }

    #[test]
    fn the_address_must_be_said() {
        let config: Config = toml::from_str("mode = \"tcp\"").unwrap();
        assert_eq!(config.problems()[0].message, "`address` is missing");
        assert_eq!(SourceConfig::default_codec(&config), "syslog");
    }

    /// Most of what a sender can get wrong, at once and byte by byte: no panic, and the source goes on.
    #[tokio::test]
    async fn nonsense_is_survived() {
        let mut streams = Streams {
            endpoint: crate::streams::Endpoint::Tcp("127.0.0.1:0".to_owned()),
            records: Records::Octets(Style::Syslog),
            tls: None,
            max_connections: 10,
            max_connections_per_address: 10,
            connection_timeout: std::time::Duration::ZERO,
            receive_buffer: 0,
            bound: None,
        };
        let test = context();
        streams.open(&test.source).await.unwrap();
        let address = streams.address();
        let mut running = Running::run(Box::new(streams), test);
        for nonsense in [&b"999999999999999999999 <1>"[..], b"12 <", b"0 <1>x", b"\xff\xfe\0\0", b"5 <1>a", b"-1 <1>a"]
        {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(nonsense).await.unwrap();
            drop(client);
            assert!(!running.told(1).await.is_empty(), "{nonsense:?}");
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"<1>fine\n").await.unwrap();
        assert_eq!(running.told(1).await, ["<1>fine"]);
        running.stop().await.unwrap();
    }
}
