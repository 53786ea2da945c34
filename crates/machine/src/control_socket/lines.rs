//! What a client sends, in lines.

use std::io::{self, Read};

use machine_protocol::LINE_MAX;

pub(super) enum Line {
    Whole(String),
    TooLong,
}

/// Cuts what a client sends into lines, in bounded space.
#[derive(Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// What comes is the rest of a line that is too long.
    skipping: bool,
}

impl Lines {
    /// Whether the client sent something that was not taken yet.
    pub fn has_more(&self) -> bool {
        !self.buffer.is_empty() || self.skipping
    }

    pub fn next(&mut self, from: &mut impl Read) -> io::Result<Option<Line>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                if std::mem::take(&mut self.skipping) {
                    return Ok(Some(Line::TooLong));
                }
                let text = String::from_utf8_lossy(&line).into_owned();
                return Ok(Some(Line::Whole(text)));
            }
            if self.buffer.len() >= LINE_MAX {
                self.buffer.clear();
                self.skipping = true;
            }
            let mut more = [0; 4096];
            match from.read(&mut more) {
                Ok(0) => return Ok(None),
                Ok(n) => self.buffer.extend_from_slice(&more[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_long_ones_refused_in_bounded_space() {
        let mut text = b"one\ntwo\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', 5 * LINE_MAX));
        text.extend(b"\nthree\nrest without end");
        let mut from = &text[..];
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        while let Some(line) = lines.next(&mut from).unwrap() {
            assert!(lines.buffer.len() <= LINE_MAX + 4096);
            seen.push(match line {
                Line::Whole(text) => text,
                Line::TooLong => "TOO LONG".into(),
            });
        }
        assert_eq!(seen, ["one", "two", "TOO LONG", "three"]);
    }
}
