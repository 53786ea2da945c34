//! What crosses a card, in a file that tcpdump and Wireshark read: pcap with
//! nanoseconds, frames as they cross, so that a segment of 64 KiB is one.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::{Abilities, Frame, Link, LinkError, Network, Offload, Sent};

/// Frames that wait for the writer at most.
const WAITING_FRAMES: usize = 4096;
/// Bytes that wait for the writer at most.
const WAITING_BYTES: usize = 16 << 20;
/// Nanosecond pcap, in the byte order of its writer.
const MAGIC: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;

/// What is captured, and to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// The file; emptied if it exists.
    pub file: PathBuf,
    /// Bytes kept of each frame.
    pub snaplen: u32,
    /// Bytes after which the file grows no more; `None`: no bound.
    pub limit: Option<u64>,
}

/// A network of which all frames are captured on their way.
pub struct Captured {
    network: Arc<dyn Network>,
    capture: Arc<Capture>,
}

/// The file and the thread that writes it. Dropping it writes what waits.
pub struct Capture {
    sender: Option<SyncSender<Record>>,
    writer: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    snaplen: usize,
}

#[derive(Default)]
struct Shared {
    waiting: AtomicUsize,
    lost: AtomicU64,
    /// Full or failed: nothing more is written.
    ended: AtomicBool,
}

struct Record {
    since_epoch: std::time::Duration,
    length: usize,
    bytes: Vec<u8>,
}

impl Captured {
    /// Captures a network's frames.
    ///
    /// # Errors
    /// The host's, if the file cannot be made.
    pub fn new(network: Arc<dyn Network>, options: &CaptureOptions) -> io::Result<Self> {
        let capture = Arc::new(Capture::start(options)?);
        Ok(Self { network, capture })
    }

    /// The capture, for its count of lost frames.
    pub fn capture(&self) -> &Arc<Capture> {
        &self.capture
    }
}

impl Network for Captured {
    fn open(&self, pairs: u16) -> Result<Vec<Box<dyn Link>>, LinkError> {
        let links = self.network.open(pairs)?;
        let captured = links.into_iter().map(|link| {
            Box::new(CapturedLink {
                link,
                capture: self.capture.clone(),
                seen: false,
            }) as Box<dyn Link>
        });
        Ok(captured.collect())
    }

    fn most_pairs(&self) -> u16 {
        self.network.most_pairs()
    }

    fn mtu(&self) -> u16 {
        self.network.mtu()
    }

    fn describe(&self) -> String {
        self.network.describe()
    }
}

impl Capture {
    fn start(options: &CaptureOptions) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&options.file)?;
        let snaplen = options.snaplen.clamp(64, 1 << 18);
        let mut file = BufWriter::with_capacity(1 << 18, file);
        for field in [MAGIC, 4 << 16 | 2, 0, 0, snaplen, LINKTYPE_ETHERNET] {
            file.write_all(&field.to_ne_bytes())?;
        }
        file.flush()?;
        let (sender, records) = sync_channel(WAITING_FRAMES);
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            file,
            path: options.file.clone(),
            written: 24,
            limit: options.limit.unwrap_or(u64::MAX),
            shared: shared.clone(),
        };
        let writer = std::thread::Builder::new()
            .name("pcap".into())
            .stack_size(256 * 1024)
            .spawn(move || writer.run(&records))?;
        Ok(Self {
            sender: Some(sender),
            writer: Some(writer),
            shared,
            snaplen: snaplen as usize,
        })
    }

    /// Frames that are not in the file: the writer was too slow, or the file
    /// had reached its limit.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Hands a frame to the writer; never waits.
    fn record(&self, frame: &[u8]) {
        let bytes = frame.get(..self.snaplen.min(frame.len())).unwrap_or(frame);
        let shared = &self.shared;
        let before = shared.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        if shared.ended.load(Ordering::Relaxed) || before > WAITING_BYTES {
            return self.lose(bytes.len());
        }
        let record = Record {
            since_epoch: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            length: frame.len(),
            bytes: bytes.to_vec(),
        };
        let sent = self.sender.as_ref().map(|sender| sender.try_send(record));
        match sent {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) | None => {
                self.lose(bytes.len());
            }
        }
    }

    fn lose(&self, bytes: usize) {
        self.shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
        self.shared.lost.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            // A panic there was reported already.
            let _ = writer.join();
        }
        let lost = self.lost();
        if lost > 0 {
            tracing::warn!(lost, "frames are missing in the packet capture");
        }
    }
}

struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    written: u64,
    limit: u64,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self, records: &Receiver<Record>) {
        while let Some(record) = self.next(records) {
            let size = record.bytes.len();
            if self.shared.ended.load(Ordering::Relaxed) {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
            } else if let Err(error) = self.write(&record) {
                self.end(&error, &self.path);
            }
            self.shared.waiting.fetch_sub(size, Ordering::Relaxed);
        }
        self.flush();
    }

    /// The next record; what is written already is flushed before a wait.
    fn next(&mut self, records: &Receiver<Record>) -> Option<Record> {
        if let Ok(record) = records.try_recv() {
            return Some(record);
        }
        self.flush();
        records.recv().ok()
    }

    fn flush(&mut self) {
        if let Err(error) = self.file.flush()
            && !self.shared.ended.load(Ordering::Relaxed)
        {
            self.end(&error, &self.path);
        }
    }

    fn end(&self, error: &io::Error, path: &Path) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let path = path.display();
        tracing::warn!(%path, %error, "the packet capture ends; the card goes on");
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let size = record.bytes.len() as u64 + 16;
        if self.written + size > self.limit {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::other("it has reached its size limit"));
        }
        let fields = [
            record.since_epoch.as_secs() as u32,
            record.since_epoch.subsec_nanos(),
            record.bytes.len() as u32,
            record.length as u32,
        ];
        for field in fields {
            self.file.write_all(&field.to_ne_bytes())?;
        }
        self.file.write_all(&record.bytes)?;
        self.written += size;
        Ok(())
    }
}

/// A link of which all frames are captured.
struct CapturedLink {
    link: Box<dyn Link>,
    capture: Arc<Capture>,
    /// The frame that is to be taken next was captured.
    seen: bool,
}

impl Link for CapturedLink {
    fn abilities(&self) -> Abilities {
        self.link.abilities()
    }

    fn set_guest_abilities(&mut self, guest: Abilities) {
        self.link.set_guest_abilities(guest);
    }

    fn set_active(&mut self, active: bool) -> Result<(), LinkError> {
        self.link.set_active(active)
    }

    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<Sent, LinkError> {
        let sent = self.link.transmit(offload, frame)?;
        if sent != Sent::Full {
            self.capture.record(frame);
        }
        Ok(sent)
    }

    fn incoming(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        let frame = self.link.incoming()?;
        if let Some(frame) = &frame
            && !self.seen
        {
            self.seen = true;
            self.capture.record(frame.bytes);
        }
        Ok(frame)
    }

    fn consume(&mut self) {
        self.seen = false;
        self.link.consume();
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.link.ready_fd()
    }

    fn turn(&mut self, now: Instant) -> Option<Instant> {
        self.link.turn(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Vec<u32> {
        bytes
            .chunks_exact(4)
            .map(|c| u32::from_ne_bytes(c.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn frames_are_in_the_file_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.pcap");
        let options = CaptureOptions {
            file: file.clone(),
            snaplen: 100,
            limit: Some(24 + 2 * 116 + 20),
        };
        let capture = Capture::start(&options).unwrap();
        capture.record(&[1; 5000]);
        capture.record(&[2; 100]);
        capture.record(&[3; 60]);
        drop(capture);
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(
            fields(&bytes[..24]),
            [0xa1b2_3c4d, 0x0004_0002, 0, 0, 100, 1]
        );
        assert_eq!(bytes.len(), 24 + 2 * 116);
        assert_eq!(fields(&bytes[32..40]), [100, 5000]);
        assert_eq!(fields(&bytes[24 + 116 + 8..24 + 116 + 16]), [100, 100]);
        assert_eq!(bytes[40..140], [1; 100]);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&file).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error() {
        let options = CaptureOptions {
            file: "/nowhere/x".into(),
            snaplen: 1,
            limit: None,
        };
        assert!(Capture::start(&options).is_err());
    }
}
