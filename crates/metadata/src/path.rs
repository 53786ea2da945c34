//! Paths of requests.

/// Versions that EC2 has published, oldest first; each answers all that it had,
/// and what was added to it later.
pub const VERSIONS: &[&str] = &[
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-07-09",
    "2022-09-24",
    "2024-04-11",
    "latest",
];

/// Longest path, in bytes.
const LONGEST: usize = 2048;
/// Deepest path.
const DEEPEST: usize = 16;

/// The words of a path, decoded; empty ones (`//`, a trailing slash) mean
/// nothing. `None` if it is none that could lead anywhere.
pub fn words(path: &str) -> Option<Vec<String>> {
    if path.len() > LONGEST {
        return None;
    }
    let words = path.split('/').filter(|word| !word.is_empty());
    let words: Option<Vec<String>> = words.take(DEEPEST + 1).map(decode).collect();
    words.filter(|words| words.len() <= DEEPEST)
}

/// Undoes percent-encoding.
fn decode(word: &str) -> Option<String> {
    let mut bytes = word.bytes();
    let mut out = Vec::with_capacity(word.len());
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let value = digit(bytes.next())? << 4 | digit(bytes.next())?;
            out.push(u8::try_from(value).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_and_decoded() {
        let words = |path| super::words(path).map(|words| words.join("|"));
        assert_eq!(words("/").unwrap(), "");
        assert_eq!(words("//latest//meta-data/").unwrap(), "latest|meta-data");
        assert_eq!(words("/tags/a%20b%2Fc").unwrap(), "tags|a b/c");
        let (deep, long) = ("/a".repeat(DEEPEST + 1), "a".repeat(LONGEST + 1));
        for bad in ["/%", "/%4", "/%zz", "/%ff", &deep, &long] {
            assert_eq!(words(bad), None, "{bad}");
        }
    }
}
