//! What a stored value says of the object that it is: its labels, and some of its fields as text.
//!
//! Custom resources are stored as JSON or CBOR, other kinds in an envelope with protobuf (or as JSON, where an
//! API server is told so). Fields are what the API server's own strategies make of them (Kubernetes 1.36): the same
//! names, defaults for what is missing, and the empty text for what a kind has no default for. Paths of custom
//! resources are those of their `selectableFields`, as stored.

mod kinds;
mod protobuf;
mod tree;

use std::borrow::Cow;

use self::kinds::Field;

/// What Kubernetes' protobuf begins with.
const PROTOBUF: &[u8] = b"k8s\0";

/// What Kubernetes' CBOR begins with: the tag that says that it is CBOR.
const CBOR: &[u8] = &[0xd9, 0xd9, 0xf7];

/// What is to be read of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    has_labels: bool,
    names: Vec<String>,
    /// The names as paths of JSON; none for a name that is no plain path.
    paths: Vec<Option<Vec<String>>>,
}

/// What was read of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object<'v> {
    labels: Option<Vec<(Cow<'v, str>, Cow<'v, str>)>>,
    fields: Vec<Option<Cow<'v, str>>>,
}

/// A value at the end of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Scalar<'v> {
    #[default]
    Absent,
    Text(Cow<'v, str>),
    Bool(bool),
    Integer(i64),
    /// It is of no kind that a selector can be held against.
    Odd,
}

/// What was found of a value, before it is known what it means.
#[derive(Debug, Default)]
struct Found<'v> {
    /// Labels that can't be read are none: then nothing is said of them.
    labels: Option<Vec<(Cow<'v, str>, Cow<'v, str>)>>,
    scalars: Vec<Scalar<'v>>,
}

// === impl Wanted ===

impl Wanted {
    /// Labels or not, and the fields of these names.
    pub fn new<'n>(has_labels: bool, names: impl Iterator<Item = &'n str>) -> Self {
        let names: Vec<String> = names.map(str::to_owned).collect();
        let is_plain = |step: &str| {
            let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
            !step.is_empty() && step.bytes().all(is_inside)
        };
        let path = |name: &String| {
            // Labels are read as labels; no field of an API server's lies below them.
            let is_label = name == "metadata.labels" || name.starts_with("metadata.labels.");
            let steps = name.split('.');
            let is_path = !is_label && steps.clone().all(is_plain);
            is_path.then(|| steps.map(str::to_owned).collect())
        };
        let paths = names.iter().map(path).collect();
        Self { has_labels, names, paths }
    }
}

// === impl Object ===

impl<'v> Object<'v> {
    /// Reads what is wanted of a value; `None` where it is no object of Kubernetes.
    pub fn read(value: &'v [u8], wanted: &Wanted) -> Option<Self> {
        if let Some(envelope) = value.strip_prefix(PROTOBUF) {
            return protobuf::read(envelope, wanted);
        }
        if let Some(cbor) = value.strip_prefix(CBOR) {
            return tree::read(&tree::Cbor(cbor), wanted);
        }
        let first = value.iter().find(|byte| !byte.is_ascii_whitespace());
        (first == Some(&b'{')).then(|| tree::read(&tree::Json(value), wanted)).flatten()
    }

    /// Its labels; `None` where they can't be read, or were not wanted.
    pub fn labels(&self) -> Option<&[(Cow<'v, str>, Cow<'v, str>)]> {
        self.labels.as_deref()
    }

    /// The field that was wanted at this place; `None` where it can't be said.
    pub fn field(&self, at: usize) -> Option<&Cow<'v, str>> {
        self.fields.get(at)?.as_ref()
    }
}

// === impl Scalar ===

impl<'v> Scalar<'v> {
    /// As Kubernetes writes it; the empty text where it is not there.
    fn text(self) -> Option<Cow<'v, str>> {
        match self {
            Self::Absent => Some(Cow::Borrowed("")),
            Self::Text(text) => Some(text),
            Self::Bool(value) => Some(Cow::Borrowed(if value { "true" } else { "false" })),
            Self::Integer(value) => Some(Cow::Owned(value.to_string())),
            Self::Odd => None,
        }
    }
}

/// A field of a known kind, of its sources in order: the first that says something.
fn of_known<'v>(field: &Field, sources: impl Iterator<Item = Scalar<'v>>) -> Option<Cow<'v, str>> {
    for source in sources {
        let text = source.text()?;
        if !text.is_empty() {
            return Some(text);
        }
    }
    Some(Cow::Borrowed(field.default))
}
