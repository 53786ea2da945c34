//! Values on the command line that many commands take.

use std::time::Duration;

/// A number of bytes: `4096`, `512K`, `256M`, `256MiB`, `2G`.
///
/// # Errors
/// Says what a size looks like.
pub fn size(text: &str) -> Result<u64, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}: use K, M, G or T, as in 512M"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a size is a whole number with a unit, as in 512M".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "this size is beyond 64 bits".to_owned())
}

/// A time: `90`, `90s`, `500ms`, `5m`, `1h`.
///
/// # Errors
/// Says what a duration looks like.
pub fn duration(text: &str) -> Result<Duration, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let bad = || "a duration is a whole number with ms, s, m or h, as in 90s".to_owned();
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    match number.checked_mul(milliseconds) {
        Some(0) => Err("a duration of zero would end the machine before it starts".into()),
        // Beyond a century, sums with the clock could overflow.
        Some(total) if total < 3_600_000 * 24 * 36_500 => Ok(Duration::from_millis(total)),
        _ => Err("this duration is too long".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert!(size("").is_err());
        assert!(size("M").is_err());
        assert!(size("-1M").is_err());
        assert!(size("1X").is_err());
        assert!(size("99999999T").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in [
            "",
            "0",
            "-1",
            "1.5s",
            "1d",
            "s",
            "99999999999999999999",
            "9999999999h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
