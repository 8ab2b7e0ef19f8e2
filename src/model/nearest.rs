//! The nearest valid name to a misspelt one, for messages that end in "did you mean …?".
//!
//! It suggests only what is plausibly meant: about one slip in three letters. It never suggests the
//! name itself, and never decides anything.

/// The name of `known` that `name` is most likely a misspelling of.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = name.to_lowercase();
    let slips_max = (typed.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|candidate| *candidate != name)
        .map(|candidate| {
            (strsim::damerau_levenshtein(&typed, &candidate.to_lowercase()), candidate)
        })
        .filter(|(slips, _)| *slips <= slips_max)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["namespace", "prefix", "customresource", "name"];

    #[test]
    fn a_slip_finds_its_name_and_a_stranger_finds_none() {
        assert_eq!(nearest("namepsace", KNOWN), Some("namespace"));
        assert_eq!(nearest("customResource", KNOWN), Some("customresource"));
        assert_eq!(nearest("nam", KNOWN), Some("name"));
        assert_eq!(nearest("replicas", KNOWN), None);
        assert_eq!(nearest("", KNOWN), None);
    }
}
