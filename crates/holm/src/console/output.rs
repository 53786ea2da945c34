//! What the guest prints, on its way out: bytes come one at a time from vCPU
//! threads, and leave in as few writes as a terminal's speed of reading allows.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long the first byte of a burst waits for the rest.
const GATHER: Duration = Duration::from_millis(1);
/// Unwritten bytes beyond this stop the guest until the reader catches up.
const MOST: usize = 1 << 20;

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    /// The writer thread is writing what it took.
    writing: bool,
    /// The monitor has the terminal: hold the guest's output back.
    held: bool,
    /// The reader is gone (EPIPE) or the disk full: discard from now on.
    failed: Option<io::ErrorKind>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// For the writer: there is something to write.
    filled: Condvar,
    /// For guests and `flush`: something was written.
    drained: Condvar,
}

/// Where the guest's output goes; clones share it.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

impl Output {
    /// Starts the thread that writes to `sink`.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn new(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let output = Self(Arc::clone(&shared));
        thread::Builder::new()
            .name("console-output".into())
            .spawn(move || write_all(&shared, sink))?;
        Ok(output)
    }

    /// Takes bytes from the guest; blocks while a megabyte waits for a slow
    /// reader.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.0.state.lock();
        while state.pending.len() >= MOST && state.failed.is_none() && !state.held {
            self.0.drained.wait(&mut state);
        }
        if state.failed.is_some() {
            return;
        }
        // While the monitor is open the oldest output is kept, as a terminal
        // with a full scroll-back would not, but memory stays bounded.
        if state.held && state.pending.len() >= MOST {
            return;
        }
        let was_empty = state.pending.is_empty();
        state.pending.extend_from_slice(bytes);
        if was_empty {
            self.0.filled.notify_one();
        }
    }

    /// Holds the guest's output back, or lets it go on.
    pub fn hold(&self, held: bool) {
        self.0.state.lock().held = held;
        self.0.filled.notify_one();
        self.0.drained.notify_all();
    }

    /// Waits until all is written, or `patience` is over.
    pub fn flush(&self, patience: Duration) {
        let end = std::time::Instant::now() + patience;
        let mut state = self.0.state.lock();
        state.held = false;
        self.0.filled.notify_one();
        while (!state.pending.is_empty() || state.writing) && state.failed.is_none() {
            if self.0.drained.wait_until(&mut state, end).timed_out() {
                return;
            }
        }
    }
}

fn write_all(shared: &Shared, mut sink: impl Write) {
    let mut chunk = Vec::new();
    loop {
        {
            let mut state = shared.state.lock();
            while state.pending.is_empty() || state.held {
                shared.filled.wait(&mut state);
            }
        }
        thread::sleep(GATHER);
        {
            let mut state = shared.state.lock();
            if state.held {
                continue;
            }
            std::mem::swap(&mut state.pending, &mut chunk);
            state.writing = true;
        }
        let result = sink.write_all(&chunk).and_then(|()| sink.flush());
        chunk.clear();
        let mut state = shared.state.lock();
        state.writing = false;
        if let Err(error) = result {
            state.failed = Some(error.kind());
            state.pending.clear();
        }
        drop(state);
        shared.drained.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut inner = self.0.lock();
            inner.0.extend_from_slice(bytes);
            inner.1 += 1;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn single_bytes_leave_in_order_and_in_few_writes() {
        let sink = Sink::default();
        let output = Output::new(sink.clone()).unwrap();
        let text: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        for byte in &text {
            output.push(std::slice::from_ref(byte));
        }
        output.flush(PATIENCE);
        let inner = sink.0.lock();
        assert_eq!(inner.0, text);
        assert!(inner.1 < 10_000, "{} writes", inner.1);
    }

    #[test]
    fn a_closed_reader_does_not_stop_the_guest() {
        let output = Output::new(Closed).unwrap();
        for _ in 0..100 {
            output.push(&[b'x'; MOST / 10]);
        }
        output.flush(PATIENCE);
    }

    #[test]
    fn held_output_comes_after_the_hold() {
        let sink = Sink::default();
        let output = Output::new(sink.clone()).unwrap();
        output.hold(true);
        output.push(b"later");
        thread::sleep(Duration::from_millis(50));
        assert!(sink.0.lock().0.is_empty());
        output.hold(false);
        output.flush(PATIENCE);
        assert_eq!(sink.0.lock().0, b"later");
    }
}
