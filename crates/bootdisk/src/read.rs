//! Reading a disk: windows on it, a cache, and the bound that makes every
//! endless walk through a hostile disk an error.

use std::cell::RefCell;
use std::collections::HashMap;
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
/// What is fetched at once where a file is read from front to back.
const AHEAD: u64 = 1 << 20;
/// Most chunks kept: 64 MiB.
const MOST_CHUNKS: usize = 1024;

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

struct State {
    chunks: HashMap<u64, Rc<[u8]>>,
    /// One past the chunk fetched last.
    next: u64,
    left: Budget,
}

/// A cache over a slow source, with a [`Budget`].
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
                chunks: HashMap::new(),
                next: u64::MAX,
                left: budget,
            }),
        }
    }

    fn chunk(&self, index: u64) -> io::Result<Rc<[u8]>> {
        let mut state = self.state.borrow_mut();
        if let Some(chunk) = state.chunks.get(&index) {
            return Ok(chunk.clone());
        }
        let start = index * CHUNK;
        let want = if index == state.next { AHEAD } else { CHUNK };
        let length = want.min(self.source.size().saturating_sub(start));
        let mut data = vec![0; length as usize];
        self.source.read_at(start, &mut data)?;
        if state.chunks.len() >= MOST_CHUNKS {
            state.chunks.clear();
        }
        for (at, part) in (index..).zip(data.chunks(CHUNK as usize)) {
            state.chunks.insert(at, part.into());
            state.next = at + 1;
        }
        let chunk = state.chunks.get(&index).cloned();
        chunk.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
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
            let chunk = self.chunk(offset / CHUNK)?;
            let from = (offset % CHUNK) as usize;
            let n = out.len().min(chunk.len().saturating_sub(from));
            let part = chunk.get(from..from + n).unwrap_or_default();
            if part.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, rest) = out.split_at_mut(n);
            now.copy_from_slice(part);
            out = rest;
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
