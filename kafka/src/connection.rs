//! How brokers are found and spoken to. The same options on the source and on the sink.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rdkafka::ClientConfig;
use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::Problem;
use tocsin_config::types::Secret;

/// How connections to brokers are encrypted. Host names are always checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// A PEM file of the authorities that may have signed the brokers' certificates. Default: those the machine trusts.
    pub ca: Option<PathBuf>,
    /// A PEM file of the certificate chain to show to brokers. Needs `key`.
    pub certificate: Option<PathBuf>,
    /// A PEM file of the private key of `certificate`.
    pub key: Option<PathBuf>,
    /// What `key` is encrypted with, if it is.
    pub key_password: Option<Secret>,
}

/// Who we are to the brokers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// How the password is shown: `"plain"` (only within TLS), `"scram-sha-256"` or `"scram-sha-512"`.
    pub mechanism: Mechanism,
    /// The name of the user.
    pub username: String,
    /// The password of the user.
    pub password: Secret,
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Mechanism {
    /// The password as it is, so only within TLS.
    #[serde(rename = "plain")]
    Plain,
    /// RFC 7677.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// The same with SHA-512.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

impl Mechanism {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// What a client needs to find brokers and to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// `host:port` of some brokers; the others are learnt from them.
    pub brokers: Vec<String>,
    /// `None`: connections are not encrypted.
    pub tls: Option<Tls>,
    pub sasl: Option<Sasl>,
    /// Further settings of librdkafka.
    pub options: BTreeMap<String, String>,
}

/// The settings of librdkafka that are decided here: another value would break a promise, or has an option of its own.
const OURS: [&str; 34] = [
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "client.id",
    "compression.codec",
    "compression.type",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "isolation.level",
    "linger.ms",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "request.required.acks",
    "retries",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "ssl.endpoint.identification.algorithm",
    "transaction.timeout.ms",
    "transactional.id",
];

impl Connection {
    /// What is wrong with it, told of the options `brokers`, `tls`, `sasl` and `options`.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.brokers.is_empty() {
            problems.push(Problem::new("brokers", "no brokers").help("write `brokers = [\"kafka-1:9092\"]`"));
        }
        for (at, broker) in self.brokers.iter().enumerate() {
            let is_right = broker
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok());
            if !is_right || broker.contains([',', ' ']) {
                problems.push(
                    Problem::new(format!("brokers.{at}"), format!("{broker:?} is not a broker"))
                        .help("write \"host:port\", such as \"kafka-1:9092\""),
                );
            }
        }
        if let Some(tls) = &self.tls {
            match (&tls.certificate, &tls.key) {
                (Some(_), None) => problems.push(Problem::new("tls.certificate", "a certificate needs its `key`")),
                (None, Some(_)) => problems.push(Problem::new("tls.key", "a key needs its `certificate`")),
                _ => {}
            }
        }
        let is_plain = self.sasl.as_ref().is_some_and(|sasl| sasl.mechanism == Mechanism::Plain);
        if is_plain && self.tls.is_none() {
            problems.push(
                Problem::new("sasl.mechanism", "\"plain\" shows the password to whoever listens")
                    .help("add `tls = {}`, or use \"scram-sha-512\""),
            );
        }
        for (name, value) in &self.options {
            let option = format!("options.{name}");
            if OURS.contains(&name.as_str()) || name.starts_with("sasl.oauthbearer") {
                problems.push(
                    Problem::new(option, format!("`{name}` is decided by tocsin"))
                        .help("remove it; what can be chosen has an option of its own"),
                );
                continue;
            }
            // librdkafka knows its settings; nothing is opened by asking.
            let mut config = ClientConfig::new();
            config.set(name, value);
            if let Err(error) = config.create_native_config() {
                problems.push(Problem::new(option, format!("librdkafka refuses it: {error}")));
            }
        }
        problems
    }

    /// Files that do not begin at the root begin at the folder of the configuration.
    #[must_use]
    pub fn within(mut self, folder: &Path) -> Self {
        if let Some(tls) = &mut self.tls {
            for path in [&mut tls.ca, &mut tls.certificate, &mut tls.key].into_iter().flatten() {
                *path = folder.join(&*path);
            }
        }
        self
    }

    /// The settings that every client of these brokers has.
    pub fn settings(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", "tocsin")
            .set("security.protocol", protocol)
            .set("allow.auto.create.topics", "false")
            // Nobody asked for the metrics of the client to be sent to the brokers.
            .set("enable.metrics.push", "false")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            // A broker that comes back is noticed within a second or two, not ten.
            .set("reconnect.backoff.max.ms", "2000");
        if let Some(tls) = &self.tls {
            let ca = tls.ca.as_ref().map_or("probe".to_owned(), |path| path.display().to_string());
            config.set("ssl.ca.location", ca);
            if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
                config.set("ssl.certificate.location", certificate.display().to_string());
                config.set("ssl.key.location", key.display().to_string());
            }
            if let Some(password) = &tls.key_password {
                config.set("ssl.key.password", password.reveal());
            }
        }
        if let Some(sasl) = &self.sasl {
            config.set("sasl.mechanisms", sasl.mechanism.as_str());
            config.set("sasl.username", &sasl.username);
            config.set("sasl.password", sasl.password.reveal());
        }
        for (name, value) in &self.options {
            config.set(name, value);
        }
        config
    }

    /// Whether both lead to the same cluster, as far as their options tell: they name the same brokers.
    pub fn is_same_cluster(&self, brokers: &[String]) -> bool {
        let sorted = |brokers: &[String]| {
            let mut brokers = brokers.to_vec();
            brokers.sort();
            brokers
        };
        sorted(&self.brokers) == sorted(brokers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection { brokers: vec!["kafka-1:9092".to_owned()], tls: None, sasl: None, options: BTreeMap::new() }
    }

    fn told(connection: &Connection) -> String {
        connection.problems().iter().map(|problem| format!("{}: {}\n", problem.option, problem.message)).collect()
    }

    #[test]
    fn what_cannot_work_is_told_of_its_option() {
        assert_eq!(told(&connection()), "");
        let mut wrong = connection();
        wrong.brokers = vec!["kafka-1".to_owned(), "kafka://kafka-2:9092".to_owned(), "[::1]:9092".to_owned()];
        wrong.tls = Some(Tls { key: Some("key.pem".into()), ..Tls::default() });
        wrong.options = [("acks", "0"), ("fetch.min.bytes", "many"), ("no.such", "1"), ("fetch.max.bytes", "1000000")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let told = told(&wrong);
        assert!(told.contains("brokers.0: \"kafka-1\" is not a broker\nbrokers.1:"), "{told}");
        assert!(!told.contains("brokers.2"), "{told}");
        assert!(told.contains("tls.key: a key needs its `certificate`"), "{told}");
        assert!(told.contains("options.acks: `acks` is decided by tocsin"), "{told}");
        assert!(told.contains("options.fetch.min.bytes: librdkafka refuses it"), "{told}");
        assert!(told.contains("options.no.such: librdkafka refuses it"), "{told}");
        assert!(!told.contains("fetch.max.bytes"), "{told}");
    }

    #[test]
    fn a_password_is_not_shown_to_whoever_listens() {
        let mut plain = connection();
        let sasl = |mechanism| Sasl { mechanism, username: "u".to_owned(), password: Secret::new("secret") };
        plain.sasl = Some(sasl(Mechanism::Plain));
        assert!(told(&plain).starts_with("sasl.mechanism:"));
        plain.tls = Some(Tls::default());
        assert_eq!(told(&plain), "");
        assert_eq!(plain.settings().get("security.protocol"), Some("sasl_ssl"));
        plain.tls = None;
        plain.sasl = Some(sasl(Mechanism::ScramSha512));
        assert_eq!(told(&plain), "");
        assert!(!format!("{plain:?}").contains("secret"));
    }
}
