//! Figures: numbers as people read them. What is not known is a dash.

use crate::proto::tree as pb;

/// What stands where a node says nothing.
pub(super) const UNKNOWN: &str = "–";

/// A figure, or a dash.
pub(super) fn or_dash(figure: Option<String>) -> String {
    figure.unwrap_or_else(|| UNKNOWN.to_owned())
}

/// `1,234,567`
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A revision; nodes say 0 where there is none.
pub(super) fn revision(revision: i64) -> Option<String> {
    u64::try_from(revision).ok().filter(|it| *it > 0).map(count)
}

/// `1.5 MB`, in thousands.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1e3;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 999.5
        && let Some(next) = units.next()
    {
        value /= 1e3;
        unit = Some(next);
    }
    format!("{} {}", significant(value), unit.unwrap_or(&""))
}

/// Bytes; nodes say 0 where they do not know.
pub(super) fn known_bytes(number: u64) -> Option<String> {
    Some(number).filter(|it| *it > 0).map(bytes)
}

/// `12 /s`
pub(super) fn rate(rate: f64) -> String {
    match rate {
        rate if rate <= 0.0 => "0 /s".to_owned(),
        rate if rate < 0.1 => "<0.1 /s".to_owned(),
        rate => format!("{} /s", significant(rate)),
    }
}

/// How long one of many took: `3.2 ms`
pub(super) fn latency(seconds: f64) -> String {
    match seconds * 1e3 {
        ms if ms < 0.1 => "<0.1 ms".to_owned(),
        ms if ms < 999.5 => format!("{} ms", significant(ms)),
        ms => format!("{} s", significant(ms / 1e3)),
    }
}

/// How long something lasts: `2 min 3 s`
pub(super) fn span(seconds: f64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    // A float that no integer holds becomes the greatest one.
    let whole = seconds as u64;
    let at = UNITS.iter().position(|(size, _)| whole >= *size).unwrap_or(UNITS.len() - 1);
    let (size, unit) = UNITS[at];
    let first = format!("{} {unit}", count(whole / size));
    match UNITS.get(at + 1) {
        Some((below, unit)) if whole % size >= *below => {
            format!("{first} {} {unit}", whole % size / below)
        }
        _ => first,
    }
}

/// A measure; what is no number, or below nothing, is none.
pub(super) fn measure(number: f64) -> Option<f64> {
    Some(number).filter(|it| it.is_finite() && *it >= 0.0)
}

/// Two digits where there is one before the point, else whole.
fn significant(value: f64) -> String {
    if value < 9.95 {
        return format!("{value:.1}");
    }
    count(value.round() as u64)
}

/// How many a second of late.
pub(super) fn per_second(done: &Option<pb::Activity>) -> Option<f64> {
    let done = known(done)?;
    measure(done.recent as f64 / done.recent_s)
}

/// How many failed of late.
pub(super) fn failed(done: &Option<pb::Activity>) -> Option<u64> {
    Some(known(done)?.recent_failed)
}

/// How long 99 of 100 took of late at most.
pub(super) fn p99(done: &Option<pb::Activity>) -> Option<f64> {
    measure(known(done)?.recent_p99_s).filter(|it| *it > 0.0)
}

/// What something is known of, of late.
fn known(done: &Option<pb::Activity>) -> Option<&pb::Activity> {
    done.as_ref().filter(|done| measure(done.recent_s).is_some_and(|it| it > 0.0))
}

/// All that is known, in a line.
pub(super) fn activity(done: &Option<pb::Activity>) -> Option<String> {
    let all = done.as_ref()?;
    let mut text = format!("{} in all", count(all.total));
    if all.failed > 0 {
        text += &format!(", {} failed", count(all.failed));
    }
    if let Some(of_late) = known(done) {
        let window = span(of_late.recent_s);
        text += &format!("; {} in the last {window}", count(of_late.recent));
        if of_late.recent_failed > 0 {
            text += &format!(", {} failed", count(of_late.recent_failed));
        }
        if let Some(slow) = p99(done) {
            text += &format!(", p99 {}", latency(slow));
        }
    }
    Some(text)
}
