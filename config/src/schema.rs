//! The JSON Schema of a whole configuration, for editors.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value as Json, json};

use crate::component::{Catalog, Type};
use crate::options::{DaemonOptions, SinkOptions, SourceOptions};
use crate::silence::SilenceOptions;
use crate::testing::TestOptions;

/// The JSON Schema (2020-12) of a configuration: every kind of component with its options, told apart by `type`.
pub fn schema(catalog: &Catalog) -> Json {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let source_options = properties(SourceOptions::json_schema(&mut generator));
    let sink_options = properties(SinkOptions::json_schema(&mut generator));
    let daemon = DaemonOptions::json_schema(&mut generator).to_value();
    let silence = SilenceOptions::json_schema(&mut generator).to_value();
    let test = TestOptions::json_schema(&mut generator).to_value();
    let inputs = json!({
        "description": "The names of the sources and operators it reads: `NAME`, `NAME.port`, or a pattern such as `web_*`.",
        "type": "array",
        "items": { "type": "string" },
        "minItems": 1,
    });
    let codecs = variants(catalog.codecs, &mut generator, &Map::new(), &[]);
    let codec_names: Vec<&str> = catalog.codecs.iter().map(|codec| codec.name).collect();
    let codec = json!({
        "description": "How the bytes of a record become fields.",
        "anyOf": [{ "type": "string", "enum": codec_names }, codecs],
    });

    let mut common = source_options;
    common.insert("codec".to_owned(), codec);
    let sources = variants(catalog.sources, &mut generator, &common, &[]);
    let mut common = Map::new();
    common.insert("inputs".to_owned(), inputs.clone());
    let operators = variants(catalog.operators, &mut generator, &common, &["inputs"]);
    let mut common = sink_options;
    common.insert("inputs".to_owned(), inputs);
    let sinks = variants(catalog.sinks, &mut generator, &common, &["inputs"]);

    let tables = |description: &str, component: Json| {
        json!({
            "description": description,
            "type": "object",
            "propertyNames": { "pattern": "^[A-Za-z0-9_-]+$" },
            "additionalProperties": component,
        })
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tocsin configuration",
        "type": "object",
        "properties": {
            "daemon": daemon,
            "sources": tables("Where records come from.", sources),
            "operators": tables("What is done with records.", operators),
            "sinks": tables("Where records and alerts go.", sinks),
            "silences": { "description": "For which alerts nobody is told for a while.", "type": "array", "items": silence },
            "tests": { "description": "What the configuration does, checked by `tocsin test`.", "type": "array", "items": test },
        },
        "additionalProperties": false,
        "$defs": generator.take_definitions(true),
    })
}

fn properties(schema: Schema) -> Map<String, Json> {
    match schema.to_value().get_mut("properties").map(Json::take) {
        Some(Json::Object(properties)) => properties,
        _ => Map::new(),
    }
}

/// Tables told apart by `type`, each with the common options besides its own.
fn variants<C: ?Sized>(
    types: &[Type<C>],
    generator: &mut SchemaGenerator,
    common: &Map<String, Json>,
    required: &[&str],
) -> Json {
    let mut variants = Vec::new();
    for kind in types {
        let mut schema = (kind.schema)(generator).to_value();
        let Some(object) = schema.as_object_mut() else { continue };
        object.insert("title".to_owned(), json!(kind.name));
        let properties = object.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            properties.extend(common.clone());
            properties.insert("type".to_owned(), json!({ "const": kind.name }));
        }
        let names = object.entry("required").or_insert_with(|| json!([]));
        if let Some(names) = names.as_array_mut() {
            names.push(json!("type"));
            names.extend(required.iter().map(|name| json!(name)));
        }
        // Where options are alternatives, each of them forbids the rest by itself: then nothing can be forbidden.
        if ["oneOf", "anyOf", "allOf"].iter().any(|word| object.contains_key(*word)) {
            object.remove("additionalProperties");
        }
        variants.push(schema);
    }
    json!({ "oneOf": variants })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::fakes::CATALOG;

    /// A schema without what is said for people, on few lines.
    fn short(schema: &Json) -> Json {
        match schema {
            Json::Object(object) => object
                .iter()
                .filter(|(name, value)| *name != "description" || !value.is_string())
                .map(|(name, value)| (name.clone(), short(value)))
                .collect(),
            Json::Array(values) => values.iter().map(short).collect(),
            other => other.clone(),
        }
    }

    #[test]
    fn components_are_told_apart_by_their_type_and_have_the_common_options() {
        let schema = schema(&CATALOG);
        let section = |name: &str| short(&schema["properties"][name]["additionalProperties"]);
        expect![[r##"
            {
              "oneOf": [
                {
                  "additionalProperties": false,
                  "properties": {
                    "buffer": {
                      "$ref": "#/$defs/BufferOptions",
                      "default": {
                        "max": "64MiB",
                        "max_disk": "10GiB",
                        "when_full": "block"
                      }
                    },
                    "headers": {
                      "additionalProperties": {
                        "$ref": "#/$defs/Secret"
                      },
                      "default": {},
                      "type": "object"
                    },
                    "inputs": {
                      "items": {
                        "type": "string"
                      },
                      "minItems": 1,
                      "type": "array"
                    },
                    "password": {
                      "anyOf": [
                        {
                          "$ref": "#/$defs/Secret"
                        },
                        {
                          "type": "null"
                        }
                      ]
                    },
                    "smtp": {
                      "type": "string"
                    },
                    "type": {
                      "const": "mail"
                    }
                  },
                  "required": [
                    "smtp",
                    "type",
                    "inputs"
                  ],
                  "title": "mail",
                  "type": "object"
                },
                {
                  "additionalProperties": false,
                  "properties": {
                    "buffer": {
                      "$ref": "#/$defs/BufferOptions",
                      "default": {
                        "max": "64MiB",
                        "max_disk": "10GiB",
                        "when_full": "block"
                      }
                    },
                    "inputs": {
                      "items": {
                        "type": "string"
                      },
                      "minItems": 1,
                      "type": "array"
                    },
                    "type": {
                      "const": "print"
                    }
                  },
                  "required": [
                    "type",
                    "inputs"
                  ],
                  "title": "print",
                  "type": "object"
                }
              ]
            }"##]]
        .assert_eq(&serde_json::to_string_pretty(&section("sinks")).unwrap());
        let source = &section("sources")["oneOf"][0];
        let options: Vec<&String> = source["properties"].as_object().unwrap().keys().collect();
        expect![[r#"["codec", "idle_timeout", "journal", "journal_max_bytes", "max_record_bytes", "multiline", "on_decode_error", "out_of_order", "paths", "poll_interval", "read_from", "timestamp", "too_long", "type"]"#]].assert_eq(&format!("{options:?}"));
    }

    #[test]
    fn what_the_schema_refers_to_it_defines() {
        let schema = schema(&CATALOG);
        let text = schema.to_string();
        for (at, _) in text.match_indices("\"#/$defs/") {
            let name = text[at + 9..].split('"').next().unwrap();
            assert!(schema["$defs"].get(name).is_some(), "{name}");
        }
    }
}
