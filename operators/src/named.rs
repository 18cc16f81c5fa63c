//! What somebody means who names an alert or a record by one of its values.

use serde_json::Value as Json;

/// Whether what has these labels or keys is meant by `key`: a value of one of them, or `name=value`.
pub fn is_named(key: &str, names: &Json) -> bool {
    let is_value = |value: &Json, text: &str| match value {
        Json::String(value) => value == text,
        value => {
            let written = value.to_string();
            written == text
        }
    };
    let is_meant = |(name, value): (&String, &Json)| {
        let rest = key.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('='));
        is_value(value, key) || rest.is_some_and(|rest| is_value(value, rest))
    };
    names.as_object().into_iter().flatten().any(is_meant)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_or_a_name_and_its_value_is_meant() {
        let names = json!({ "path": "/shop?a=b", "status": 503 });
        for key in ["/shop?a=b", "path=/shop?a=b", "503", "status=503"] {
            assert!(is_named(key, &names), "{key}");
        }
        for key in ["b", "a=b", "status=/shop?a=b", "path", "path=", "50", "other=503", ""] {
            assert!(!is_named(key, &names), "{key}");
        }
    }
}
