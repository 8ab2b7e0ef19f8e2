//! Labels and fields by which objects are found: what an index is made of.

use std::{borrow::Cow, fmt};

use super::{
    Part, Selector,
    object::{Object, Wanted},
};

/// A label or a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attribute {
    /// Which of the two it is.
    pub part: Part,
    /// The label's key, or the field's path.
    pub name: String,
}

/// What must hold of all that a selector matches: an attribute has one of some values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The attribute.
    pub attribute: Attribute,
    /// Its values; at least one, each once.
    pub values: Vec<String>,
}

/// What an object has of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<'v> {
    /// This value. A field that a kind of Kubernetes' own does not have there has the empty one.
    Value(Cow<'v, str>),
    /// Not this label.
    Absent,
    /// That can't be said: it may be anything.
    Unknown,
}

/// Attributes that are read together, in one walk over an object.
#[derive(Clone, Debug)]
pub struct Attributes {
    attributes: Vec<Attribute>,
    wanted: Wanted,
}

// === impl Attribute ===

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.part, self.name)
    }
}

// === impl Selector ===

impl Selector {
    /// What it requires of attributes, fields first: these are what most objects differ in.
    pub fn requirements(&self) -> Vec<Requirement> {
        let of = |part| {
            move |(name, values): (&str, Vec<&str>)| Requirement {
                attribute: Attribute { part, name: name.to_owned() },
                values: values.into_iter().map(str::to_owned).collect(),
            }
        };
        let fields = self.fields.required().map(of(Part::Fields));
        fields.chain(self.labels.required().map(of(Part::Labels))).collect()
    }
}

// === impl Attributes ===

impl Attributes {
    /// These, each once.
    pub fn new(attributes: Vec<Attribute>) -> Self {
        let has_labels = attributes.iter().any(|it| it.part == Part::Labels);
        let fields = attributes.iter().filter(|it| it.part == Part::Fields);
        let wanted = Wanted::new(has_labels, fields.map(|it| it.name.as_str()));
        Self { attributes, wanted }
    }

    /// What they are.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// What a value has of each, in order, whatever others are read with it. Costs a walk over it.
    pub fn read<'v>(&self, value: &'v [u8]) -> Vec<Reading<'v>> {
        if let Some(object) = Object::read(value, &self.wanted) {
            return self.of(&object);
        }
        // What can't be read for the sake of one may be read for another's.
        let alone = |attribute: &Attribute| {
            let alone = Self::new(vec![attribute.clone()]);
            let object = Object::read(value, &alone.wanted);
            object.and_then(|object| alone.of(&object).pop()).unwrap_or(Reading::Unknown)
        };
        self.attributes.iter().map(alone).collect()
    }

    fn of<'v>(&self, object: &Object<'v>) -> Vec<Reading<'v>> {
        let mut fields = 0..;
        let reading = |attribute: &Attribute| match attribute.part {
            Part::Fields => {
                let field = fields.next().and_then(|at| object.field(at));
                field.map_or(Reading::Unknown, |text| Reading::Value(text.clone()))
            }
            Part::Labels => match object.labels() {
                // Of a key that stands twice the last one counts.
                Some(labels) => match labels.iter().rev().find(|it| it.0 == attribute.name) {
                    Some((_, value)) => Reading::Value(value.clone()),
                    None => Reading::Absent,
                },
                None => Reading::Unknown,
            },
        };
        self.attributes.iter().map(reading).collect()
    }
}
