//! Names that somebody may have meant who wrote another.

/// What to say after that something does not exist: the names that are near,
/// or else where all are found.
pub fn hint(name: &str, names: impl IntoIterator<Item = String>, list: &str) -> String {
    let mut near: Vec<(usize, String)> = names
        .into_iter()
        .filter_map(|other| {
            let far = distance(name, &other);
            let within = name.chars().count().div_ceil(3);
            (far <= within || other.starts_with(name)).then_some((far, other))
        })
        .collect();
    near.sort();
    near.dedup();
    match near.len() {
        0 => format!("; {list}"),
        _ => {
            let near = near.into_iter().take(3).map(|(_, name)| name);
            let near = near.collect::<Vec<_>>().join(" or ");
            format!("; did you mean {near}? {list}")
        }
    }
}

/// Letters to put in, take away or replace until one is the other
/// (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, b) in row.iter_mut().skip(1).zip(&other) {
            let replaced = corner + usize::from(a != *b);
            corner = *cell;
            left = replaced.min(corner + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_told() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "ab"), 2);
        assert_eq!(distance("same", "same"), 0);
        let names = || ["debian", "tiny", "debian-12"].map(String::from);
        assert_eq!(
            hint("debain", names(), "look"),
            "; did you mean debian? look"
        );
        assert_eq!(
            hint("debian-", names(), "look"),
            "; did you mean debian or debian-12? look"
        );
        assert_eq!(hint("windows", names(), "look"), "; look");
    }
}
