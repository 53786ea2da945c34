//! The operations of the guest's file system on the host's folder.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use devices::Version;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Stat, Timespec,
    Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use super::tree::{Tree, checked};
use super::wire::{ROOT, Reader, Writer, op};
use super::{Folder, FsOptions, FsState};

/// Most bytes of one read or write.
pub const TRANSFER_MAX: usize = 1 << 20;
/// Seconds for which the guest may believe what it was told; changes of the
/// host are seen after that.
const VALID: u64 = 1;
/// Permission bits that a guest may set: no set-user-id or set-group-id file
/// appears on the host.
const MODE_BITS: u32 = 0o1777;

/// Feature flags of INIT.
const ASYNC_READ: u32 = 1 << 0;
const BIG_WRITES: u32 = 1 << 5;
/// Contents that the guest keeps are dropped when the host changes the file.
const AUTO_INVAL_DATA: u32 = 1 << 12;
/// The guest writes later, and says of files that it has what size and times
/// they have.
const WRITEBACK_CACHE: u32 = 1 << 16;
const PARALLEL_DIROPS: u32 = 1 << 18;
const MAX_PAGES: u32 = 1 << 22;
/// Set-user-id bits are taken away here, so that the guest need not ask for
/// extended attributes before each write.
const HANDLE_KILLPRIV_V2: u32 = 1 << 28;

/// Flag of an opened file: the guest keeps nothing of it.
const DIRECT_IO: u32 = 1 << 0;
/// Flag of a write: its writer is none who may leave a set-user-id bit.
const WRITE_KILL_SUIDGID: u32 = 1 << 2;

/// Bits of `fuse_setattr_in.valid`.
mod set {
    pub const MODE: u32 = 1 << 0;
    pub const OWNER: u32 = 1 << 1;
    pub const GROUP: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const HANDLE: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

pub struct Server {
    tree: Tree,
    options: FsOptions,
    me: u32,
    my_group: u32,
}

type Answer = Result<Vec<u8>, Errno>;

impl Folder for Server {
    fn request(&mut self, op: u32, node: u64, mut body: Reader<'_>, room: usize) -> Answer {
        if self.options.read_only && writes(op) {
            return Err(Errno::ROFS);
        }
        let body = &mut body;
        match op {
            op::INIT => self.init(body),
            op::DESTROY => {
                self.tree.forget_all();
                Ok(Vec::new())
            }
            op::LOOKUP => {
                let name = checked(body.text())?;
                self.entry(node, name)
            }
            op::GETATTR => self.attributes(node),
            op::SETATTR => self.set_attributes(node, body),
            op::READLINK => self.tree.link_target(node),
            op::SYMLINK | op::MKNOD | op::MKDIR => self.make(op, node, body),
            op::UNLINK | op::RMDIR => {
                let name = checked(body.text())?;
                let directory = if op == op::RMDIR {
                    AtFlags::REMOVEDIR
                } else {
                    AtFlags::empty()
                };
                rustix::fs::unlinkat(self.tree.node(node)?, name, directory)?;
                Ok(Vec::new())
            }
            op::RENAME | op::RENAME2 => self.rename(op, node, body),
            op::LINK => {
                let old = body.u64();
                let name = checked(body.text())?;
                self.tree.link(old, node, name)?;
                self.entry(node, name)
            }
            op::OPEN | op::OPENDIR => self.open(op, node, body),
            op::CREATE => self.create(node, body),
            op::READ => self.read(body, room),
            op::WRITE => self.write(body),
            op::READDIR => self.read_directory(body, room),
            op::STATFS => {
                let stat = rustix::fs::fstatvfs(self.tree.node(node)?)?;
                Ok(std::mem::take(&mut Writer::default().file_system(&stat).0))
            }
            op::RELEASE | op::RELEASEDIR => {
                self.tree.handles.remove(&body.u64());
                Ok(Vec::new())
            }
            // Nothing is kept here that a close would have to write.
            op::FLUSH => Ok(Vec::new()),
            op::SYNCFS => {
                let folder = self.tree.reopen(ROOT, OFlags::DIRECTORY)?;
                rustix::fs::syncfs(folder)?;
                Ok(Vec::new())
            }
            op::FSYNC | op::FSYNCDIR => {
                let file = self.tree.handle(body.u64())?;
                match body.u32() & 1 {
                    0 => rustix::fs::fsync(file)?,
                    _ => rustix::fs::fdatasync(file)?,
                }
                Ok(Vec::new())
            }
            op::SETXATTR | op::GETXATTR | op::LISTXATTR | op::REMOVEXATTR => {
                self.extended(op, node, body, room)
            }
            op::FALLOCATE => {
                let (handle, offset, length) = (body.u64(), body.u64(), body.u64());
                let mode = FallocateFlags::from_bits_truncate(body.u32());
                rustix::fs::fallocate(self.tree.handle(handle)?, mode, offset, length)?;
                Ok(Vec::new())
            }
            op::LSEEK => {
                let (handle, offset) = (body.u64(), body.u64());
                let whence = match body.u32() {
                    3 => SeekFrom::Data(offset),
                    4 => SeekFrom::Hole(offset),
                    _ => return Err(Errno::INVAL),
                };
                let at = rustix::fs::seek(self.tree.handle(handle)?, whence)?;
                Ok(at.to_le_bytes().to_vec())
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn forget(&mut self, op: u32, node: u64, mut body: Reader<'_>) {
        if op == op::FORGET {
            self.tree.forget(node, body.u64());
            return;
        }
        let count = body.u32();
        body.u32();
        for _ in 0..count {
            if body.0.len() < 16 {
                return;
            }
            let node = body.u64();
            if node != ROOT {
                self.tree.forget(node, body.u64());
            }
        }
    }

    fn forget_all(&mut self) {
        self.tree.forget_all();
    }

    fn save(&self) -> FsState {
        let handles = self.tree.handles.iter();
        FsState {
            version: Version::current(),
            nodes: self.tree.paths(),
            handles: handles
                .map(|(id, handle)| (*id, handle.node, handle.flags.bits()))
                .collect(),
        }
    }

    fn restore(&mut self, state: &FsState) {
        self.tree.restore(&state.nodes, &state.handles);
    }
}

impl Server {
    pub fn new(tree: Tree, options: FsOptions) -> Self {
        Self {
            tree,
            options,
            me: rustix::process::geteuid().as_raw(),
            my_group: rustix::process::getegid().as_raw(),
        }
    }

    fn init(&mut self, body: &mut Reader<'_>) -> Answer {
        let (major, minor, readahead, flags) = (body.u32(), body.u32(), body.u32(), body.u32());
        if major != 7 || minor < 31 {
            return Err(Errno::PROTO);
        }
        self.tree.forget_all();
        let mut wanted = ASYNC_READ | BIG_WRITES | AUTO_INVAL_DATA | PARALLEL_DIROPS;
        wanted |= MAX_PAGES | HANDLE_KILLPRIV_V2;
        if self.options.write_back {
            wanted |= WRITEBACK_CACHE;
        }
        let mut out = Writer::default();
        out.u32(7).u32(31).u32(readahead).u32(flags & wanted);
        out.u16(64).u16(48).u32(TRANSFER_MAX as u32).u32(1);
        out.u16((TRANSFER_MAX / 4096) as u16).u16(0);
        out.0.resize(64, 0);
        Ok(out.0)
    }

    fn entry(&mut self, parent: u64, name: &OsStr) -> Answer {
        let found = self.tree.lookup(parent, name)?;
        Ok(self.known(found))
    }

    /// `fuse_entry_out`.
    fn known(&self, (node, stat): (u64, Stat)) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(node).u64(0).u64(VALID).u64(VALID).u32(0).u32(0);
        out.attributes(&stat, self.me, self.my_group);
        out.0
    }

    fn attributes(&self, node: u64) -> Answer {
        let stat: Stat = rustix::fs::fstat(self.tree.node(node)?)?;
        let mut out = Writer::default();
        out.u64(VALID).u32(0).u32(0);
        out.attributes(&stat, self.me, self.my_group);
        Ok(out.0)
    }

    fn set_attributes(&mut self, node: u64, body: &mut Reader<'_>) -> Answer {
        let valid = body.u32();
        body.u32();
        let (handle, size) = (body.u64(), body.u64());
        body.u64();
        let (atime, mtime) = (body.u64(), body.u64());
        body.u64();
        let (atime_nsec, mtime_nsec) = (body.u32(), body.u32());
        body.u32();
        let mode = body.u32();
        body.u32();
        let (owner, group) = (body.u32(), body.u32());
        if valid & (set::OWNER | set::GROUP) != 0 {
            // Everything belongs to who runs the machine.
            let stat = rustix::fs::fstat(self.tree.node(node)?)?;
            let same = |wanted: u32, is: u32, mine: u32| wanted == is || wanted == 0 && is == mine;
            if valid & set::OWNER != 0 && !same(owner, stat.st_uid, self.me)
                || valid & set::GROUP != 0 && !same(group, stat.st_gid, self.my_group)
            {
                return Err(Errno::PERM);
            }
        }
        if valid & (set::OWNER | set::GROUP | set::KILL_SUIDGID) != 0 {
            self.drop_identity(node)?;
        }
        if valid & set::MODE != 0 {
            self.set_mode(node, mode)?;
        }
        if valid & set::SIZE != 0 {
            if valid & set::HANDLE != 0 {
                rustix::fs::ftruncate(self.tree.handle(handle)?, size)?;
            } else {
                rustix::fs::ftruncate(self.tree.reopen(node, OFlags::WRONLY)?, size)?;
            }
        }
        if valid & (set::ATIME | set::MTIME) != 0 {
            let time = |on: bool, now: bool, sec: u64, nsec: u32| Timespec {
                tv_sec: sec as i64,
                tv_nsec: match (on, now) {
                    (false, _) => UTIME_OMIT,
                    (true, true) => UTIME_NOW,
                    (true, false) => nsec.min(999_999_999).into(),
                },
            };
            let times = Timestamps {
                last_access: time(
                    valid & set::ATIME != 0,
                    valid & set::ATIME_NOW != 0,
                    atime,
                    atime_nsec,
                ),
                last_modification: time(
                    valid & set::MTIME != 0,
                    valid & set::MTIME_NOW != 0,
                    mtime,
                    mtime_nsec,
                ),
            };
            // By the descriptor, so that links have times, too.
            rustix::fs::utimensat(self.tree.node(node)?, "", &times, AtFlags::EMPTY_PATH)?;
        }
        self.attributes(node)
    }

    /// Sets permissions; a directory goes on giving its group to what is made
    /// in it.
    fn set_mode(&self, node: u64, mode: u32) -> Result<(), Errno> {
        let is = rustix::fs::fstat(self.tree.node(node)?)?.st_mode;
        let kept = match FileType::from_raw_mode(is) {
            FileType::Directory => is & 0o6000,
            _ => 0,
        };
        let mode = mode & MODE_BITS | kept;
        if mode != is & 0o7777 {
            rustix::fs::chmod(self.tree.magic(node)?, Mode::from_raw_mode(mode))?;
        }
        Ok(())
    }

    /// Takes set-user-id and set-group-id from a program whose contents or owner
    /// change.
    fn drop_identity(&self, node: u64) -> Result<(), Errno> {
        let mode = rustix::fs::fstat(self.tree.node(node)?)?.st_mode;
        let kept = match mode & 0o2010 {
            0o2010 => 0o1777,
            _ => 0o3777,
        };
        if FileType::from_raw_mode(mode).is_file() && mode & 0o7777 & !kept != 0 {
            rustix::fs::chmod(self.tree.magic(node)?, Mode::from_raw_mode(mode & kept))?;
        }
        Ok(())
    }

    fn make(&mut self, op: u32, parent: u64, body: &mut Reader<'_>) -> Answer {
        if op == op::SYMLINK {
            let name = checked(body.text())?;
            let target = OsStr::from_bytes(body.text().ok_or(Errno::INVAL)?);
            rustix::fs::symlinkat(target, self.tree.node(parent)?, name)?;
            return self.entry(parent, name);
        }
        let mode = body.u32();
        if op == op::MKDIR {
            let umask = body.u32();
            let name = checked(body.text())?;
            let mode = mode & !umask & MODE_BITS;
            rustix::fs::mkdirat(self.tree.node(parent)?, name, Mode::from_raw_mode(mode))?;
            let (node, _) = self.tree.lookup(parent, name)?;
            // The monitor's own umask is not the guest's.
            let stat = self
                .set_mode(node, mode)
                .and_then(|()| rustix::fs::fstat(self.tree.node(node)?));
            return match stat {
                Ok(stat) => Ok(self.known((node, stat))),
                Err(error) => {
                    self.tree.forget(node, 1);
                    Err(error)
                }
            };
        }
        let (_, umask, _) = (body.u32(), body.u32(), body.u32());
        let name = checked(body.text())?;
        if mode & 0o170_000 != 0o100_000 {
            // No devices, and no pipes or sockets of a guest for the host's programs.
            return Err(Errno::PERM);
        }
        let file = self.new_file(parent, name, OFlags::WRONLY, mode & !umask)?;
        let found = self.tree.found(&file)?;
        Ok(self.known(found))
    }

    /// Makes a file that was not there, with the mode that the guest wants
    /// whatever the monitor's umask is.
    fn new_file(
        &self,
        parent: u64,
        name: &OsStr,
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd, Errno> {
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let flags = flags | new | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mode = Mode::from_raw_mode(mode & MODE_BITS);
        let file = rustix::fs::openat(self.tree.node(parent)?, name, flags, mode)?;
        rustix::fs::fchmod(&file, mode)?;
        Ok(file)
    }

    fn rename(&mut self, op: u32, node: u64, body: &mut Reader<'_>) -> Answer {
        let target = body.u64();
        let mut flags = RenameFlags::empty();
        if op == op::RENAME2 {
            flags = RenameFlags::from_bits_truncate(body.u32());
            body.u32();
            // A whiteout is a device.
            if flags.contains(RenameFlags::WHITEOUT) {
                return Err(Errno::INVAL);
            }
        }
        let (old, new) = (checked(body.text())?, checked(body.text())?);
        let (from, to) = (self.tree.node(node)?, self.tree.node(target)?);
        if flags.is_empty() {
            rustix::fs::renameat(from, old, to, new)?;
        } else {
            rustix::fs::renameat_with(from, old, to, new, flags)?;
        }
        Ok(Vec::new())
    }

    /// Flags of the guest that mean the same here.
    fn flags(&self, raw: u32) -> Result<OFlags, Errno> {
        let access = OFlags::from_bits_truncate(raw & 3);
        if self.options.read_only && access != OFlags::RDONLY {
            return Err(Errno::ROFS);
        }
        let more = OFlags::TRUNC | OFlags::EXCL | OFlags::DSYNC | OFlags::SYNC;
        let more = OFlags::from_bits_truncate(raw) & more;
        if self.options.read_only && more.contains(OFlags::TRUNC) {
            return Err(Errno::ROFS);
        }
        Ok(access | more)
    }

    fn open(&mut self, op: u32, node: u64, body: &mut Reader<'_>) -> Answer {
        let mut flags = self.flags(body.u32())? - OFlags::EXCL;
        if op == op::OPENDIR {
            flags = OFlags::RDONLY | OFlags::DIRECTORY;
        }
        let (file, flags) = self.reopen(node, flags)?;
        self.opened(file, node, flags)
    }

    /// Opens a known file. A guest that writes later reads what is around what
    /// it wrote, by files that are open for writing only, too.
    fn reopen(&self, node: u64, flags: OFlags) -> Result<(OwnedFd, OFlags), Errno> {
        let wider = self.wider(flags);
        match self.tree.reopen(node, wider) {
            Err(Errno::ACCESS) if wider != flags => Ok((self.tree.reopen(node, flags)?, flags)),
            opened => Ok((opened?, wider)),
        }
    }

    /// The flags by which a file is opened for a guest that wants `flags`.
    fn wider(&self, flags: OFlags) -> OFlags {
        match flags.contains(OFlags::WRONLY) && self.options.write_back {
            true => (flags - OFlags::WRONLY) | OFlags::RDWR,
            false => flags,
        }
    }

    /// `fuse_open_out`.
    fn opened(&mut self, file: OwnedFd, node: u64, flags: OFlags) -> Answer {
        // What cannot be read cannot be kept in pages that are written in part.
        let direct = self.options.write_back && flags.contains(OFlags::WRONLY);
        let handle = self.tree.add_handle(file, node, flags)?;
        let mut out = Writer::default();
        out.u64(handle)
            .u32(if direct { DIRECT_IO } else { 0 })
            .u32(0);
        Ok(out.0)
    }

    fn create(&mut self, parent: u64, body: &mut Reader<'_>) -> Answer {
        let (raw, mode, umask, _) = (body.u32(), body.u32(), body.u32(), body.u32());
        let flags = self.flags(raw)?;
        let name = checked(body.text())?;
        // An existing file is opened only as one that is known, and is regular.
        let access = self.wider(flags);
        let made = match self.new_file(parent, name, access, mode & !umask) {
            Ok(file) => Some(file),
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => None,
            Err(error) => return Err(error),
        };
        let flags = flags - OFlags::EXCL;
        let found = match &made {
            Some(file) => self.tree.found(file)?,
            None => self.tree.lookup(parent, name)?,
        };
        let node = found.0;
        // A file that may not be written by its mode is open for writing to
        // who created it.
        let access = access - OFlags::EXCL;
        let file = made.map_or_else(|| self.reopen(node, flags), |file| Ok((file, access)));
        match file.and_then(|(file, access)| self.opened(file, node, access)) {
            Ok(opened) => Ok([self.known(found), opened].concat()),
            Err(error) => {
                self.tree.forget(node, 1);
                Err(error)
            }
        }
    }

    fn read(&self, body: &mut Reader<'_>, room: usize) -> Answer {
        let (handle, offset, size) = (body.u64(), body.u64(), body.u32());
        let mut data = vec![0; (size as usize).min(room).min(TRANSFER_MAX)];
        let file = self.tree.handle(handle)?;
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(file, rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        data.truncate(done);
        Ok(data)
    }

    fn write(&self, body: &mut Reader<'_>) -> Answer {
        let (handle, offset, size) = (body.u64(), body.u64(), body.u32());
        let flags = body.u32();
        body.u64();
        body.u64();
        let data = body.rest();
        let data = data.get(..size as usize).ok_or(Errno::INVAL)?;
        let file = self.tree.handle(handle)?;
        if flags & WRITE_KILL_SUIDGID != 0
            && let Some(handle) = self.tree.handles.get(&handle)
        {
            self.drop_identity(handle.node)?;
        }
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(file, rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                // What was written counts; the error comes again.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let mut out = Writer::default();
        out.u32(done as u32).u32(0);
        Ok(out.0)
    }

    fn read_directory(&self, body: &mut Reader<'_>, room: usize) -> Answer {
        let (handle, offset, size) = (body.u64(), body.u64(), body.u32());
        let room = (size as usize).min(room).min(TRANSFER_MAX);
        let directory = self.tree.handle(handle)?;
        rustix::fs::seek(directory, SeekFrom::Start(offset))?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
        let mut out = Writer::default();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let length = (24 + name.len()).next_multiple_of(8);
            if out.0.len() + length > room {
                break;
            }
            let kind = entry.file_type().as_raw_mode() >> 12;
            out.u64(entry.ino()).u64(entry.next_entry_cookie());
            out.u32(name.len() as u32).u32(kind);
            out.0.extend(name);
            out.0.resize(out.0.len().next_multiple_of(8), 0);
        }
        Ok(out.0)
    }

    /// Extended attributes, of users only.
    fn extended(&self, op: u32, node: u64, body: &mut Reader<'_>, room: usize) -> Answer {
        let path = self.tree.magic(node)?;
        let user = |name: Option<&[u8]>| match name {
            Some(name) if name.starts_with(b"user.") => Ok(OsStr::from_bytes(name).to_owned()),
            _ => Err(Errno::OPNOTSUPP),
        };
        if op == op::REMOVEXATTR {
            rustix::fs::removexattr(path, user(body.text())?)?;
            return Ok(Vec::new());
        }
        let (size, flags) = (body.u32() as usize, body.u32());
        if op == op::SETXATTR {
            let name = user(body.text())?;
            let value = body.rest().get(..size).ok_or(Errno::INVAL)?;
            rustix::fs::setxattr(path, name, value, XattrFlags::from_bits_truncate(flags))?;
            return Ok(Vec::new());
        }
        let mut value = vec![0; 64 << 10];
        let mut value = if op == op::GETXATTR {
            let length = rustix::fs::getxattr(path, user(body.text())?, &mut value[..])?;
            value.truncate(length);
            value
        } else {
            let length = rustix::fs::listxattr(path, &mut value[..])?;
            value.truncate(length);
            let names = value.split_inclusive(|byte| *byte == 0);
            names
                .filter(|name| name.starts_with(b"user."))
                .flatten()
                .copied()
                .collect()
        };
        if size == 0 {
            let mut out = Writer::default();
            out.u32(value.len() as u32).u32(0);
            return Ok(out.0);
        }
        if value.len() > size.min(room) {
            return Err(Errno::RANGE);
        }
        Ok(std::mem::take(&mut value))
    }
}

/// Operations that change something, whatever their arguments.
fn writes(op: u32) -> bool {
    matches!(
        op,
        op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::CREATE
            | op::WRITE
            | op::SETXATTR
            | op::REMOVEXATTR
            | op::FALLOCATE
    )
}
