//! Selectors on labels: the grammar of apimachinery's `labels.Parse`, with its corners.
//!
//! `k=v` and `k==v` ask for the value, `k in (v,w)` for one of several, `k` for the label; `k!=v`, `k notin (v,w)`
//! and `!k` for the contrary, which what has no such label is, too. `k>1` and `k<1` compare whole numbers.

use std::collections::BTreeSet;

use super::Wrong;

/// Which labels are wanted: all of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Missing,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Above(i64),
    Below(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'t> {
    End,
    Word(&'t str),
    Open,
    Close,
    Comma,
    Not,
    Equals,
    NotEquals,
    Above,
    Below,
}

/// The tokens of a text, one at a time.
#[derive(Clone, Debug)]
struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

/// Labels' keys and values, and the prefix of a key, are this long at most.
const NAME_BYTES_MAX: usize = 63;
const PREFIX_BYTES_MAX: usize = 253;

// === impl LabelSelector ===

impl LabelSelector {
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let mut lexer = Lexer { text, at: 0 };
        let mut requirements = Vec::new();
        loop {
            match lexer.clone().next() {
                (_, Token::End) if requirements.is_empty() => return Ok(Self(requirements)),
                (_, Token::Word(_) | Token::Not) => requirements.push(requirement(&mut lexer)?),
                (at, found) => return Err((at, found.instead_of("a label's key or `!`"))),
            }
            match lexer.next() {
                (_, Token::End) => return Ok(Self(requirements)),
                (_, Token::Comma) => {}
                (at, found) => return Err((at, found.instead_of("`,` or the end"))),
            }
        }
    }

    pub(super) fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys that must have one of some values, and these.
    pub(super) fn required(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.0.iter().filter_map(|requirement| match &requirement.test {
            Test::In(values) => {
                Some((requirement.key.as_str(), values.iter().map(String::as_str).collect()))
            }
            _ => None,
        })
    }

    /// Whether all that is required holds of these labels.
    pub(super) fn matches(&self, labels: &[(impl AsRef<str>, impl AsRef<str>)]) -> bool {
        self.0.iter().all(|requirement| {
            // Of a key that stands twice the last one counts.
            let found = labels.iter().rev().find(|(key, _)| key.as_ref() == requirement.key);
            requirement.test.holds(found.map(|(_, value)| value.as_ref()))
        })
    }
}

fn requirement(lexer: &mut Lexer<'_>) -> Result<Requirement, Wrong> {
    let mut is_negated = false;
    let (at, key) = match lexer.next() {
        (_, Token::Not) => {
            is_negated = true;
            lexer.next()
        }
        first => first,
    };
    let Token::Word(key) = key else { return Err((at, key.instead_of("a label's key"))) };
    check_key(key).map_err(|reason| (at, reason))?;
    let of = |test| Requirement { key: key.to_owned(), test };
    if is_negated {
        return Ok(of(Test::Missing));
    }
    if matches!(lexer.clone().next().1, Token::End | Token::Comma) {
        return Ok(of(Test::Exists));
    }
    let (at, operator) = lexer.next();
    let test = match operator {
        Token::Word("in") => Test::In(values(lexer)?),
        Token::Word("notin") => Test::NotIn(values(lexer)?),
        Token::Equals => Test::In([value(lexer)?.1].into()),
        Token::NotEquals => Test::NotIn([value(lexer)?.1].into()),
        Token::Above => Test::Above(number(lexer)?),
        Token::Below => Test::Below(number(lexer)?),
        found => {
            let expected = "one of `=`, `==`, `!=`, `in`, `notin`, `>`, `<`";
            return Err((at, found.instead_of(expected)));
        }
    };
    Ok(of(test))
}

/// One value, which may be none at all.
fn value(lexer: &mut Lexer<'_>) -> Result<(usize, String), Wrong> {
    if let (at, Token::End | Token::Comma) = lexer.clone().next() {
        return Ok((at, String::new()));
    }
    match lexer.next() {
        (at, Token::Word(value)) => {
            check_value(value).map_err(|reason| (at, reason))?;
            Ok((at, value.to_owned()))
        }
        (at, found) => Err((at, found.instead_of("a value"))),
    }
}

fn number(lexer: &mut Lexer<'_>) -> Result<i64, Wrong> {
    let (at, value) = value(lexer)?;
    value.parse().map_err(|_| (at, format!("`{value}` is no whole number of 64 bits")))
}

/// Values in brackets; where one is missing between commas it is empty.
fn values(lexer: &mut Lexer<'_>) -> Result<BTreeSet<String>, Wrong> {
    match lexer.next() {
        (_, Token::Open) => {}
        (at, found) => return Err((at, found.instead_of("`(`"))),
    }
    let mut values = BTreeSet::new();
    let mut add = |value: &str| {
        values.insert(value.to_owned());
    };
    if lexer.clone().next().1 == Token::Close {
        lexer.next();
        add("");
        return Ok(values);
    }
    let mut is_first = true;
    loop {
        match lexer.next() {
            (at, Token::Word(value)) => {
                check_value(value).map_err(|reason| (at, reason))?;
                add(value);
                match lexer.clone().next() {
                    (_, Token::Comma) => {}
                    (_, Token::Close) => break,
                    (at, found) => return Err((at, found.instead_of("`,` or `)`"))),
                }
            }
            (_, Token::Comma) => {
                if is_first {
                    add("");
                }
                match lexer.clone().next().1 {
                    Token::Close => {
                        add("");
                        break;
                    }
                    Token::Comma => add(""),
                    _ => {}
                }
            }
            (at, found) => return Err((at, found.instead_of("`,`, `)` or a value"))),
        }
        is_first = false;
    }
    lexer.next();
    Ok(values)
}

/// `name` or `prefix/name`.
fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix {
        let is_part = |part: &str| {
            let is_inside =
                |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
            let ends = [part.bytes().next(), part.bytes().last()];
            part.as_bytes().iter().all(is_inside)
                && ends.iter().all(|end| end.is_some_and(|it| it != b'-'))
        };
        if prefix.len() > PREFIX_BYTES_MAX || !prefix.split('.').all(is_part) {
            return Err(format!("what stands before the `/` of the key `{key}` is no DNS name"));
        }
    }
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_name(name) {
        return Err(format!(
            "`{key}` is no label's key: its name has 1 to 63 letters, digits, `-`, `_` and `.`, and begins and ends \
             with a letter or digit"
        ));
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() || (value.len() <= NAME_BYTES_MAX && is_name(value)) {
        return Ok(());
    }
    Err(format!(
        "`{value}` is no label's value: it has at most 63 letters, digits, `-`, `_` and `.`, and begins and ends with \
         a letter or digit"
    ))
}

fn is_name(text: &str) -> bool {
    let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let mut ends = [text.bytes().next(), text.bytes().last()].into_iter();
    text.bytes().all(is_inside)
        && ends.all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
}

// === impl Test ===

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::Missing => value.is_none(),
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Self::Above(bound) => number().is_some_and(|number| number > *bound),
            Self::Below(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

// === impl Token ===

impl Token<'_> {
    fn instead_of(self, expected: &str) -> String {
        let found = match self {
            Self::End => "the end".to_owned(),
            Self::Word(text) => format!("`{text}`"),
            Self::Open => "`(`".to_owned(),
            Self::Close => "`)`".to_owned(),
            Self::Comma => "`,`".to_owned(),
            Self::Not => "`!`".to_owned(),
            Self::Equals => "`=`".to_owned(),
            Self::NotEquals => "`!=`".to_owned(),
            Self::Above => "`>`".to_owned(),
            Self::Below => "`<`".to_owned(),
        };
        format!("there is {found} where {expected} is expected")
    }
}

// === impl Lexer ===

impl<'t> Lexer<'t> {
    /// The next token, and where it stands. As in Kubernetes a NUL ends a text, but right behind a token, where it
    /// stands for nothing.
    fn next(&mut self) -> (usize, Token<'t>) {
        let rest = &self.text[self.at..];
        let blank = rest.bytes().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
        self.at += blank.count();
        let (at, rest) = (self.at, &self.text[self.at..]);
        let is_sign = |byte: u8| matches!(byte, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<');
        let token = match rest.bytes().next() {
            None | Some(0) => return (at, Token::End),
            Some(first) if is_sign(first) => {
                let is_long = rest.starts_with("==") || rest.starts_with("!=");
                self.at += if is_long { 2 } else { 1 };
                match first {
                    b'!' if is_long => Token::NotEquals,
                    b'!' => Token::Not,
                    b'(' => Token::Open,
                    b')' => Token::Close,
                    b',' => Token::Comma,
                    b'>' => Token::Above,
                    b'<' => Token::Below,
                    _ => Token::Equals,
                }
            }
            Some(_) => {
                let is_word = |byte: &u8| {
                    !is_sign(*byte) && !matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0)
                };
                let length = rest.bytes().take_while(is_word).count();
                self.at += length;
                Token::Word(&rest[..length])
            }
        };
        self.at += usize::from(self.text.as_bytes().get(self.at) == Some(&0));
        (at, token)
    }
}
