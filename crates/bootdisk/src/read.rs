//! Reading a disk: windows on it, a cache, and the bound that makes every
//! endless walk through a hostile disk an error.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

/// A disk, or a part of one, to read from.
pub trait ReadAt {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `out` from byte `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, or the source's own error.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(out.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }
}

/// A contiguous part of a disk, for instance a partition.
#[derive(Clone)]
pub struct Window {
    disk: Rc<dyn ReadAt>,
    start: u64,
    size: u64,
}

impl Window {
    /// The `size` bytes from `start` on, cut at the disk's end.
    pub fn new(disk: Rc<dyn ReadAt>, start: u64, size: u64) -> Self {
        let start = start.min(disk.size());
        let size = size.min(disk.size() - start);
        Self { disk, start, size }
    }

    /// `length` bytes at `offset`, if they are there.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`].
    pub fn bytes(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut out = vec![0; length];
        self.read_at(offset, &mut out)?;
        Ok(out)
    }
}

impl ReadAt for Window {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read_at(self.start + offset, out)
    }
}

/// Unit of the cache, in bytes.
const CHUNK: u64 = 64 << 10;
/// Most chunks kept: 4 MiB.
const MOST_CHUNKS: usize = 64;
/// What is fetched at once where a file is read from front to back.
const AHEAD: u64 = 1 << 20;

/// How much may be read before a disk is taken for a hostile one.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Calls of [`ReadAt::read_at`]; file systems read some structures a few
    /// bytes at a time.
    pub calls: u64,
    /// Bytes handed out.
    pub bytes: u64,
}

impl Default for Budget {
    /// Ample for a kernel and initrds of a GiB.
    fn default() -> Self {
        Self {
            calls: 8 << 20,
            bytes: 8 << 30,
        }
    }
}

/// A part of the disk, in memory that is used again.
#[derive(Default)]
struct Held {
    start: u64,
    data: Vec<u8>,
    /// When it was last looked at.
    used: u64,
}

impl Held {
    /// The bytes from an offset on, if they begin here.
    fn from(&self, offset: u64) -> Option<&[u8]> {
        let at = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.data.get(at..).filter(|rest| !rest.is_empty())
    }

    fn fill(&mut self, source: &impl ReadAt, start: u64, length: u64) -> io::Result<()> {
        self.start = start;
        let length = length.min(source.size().saturating_sub(start));
        self.data.resize(length as usize, 0);
        source.read_at(start, &mut self.data).inspect_err(|_| {
            // What is half filled must not be found.
            self.data.clear();
        })
    }
}

struct State {
    /// Chunks here and there.
    chunks: Vec<Held>,
    /// Where a file is being read from front to back.
    stream: Held,
    /// One past the last bytes that were fetched.
    next: u64,
    clock: u64,
    left: Budget,
}

impl State {
    /// Copies bytes from an offset on to `out`; how many.
    fn copy(&mut self, source: &impl ReadAt, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        self.clock += 1;
        let clock = self.clock;
        let take = |mut from: &[u8], out: &mut [u8]| io::Read::read(&mut from, out);
        if let Some(rest) = self.stream.from(offset) {
            return take(rest, out);
        }
        if let Some(held) = self.chunks.iter_mut().find(|c| c.from(offset).is_some()) {
            held.used = clock;
            return take(held.from(offset).unwrap_or_default(), out);
        }
        let start = offset / CHUNK * CHUNK;
        let held = if start == self.next {
            self.stream.fill(source, start, AHEAD)?;
            &mut self.stream
        } else {
            if self.chunks.len() < MOST_CHUNKS {
                self.chunks.push(Held::default());
            }
            let oldest = self.chunks.iter_mut().min_by_key(|c| c.used);
            let held = oldest.ok_or(io::ErrorKind::OutOfMemory)?;
            held.fill(source, start, CHUNK)?;
            held
        };
        held.used = clock;
        self.next = start + held.data.len() as u64;
        take(held.from(offset).unwrap_or_default(), out)
    }
}

/// A small cache over a slow source, with a [`Budget`].
pub struct Cached<R> {
    source: R,
    state: RefCell<State>,
}

impl<R: ReadAt> Cached<R> {
    /// An empty cache.
    pub fn new(source: R, budget: Budget) -> Self {
        Self {
            source,
            state: RefCell::new(State {
                chunks: Vec::new(),
                stream: Held::default(),
                next: u64::MAX,
                clock: 0,
                left: budget,
            }),
        }
    }

    fn spend(&self, bytes: u64) -> io::Result<()> {
        let left = &mut self.state.borrow_mut().left;
        match (left.calls.checked_sub(1), left.bytes.checked_sub(bytes)) {
            (Some(calls), Some(bytes)) => {
                *left = Budget { calls, bytes };
                Ok(())
            }
            _ => Err(io::Error::other(
                "the disk makes its reader go round in circles",
            )),
        }
    }
}

impl<R: ReadAt> ReadAt for Cached<R> {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read_at(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        self.spend(out.len() as u64)?;
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !out.is_empty() {
            let mut state = self.state.borrow_mut();
            let n = state.copy(&self.source, offset, out)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            out = out.get_mut(n..).unwrap_or_default();
            offset += n as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_caches_show_what_is_there_and_no_more() {
        let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let cached = Rc::new(Cached::new(data.clone(), Budget::default()));
        let window = Window::new(cached, 1000, 200_000);
        for (at, n) in [(0, 1), (64_000, 4000), (65_536, 70_000), (199_999, 1)] {
            assert_eq!(
                window.bytes(at as u64, n).unwrap(),
                data[1000 + at..1000 + at + n]
            );
        }
        assert!(window.bytes(199_999, 2).is_err());
        assert!(window.bytes(u64::MAX, 2).is_err());
        let beyond = Window::new(Rc::new(data), 299_999, u64::MAX);
        assert_eq!(beyond.size(), 1);
    }

    #[test]
    fn an_endless_walk_ends() {
        let budget = Budget {
            calls: 100,
            bytes: 1 << 20,
        };
        let cached = Cached::new(vec![0; 4096], budget);
        let reads = (0..1000).take_while(|_| cached.read_at(0, &mut [0; 16]).is_ok());
        assert_eq!(reads.count(), 100);
    }
}
