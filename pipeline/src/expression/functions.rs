//! The functions that VRL programs may call: VRL's standard library, with the ones that would make results depend on
//! something else than the record replaced or refused.
//!
//! `now` is when the record arrived, as the pipeline's clock had it. What is random is drawn from a stream of its own for
//! every record and program, begun from the record's coordinate: reading the same record again gives the same values, so
//! that replay after a crash repeats what was sent before it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use vrl::compiler::value::kind;
use vrl::diagnostic::Label;
use vrl::path::OwnedTargetPath;
use vrl::prelude::*;

use super::native::starts_with_ignoring_case;
use crate::event::{Batch, Origin};
use crate::time::Timestamp;

pub(super) static FUNCTIONS: LazyLock<Vec<Box<dyn Function>>> = LazyLock::new(|| {
    let mut functions: BTreeMap<&'static str, Box<dyn Function>> =
        vrl::stdlib::all().into_iter().map(|function| (function.identifier(), function)).collect();
    for (name, argument) in [("parse_etld", "psl"), ("parse_groks", "alias_sources")] {
        if let Some(inner) = functions.remove(name) {
            functions.insert(name, Box::new(Watched { inner, argument, look: refuse_files }));
        }
    }
    if let Some(inner) = functions.remove("del") {
        functions.insert("del", Box::new(Watched { inner, argument: "target", look: note_deletion }));
    }
    for function in OURS {
        functions.insert(function.name, Box::new(*function));
    }
    for refused in REFUSED {
        functions.insert(refused.name, Box::new(*refused));
    }
    functions.into_values().collect()
});

thread_local! {
    /// Set while a program is compiled that calls one of [`OURS`].
    static IS_IMPURE: Cell<bool> = const { Cell::new(false) };
    /// What the program that is compiled deletes: VRL tells of assignments only.
    static DELETIONS: RefCell<Vec<OwnedTargetPath>> = const { RefCell::new(Vec::new()) };
    static NOW: Cell<Timestamp> = const { Cell::new(Timestamp(0)) };
    static RANDOM: RefCell<Option<blake3::OutputReader>> = const { RefCell::new(None) };
}

/// What is noticed while something is compiled.
pub(super) struct Noticed {
    /// It needs [`set_circumstances`] before it is run.
    pub(super) is_impure: bool,
    /// The paths that it deletes.
    pub(super) deletes: Vec<OwnedTargetPath>,
}

pub(super) fn notice<T>(compile: impl FnOnce() -> T) -> (T, Noticed) {
    IS_IMPURE.set(false);
    DELETIONS.take();
    let compiled = compile();
    (compiled, Noticed { is_impure: IS_IMPURE.get(), deletes: DELETIONS.take() })
}

/// What the impure functions give while a program of this source text is run over a row.
pub(super) fn set_circumstances(source: &str, batch: &Batch, row: u32) {
    NOW.set(batch.arrival);
    let span = batch.spans[row as usize];
    let mut hasher = blake3::Hasher::new();
    for name in [source, &batch.lane.source, &batch.lane.partition] {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
    }
    match &batch.lane.origin {
        Origin::File(_) | Origin::Stream => {
            hasher.update(&(batch.base + u64::from(span.start)).to_le_bytes());
        }
        Origin::Kafka { .. } => {
            hasher.update(&(batch.base + u64::from(row)).to_le_bytes());
        }
        // How made records are cut into batches is not part of their identity; what they hold and when they are for is.
        Origin::Operator | Origin::Keyed(_) => {
            let mut json = Vec::new();
            crate::json::write_value(&batch.value(row), &mut json);
            hasher.update(&batch.time(row).0.to_le_bytes());
            hasher.update(&json);
        }
    }
    RANDOM.with_borrow_mut(|random| *random = Some(hasher.finalize_xof()));
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes);
    bytes
}

fn fill_random(bytes: &mut [u8]) {
    RANDOM.with_borrow_mut(|random| {
        random.as_mut().expect("circumstances are set before an impure program is run").fill(bytes);
    });
}

/// A number of `[0, 1)`, a multiple of 2^-53.
fn unit() -> f64 {
    (u64::from_le_bytes(random()) >> 11) as f64 / (1u64 << 53) as f64
}

/// A function of ours in the place of VRL's of the same name, with its parameters and types.
#[derive(Clone, Copy)]
struct Ours {
    name: &'static str,
    usage: &'static str,
    parameters: &'static [Parameter],
    returns: u16,
    call: fn(&[Option<Value>]) -> Resolved,
    /// Whether it fails on some arguments of the right type.
    can_fail: bool,
    /// Whether it gives the same for the same arguments.
    is_pure: bool,
}

const OURS: &[Ours] = &[
    Ours {
        name: "now",
        usage: "When the record arrived.",
        parameters: &[],
        returns: kind::TIMESTAMP,
        call: |_| Ok(Value::Timestamp(NOW.get().to_datetime())),
        can_fail: false,
        is_pure: false,
    },
    Ours {
        name: "random_bool",
        usage: "A boolean drawn at random from the record's coordinate.",
        parameters: &[],
        returns: kind::BOOLEAN,
        call: |_| Ok(Value::Boolean(random::<1>()[0] & 1 == 1)),
        can_fail: false,
        is_pure: false,
    },
    Ours {
        name: "random_bytes",
        usage: "Bytes drawn at random from the record's coordinate: no secret to one who knows it.",
        parameters: &[Parameter::required("length", kind::INTEGER, "How many bytes; at most 65,536.")],
        returns: kind::BYTES,
        call: |arguments| {
            let length = integer(arguments, 0)?;
            let length = usize::try_from(length).ok().filter(|length| *length <= 65_536);
            let mut bytes = vec![0; length.ok_or("length must be between 0 and 65536")?];
            fill_random(&mut bytes);
            Ok(Value::Bytes(bytes.into()))
        },
        can_fail: true,
        is_pure: false,
    },
    Ours {
        name: "random_float",
        usage: "A float of [min, max), drawn at random from the record's coordinate.",
        parameters: &[
            Parameter::required("min", kind::FLOAT, "The least."),
            Parameter::required("max", kind::FLOAT, "What it stays below."),
        ],
        returns: kind::FLOAT,
        call: |arguments| {
            let (min, max) = (float(arguments, 0)?, float(arguments, 1)?);
            if max <= min {
                return Err("max must be greater than min".into());
            }
            // Rounding can reach the bound that is excluded.
            let drawn = min + (max - min) * unit();
            let drawn = if drawn < max { drawn } else { min };
            Ok(Value::Float(NotNan::new(drawn).map_err(|_| "the range is too wide")?))
        },
        can_fail: true,
        is_pure: false,
    },
    Ours {
        name: "random_int",
        usage: "An integer of [min, max), drawn at random from the record's coordinate.",
        parameters: &[
            Parameter::required("min", kind::INTEGER, "The least."),
            Parameter::required("max", kind::INTEGER, "What it stays below."),
        ],
        returns: kind::INTEGER,
        call: |arguments| {
            let (min, max) = (integer(arguments, 0)?, integer(arguments, 1)?);
            if max <= min {
                return Err("max must be greater than min".into());
            }
            // The high half of a 128-bit product is within the range, and off from even by at most 2^-64.
            let range = u128::from(max.abs_diff(min));
            let drawn = (u128::from(u64::from_le_bytes(random())) * range) >> 64;
            Ok(Value::Integer(min.wrapping_add_unsigned(drawn as u64)))
        },
        can_fail: true,
        is_pure: false,
    },
    Ours {
        name: "uuid_v4",
        usage: "A UUID of version 4, drawn from the record's coordinate.",
        parameters: &[],
        returns: kind::BYTES,
        call: |_| Ok(uuid(random(), 4)),
        can_fail: false,
        is_pure: false,
    },
    Ours {
        name: "uuid_v7",
        usage: "A UUID of version 7, drawn from the record's coordinate.",
        parameters: &[Parameter::optional(
            "timestamp",
            kind::TIMESTAMP,
            "Its time; without it, when the record arrived.",
        )],
        returns: kind::BYTES,
        call: |arguments| {
            let time = match arguments[0].clone() {
                Some(time) => time.try_timestamp()?,
                None => NOW.get().to_datetime(),
            };
            let millis = u64::try_from(time.timestamp_millis()).map_err(|_| "the time is before 1970")?;
            let mut bytes: [u8; 16] = random();
            bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
            Ok(uuid(bytes, 7))
        },
        can_fail: false,
        is_pure: false,
    },
    Ours {
        name: "starts_with",
        usage: "Whether text begins with other text; VRL's own breaks on some text that is not UTF-8.",
        parameters: &[
            Parameter::required("value", kind::BYTES, "The text to look at."),
            Parameter::required("substring", kind::BYTES, "What it must begin with."),
            Parameter::optional("case_sensitive", kind::BOOLEAN, "Whether case matters; true by default."),
        ],
        returns: kind::BOOLEAN,
        call: |arguments| {
            let text = |place: usize| arguments[place].clone().unwrap_or(Value::Null).try_bytes();
            let (value, substring) = (text(0)?, text(1)?);
            let is_case_sensitive = arguments[2].clone().unwrap_or(Value::Boolean(true)).try_boolean()?;
            Ok(Value::Boolean(match is_case_sensitive {
                true => value.starts_with(&substring),
                false => starts_with_ignoring_case(&value, &String::from_utf8_lossy(&substring)),
            }))
        },
        can_fail: false,
        is_pure: true,
    },
    #[cfg(test)]
    Ours {
        name: "break_down",
        usage: "Panics, as no function should.",
        parameters: &[],
        returns: kind::BOOLEAN,
        call: |_| panic!("it was asked to"),
        can_fail: false,
        is_pure: false,
    },
];

fn integer(arguments: &[Option<Value>], place: usize) -> Result<i64, ExpressionError> {
    Ok(arguments[place].clone().unwrap_or(Value::Null).try_integer()?)
}

fn float(arguments: &[Option<Value>], place: usize) -> Result<f64, ExpressionError> {
    Ok(arguments[place].clone().unwrap_or(Value::Null).try_float()?)
}

/// RFC 9562: version and variant in their bits, hyphens in their places.
fn uuid(mut bytes: [u8; 16], version: u8) -> Value {
    bytes[6] = bytes[6] & 0x0f | version << 4;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (place, byte) in bytes.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).expect("four bits are a hexadecimal digit"));
        }
    }
    Value::from(text)
}

impl fmt::Debug for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Function for Ours {
    fn identifier(&self) -> &'static str {
        self.name
    }

    fn usage(&self) -> &'static str {
        self.usage
    }

    fn category(&self) -> &'static str {
        "Random"
    }

    fn return_kind(&self) -> u16 {
        self.returns
    }

    fn parameters(&self) -> &'static [Parameter] {
        self.parameters
    }

    fn pure(&self) -> bool {
        self.is_pure
    }

    fn examples(&self) -> &'static [Example] {
        &[]
    }

    fn compile(&self, _: &TypeState, _: &mut FunctionCompileContext, arguments: ArgumentList) -> Compiled {
        if !self.is_pure {
            IS_IMPURE.set(true);
        }
        let arguments = self.parameters.iter().map(|parameter| arguments.optional(parameter.keyword)).collect();
        Ok(Call { function: *self, arguments }.as_expr())
    }
}

#[derive(Clone, Debug)]
struct Call {
    function: Ours,
    arguments: Vec<Option<Box<dyn Expression>>>,
}

impl FunctionExpression for Call {
    fn resolve(&self, context: &mut Context) -> Resolved {
        let arguments: Result<Vec<_>, _> = self
            .arguments
            .iter()
            .map(|argument| argument.as_ref().map(|argument| argument.resolve(context)).transpose())
            .collect();
        (self.function.call)(&arguments?)
    }

    fn type_def(&self, state: &TypeState) -> TypeDef {
        let type_def = match self.function.returns {
            kind::BOOLEAN => TypeDef::boolean(),
            kind::INTEGER => TypeDef::integer(),
            kind::FLOAT => TypeDef::float(),
            kind::TIMESTAMP => TypeDef::timestamp(),
            _ => TypeDef::bytes(),
        };
        let constants: Option<Vec<_>> = self
            .arguments
            .iter()
            .map(|argument| argument.as_ref().map(|argument| argument.resolve_constant(state)))
            .map(|constant| constant.unwrap_or(Some(Value::Null)).map(Some))
            .collect();
        // With constants it is known now whether it fails; the draw is thrown away.
        let fails = match constants {
            _ if !self.function.can_fail => false,
            None => true,
            Some(constants) => {
                RANDOM.with_borrow_mut(|random| *random = Some(blake3::Hasher::new().finalize_xof()));
                (self.function.call)(&constants).is_err()
            }
        };
        type_def.maybe_fallible(fails)
    }
}

/// A function that asks the world outside: results would depend on more than the configuration and the input, and `check`
/// on more than the configuration.
#[derive(Clone, Copy)]
struct Refused {
    name: &'static str,
    parameters: &'static [Parameter],
    why: &'static str,
}

const REFUSED: &[Refused] = &[
    Refused { name: "dns_lookup", parameters: ANYTHING, why: "asks the network" },
    Refused { name: "reverse_dns", parameters: ANYTHING, why: "asks the network" },
    Refused { name: "http_request", parameters: ANYTHING, why: "asks the network" },
    Refused {
        name: "get_hostname",
        parameters: ANYTHING,
        why: "differs between machines; write ${HOSTNAME} in the configuration",
    },
    Refused {
        name: "get_env_var",
        parameters: ANYTHING,
        why: "reads the environment while records flow; write ${NAME} in the configuration",
    },
    Refused { name: "get_timezone_name", parameters: ANYTHING, why: "differs between machines; times are in UTC" },
    Refused { name: "encode_proto", parameters: ANYTHING, why: "reads a file" },
    Refused { name: "parse_proto", parameters: ANYTHING, why: "reads a file" },
    Refused { name: "validate_json_schema", parameters: ANYTHING, why: "reads a file" },
];

/// The parameters of all of them, so that a call is refused for what it is and not for how it is written.
const ANYTHING: &[Parameter] = &[
    Parameter::optional("value", kind::ANY, ""),
    Parameter::optional("qtype", kind::ANY, ""),
    Parameter::optional("class", kind::ANY, ""),
    Parameter::optional("options", kind::ANY, ""),
    Parameter::optional("url", kind::ANY, ""),
    Parameter::optional("method", kind::ANY, ""),
    Parameter::optional("headers", kind::ANY, ""),
    Parameter::optional("body", kind::ANY, ""),
    Parameter::optional("http_proxy", kind::ANY, ""),
    Parameter::optional("https_proxy", kind::ANY, ""),
    Parameter::optional("redact_headers", kind::ANY, ""),
    Parameter::optional("name", kind::ANY, ""),
    Parameter::optional("desc_file", kind::ANY, ""),
    Parameter::optional("message_type", kind::ANY, ""),
    Parameter::optional("allow_lossy_string_decoding", kind::ANY, ""),
    Parameter::optional("schema_definition", kind::ANY, ""),
    Parameter::optional("ignore_unknown_formats", kind::ANY, ""),
];

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Function for Refused {
    fn identifier(&self) -> &'static str {
        self.name
    }

    fn usage(&self) -> &'static str {
        self.why
    }

    fn category(&self) -> &'static str {
        "System"
    }

    fn return_kind(&self) -> u16 {
        kind::ANY
    }

    fn parameters(&self) -> &'static [Parameter] {
        self.parameters
    }

    fn examples(&self) -> &'static [Example] {
        &[]
    }

    fn compile(&self, _: &TypeState, _: &mut FunctionCompileContext, _: ArgumentList) -> Compiled {
        Err(refusal(format!("{} is not available: it {}", self.name, self.why)))
    }
}

fn refusal(message: String) -> Box<dyn DiagnosticMessage> {
    // VRL moves the label to the call, which is how the place of it is known.
    let labels = vec![Label::primary(message.clone(), Span::default())];
    Box::new(ExpressionError::Error { message, labels, notes: Vec::new() })
}

/// What is done with an argument of a function of VRL's before it is compiled: told are the function's name, the argument's, and all
/// arguments.
type Look = fn(&'static str, &'static str, &ArgumentList) -> Result<(), Box<dyn DiagnosticMessage>>;

/// Functions must not read files.
fn refuse_files(
    name: &'static str,
    argument: &'static str,
    arguments: &ArgumentList,
) -> Result<(), Box<dyn DiagnosticMessage>> {
    match arguments.optional(argument) {
        Some(_) => Err(refusal(format!("{name} cannot take `{argument}` here: it reads files"))),
        None => Ok(()),
    }
}

fn note_deletion(
    _: &'static str,
    argument: &'static str,
    arguments: &ArgumentList,
) -> Result<(), Box<dyn DiagnosticMessage>> {
    // What is no path is refused by the function itself.
    if let Ok(Some(query)) = arguments.optional_query(argument)
        && let Some(path) = query.external_path()
    {
        DELETIONS.with_borrow_mut(|deletions| deletions.push(path.clone()));
    }
    Ok(())
}

/// A function of VRL's of which one argument is looked at.
#[derive(Debug)]
struct Watched {
    inner: Box<dyn Function>,
    argument: &'static str,
    look: Look,
}

impl Function for Watched {
    fn identifier(&self) -> &'static str {
        self.inner.identifier()
    }

    fn usage(&self) -> &'static str {
        self.inner.usage()
    }

    fn category(&self) -> &'static str {
        self.inner.category()
    }

    fn return_kind(&self) -> u16 {
        self.inner.return_kind()
    }

    fn parameters(&self) -> &'static [Parameter] {
        self.inner.parameters()
    }

    fn pure(&self) -> bool {
        self.inner.pure()
    }

    fn examples(&self) -> &'static [Example] {
        self.inner.examples()
    }

    fn closure(&self) -> Option<closure::Definition> {
        self.inner.closure()
    }

    fn compile(&self, state: &TypeState, context: &mut FunctionCompileContext, arguments: ArgumentList) -> Compiled {
        (self.look)(self.inner.identifier(), self.argument, &arguments)?;
        self.inner.compile(state, context, arguments)
    }
}
