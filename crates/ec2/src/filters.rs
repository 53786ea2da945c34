//! Filters of the Describe actions: names with patterns, of which any may
//! match; all filters must.

use crate::error::Error;
use crate::parameters::Parameters;

/// Most values of all filters of one request.
const VALUES_MAX: usize = 200;

/// A text with `*` (any characters), `?` (any one) and `\` (the next as it
/// is).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Piece>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Any,
    One,
    Just(char),
}

impl Pattern {
    /// Of its text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let piece = match character {
                '*' => Piece::Any,
                '?' => Piece::One,
                '\\' => Piece::Just(characters.next().unwrap_or('\\')),
                other => Piece::Just(other),
            };
            // Several stars say what one does, and cost more.
            if piece != Piece::Any || pieces.last() != Some(&Piece::Any) {
                pieces.push(piece);
            }
        }
        Self(pieces)
    }

    /// Whether all of a text is as the pattern says.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut piece, mut at) = (0, 0);
        // Where the last star was, and up to where it has eaten.
        let mut star: Option<(usize, usize)> = None;
        while at < text.len() {
            let fits = match self.0.get(piece) {
                Some(Piece::Any) => {
                    star = Some((piece, at));
                    piece += 1;
                    continue;
                }
                Some(Piece::One) => true,
                Some(Piece::Just(character)) => text.get(at) == Some(character),
                None => false,
            };
            match (fits, star) {
                (true, _) => (piece, at) = (piece + 1, at + 1),
                (false, Some((of, eaten))) => {
                    star = Some((of, eaten + 1));
                    (piece, at) = (of + 1, eaten + 1);
                }
                (false, None) => return false,
            }
        }
        self.0[piece..].iter().all(|piece| *piece == Piece::Any)
    }
}

/// The filters of a request.
#[derive(Clone, Debug, Default)]
pub struct Filters(Vec<(String, Vec<Pattern>)>);

impl Filters {
    /// Of a request. `known` are the names that the action has here, beside
    /// those of tags; `documented` those that EC2 has.
    ///
    /// # Errors
    /// `InvalidParameterValue` naming a filter that is not known,
    /// `FilterLimitExceeded`.
    pub fn parse(
        parameters: &Parameters,
        known: &[&str],
        documented: &[&str],
    ) -> Result<Self, Error> {
        let mut filters = Vec::new();
        let mut count = 0;
        for filter in parameters.structures("Filter") {
            let name = filter.text("Name").unwrap_or("null").to_owned();
            if !known.contains(&name.as_str()) && !is_tag(&name, known) {
                return Err(Error::new(
                    "InvalidParameterValue",
                    match documented.contains(&name.as_str()) {
                        true => format!("The filter '{name}' is not supported by Holm"),
                        false => format!("The filter '{name}' is invalid"),
                    },
                ));
            }
            let values = filter.raw_texts("Value");
            if values.is_empty() {
                let message = format!("The filter '{name}' has no values");
                return Err(Error::new("InvalidParameterValue", message));
            }
            count += values.len();
            if count > VALUES_MAX {
                return Err(Error::new(
                    "FilterLimitExceeded",
                    "The maximum number of filter values specified on a single call is 200",
                ));
            }
            let patterns = values.iter().map(|value| Pattern::new(value)).collect();
            filters.push((name, patterns));
        }
        Ok(Self(filters))
    }

    /// Whether all filters match, where `values` says what a thing has under
    /// a filter's name.
    pub fn match_all(&self, values: impl Fn(&str) -> Vec<String>) -> bool {
        self.0.iter().all(|(name, patterns)| {
            let values = values(name);
            values
                .iter()
                .any(|value| patterns.iter().any(|pattern| pattern.matches(value)))
        })
    }

    /// The texts that distinguish these filters from others, for a page's
    /// token.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// `tag:KEY`, where the action filters by tags at all.
fn is_tag(name: &str, known: &[&str]) -> bool {
    name.strip_prefix("tag:").is_some_and(|key| !key.is_empty())
        && (known.contains(&"tag-key") || known.contains(&"tag"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::form;
    use proptest::prelude::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).matches(text)
    }

    #[test]
    fn wildcards_and_escapes() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("**a*", "xxa"),
            ("debian-*-x?6", "debian-12-x86"),
            ("a\\*b\\?c\\\\", "a*b?c\\"),
            ("*é?", "caféx"),
            ("*ab*abc", "abxababc"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("?", ""),
            ("a", "A"),
            ("\\*", "a"),
            ("*ab", "abc"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn as_the_obvious_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern, text) {
                    ([], []) => true,
                    ([b'*', rest @ ..], _) => {
                        slow(rest, text) || (!text.is_empty() && slow(pattern, &text[1..]))
                    }
                    ([p, ps @ ..], [t, ts @ ..]) => (*p == b'?' || p == t) && slow(ps, ts),
                    _ => false,
                }
            }
            prop_assert_eq!(matches(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }

    fn filters(text: &str) -> Result<Filters, Error> {
        let pairs = form::decode(text.as_bytes()).unwrap();
        Filters::parse(
            &Parameters::new(&pairs).unwrap(),
            &["state", "tag-key"],
            &["state", "odd"],
        )
    }

    #[test]
    fn any_value_of_each_filter_matches() {
        let filters = filters("Filter.1.Name=state&Filter.1.Value.1=run*&Filter.1.Value.2=stopped&Filter.2.Name=tag:Name&Filter.2.Value.1=").unwrap();
        let with = |state: &'static str, name: &'static str| {
            filters.match_all(|filter| match filter {
                "state" => vec![state.to_owned()],
                "tag:Name" => vec![name.to_owned()],
                _ => vec![],
            })
        };
        assert!(with("running", "") && with("stopped", ""));
        assert!(!with("pending", "") && !with("running", "web"));
    }

    #[test]
    fn filters_that_nobody_knows_are_named() {
        let refused = |text: &str| filters(text).unwrap_err().to_string();
        assert_eq!(
            refused("Filter.1.Name=stat&Filter.1.Value.1=x"),
            "InvalidParameterValue: The filter 'stat' is invalid"
        );
        assert_eq!(
            refused("Filter.1.Name=odd&Filter.1.Value.1=x"),
            "InvalidParameterValue: The filter 'odd' is not supported by Holm"
        );
        assert!(refused("Filter.1.Value.1=x").contains("'null'"));
        assert!(refused("Filter.1.Name=state").contains("no values"));
        let many: String = (1..=201)
            .map(|n| format!("&Filter.1.Value.{n}=x"))
            .collect();
        assert!(refused(&format!("Filter.1.Name=state{many}")).starts_with("FilterLimitExceeded"));
    }
}
