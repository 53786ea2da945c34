//! Raw mode of the user's terminal, restored whatever ends the process (short
//! of SIGKILL): on drop, in the panic hook, and by [`restore`] before any exit.

use std::io::{self, IsTerminal, Write};

use parking_lot::Mutex;
use rustix::termios::{self, OptionalActions, Termios, Winsize};

/// Settings to go back to; `None` while the terminal is as we found it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode for as long as it lives.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts the terminal on stdin, if there is one, into raw mode: every key,
    /// Ctrl-C too, goes to the guest.
    ///
    /// # Errors
    /// If the terminal's settings cannot be read or set.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let mut before = BEFORE.lock();
        let found = termios::tcgetattr(&stdin)?;
        let mut raw = found.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        *before = Some(found);
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was found; harmless at any time.
pub fn restore() {
    // A thread that was stopped by a panic may hold the lock.
    let Some(mut before) = BEFORE.try_lock_for(std::time::Duration::from_millis(100)) else {
        return;
    };
    if let Some(settings) = before.take() {
        // Nothing is left to do if the terminal is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &settings);
    }
}

/// Restores the terminal before a panic's message is printed.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

/// Prints a message of Holm's own on stderr. In raw mode a line feed does not
/// return the carriage.
pub fn say(text: &str) {
    let raw = BEFORE.lock().is_some();
    let mut text = format!("{text}\n");
    if raw {
        text = format!("\r{}", text.replace('\n', "\r\n"));
    }
    // Without a stderr there is nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints on stdout at once, as it is.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    // Without a stdout there is nobody to tell.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Columns and rows of the terminal, if it says.
pub fn size() -> Option<(u16, u16)> {
    let Winsize { ws_col, ws_row, .. } = termios::tcgetwinsize(io::stdin()).ok()?;
    (ws_col > 0 && ws_row > 0).then_some((ws_col, ws_row))
}
