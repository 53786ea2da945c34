//! Comparison of versions (UAPI.10 Version Format Specification), and the
//! patterns that boot loaders match entries with.

use std::cmp::Ordering;

/// Compares two versions, kernel releases or file names; the newer is greater.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (clean(a), clean(b));
    loop {
        let skip = |s: &[u8]| s.iter().take_while(|c| !known(**c)).count();
        a = a.split_off(skip(&a));
        b = b.split_off(skip(&b));
        // A tilde is before everything, the end included; then the end, then
        // these signs in this order.
        for (sign, lonely) in [
            (b'~', Some(Ordering::Less)),
            (0, None),
            (b'-', Some(Ordering::Less)),
            (b'^', Some(Ordering::Less)),
            (b'.', Some(Ordering::Less)),
        ] {
            if sign == 0 {
                if a.is_empty() || b.is_empty() {
                    return a.len().cmp(&b.len());
                }
                continue;
            }
            match (a.first() == Some(&sign), b.first() == Some(&sign)) {
                (true, true) => {
                    a.remove(0);
                    b.remove(0);
                }
                (true, false) => return lonely.unwrap_or(Ordering::Less),
                (false, true) => return lonely.map_or(Ordering::Greater, Ordering::reverse),
                (false, false) => {}
            }
        }
        let digits = |s: &[u8]| s.first().is_some_and(u8::is_ascii_digit);
        let order = if digits(&a) || digits(&b) {
            number(&take(&mut a, u8::is_ascii_digit))
                .cmp(&number(&take(&mut b, u8::is_ascii_digit)))
        } else {
            take(&mut a, u8::is_ascii_alphabetic).cmp(&take(&mut b, u8::is_ascii_alphabetic))
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Long names differ early.
fn clean(s: &str) -> Vec<u8> {
    s.bytes().take(512).collect()
}

fn known(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'~' | b'-' | b'^' | b'.')
}

fn take(from: &mut Vec<u8>, like: fn(&u8) -> bool) -> Vec<u8> {
    let n = from.iter().take_while(|c| like(c)).count();
    let rest = from.split_off(n);
    std::mem::replace(from, rest)
}

/// A number of any length: without leading zeroes the longer one is greater.
fn number(digits: &[u8]) -> (usize, Vec<u8>) {
    let zeroes = digits.iter().take_while(|d| **d == b'0').count();
    let digits = digits.get(zeroes..).unwrap_or_default();
    (digits.len(), digits.to_vec())
}

/// Whether a name matches a pattern with `*`, `?` and `[…]`, without regard to
/// case.
pub fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.to_lowercase().chars().take(512).collect();
    let name: Vec<char> = name.to_lowercase().chars().take(512).collect();
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(&c) = name.get(n) {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => set(pattern.get(p..).unwrap_or_default(), c),
            Some(&same) if same == c => Some(1),
            _ => None,
        };
        match (step, star) {
            (Some(step), _) => {
                p += step;
                n += 1;
            }
            // The last star takes one more.
            (None, Some((at, from))) => {
                star = Some((at, from + 1));
                p = at + 1;
                n = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

/// The length of a set such as `[a-z0]` if the character is in it.
fn set(pattern: &[char], c: char) -> Option<usize> {
    let end = pattern.iter().skip(2).position(|c| *c == ']')? + 2;
    let inside = pattern.get(1..end)?;
    let (negated, inside) = match inside.split_first() {
        Some(('!' | '^', rest)) => (true, rest),
        _ => (false, inside),
    };
    let mut found = false;
    let mut at = 0;
    while let Some(&from) = inside.get(at) {
        match (inside.get(at + 1), inside.get(at + 2)) {
            (Some('-'), Some(&to)) => {
                found |= (from..=to).contains(&c);
                at += 3;
            }
            _ => {
                found |= from == c;
                at += 1;
            }
        }
    }
    (found != negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_as_the_specification_orders_them() {
        // Ascending.
        let order = [
            "122~rc1",
            "122",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (i, a) in order.iter().enumerate() {
            for (j, b) in order.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(
            compare("6.1.0-10-amd64", "6.1.0-9-amd64"),
            Ordering::Greater
        );
        assert_eq!(compare("6.10", "6.9"), Ordering::Greater);
        assert_eq!(compare("1.007", "1.7"), Ordering::Equal);
    }

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("*", ""),
            ("fedora-*", "Fedora-39.conf"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("*-[!0-9]*", "x-y"),
            ("a*b*c", "aXbXbXc"),
            ("", ""),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("a", "b"),
            ("a?", "a"),
            ("[a", "[a"),
            ("a*b", "ac"),
            ("", "a"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert!(!matches(&"*a".repeat(200), &"a".repeat(150)));
    }

    proptest! {
        #[test]
        fn comparison_is_an_order(a in "[0-9a-c.~^_-]{0,8}", b in "[0-9a-c.~^_-]{0,8}", c in "[0-9a-c.~^_-]{0,8}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b) != Ordering::Greater && compare(&b, &c) != Ordering::Greater {
                prop_assert_ne!(compare(&a, &c), Ordering::Greater);
            }
        }

        #[test]
        fn a_pattern_of_any_kind_ends(p in "[a*?\\[\\]!-]{0,20}", n in "[a-c]{0,20}") {
            let _ = matches(&p, &n);
        }
    }
}
