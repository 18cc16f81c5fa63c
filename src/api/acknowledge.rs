//! The page to which the link in a notification leads: GET shows what fires, and the form on it says who takes care of it.
//!
//! The signature in the link is all the right that it takes, so the page gives nothing away that the notification did not, and
//! mail scanners that follow links change nothing.

use futures_util::FutureExt as _;
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use serde_json::{Value as Json, json};

use super::own::{NAME_MAX, name};
use super::{Answer, Api, Asked, Failure, answer as answered, to_the_second};

/// Nothing is loaded or run, the form leads here alone, and no other page shows this one.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
const STYLE: &str = "body{font:1rem/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}\
    li{margin:.4rem 0}code{background:#eee;padding:0 .2rem}\
    @media(prefers-color-scheme:dark){body{background:#111;color:#ddd}code{background:#333}a,input,button{color:inherit;background:#333}}";

pub(super) async fn answer(api: &Api, asked: &Asked, operator: &str, id: &str, signature: &str) -> Answer {
    match respond(api, asked, operator, id, signature).await {
        Ok((status, content)) => page(status, &content),
        Err(failure) => page(failure.status, &format!("<h1>{}</h1>\n", escaped(&failure.message))),
    }
}

async fn respond(
    api: &Api,
    asked: &Asked,
    operator: &str,
    id: &str,
    signature: &str,
) -> Result<(StatusCode, String), Failure> {
    let told = look(api, operator, id, signature).await?;
    if asked.is_look() {
        return Ok((StatusCode::OK, content(&told, None)));
    }
    if asked.method != Method::POST {
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "That is not answered here."));
    }
    if !asked.is_of(told["url"].as_str().unwrap_or_default()) {
        return Err(Failure::new(StatusCode::FORBIDDEN, "Pages of others may not say that somebody takes care."));
    }
    // Who has said it first does it, and so it is with what is over.
    if told["state"] == "over" || !told["acknowledged"].is_null() {
        return Ok((StatusCode::OK, content(&told, None)));
    }
    let given = asked.form("by").unwrap_or_default();
    let by = match name(&given) {
        Ok(by) => by,
        Err(failure) => return Ok((failure.status, content(&told, Some(&failure.message)))),
    };
    let command = json!({ "command": "acknowledge", "operator": operator, "id": id, "by": by, "signature": signature });
    let is_done = || {
        let look = look(api, operator, id, signature);
        look.map(|told| told.map(|told| told["state"] == "over" || !told["acknowledged"].is_null())).boxed()
    };
    api.tell(&[command], is_done).await?;
    Ok((StatusCode::OK, content(&look(api, operator, id, signature).await?, None)))
}

/// What the operator says of the link.
async fn look(api: &Api, operator: &str, id: &str, signature: &str) -> Result<Json, Failure> {
    for status in api.views.statuses() {
        if status.inquiries.about("notify").iter().any(|name| **name == *operator) {
            let question = json!({ "acknowledge": id, "signature": signature });
            let told = status.inquiries.ask(operator, question).await;
            match told.ok_or_else(|| Failure::busy("The pipeline is busy. Try again in a moment."))? {
                Json::Null => {}
                told => return Ok(told),
            }
        }
    }
    Err(Failure::not_found("There is no such page. Is the link whole?"))
}

/// What the page says of what the operator tells.
fn content(told: &Json, problem: Option<&str>) -> String {
    if told["state"] == "over" {
        return "<h1>This is over</h1>\n<p>Nothing of it fires any more.</p>\n".to_owned();
    }
    let text = |json: &Json| escaped(json.as_str().unwrap_or_default());
    let when = |json: &Json| escaped(&to_the_second(json.as_str().unwrap_or_default()));
    let firing = told["firing"].as_u64().unwrap_or(0);
    let mut html = match told["acknowledged"].as_object() {
        Some(attendance) => {
            format!(
                "<h1>{} takes care of this</h1>\n<p>Since {}.</p>\n",
                text(&attendance["by"]),
                when(&attendance["at"])
            )
        }
        None => "<h1>Do you take care of this?</h1>\n".to_owned(),
    };
    html += &format!("<p>{firing} {} now:</p>\n<ul>\n", if firing == 1 { "alert fires" } else { "alerts fire" });
    let listed = told["listed"].as_array().map_or(&[][..], Vec::as_slice);
    for alert in listed {
        let labels = alert["labels"].as_object().into_iter().flatten();
        let labels: Vec<_> = labels.map(|(name, value)| escaped(&format!("{name}={}", plain(value)))).collect();
        html += &format!("<li><strong>{}</strong>", text(&alert["alert"]));
        if let Some(summary) = alert["summary"].as_str() {
            html += &format!(": {}", escaped(summary));
        }
        html += &format!("<br>since {}", when(&alert["starts_at"]));
        html += &labels.iter().map(|label| format!(" <code>{label}</code>")).collect::<String>();
        html += "</li>\n";
    }
    html += "</ul>\n";
    let more = firing.saturating_sub(listed.len() as u64);
    if more > 0 {
        html += &format!("<p>And {more} more.</p>\n");
    }
    if told["acknowledged"].is_null() {
        if let Some(problem) = problem {
            html += &format!("<p role=\"alert\">{}</p>\n", escaped(problem));
        }
        html += &format!(
            "<form method=\"post\">\n<label>Your name <input name=\"by\" required maxlength=\"{NAME_MAX}\" autocomplete=\"name\"></label>\n\
             <button>I take care of it</button>\n</form>\n\
             <p>Until something new fires, nobody else is told of it, and it is not repeated.</p>\n"
        );
    }
    html
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn page(status: StatusCode, content: &str) -> Answer {
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"robots\" content=\"noindex\">\n\
         <title>Tocsin</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{content}</body>\n</html>\n"
    );
    let mut answer = answered(status, "text/html; charset=utf-8", html);
    let headers = [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        // The address of the page is a right: it goes to nobody else. Without any, browsers would not say what a form comes from.
        ("referrer-policy", "same-origin"),
    ];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_page_says_what_fires_and_runs_nothing_of_it() {
        let told = json!({
            "state": "firing",
            "firing": 3,
            "listed": [{
                "alert": "disk", "summary": "<script>alert(1)</script>", "starts_at": "2026-11-29T12:00:00Z",
                "labels": { "host": "a\"b", "share": 7 }
            }],
            "acknowledged": null,
        });
        expect![[r#"
            <h1>Do you take care of this?</h1>
            <p>3 alerts fire now:</p>
            <ul>
            <li><strong>disk</strong>: &lt;script&gt;alert(1)&lt;/script&gt;<br>since 2026-11-29T12:00:00Z <code>host=a&quot;b</code> <code>share=7</code></li>
            </ul>
            <p>And 2 more.</p>
            <p role="alert">who?</p>
            <form method="post">
            <label>Your name <input name="by" required maxlength="100" autocomplete="name"></label>
            <button>I take care of it</button>
            </form>
            <p>Until something new fires, nobody else is told of it, and it is not repeated.</p>
        "#]]
        .assert_eq(&content(&told, Some("who?")));
        let mut told = told;
        told["acknowledged"] = json!({ "by": "<Ana>", "at": "2026-11-29T12:03:00Z" });
        let html = content(&told, None);
        assert!(
            html.starts_with("<h1>&lt;Ana&gt; takes care of this</h1>\n<p>Since 2026-11-29T12:03:00Z.</p>"),
            "{html}"
        );
        assert!(!html.contains("<form"));
    }
}
