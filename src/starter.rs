//! `tocsin new`: a configuration to begin with. It runs as it is; a test checks it.

pub const STARTER: &str = r#"# A pipeline: sources are read, operators filter and watch, sinks are told.
#
#   tocsin check tocsin.toml      every problem at once, without touching anything
#   tocsin run tocsin.toml        the daemon
#   tocsin help window            what a component can do

[daemon]
data_dir = "tocsin-data"          # positions, windows and alerts survive a restart here
admin = "127.0.0.1:9477"          # /metrics, /healthz, /readyz

# Replace by your own log:
#   type = "file"
#   paths = ["/var/log/nginx/access.log*"]
#   codec = "combined"
[sources.access]
type = "demo"
format = "combined"
rate = 200

[operators.server_errors]
type = "filter"
inputs = ["access"]
condition = ".status >= 500"

[operators.error_rate]
type = "window"
inputs = ["server_errors"]
tumbling = "10s"
group_by = [".path"]
aggregates = { errors = "count()", clients = "distinct(.client)" }

[operators.many_errors]
type = "alert"
inputs = ["error_rate"]
condition = ".errors >= 5"
labels = { severity = "critical" }
annotations = { summary = "{{ path }}: {{ errors }} server errors in ten seconds" }

# Add an `email` or `webhook` sink to be told when nobody looks: tocsin help email
[sinks.terminal]
type = "console"
inputs = ["many_errors"]
encoding = "pretty"
"#;
