//! Durations as Go writes them: `5m`, `1h30m`, `1.5s`, `0`.

use std::time::Duration;

const UNITS_NS: &[(&str, u128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration; `None` where it is none, is negative, or is beyond Go's 292 years.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total_ns: u128 = 0;
    while !rest.is_empty() {
        let (whole, behind) = digits(rest);
        let (fraction, behind) = behind.strip_prefix('.').map_or(("", behind), digits);
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_length = behind.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, behind) = behind.split_at(unit_length.unwrap_or(behind.len()));
        let (_, unit_ns) = UNITS_NS.iter().find(|(name, _)| *name == unit)?;
        total_ns = total_ns.checked_add(part_ns(whole, fraction, *unit_ns)?)?;
        rest = behind;
    }
    let total_ns = u64::try_from(total_ns).ok().filter(|ns| i64::try_from(*ns).is_ok())?;
    Some(Duration::from_nanos(total_ns))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn part_ns(whole: &str, fraction: &str, unit_ns: u128) -> Option<u128> {
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Digits beyond a nanosecond of an hour change nothing.
    let fraction = &fraction[..fraction.len().min(15)];
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    whole.checked_mul(unit_ns)?.checked_add(fraction * unit_ns / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let seconds = |text| parse(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("5m"), Some(300.0));
        assert_eq!(seconds("1h30m"), Some(5400.0));
        assert_eq!(seconds("1.5s"), Some(1.5));
        assert_eq!(seconds(".5s"), Some(0.5));
        assert_eq!(seconds("100ms"), Some(0.1));
        assert_eq!(seconds("0"), Some(0.0));
        assert_eq!(seconds("0s"), Some(0.0));
        for bad in ["", "5", "-5m", "m", "5 m", "5d", "1h30", ".s", "99999999999999999999h", "5é"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
