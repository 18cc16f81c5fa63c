//! Alertmanager's API, version 2: what `amtool`, Prometheus and Grafana ask and say.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tocsin_config::matcher::{Matcher, Matchers, Relation};
use tocsin_pipeline::time::Timestamp;

use super::known::{Alert, Known, Silence};
use super::silences::Wanted;
use super::{Answer, Api, Asked, Failure, answer as answered, moment, moment_of_go, posted, request};

/// When something began that has always been: silences of the configuration that do not say it.
const ALWAYS: Timestamp = Timestamp(0);

pub(super) async fn answer(api: &Api, asked: &Asked, path: &[&str]) -> Result<Answer, Failure> {
    match (path, asked.method.clone()) {
        (["status"], Method::GET) => status(api).await,
        (["receivers"], Method::GET) => receivers(api, asked).await,
        (["alerts"], Method::GET) => alerts(api, asked).await,
        (["alerts"], Method::POST) => posted::take(api, asked).await,
        (["alerts", "groups"], Method::GET) => groups(api, asked).await,
        (["silences"], Method::GET) => silences(api, asked).await,
        (["silences"], Method::POST) => post_silence(api, asked).await,
        (["silence", id], Method::GET) => {
            let silence = api.silences().await?.into_iter().find(|silence| silence.id == **id);
            let silence = silence.ok_or_else(|| Failure::not_found(format!("there is no silence {id}")))?;
            Ok(request::json(&silence_view(&silence)))
        }
        (["silence", id], Method::DELETE) => {
            api.expire_silence(id).await.map_err(|failure| match failure.status {
                // What Alertmanager's clients expect here of what cannot be done.
                StatusCode::BAD_REQUEST => Failure { status: StatusCode::INTERNAL_SERVER_ERROR, ..failure },
                _ => failure,
            })?;
            Ok(answered(StatusCode::OK, "application/json", Bytes::new()))
        }
        (["status" | "receivers" | "alerts" | "silences"] | ["alerts", "groups"] | ["silence", _], _) => {
            Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "that is not answered here"))
        }
        _ => Err(Failure::not_found("Alertmanager's API has no such path")),
    }
}

/// Which alerts are asked for.
struct Wish {
    matchers: Matchers,
    receiver_matchers: Matchers,
    receiver: Option<Matcher>,
    active: bool,
    silenced: bool,
    inhibited: bool,
}

impl Wish {
    fn of(asked: &Asked) -> Result<Self, Failure> {
        // All that is known has been looked at by the time it can be asked for.
        asked.flag("unprocessed", true)?;
        let receiver = asked.one("receiver").map(|pattern| {
            Matcher::new("receiver".to_owned(), Relation::Matches, pattern.to_owned())
                .map_err(|error| Failure::bad(format!("`receiver`: {error}")))
        });
        Ok(Self {
            matchers: asked.matchers("filter")?,
            receiver_matchers: asked.matchers("receiver_matchers")?,
            receiver: receiver.transpose()?,
            active: asked.flag("active", true)?,
            silenced: asked.flag("silenced", true)?,
            inhibited: asked.flag("inhibited", true)?,
        })
    }

    fn is_receiver(&self, name: &str) -> bool {
        let receiver = Matchers(self.receiver.iter().cloned().collect());
        // Receivers have no labels here.
        receiver.matches(|_| Some(name)) && self.receiver_matchers.matches(|_| None)
    }

    fn is_alert(&self, alert: &Alert) -> bool {
        alert.firing
            && alert.is_matched(&self.matchers)
            && (self.active || alert.is_suppressed())
            && (self.silenced || alert.silenced_by.is_empty())
            && (self.inhibited || alert.inhibited_by.is_empty())
    }
}

async fn alerts(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    let wish = Wish::of(asked)?;
    let firing = api.firing().await?;
    let wanted = firing
        .values()
        .filter(|alert| wish.is_alert(alert) && alert.receivers().iter().any(|receiver| wish.is_receiver(receiver)));
    Ok(request::json(&wanted.map(|alert| alert_view(api, alert, &[])).collect::<Vec<_>>()))
}

async fn groups(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    let wish = Wish::of(asked)?;
    let with_muted = asked.flag("muted", true)?;
    let mut told = Vec::new();
    for Known { alerts, groups, .. } in api.known().await? {
        let alerts: BTreeMap<_, _> = alerts.iter().map(|alert| (alert.fingerprint.as_str(), alert)).collect();
        for group in groups {
            let receiver = group.receiver.unwrap_or_default();
            if !wish.is_receiver(&receiver) || (!with_muted && !group.muted_by.is_empty()) {
                continue;
            }
            let members = group.alerts.iter().filter_map(|name| alerts.get(name.as_str()));
            let members: Vec<_> = members
                .filter(|alert| wish.is_alert(alert))
                .map(|alert| alert_view(api, alert, &group.muted_by))
                .collect();
            if !members.is_empty() {
                let view = json!({
                    "labels": group.labels,
                    "routeLabels": {},
                    "receiver": { "name": receiver },
                    "alerts": members,
                });
                told.push(((group.labels, receiver), view));
            }
        }
    }
    told.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(request::json(&told.into_iter().map(|(_, view)| view).collect::<Vec<_>>()))
}

fn alert_view(api: &Api, alert: &Alert, muted_by: &[String]) -> Json {
    let state = if alert.is_suppressed() || !muted_by.is_empty() { "suppressed" } else { "active" };
    // The rules here do not say when something ends that has not. Clients take an end in the past for one, and must be told one.
    let ends_at = alert.ends_at.clone();
    let ends_at = ends_at.unwrap_or_else(|| api.clock.now().saturating_add(posted::RESOLVED_AFTER).to_string());
    let labels: BTreeMap<_, _> = alert.labels.iter().filter(|(_, value)| !value.is_empty()).collect();
    let annotations = alert.record["annotations"].as_object().into_iter().flatten();
    let annotations: BTreeMap<_, _> = annotations.map(|(name, value)| (name, plain(value))).collect();
    let receivers: Vec<_> = alert.receivers().into_iter().map(|name| json!({ "name": name })).collect();
    let mut view = json!({
        "fingerprint": alert.fingerprint,
        "labels": labels,
        "annotations": annotations,
        "receivers": receivers,
        "startsAt": alert.starts_at,
        "endsAt": ends_at,
        "updatedAt": alert.updated_at,
        "status": {
            "state": state,
            "silencedBy": alert.silenced_by,
            "inhibitedBy": alert.inhibited_by,
            "mutedBy": muted_by,
        },
    });
    if let Some(url) = alert.record["generator_url"].as_str().filter(|url| url::Url::parse(url).is_ok()) {
        view["generatorURL"] = url.into();
    }
    view
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

async fn names_of_receivers(api: &Api) -> Result<BTreeSet<String>, Failure> {
    let told = api.ask(json!({ "of": ["receivers"] })).await?;
    let receivers = told.iter().flat_map(|told| told["receivers"].as_array().into_iter().flatten());
    Ok(receivers.filter_map(|receiver| receiver["name"].as_str().map(str::to_owned)).collect())
}

async fn receivers(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    let matchers = asked.matchers("receiver_matchers")?;
    let names = names_of_receivers(api).await?;
    let wanted = names.iter().filter(|_| matchers.matches(|_| None));
    Ok(request::json(&wanted.map(|name| json!({ "name": name, "labels": {} })).collect::<Vec<_>>()))
}

async fn status(api: &Api) -> Result<Answer, Failure> {
    let names = names_of_receivers(api).await?;
    let listed = names.iter().map(|name| format!("- name: {}\n", json!(name)));
    // Clients read it as Alertmanager's own configuration.
    let original = format!(
        "# Tocsin is configured in TOML: this tells its receivers and no more.\nroute:\n  receiver: {}\nreceivers:\n{}",
        json!(names.first().map_or("default", String::as_str)),
        listed.collect::<String>()
    );
    Ok(request::json(&json!({
        "cluster": { "status": "disabled", "peers": [] },
        "config": { "original": original },
        "uptime": api.started.to_string(),
        "versionInfo": {
            "version": env!("CARGO_PKG_VERSION"),
            "revision": "",
            "branch": "tocsin",
            "buildUser": "",
            "buildDate": "",
            "goVersion": "",
        },
    })))
}

async fn silences(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    let filter = asked.matchers("filter")?;
    let states = [
        ("active", asked.flag("active", true)?),
        ("pending", asked.flag("pending", true)?),
        ("expired", asked.flag("expired", true)?),
    ];
    let silences = api.silences().await?;
    let wanted = silences.iter().filter(|silence| {
        let matchers = silence.matchers();
        states.contains(&(silence.state.as_str(), true)) && filter.0.iter().all(|matcher| matchers.contains(matcher))
    });
    Ok(request::json(&wanted.map(silence_view).collect::<Vec<_>>()))
}

fn silence_view(silence: &Silence) -> Json {
    let matchers = silence.matchers();
    let matchers: Vec<_> = matchers
        .iter()
        .map(|matcher| {
            json!({
                "name": matcher.name,
                "value": matcher.value,
                "isRegex": matches!(matcher.relation, Relation::Matches | Relation::MatchesNot),
                "isEqual": matches!(matcher.relation, Relation::Equal | Relation::Matches),
            })
        })
        .collect();
    let moment = |text: &Option<String>| text.clone().unwrap_or_else(|| ALWAYS.to_string());
    json!({
        "id": silence.id,
        "status": { "state": silence.state },
        "updatedAt": moment(&silence.updated_at),
        "matchers": matchers,
        "startsAt": moment(&silence.starts_at),
        "endsAt": silence.ends_at,
        "createdBy": silence.owner,
        "comment": silence.reason,
        "annotations": silence.annotations,
    })
}

/// A silence as clients send it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PostedSilence {
    id: Option<String>,
    matchers: Vec<PostedMatcher>,
    starts_at: String,
    ends_at: String,
    created_by: String,
    comment: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PostedMatcher {
    name: String,
    value: String,
    is_regex: bool,
    is_equal: Option<bool>,
}

async fn post_silence(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    let posted: PostedSilence = asked.json()?;
    let mut matchers = Vec::new();
    for PostedMatcher { name, value, is_regex, is_equal } in posted.matchers {
        let relation = match (is_regex, is_equal.unwrap_or(true)) {
            (false, true) => Relation::Equal,
            (false, false) => Relation::NotEqual,
            (true, true) => Relation::Matches,
            (true, false) => Relation::MatchesNot,
        };
        if name.is_empty() {
            return Err(Failure::bad("a matcher has no name"));
        }
        let matcher =
            Matcher::new(name, relation, value).map_err(|error| Failure::bad(format!("`matchers`: {error}")))?;
        matchers.push(matcher.to_string());
    }
    let wanted = Wanted {
        id: posted.id.filter(|id| !id.is_empty()),
        matchers,
        owner: posted.created_by,
        reason: posted.comment,
        starts_at: moment_of_go("startsAt", Some(&posted.starts_at))?,
        ends_at: moment("endsAt", &posted.ends_at)?,
        during: None,
        annotations: posted.annotations.unwrap_or_default(),
    };
    let (id, _) = api.put_silence(wanted).await?;
    Ok(request::json(&json!({ "silenceID": id })))
}
