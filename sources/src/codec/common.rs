//! `common`: access logs without referrer and agent.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::CodecConfig;
use tocsin_pipeline::codec::Codec;

use super::combined::access_log;

/// Reads the Common Log Format of web servers: `host ident user [time] "request" status size`.
///
/// The record
///
/// ```text
/// 192.0.2.7 - ann [20/Nov/2026:12:00:00 +0100] "GET /cart?id=4 HTTP/1.1" 500 312
/// ```
///
/// becomes
///
/// ```json
/// {"client": "192.0.2.7", "user": "ann", "timestamp": "2026-11-20T11:00:00Z", "request": "GET /cart?id=4 HTTP/1.1",
///  "method": "GET", "path": "/cart?id=4", "protocol": "HTTP/1.1", "status": 500, "size": 312}
/// ```
///
/// The fields are those of `combined` without `referrer` and `agent`; what follows the size is text in `extra`.
///
/// **Event time:** `timestamp`.
///
/// ```toml
/// [sources.access]
/// type = "file"
/// paths = ["/var/log/httpd/access_log"]
/// codec = "common"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {}

impl CodecConfig for Config {
    const NAME: &'static str = "common";

    fn build(&self) -> Arc<dyn Codec> {
        access_log::<false>()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::super::agreement::{check_all, show};
    use super::super::combined::corpus;
    use super::*;

    const RECORD: &str = r#"192.0.2.7 - ann [20/Nov/2026:12:00:00 +0100] "GET /cart?id=4 HTTP/1.1" 500 312"#;

    #[test]
    fn the_fields_are_those_of_the_format() {
        let codec = Config {}.build();
        expect![[r#"{ "client": "192.0.2.7", "method": "GET", "path": "/cart?id=4", "protocol": "HTTP/1.1", "request": "GET /cart?id=4 HTTP/1.1", "size": 312, "status": 500, "timestamp": t'2026-11-20T11:00:00Z', "user": "ann" }"#]]
        .assert_eq(&show(&*codec, RECORD));
        let more = format!("{RECORD} \"-\" 0.003");
        assert!(show(&*codec, &more).contains(r#""extra": "\"-\" 0.003""#), "{}", show(&*codec, &more));
        check_all(&*codec, &[RECORD, &more]);
    }

    #[test]
    fn published_logs_give_the_figures_computed_by_other_means() {
        corpus(&*Config {}.build(), "beats_nasa-6.log");
    }
}
