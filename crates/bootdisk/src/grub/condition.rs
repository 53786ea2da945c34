//! The command `test`, also written `[`.

use std::cmp::Ordering;

use crate::filesystem::Kind;
use crate::version;

/// Deepest nesting of parentheses and negations.
const DEEPEST: usize = 32;

/// What `test` answers. `look` says what a path leads to. Nonsense is false.
pub fn test(words: &[String], look: &mut dyn FnMut(&str) -> Option<Kind>) -> bool {
    let mut test = Test { words, at: 0, look };
    let answer = test.either(0);
    answer.unwrap_or(false) && test.at >= words.len()
}

struct Test<'a> {
    words: &'a [String],
    at: usize,
    look: &'a mut dyn FnMut(&str) -> Option<Kind>,
}

impl Test<'_> {
    fn peek(&self, ahead: usize) -> Option<&str> {
        self.words.get(self.at + ahead).map(String::as_str)
    }

    fn either(&mut self, depth: usize) -> Option<bool> {
        let mut answer = self.both(depth)?;
        while self.peek(0) == Some("-o") {
            self.at += 1;
            answer |= self.both(depth)?;
        }
        Some(answer)
    }

    fn both(&mut self, depth: usize) -> Option<bool> {
        let mut answer = self.one(depth)?;
        while let Some(word) = self.peek(0) {
            match word {
                "-o" | ")" => break,
                "-a" => self.at += 1,
                // Terms side by side must all hold.
                _ => {}
            }
            answer &= self.one(depth)?;
        }
        Some(answer)
    }

    fn one(&mut self, depth: usize) -> Option<bool> {
        if depth > DEEPEST {
            return None;
        }
        if let (Some(left), Some(operator), Some(right)) =
            (self.peek(0), self.peek(1), self.peek(2))
            && let Some(answer) = compare(left, operator, right)
        {
            self.at += 3;
            return Some(answer);
        }
        let word = self.peek(0)?;
        match word {
            "!" => {
                self.at += 1;
                Some(!self.one(depth + 1)?)
            }
            "(" => {
                self.at += 1;
                let answer = self.either(depth + 1)?;
                (self.peek(0) == Some(")")).then_some(())?;
                self.at += 1;
                Some(answer)
            }
            "-n" | "-z" | "-d" | "-e" | "-f" | "-s" if self.peek(1).is_some() => {
                let operand = self.peek(1)?.to_owned();
                let answer = match word {
                    "-n" => !operand.is_empty(),
                    "-z" => operand.is_empty(),
                    "-d" => (self.look)(&operand) == Some(Kind::Directory),
                    "-e" => (self.look)(&operand).is_some(),
                    "-f" => matches!((self.look)(&operand), Some(Kind::File(_))),
                    _ => matches!((self.look)(&operand), Some(Kind::File(1..))),
                };
                self.at += 2;
                Some(answer)
            }
            word => {
                let answer = !word.is_empty();
                self.at += 1;
                Some(answer)
            }
        }
    }
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let numbers = || number(left).cmp(&number(right));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "-eq" => numbers() == Ordering::Equal,
        "-ne" => numbers() != Ordering::Equal,
        "-lt" => numbers() == Ordering::Less,
        "-le" => numbers() != Ordering::Greater,
        "-gt" => numbers() == Ordering::Greater,
        "-ge" => numbers() != Ordering::Less,
        _ => {
            // -pgt and its like compare the numbers behind equal beginnings.
            let order = version::compare(left, right);
            match operator {
                "-pgt" => order == Ordering::Greater,
                "-plt" => order == Ordering::Less,
                _ => return None,
            }
        }
    })
}

/// The number at the start of a word; 0 without one.
fn number(word: &str) -> i64 {
    let (sign, digits) = match word.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, word),
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let digits = digits.get(..end).unwrap_or_default();
    digits.parse::<i64>().map_or(0, |n| sign * n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(expression: &str) -> bool {
        let words: Vec<String> = expression
            .split(' ')
            .map(|w| w.trim_matches('\'').to_owned())
            .collect();
        test(&words, &mut |path| match path {
            "/dir" => Some(Kind::Directory),
            "/file" => Some(Kind::File(3)),
            "/empty" => Some(Kind::File(0)),
            _ => None,
        })
    }

    #[test]
    fn terms() {
        for yes in [
            "a = a",
            "a != b",
            "a == a",
            "x",
            "-n x",
            "-z ''",
            "! ''",
            "-d /dir",
            "-f /file",
            "-e /empty",
            "-s /file",
            "2 -lt 10",
            "-1 -eq -1",
            "( a = a )",
            "'' -o x",
            "x -a y",
            "! a = b",
            "a = a -a ( b = c -o d = d )",
            "-n = -n",
            "linux-10 -pgt linux-9",
            "2 < 3",
            "-f",
        ] {
            assert!(holds(yes), "{yes}");
        }
        for no in [
            "",
            "''",
            "a = b",
            "-n ''",
            "-z x",
            "! x",
            "-d /file",
            "-s /empty",
            "-f /none",
            "10 -lt 2",
            "( a = a",
            "x -a ''",
            "x '' y",
        ] {
            assert!(!holds(no), "{no}");
        }
        let deep = format!("{}x", "( ".repeat(100_000));
        assert!(!holds(&deep));
    }
}
