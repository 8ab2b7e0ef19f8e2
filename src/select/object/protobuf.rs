//! Kubernetes' protobuf: an envelope that says what is in it, and an object whose kind says which number is
//! which field.

use std::borrow::Cow;

use super::{
    Object, Scalar, Wanted,
    kinds::{Field, Form, Known, Source, Step, has_defaults_for, known},
    of_known,
};

/// The labels of an object: `metadata.labels`, and the key and the value of each.
const METADATA: u32 = 1;
const LABELS: u32 = 11;
const KEY: u32 = 1;
const VALUE: u32 = 2;

/// A field on the wire.
enum Wire<'v> {
    Number(u64),
    Bytes(&'v [u8]),
    /// Of a fixed width: nothing that is looked for.
    Fixed,
}

/// Fields on the wire, one after the other; ends early where one can't be read.
struct Fields<'v> {
    rest: &'v [u8],
    is_broken: bool,
}

/// Reads what follows the magic number; `None` where it is no object.
pub(super) fn read<'v>(envelope: &'v [u8], wanted: &Wanted) -> Option<Object<'v>> {
    let (mut api_version, mut kind, mut raw, mut is_encoded) = ("", "", None, false);
    each(envelope, |number, wire| match (number, wire) {
        (1, Wire::Bytes(type_meta)) => each(type_meta, |number, wire| match (number, wire) {
            (1, Wire::Bytes(text)) => std::str::from_utf8(text).ok().map(|text| api_version = text),
            (2, Wire::Bytes(text)) => std::str::from_utf8(text).ok().map(|text| kind = text),
            _ => Some(()),
        }),
        (2, Wire::Bytes(bytes)) => {
            raw = Some(bytes);
            Some(())
        }
        (3, Wire::Bytes(encoding)) => {
            is_encoded = !encoding.is_empty();
            Some(())
        }
        _ => Some(()),
    })?;
    let raw = raw.filter(|_| !is_encoded)?;
    // The numbers of other people's kinds are not known.
    let is_known = |name: &str| !matches!(known(api_version, kind, name), Known::OtherKind);
    let labels = match wanted.has_labels && is_known("metadata.name") {
        true => Some(labels(raw)?).filter(|it| !has_defaults_for(it, api_version, kind)),
        false => None,
    };
    let mut fields = Vec::new();
    for name in &wanted.names {
        fields.push(match known(api_version, kind, name) {
            Known::Field(field) => read_field(raw, field)?,
            Known::NotSelectable | Known::OtherKind => None,
        });
    }
    Some(Object { labels, fields })
}

/// A field; `None` inside where it can't be said.
fn read_field<'v>(raw: &'v [u8], field: &Field) -> Option<Option<Cow<'v, str>>> {
    let mut sources = Vec::new();
    for source in field.sources {
        sources.push(scalar(raw, source)?);
    }
    Some(of_known(field, sources.into_iter()))
}

fn scalar<'v>(raw: &'v [u8], source: &Source) -> Option<Scalar<'v>> {
    let mut found = Scalar::Absent;
    walk(raw, source.numbers, &mut |wire| {
        found = match (wire, source.form) {
            (Wire::Bytes(text), Form::Text) => match std::str::from_utf8(text) {
                Ok(text) => Scalar::Text(Cow::Borrowed(text)),
                Err(_) => Scalar::Odd,
            },
            (Wire::Number(number), Form::Bool) => Scalar::Bool(number != 0),
            // A negative one of 32 bits is written with 64.
            (Wire::Number(number), Form::Integer) => Scalar::Integer(number as i64),
            _ => Scalar::Odd,
        };
    })?;
    Some(found)
}

/// Goes along numbers. What stands twice and is no list is merged: its last value counts.
fn walk<'v>(bytes: &'v [u8], path: &[Step], end: &mut impl FnMut(Wire<'v>)) -> Option<()> {
    let Some((step, rest)) = path.split_first() else { return Some(()) };
    let (wanted, is_list) = match step {
        Step::One(number) => (*number, false),
        Step::First(number) => (*number, true),
    };
    let mut count = 0;
    each(bytes, |number, wire| {
        if number != wanted {
            return Some(());
        }
        count += 1;
        match wire {
            _ if is_list && count > 1 => Some(()),
            wire if rest.is_empty() => {
                end(wire);
                Some(())
            }
            Wire::Bytes(inner) => walk(inner, rest, end),
            Wire::Number(_) | Wire::Fixed => None,
        }
    })
}

fn labels(raw: &[u8]) -> Option<Vec<(Cow<'_, str>, Cow<'_, str>)>> {
    let mut labels = Vec::new();
    let mut is_good = true;
    walk(raw, &[Step::One(METADATA), Step::One(LABELS)], &mut |wire| {
        let Wire::Bytes(entry) = wire else { return is_good = false };
        let (mut key, mut value) = ("", "");
        let read = each(entry, |number, wire| match (number, wire) {
            (KEY, Wire::Bytes(text)) => std::str::from_utf8(text).ok().map(|text| key = text),
            (VALUE, Wire::Bytes(text)) => std::str::from_utf8(text).ok().map(|text| value = text),
            _ => Some(()),
        });
        is_good &= read.is_some();
        labels.push((Cow::Borrowed(key), Cow::Borrowed(value)));
    })?;
    is_good.then_some(labels)
}

/// Does something with each field of a message; `None` where it is none, or something was not right.
fn each<'v>(bytes: &'v [u8], mut todo: impl FnMut(u32, Wire<'v>) -> Option<()>) -> Option<()> {
    let mut fields = Fields { rest: bytes, is_broken: false };
    while let Some((number, wire)) = fields.next() {
        todo(number, wire)?;
    }
    (!fields.is_broken).then_some(())
}

// === impl Fields ===

impl<'v> Fields<'v> {
    fn next(&mut self) -> Option<(u32, Wire<'v>)> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        self.is_broken = field.is_none();
        field
    }

    fn field(&mut self) -> Option<(u32, Wire<'v>)> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => self.take(8).map(|_| Wire::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Wire::Fixed)?,
            // Groups are not written by anybody any more.
            _ => return None,
        };
        Some((number, wire))
    }

    fn take(&mut self, length: usize) -> Option<&'v [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}
