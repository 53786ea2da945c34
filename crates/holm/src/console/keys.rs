//! The escape key of the console: what the user typed, split into what goes to
//! the guest and what is meant for Holm.

/// Ctrl-A.
const ESCAPE: u8 = 1;
/// Ctrl-], by which a console that was attached is left.
const LEAVE: u8 = 0x1d;

/// A piece of typed input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// For the guest.
    Guest(Vec<u8>),
    /// Ctrl-A x.
    End,
    /// Ctrl-A c.
    Monitor,
    /// Ctrl-] or Ctrl-A d.
    Detach,
    /// Ctrl-A t.
    Take,
}

/// Remembers a Ctrl-A between two reads.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
    attached: bool,
}

impl Keys {
    /// For the console of a machine that another process runs.
    pub fn attached() -> Self {
        Self {
            escaped: false,
            attached: true,
        }
    }

    fn command(&self, byte: u8) -> Option<Typed> {
        match (byte.to_ascii_lowercase(), self.attached) {
            (b'x', false) => Some(Typed::End),
            (b'c', false) => Some(Typed::Monitor),
            (b'd', true) => Some(Typed::Detach),
            (b't', true) => Some(Typed::Take),
            _ => None,
        }
    }

    /// Takes bytes as read and returns what they mean, in order.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut typed = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            let escaped = std::mem::take(&mut self.escaped);
            let command = match byte {
                LEAVE if self.attached && !escaped => Some(Typed::Detach),
                _ if escaped => self.command(byte),
                _ => None,
            };
            let Some(command) = command else {
                match byte {
                    ESCAPE if !escaped => self.escaped = true,
                    // No command of ours: what was typed goes on unchanged.
                    other if escaped && other != ESCAPE => plain.extend([ESCAPE, other]),
                    other => plain.push(other),
                }
                continue;
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

    #[test]
    fn an_attached_console_is_left_and_its_keyboard_taken() {
        let mut keys = Keys::attached();
        assert_eq!(keys.feed(b"ls\x1d"), [guest("ls"), Typed::Detach]);
        assert_eq!(
            keys.feed(b"\x01t\x01d"),
            [Typed::Take, Typed::Detach],
            "in one read"
        );
        assert_eq!(
            keys.feed(b"\x01x\x01c\x01\x01\x01\x1d"),
            [guest("\x01x\x01c\x01\x01\x1d")]
        );
    }
}
