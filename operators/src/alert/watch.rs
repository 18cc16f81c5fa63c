//! A rule as it runs: what its condition is true of, what tells its alerts apart, what they tell.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration as Span;

use tocsin_pipeline::codec::{FieldPath, Projection};
use tocsin_pipeline::event::{Batch, Field, Origin};
use tocsin_pipeline::expression::{Condition, Expression};
use tocsin_pipeline::operator::{Prepare, Prepared};
use tocsin_pipeline::template::{self, Template};
use tocsin_pipeline::time::Timestamp;
use vrl::value::{ObjectMap, Value};

use super::course::Times;

/// No text of a label or a key is longer; longer ones are cut and end in a hash of the whole, so that they stay apart.
const LABEL_MAX: usize = 512;

const FIVE_MINUTES: Span = Span::from_secs(300);

/// What tells alerts apart.
pub(super) enum Keys {
    Given(Vec<(String, Expression)>),
    Fields(Vec<(String, FieldPath)>),
}

impl Keys {
    pub(super) fn reads(&self) -> Projection {
        match self {
            Self::Given(keys) => {
                keys.iter().fold(Projection::default(), |reads, (_, expression)| reads.union(&expression.reads()))
            }
            Self::Fields(fields) => Projection::new(fields.iter().map(|(_, path)| path.clone())),
        }
    }
}

/// A severity of a rule.
pub(super) struct Level {
    /// `None`: the rule has one severity, which is nobody's business.
    pub(super) severity: Option<String>,
    pub(super) condition: Condition,
}

/// The configuration as it runs.
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    /// From the lowest on. At least one.
    pub(super) levels: Vec<Level>,
    /// The label that holds the severity, where there are levels.
    pub(super) level_label: String,
    /// What the conditions read: the values that alerts on plain records tell.
    pub(super) watched: Projection,
    pub(super) reads: Projection,
    pub(super) keys: Keys,
    pub(super) labels: Vec<(String, Template)>,
    pub(super) annotations: Vec<(String, Template)>,
    pub(super) times: Times,
    pub(super) resolve_after: Option<Span>,
    pub(super) evidence: usize,
    pub(super) context: usize,
    pub(super) history: usize,
    pub(super) max_alerts: usize,
    pub(super) slo: Option<Span>,
    pub(super) emit_pending: bool,
    /// Whether somebody reads its amendments.
    pub(super) tells_amended: bool,
}

impl Rule {
    /// The severity of a level.
    pub(super) fn severity(&self, level: usize) -> Option<&str> {
        self.levels.get(level)?.severity.as_deref()
    }

    /// The keys of a record by name; those without a value are left out.
    pub(super) fn key(&self, batch: &Batch, row: u32, errors: &mut u64) -> BTreeMap<String, String> {
        let mut key = BTreeMap::new();
        let mut add = |name: &str, field: Field<'_>| {
            if let Some(text) = field.to_text().filter(|text| !text.is_empty()) {
                key.insert(name.to_owned(), label_text(&String::from_utf8_lossy(&text)));
            }
        };
        match (&self.keys, &batch.lane.origin) {
            (Keys::Fields(_), Origin::Keyed(names)) => {
                let value = batch.value(row);
                let fields = value.as_object();
                for name in names.iter() {
                    if let Some(value) = fields.and_then(|fields| fields.get(name.as_str())) {
                        add(name, Field::of_value(value));
                    }
                }
            }
            (Keys::Fields(fields), _) => {
                for (name, path) in fields {
                    add(name, batch.field(row, path));
                }
            }
            (Keys::Given(keys), _) => {
                for (name, expression) in keys {
                    if let Some(value) = expression.eval(batch, row, errors) {
                        add(name, Field::of_value(&value));
                    }
                }
            }
        }
        key
    }

    /// How long an alert may go without being heard of.
    pub(super) fn patience(&self, batch: &Batch, row: u32, is_keyed: bool) -> Span {
        if let Some(after) = self.resolve_after {
            return after;
        }
        if !is_keyed {
            return FIVE_MINUTES;
        }
        let value = batch.value(row);
        let moment = |name: &str| match value.as_object()?.get(name)? {
            Value::Timestamp(time) => Some(Timestamp::from_datetime(time)),
            text => Timestamp::parse_rfc3339(text.as_bytes()?),
        };
        let length = moment("window_end").zip(moment("window_start")).map(|(end, start)| end.since(start));
        FIVE_MINUTES.max(length.unwrap_or_default().saturating_mul(2))
    }

    /// What an alert tells of the record: of a window its aggregates, else the fields that the condition reads.
    pub(super) fn values(&self, batch: &Batch, row: u32, key: &BTreeMap<String, String>, is_keyed: bool) -> Value {
        if !is_keyed {
            let value = |path: &FieldPath| batch.field(row, path).to_value();
            let named = |path: &FieldPath| Some((path.path().to_string().into(), value(path)?));
            return Value::Object(self.watched.paths().iter().filter_map(named).collect());
        }
        match &*batch.value(row) {
            Value::Object(fields) => {
                let is_value = |name: &str| !matches!(name, "window_start" | "window_end") && !key.contains_key(name);
                let values = fields.iter().filter(|(name, _)| is_value(name.as_str()));
                Value::Object(values.map(|(name, value)| (name.clone(), value.clone())).collect())
            }
            value => value.clone(),
        }
    }

    /// The number that is worth a curve: the first that a condition reads, else the first there is.
    pub(super) fn number(&self, values: &Value) -> Option<f64> {
        let number = |value: &Value| match value {
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(number.into_inner()),
            _ => None,
        };
        let named = self.watched.paths().iter().filter_map(|path| {
            // The values of plain records stand under the text of their path.
            values.get(path.path()).or_else(|| values.as_object()?.get(path.path().to_string().as_str()))
        });
        let fields = values.as_object().into_iter().flat_map(ObjectMap::values);
        named.chain(fields).find_map(number)
    }

    /// The record as its templates read it: the keys, which need be no plain fields, and the severity can be named too.
    pub(super) fn context(
        &self,
        batch: &Batch,
        row: u32,
        names: &BTreeMap<String, String>,
        level: usize,
    ) -> template::Context {
        let mut record = batch.value(row).into_owned();
        if let Some(fields) = record.as_object_mut() {
            let severity = self.severity(level).map(|severity| (self.level_label.as_str(), severity));
            let names = names.iter().map(|(name, text)| (name.as_str(), text.as_str()));
            for (name, text) in names.chain(severity) {
                fields.entry(name.into()).or_insert_with(|| Value::from(text));
            }
        }
        template::context(&record)
    }

    /// The labels of an alert, but for its severity.
    pub(super) fn labels(
        &self,
        names: &BTreeMap<String, String>,
        context: &template::Context,
        errors: &mut u64,
    ) -> BTreeMap<String, String> {
        let mut labels = names.clone();
        for (name, label) in &self.labels {
            let rendered = label.render_context(context);
            *errors += u64::from(rendered.failure.is_some());
            match rendered.text {
                text if text.is_empty() => labels.remove(name),
                text => labels.insert(name.clone(), label_text(&text)),
            };
        }
        labels
    }

    /// The rows that a condition is true of, each with the highest level whose condition is.
    pub(super) fn select(&self, mut batch: Batch) -> Selected {
        batch.decode(&self.reads);
        let mut errors = 0;
        let mut of_level = |level: usize| {
            let rows = self.levels[level].condition.select(&batch, &mut errors);
            rows.into_iter().map(move |row| (row, level))
        };
        let matching = match self.levels.len() {
            1 => of_level(0).collect(),
            levels => (0..levels).flat_map(of_level).collect::<BTreeMap<_, _>>().into_iter().collect(),
        };
        Selected { batch, matching, errors }
    }
}

/// A text as a label: of bounded length, still told apart from others.
pub(super) fn label_text(text: &str) -> String {
    if text.len() <= LABEL_MAX {
        return text.to_owned();
    }
    let cut = (0..=LABEL_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let hash = blake3::hash(text.as_bytes()).to_hex();
    format!("{}…{}", &text[..cut], &hash[..16])
}

/// The part that needs no state: runs the condition in parallel.
pub(super) struct Select(pub(super) Arc<Rule>);

/// A batch and the rows of it that a condition is true of, in order, with the level.
pub(super) struct Selected {
    pub(super) batch: Batch,
    pub(super) matching: Vec<(u32, usize)>,
    pub(super) errors: u64,
}

impl Prepare for Select {
    fn prepare(&self, batch: Batch) -> Prepared {
        let selected = self.0.select(batch);
        let batch = &selected.batch;
        Prepared {
            lane: Arc::clone(&batch.lane),
            seen_before: batch.seen_before,
            seen_max: batch.times.as_ref().map_or(Timestamp::MIN, |times| times.max),
            arrival: batch.arrival,
            records: batch.len(),
            bytes: batch.bytes(),
            content: Box::new(selected) as Box<dyn Any + Send>,
        }
    }
}
