//! Selectors and objects: what is read of the texts that a client sends, and of values in all three encodings.
//!
//! The input is a label selector, a line's end, a field selector, a line's end, and a value.
//!
//! What an index is made of must agree with what a selector says of a value: an object that matches is found by each of
//! the selector's requirements. Of one that can't be judged as a whole, a requirement that can be may still say no.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pleach::select::{Attributes, Part, Reading, Selector, Verdict};

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(3, |byte| *byte == b'\n');
    let mut text = || parts.next().and_then(|part| std::str::from_utf8(part).ok());
    let (Some(labels), Some(fields)) = (text(), text()) else { return };
    let value = parts.next().unwrap_or_default();
    let selector = match Selector::parse(labels, fields) {
        Ok(Some(selector)) => selector,
        Ok(None) => return,
        Err(error) => {
            let text = if error.part == Part::Labels { labels } else { fields };
            assert!(error.at <= text.len(), "{error}: that is behind its end");
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(selector.texts(), (labels, fields));
    let verdict = selector.verdict(value);
    assert_eq!(verdict != Verdict::Unwanted, selector.may_match(value));
    let requirements = selector.requirements();
    let attributes = requirements.iter().map(|it| it.attribute.clone()).collect();
    let readings = Attributes::new(attributes).read(value);
    assert_eq!(readings.len(), requirements.len());
    for (required, reading) in requirements.iter().zip(&readings) {
        // Read alone, as an index of it is, it is the same.
        let alone = Attributes::new(vec![required.attribute.clone()]);
        assert_eq!(alone.read(value).first(), Some(reading), "{:?}", required.attribute);
        let is_found = match reading {
            Reading::Value(value) => required.values.iter().any(|it| it == value),
            Reading::Absent => false,
            Reading::Unknown => true,
        };
        assert!(is_found || verdict != Verdict::Wanted, "{required:?} does not find {reading:?}");
    }
});
