//! Durations as Go writes them: `1h30m`, `1.5h`, `300ms`, `100us`.

use std::time::Duration;

const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Nanoseconds in the longest duration of Go.
const LONGEST: u128 = i64::MAX as u128;

/// Reads a duration, in whole milliseconds.
///
/// # Errors
/// It is none, is negative, or is finer than a millisecond, which no setting of ours is.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration such as \"1h30m\"");
    if text.starts_with('-') {
        return Err(format!("{text:?} is negative"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut nanos = 0_u128;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() || whole.len() > 19 || fraction.len() > 15 {
            return Err(bad());
        }
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let number = |text: &str| if text.is_empty() { Ok(0_u128) } else { text.parse().map_err(|_| bad()) };
        let places = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
        nanos += number(whole)? * size + number(fraction)? * size / places;
        if nanos > LONGEST {
            return Err(format!("{text:?} is too long"));
        }
        rest = after;
    }
    if !nanos.is_multiple_of(1_000_000) {
        return Err(format!("{text:?} is finer than a millisecond"));
    }
    u64::try_from(nanos / 1_000_000).map(Duration::from_millis).map_err(|_| bad())
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_of_go() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("30m1h", 5_400_000),
            (".5s", 500),
            ("1.s", 1000),
            ("300ms", 300),
            ("2000us", 2),
            ("2000µs", 2),
            ("3000000ns", 3),
            ("+8760h0m0s", 31_536_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "1", "h", "-1h", "1d", "1 h", "1h ", ".s", "1us", "9999999999999999999h", "99999999h", "+"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9.hmsunµ+-]{0,40}") {
            let _ = parse(&text);
        }
    }
}
