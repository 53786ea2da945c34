//! The escape key of the console: what the user typed, split into what goes to
//! the guest and what is meant for Holm.

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// A piece of typed input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// For the guest.
    Guest(Vec<u8>),
    /// Ctrl-A x.
    End,
    /// Ctrl-A c.
    Monitor,
}

/// Remembers a Ctrl-A between two reads.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes bytes as read and returns what they mean, in order.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut typed = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            if !std::mem::take(&mut self.escaped) {
                if byte == ESCAPE {
                    self.escaped = true;
                } else {
                    plain.push(byte);
                }
                continue;
            }
            let command = match byte {
                b'x' | b'X' => Typed::End,
                b'c' | b'C' => Typed::Monitor,
                ESCAPE => {
                    plain.push(ESCAPE);
                    continue;
                }
                // No command of ours: what was typed goes on unchanged.
                other => {
                    plain.extend([ESCAPE, other]);
                    continue;
                }
            };
            if !plain.is_empty() {
                typed.push(Typed::Guest(std::mem::take(&mut plain)));
            }
            typed.push(command);
        }
        if !plain.is_empty() {
            typed.push(Typed::Guest(plain));
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(text: &str) -> Typed {
        Typed::Guest(text.as_bytes().to_vec())
    }

    #[test]
    fn everything_but_ctrl_a_reaches_the_guest() {
        let mut keys = Keys::default();
        assert_eq!(
            keys.feed("ls äß€\u{3}\r".as_bytes()),
            [guest("ls äß€\u{3}\r")]
        );
        let all: Vec<u8> = (0..=255).filter(|b| *b != ESCAPE).collect();
        assert_eq!(keys.feed(&all), [Typed::Guest(all.clone())]);
    }

    #[test]
    fn commands_are_found_across_reads() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed(b"ab\x01"), [guest("ab")]);
        assert_eq!(keys.feed(b"xcd"), [Typed::End, guest("cd")]);
        assert_eq!(
            keys.feed(b"1\x01c2"),
            [guest("1"), Typed::Monitor, guest("2")]
        );
    }

    #[test]
    fn a_doubled_ctrl_a_is_one_for_the_guest() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed(b"\x01\x01x"), [guest("\x01x")]);
        assert_eq!(keys.feed(b"\x01d"), [guest("\x01d")]);
    }
}
