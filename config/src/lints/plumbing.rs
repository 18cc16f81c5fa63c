//! What may be wrong with how records get to where they are wanted, and with the daemon itself.

use std::collections::BTreeSet;

use tocsin_pipeline::expression::{Verdict, prove};

use super::view::{Finding, Role, Subject, View};
use crate::component::{Keying, Makes};
use crate::facts::{Audience, Branch, Facts};
use crate::options::WhenFull;
use crate::plan::{ComponentId, Outlet};
use crate::substitute::Piece;
use crate::tree::{Node, Place, Value};
use crate::types;

pub(super) fn records_to_people(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, member) in &view.members {
        if !matches!(member.role, Role::Sink { audience: Audience::People, .. }) {
            continue;
        }
        if let Some(source) = raw_source(view, *id) {
            let message = format!(
                "each record of `{}` is told by itself: nothing on the way here makes few of many",
                view.name(source)
            );
            let help = "watch for what matters with `alert`, or let few pass with `throttle` or `dedupe`";
            found.push(Finding::new(Subject::Component(*id), "inputs", message).help(help));
        }
    }
}

/// The source whose records get to a component one by one.
fn raw_source(view: &View<'_>, to: ComponentId) -> Option<ComponentId> {
    let (mut open, mut seen): (Vec<_>, BTreeSet<Outlet>) = (view.inputs(to).collect(), BTreeSet::new());
    while let Some(outlet) = open.pop() {
        if !seen.insert(outlet) {
            continue;
        }
        let id = outlet.component;
        match view.members.get(&id).map(|member| &member.role) {
            Some(Role::Source { is_commands: false, .. }) => return Some(id),
            Some(Role::Relay) => open.extend(view.inputs(id)),
            Some(Role::Operator { keying, makes, .. }) => {
                let hands_on_all = matches!((keying, makes), (Keying::Stateless { .. }, Makes::Same));
                // What does not pass a `throttle`, what is too late for a window.
                let is_left_over = outlet.port > 0 && matches!(keying, Keying::By { .. });
                let is_made = matches!(makes, Makes::Within { .. });
                if hands_on_all || is_left_over && !is_made || view.is_rejected(outlet) {
                    open.extend(view.inputs(id));
                }
            }
            _ => {}
        }
    }
    None
}

fn branches<'v>(view: &'v View<'_>) -> impl Iterator<Item = (ComponentId, &'v Branch)> {
    view.members.iter().flat_map(|(id, member)| {
        let branches = match &member.role {
            Role::Operator { facts: Facts::Branches(branches), .. } => &branches[..],
            _ => &[],
        };
        branches.iter().map(|branch| (*id, branch))
    })
}

pub(super) fn constant_condition(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, branch) in branches(view) {
        let stream = view.stream(id);
        let (message, help) = match prove(&branch.condition, |path| stream.known(path)) {
            Verdict::Never => ("no record fulfils this condition", "look at what it compares, and with what"),
            Verdict::Always => {
                ("every record fulfils this condition", "remove it; or write `&&` where there is `||` between two `!=`")
            }
            Verdict::Depends => continue,
        };
        found.push(Finding::new(Subject::Component(id), &branch.option, message).help(help));
    }
}

pub(super) fn branch_unread(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, branch) in branches(view) {
        let Some(name) = &branch.port else { continue };
        if view.port(id, name).is_some_and(|port| !view.is_read(id, port)) {
            let output = format!("{}.{name}", view.name(id));
            let message = format!("nothing reads `{output}`, so that its records are dropped");
            let help = format!("add `{output}` to the `inputs` of what should have them, or remove it");
            found.push(Finding::new(Subject::Component(id), &branch.option, message).help(help));
        }
    }
}

pub(super) fn lateness_above_size(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, window) in view.windows() {
        if window.told_after > window.size {
            let told = |duration| types::Duration(duration).to_string();
            let message = format!(
                "each window of {} is told {} after its end, since late records are waited for so long",
                told(window.size),
                told(window.told_after)
            );
            let help = "have it told at its end, and again when a late record changes it, with `emit = \"update\"`; or wait for less";
            found.push(Finding::new(Subject::Component(id), "lateness", message).help(help));
        }
    }
}

/// Headers that hold secrets, as parts of their names.
const SECRET_HEADERS: [&str; 4] = ["auth", "key", "secret", "token"];

pub(super) fn secret_in_clear(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, option, place, _) in secrets(view).into_iter().filter(|(.., pieces)| pieces.is_empty()) {
        let message = format!("`{option}` is a secret, and stands in the configuration for everybody to read");
        let help = "put it into a file that the daemon alone can read: `${file:/run/secrets/NAME}`; or into `${NAME}`";
        let finding = Finding::new(Subject::Component(id), option, message).help(help);
        found.push(Finding { place: Some(place), ..finding });
    }
}

pub(super) fn secret_in_default(view: &View<'_>, found: &mut Vec<Finding>) {
    let has_default = |pieces: &[Piece]| pieces.iter().any(|piece| piece.has_default);
    for (id, option, place, _) in secrets(view).into_iter().filter(|(.., pieces)| has_default(pieces)) {
        let message = format!("where its variable is not set, `{option}` is a secret that everybody can read here");
        let help = "write `${NAME}` without a default, or `${file:/run/secrets/NAME}`: then nothing starts without it";
        let finding = Finding::new(Subject::Component(id), option, message).help(help);
        found.push(Finding { place: Some(place), ..finding });
    }
}

/// A secret: of which component, what the option is called, where it stands, and what of it is not as written.
type Secret<'v> = (ComponentId, String, Place, &'v [Piece]);

/// The secrets that are not empty.
fn secrets<'v>(view: &'v View<'_>) -> Vec<Secret<'v>> {
    let mut all = Vec::new();
    for (id, member) in &view.members {
        let mut of_member = Vec::new();
        secrets_within(view, member.node, &mut Vec::new(), &mut of_member);
        all.extend(of_member.into_iter().map(|(option, place, pieces)| (*id, option, place, pieces)));
    }
    all
}

fn secrets_within<'v>(
    view: &View<'_>,
    node: &'v Node<'_>,
    path: &mut Vec<&'v str>,
    found: &mut Vec<(String, Place, &'v [Piece])>,
) {
    match &node.value {
        Value::Table(table) => {
            for (key, value) in table {
                path.push(&key.name);
                secrets_within(view, value, path, found);
                path.pop();
            }
        }
        Value::List(values) => values.iter().for_each(|value| secrets_within(view, value, path, found)),
        Value::Text { text, pieces } => {
            let name = path.last().copied().unwrap_or_default().to_lowercase();
            // A URL may hold a secret or not, and most headers hold none.
            let is_secret = match &path[..] {
                [.., "headers", _] => SECRET_HEADERS.iter().any(|part| name.contains(part)),
                _ => name != "url",
            };
            if is_secret && !text.is_empty() && view.secrets.contains(&node.place) {
                found.push((path.join("."), node.place.clone(), pieces));
            }
        }
        Value::Scalar(_) => {}
    }
}

pub(super) fn source_without_admin(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, member) in &view.members {
        if matches!(member.role, Role::Source { is_at_admin: true, .. }) && view.daemon.admin.is_none() {
            let message = format!("what `{}` reads comes to the admin address, and there is none", member.name);
            let help = "set `daemon.admin`, such as `admin = \"127.0.0.1:9477\"`";
            found.push(Finding::new(Subject::Component(*id), "type", message).help(help));
        }
    }
}

pub(super) fn alerts_forgotten(view: &View<'_>, found: &mut Vec<Finding>) {
    if view.daemon.data_dir.is_some() || view.daemon.checkpoint_store.is_some() {
        return;
    }
    if let Some((id, _)) = view.rules().find(|(id, _)| view.is_told(*id)) {
        let message = format!(
            "nothing is kept over a restart: what `{}` has told as firing is told again then, or never told as resolved",
            view.name(id)
        );
        let help = "set `daemon.data_dir`, such as `data_dir = \"/var/lib/tocsin\"`";
        found.push(Finding::new(Subject::Component(id), "", message).help(help));
    }
}

pub(super) fn admin_open(view: &View<'_>, found: &mut Vec<Finding>) {
    if let Some(admin) = view.daemon.admin.filter(|admin| !admin.ip().is_loopback()) {
        let message = format!("whoever reaches {admin} can silence alerts and reload: nobody is asked who he is");
        let help = "write \"127.0.0.1:PORT\", and put something before it that asks";
        found.push(Finding::new(Subject::Daemon, "admin", message).help(help));
    }
}

pub(super) fn alerts_dropped(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, _) in view.rules() {
        for (sink, _) in view.audiences(id) {
            let Some(Role::Sink { audience: Audience::People, buffer }) =
                view.members.get(&sink).map(|sink| &sink.role)
            else {
                continue;
            };
            let is_told_already = found.iter().any(|finding| finding.subject == Subject::Component(sink));
            if buffer.when_full == WhenFull::DropNewest && !is_told_already {
                let message = format!("alerts of `{}` are dropped while this buffer is full", view.name(id));
                let help = "write \"block\" or \"spill\": notifications are few, and none should be lost";
                found.push(Finding::new(Subject::Component(sink), "buffer.when_full", message).help(help));
            }
        }
    }
}

pub(super) fn notifier_without_rule(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, _) in view.notifiers() {
        let stream = view.stream(id);
        for (window, facts) in &stream.windows {
            if !facts.aggregates.contains_key("state") && !facts.keys.contains("state") {
                let message = format!(
                    "`{}` gives the records of a window, which are no alerts: all of them are rejected",
                    view.name(*window)
                );
                let help = "put an operator of the type `alert` between them, which says when they are one";
                found.push(Finding::new(Subject::Component(id), "inputs", message).help(help));
            }
        }
    }
}
