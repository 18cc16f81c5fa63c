//! `json`: one JSON object per record. The reading itself is the data plane's.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::CodecConfig;
use tocsin_pipeline::codec::Codec;
use tocsin_pipeline::json::JsonCodec;

/// Reads one JSON text per record; the fields of the object are the fields of the event.
///
/// The record `{"level": "error", "http": {"status": 503}, "tags": ["a"]}` becomes that very event: `.http.status` is the
/// integer 503. A record that no operator changes is written out as the bytes it came in.
///
/// **Event time:** the arrival, unless the source's `timestamp` says which field it is.
///
/// ```toml
/// [sources.app]
/// type = "file"
/// paths = ["/var/log/app/*.ndjson"]
/// codec = "json"
/// timestamp = { field = ".ts" }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {}

impl CodecConfig for Config {
    const NAME: &'static str = "json";

    fn build(&self) -> Arc<dyn Codec> {
        Arc::new(JsonCodec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::super::agreement::{check, check_all};
    use super::*;

    #[test]
    fn projections_agree_with_whole_records() {
        check_all(
            &*Config {}.build(),
            &[r#"{"a":1,"b":{"c":[1,{"d":null}],"e":"x\"y"},"é":-1.5e3,"a":true}"#, r#"{"t":"2026-11-20"}"#],
        );
    }

    #[test]
    fn published_records_come_out_as_they_went_in() {
        let Some(log) = crate::conformance::corpus("json_logs/nginxplus_status.ndjson") else { return };
        let codec = Config {}.build();
        let mut records = 0;
        for line in log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if records % 25 == 0 {
                check(&*codec, line);
            }
            records += 1;
            let mut written = Vec::new();
            tocsin_pipeline::json::write_value(&codec.value(line).unwrap(), &mut written);
            let [before, after] =
                [line, &written].map(|text| serde_json::from_slice::<serde_json::Value>(text).unwrap());
            assert_eq!(before, after, "record {records}");
        }
        assert!(records > 0);
    }
}
