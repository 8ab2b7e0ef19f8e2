//! JSON and CBOR: one walk over the value that stops only where something is wanted.

use std::{borrow::Cow, fmt};

use minicbor::{Decoder, data::Type, decode};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    Found, Object, Scalar, Wanted,
    kinds::{Field, Known, has_defaults_for, known},
    of_known,
};

/// A text in JSON.
pub(super) struct Json<'v>(pub &'v [u8]);

/// A value in CBOR, without its tag.
pub(super) struct Cbor<'v>(pub &'v [u8]);

/// How a value is read.
pub(super) trait Format<'v> {
    /// Goes over it; `None` where it can't be read to its end.
    fn walk<'p>(&self, level: Level<'_, 'p, 'v>) -> Option<()>;
}

/// What is looked for from here on, and where it goes.
pub(super) struct Level<'s, 'p, 'v> {
    /// What is left of each path that led here, and which path it is.
    active: &'s [(usize, &'p [&'p str])],
    /// The path that leads to labels.
    labels: Option<usize>,
    found: &'s mut Found<'v>,
    /// How often a step of each path was taken: what stands twice is not read.
    steps: &'s mut [usize],
}

/// Finds out which paths a key belongs to.
struct Key<'s, 'p> {
    active: &'s [(usize, &'p [&'p str])],
    next: &'s mut Vec<(usize, &'p [&'p str])>,
}

/// A text that is kept.
struct Text;

const VERSION: &[&str] = &["apiVersion"];
const KIND: &[&str] = &["kind"];
const LABELS: &[&str] = &["metadata", "labels"];

/// Reads what is wanted; `None` where it is no object.
pub(super) fn read<'v>(value: &impl Format<'v>, wanted: &Wanted) -> Option<Object<'v>> {
    let dotted: Vec<Option<Vec<&str>>> = wanted
        .paths
        .iter()
        .map(|path| path.as_ref().map(|steps| steps.iter().map(String::as_str).collect()))
        .collect();
    let mut paths = vec![VERSION, KIND];
    paths.extend(wanted.has_labels.then_some(LABELS));
    let first = paths.len();
    paths.extend(dotted.iter().map(|path| path.as_deref().unwrap_or_default()));
    let labels = wanted.has_labels.then_some(2);
    let found = walk(value, &paths, labels)?;
    let mut scalars = found.scalars.into_iter();
    let (Some(Scalar::Text(version)), Some(Scalar::Text(kind))) = (scalars.next(), scalars.next())
    else {
        return None;
    };
    let mut fields = Vec::new();
    let as_stored = scalars.skip(first - 2);
    for ((name, path), scalar) in wanted.names.iter().zip(&dotted).zip(as_stored) {
        fields.push(match known(&version, &kind, name) {
            Known::Field(field) => read_field(value, field)?,
            Known::NotSelectable => None,
            // What is not stored may have a default that the API server sets whenever it reads.
            Known::OtherKind if scalar == Scalar::Absent => None,
            Known::OtherKind => path.as_ref().and_then(|_| scalar.text()),
        });
    }
    let labels = found.labels.filter(|it| !has_defaults_for(it, &version, &kind));
    Some(Object { labels, fields })
}

/// A field of one of Kubernetes' own kinds, which may stand elsewhere than where its name says.
fn read_field<'v>(value: &impl Format<'v>, field: &Field) -> Option<Option<Cow<'v, str>>> {
    let paths: Vec<&[&str]> = field.sources.iter().map(|source| source.names).collect();
    let found = walk(value, &paths, None)?;
    Some(of_known(field, found.scalars.into_iter()))
}

fn walk<'v>(
    value: &impl Format<'v>,
    paths: &[&[&str]],
    labels: Option<usize>,
) -> Option<Found<'v>> {
    let scalars = paths.iter().map(|_| Scalar::Absent).collect();
    // What has no labels has none of them.
    let mut found = Found { labels: labels.map(|_| Vec::new()), scalars };
    let mut steps = vec![0; paths.len()];
    let active: Vec<_> =
        paths.iter().copied().enumerate().filter(|(_, path)| !path.is_empty()).collect();
    value.walk(Level { active: &active, labels, found: &mut found, steps: &mut steps })?;
    for ((scalar, steps), path) in found.scalars.iter_mut().zip(steps).zip(paths) {
        if steps > path.len() {
            *scalar = Scalar::Odd;
        }
    }
    if labels.is_some_and(|at| found.scalars[at] == Scalar::Odd) {
        found.labels = None;
    }
    Some(found)
}

impl<'v> Format<'v> for Json<'v> {
    fn walk<'p>(&self, level: Level<'_, 'p, 'v>) -> Option<()> {
        let mut json = serde_json::Deserializer::from_slice(self.0);
        level.deserialize(&mut json).ok()?;
        json.end().ok()
    }
}

impl<'v> Format<'v> for Cbor<'v> {
    fn walk<'p>(&self, level: Level<'_, 'p, 'v>) -> Option<()> {
        let mut decoder = Decoder::new(self.0);
        item(&mut decoder, level).ok()?;
        (decoder.position() == self.0.len()).then_some(())
    }
}

/// One item of CBOR. It goes as deep as the paths do; all else is skipped, however deep it is.
fn item<'v>(decoder: &mut Decoder<'v>, level: Level<'_, '_, 'v>) -> Result<(), decode::Error> {
    let utf8 = |_| decode::Error::message("no UTF-8");
    match decoder.datatype()? {
        Type::Map if level.wants_labels() => {
            let mut labels = Vec::new();
            for _ in 0..decoder.map()?.unwrap_or(0) {
                let mut text =
                    || std::str::from_utf8(name(decoder)?).map(Cow::Borrowed).map_err(utf8);
                labels.push((text()?, text()?));
            }
            level.found.labels = Some(labels);
            Ok(())
        }
        Type::Map => {
            let Level { active, labels, found, steps } = level.into_object();
            let mut next = Vec::new();
            for _ in 0..decoder.map()?.unwrap_or(0) {
                next.clear();
                Key { active, next: &mut next }.take(name(decoder)?);
                if next.is_empty() {
                    decoder.skip()?;
                    continue;
                }
                next.iter().for_each(|(at, _)| steps[*at] += 1);
                item(decoder, Level { active: &next, labels, found, steps })?;
            }
            Ok(())
        }
        Type::Array => {
            let mut level = level;
            let first = level.first_of_list();
            let Level { labels, found, steps, .. } = level;
            for at in 0..decoder.array()?.unwrap_or(0) {
                match at {
                    0 if !first.is_empty() => {
                        item(decoder, Level { active: &first, labels, found, steps })?;
                    }
                    _ => decoder.skip()?,
                }
            }
            Ok(())
        }
        kind => {
            let scalar = match kind {
                // Kubernetes writes texts as bytes.
                Type::Bytes => Scalar::Text(Cow::Borrowed(
                    std::str::from_utf8(decoder.bytes()?).map_err(utf8)?,
                )),
                Type::String => Scalar::Text(Cow::Borrowed(decoder.str()?)),
                Type::Bool => Scalar::Bool(decoder.bool()?),
                Type::U8
                | Type::U16
                | Type::U32
                | Type::U64
                | Type::I8
                | Type::I16
                | Type::I32
                | Type::I64
                | Type::Int => i64::try_from(decoder.int()?).map_or(Scalar::Odd, Scalar::Integer),
                Type::Null => {
                    decoder.skip()?;
                    Scalar::Absent
                }
                // What has no length at its beginning is not written by Kubernetes either.
                _ => {
                    decoder.skip()?;
                    Scalar::Odd
                }
            };
            level.set(&scalar);
            Ok(())
        }
    }
}

/// A name in CBOR: a text, or bytes.
fn name<'v>(decoder: &mut Decoder<'v>) -> Result<&'v [u8], decode::Error> {
    match decoder.datatype()? {
        Type::String => decoder.str().map(str::as_bytes),
        _ => decoder.bytes(),
    }
}

// === impl Level ===

impl<'s, 'p, 'v> Level<'s, 'p, 'v> {
    /// Whether the labels are what is here.
    fn wants_labels(&self) -> bool {
        self.active.iter().any(|(at, rest)| rest.is_empty() && self.labels == Some(*at))
    }

    /// Here is an object: what ends here can't be held against a text.
    fn into_object(self) -> Self {
        for (at, _) in self.active.iter().filter(|(_, rest)| rest.is_empty()) {
            self.found.scalars[*at] = Scalar::Odd;
        }
        self
    }

    /// Here is a list: the paths that go on with the first of it; all others end nowhere.
    fn first_of_list(&mut self) -> Vec<(usize, &'p [&'p str])> {
        let mut first = Vec::new();
        for (at, rest) in self.active {
            match rest.split_first() {
                Some((&"0", rest)) => {
                    first.push((*at, rest));
                    self.steps[*at] += 1;
                }
                _ => self.found.scalars[*at] = Scalar::Odd,
            }
        }
        first
    }

    /// A value that is no object and no list, at the end of some paths.
    fn set(self, scalar: &Scalar<'v>) {
        for (at, rest) in self.active {
            let is_labels = self.labels == Some(*at);
            self.found.scalars[*at] = match scalar {
                // Nothing is there, also of what would be below.
                Scalar::Absent => Scalar::Absent,
                scalar if rest.is_empty() && !is_labels => scalar.clone(),
                _ => Scalar::Odd,
            };
        }
    }
}

impl<'v> DeserializeSeed<'v> for Level<'_, '_, 'v> {
    type Value = ();

    fn deserialize<D: Deserializer<'v>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'v> Visitor<'v> for Level<'_, '_, 'v> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'v>>(self, mut map: A) -> Result<(), A::Error> {
        if self.wants_labels() {
            let mut labels = Vec::new();
            while let Some(key) = map.next_key_seed(Text)? {
                labels.push((key, map.next_value_seed(Text)?));
            }
            self.found.labels = Some(labels);
            return Ok(());
        }
        let Self { active, labels, found, steps } = self.into_object();
        let mut next = Vec::new();
        loop {
            next.clear();
            let key = Key { active, next: &mut next };
            if map.next_key_seed(key)?.is_none() {
                return Ok(());
            }
            if next.is_empty() {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            next.iter().for_each(|(at, _)| steps[*at] += 1);
            map.next_value_seed(Level { active: &next, labels, found, steps })?;
        }
    }

    fn visit_seq<A: SeqAccess<'v>>(mut self, mut list: A) -> Result<(), A::Error> {
        let first = self.first_of_list();
        if !first.is_empty() {
            list.next_element_seed(Level { active: &first, ..self })?;
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_borrowed_str<E: Error>(self, text: &'v str) -> Result<(), E> {
        self.set(&Scalar::Text(Cow::Borrowed(text)));
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.set(&Scalar::Text(Cow::Owned(text.to_owned())));
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.set(&Scalar::Bool(value));
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.set(&Scalar::Integer(value));
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.set(&i64::try_from(value).map_or(Scalar::Odd, Scalar::Integer));
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.set(&Scalar::Odd);
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.set(&Scalar::Absent);
        Ok(())
    }
}

// === impl Key ===

impl Key<'_, '_> {
    fn take(self, key: &[u8]) {
        for (at, rest) in self.active {
            if let Some((step, rest)) = rest.split_first()
                && step.as_bytes() == key
            {
                self.next.push((*at, rest));
            }
        }
    }
}

impl<'v> DeserializeSeed<'v> for Key<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'v>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'v> Visitor<'v> for Key<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<(), E> {
        self.take(key.as_bytes());
        Ok(())
    }
}

// === impl Text ===

impl<'v> DeserializeSeed<'v> for Text {
    type Value = Cow<'v, str>;

    fn deserialize<D: Deserializer<'v>>(self, deserializer: D) -> Result<Cow<'v, str>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'v> Visitor<'v> for Text {
    type Value = Cow<'v, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'v str) -> Result<Cow<'v, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Cow<'v, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}
