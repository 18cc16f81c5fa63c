//! The source `commands`.

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::{BuildContext, SourceConfig};
use tocsin_pipeline::source::Source;

use crate::desk::Desk;

/// What people say to a running daemon: silences, their ends, and that they take care of an alert. It comes by the admin address, from
/// `tocsin silence`, `tocsin alerts` and the API, and goes to every `notify`.
///
/// There is one in every configuration that has a `notify`, under the name `commands`, without being written; a test of the configuration
/// can give it as the `source` of an input. A record is `{"command": "silence", "silence": {…}}`, `{"command": "expire", "id": "…"}` or
/// `{"command": "acknowledge", "id": "…", "by": "…"}`.
///
/// **State:** none.
///
/// **Late events:** commands are in the order in which they came.
///
/// **After a crash:** what was answered comes from the journal, or was in the checkpoint. Without a `data_dir` it is lost.
///
/// ```toml
/// [sources.commands]
/// type = "commands"
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {}

impl SourceConfig for Config {
    const NAME: &'static str = tocsin_config::COMMANDS;

    fn acknowledges(&self) -> bool {
        true
    }

    fn default_codec(&self) -> &'static str {
        "json"
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Source> {
        Box::new(Desk::new(Config::NAME))
    }
}
