//! The files that the guest knows: each an `O_PATH` descriptor, found by one
//! name in a directory at a time and never through a symbolic link, so that
//! no request can lead out of the folder.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat,
};
use rustix::io::Errno;

use super::wire::ROOT;

/// Most files known at once, of which each is a descriptor.
const NODES_MAX: usize = 200_000;
/// Most files open at once.
const HANDLES_MAX: usize = 16_384;
/// Least number that no file has: a snapshot must not make numbers run out.
const NUMBER_END: u64 = 1 << 62;
/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

/// A file that the guest knows.
pub struct Node {
    pub path: OwnedFd,
    identity: (u64, u64),
    /// How often the guest has looked it up and not forgotten it.
    pub lookups: u64,
}

/// A file that the guest has open.
pub struct Handle {
    pub file: OwnedFd,
    pub node: u64,
    pub flags: OFlags,
}

pub struct Tree {
    nodes: BTreeMap<u64, Node>,
    by_identity: BTreeMap<(u64, u64), u64>,
    next_node: u64,
    pub handles: BTreeMap<u64, Handle>,
    next_handle: u64,
    /// `/proc/self/fd`, by which a known file is opened.
    descriptors: OwnedFd,
    most_nodes: usize,
    most_handles: usize,
    read_only: bool,
}

/// What may be the name of a directory's entry.
pub fn checked(name: Option<&[u8]>) -> Result<&std::ffi::OsStr, Errno> {
    let name = name.ok_or(Errno::INVAL)?;
    if name.len() > 255 {
        return Err(Errno::NAMETOOLONG);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(Errno::INVAL);
    }
    Ok(std::ffi::OsStr::from_bytes(name))
}

impl Tree {
    /// Opens the folder. Of the process's `descriptors` the guest gets at most
    /// five eighths, so that it cannot take the monitor's.
    pub fn open(folder: &Path, read_only: bool, descriptors: usize) -> Result<Self, Errno> {
        let (most_nodes, most_handles) = (descriptors / 2, descriptors / 8);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty())?;
        let descriptors = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        let stat = fstat(&root)?;
        let identity = (stat.st_dev, stat.st_ino);
        let node = Node {
            path: root,
            identity,
            lookups: 1,
        };
        Ok(Self {
            nodes: BTreeMap::from([(ROOT, node)]),
            by_identity: BTreeMap::from([(identity, ROOT)]),
            next_node: ROOT + 1,
            handles: BTreeMap::new(),
            next_handle: 1,
            descriptors,
            most_nodes: most_nodes.min(NODES_MAX),
            most_handles: most_handles.min(HANDLES_MAX),
            read_only,
        })
    }

    pub fn node(&self, id: u64) -> Result<&OwnedFd, Errno> {
        self.nodes.get(&id).map(|n| &n.path).ok_or(Errno::STALE)
    }

    /// Looks up a name; the node and what it is.
    pub fn lookup(&mut self, parent: u64, name: &std::ffi::OsStr) -> Result<(u64, Stat), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = openat(self.node(parent)?, name, flags, Mode::empty())?;
        self.adopt(path)
    }

    /// The node of an open file, which the guest now knows once more.
    pub fn found(&mut self, file: &OwnedFd) -> Result<(u64, Stat), Errno> {
        let number = file.as_raw_fd().to_string();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path = openat(&self.descriptors, number, flags, Mode::empty())?;
        self.adopt(path)
    }

    fn adopt(&mut self, path: OwnedFd) -> Result<(u64, Stat), Errno> {
        let stat = fstat(&path)?;
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(&id) = self.by_identity.get(&identity)
            && let Some(node) = self.nodes.get_mut(&id)
        {
            node.lookups = node.lookups.saturating_add(1);
            return Ok((id, stat));
        }
        if self.nodes.len() >= self.most_nodes || self.next_node >= NUMBER_END {
            return Err(Errno::NFILE);
        }
        let id = self.next_node;
        self.next_node += 1;
        self.insert(id, path, identity, 1);
        Ok((id, stat))
    }

    fn insert(&mut self, id: u64, path: OwnedFd, identity: (u64, u64), lookups: u64) {
        let node = Node {
            path,
            identity,
            lookups,
        };
        self.by_identity.insert(identity, id);
        self.nodes.insert(id, node);
    }

    pub fn forget(&mut self, id: u64, count: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|_| id != ROOT) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0 {
            let identity = node.identity;
            self.nodes.remove(&id);
            if self.by_identity.get(&identity) == Some(&id) {
                self.by_identity.remove(&identity);
            }
        }
    }

    pub fn forget_all(&mut self) {
        self.handles.clear();
        self.nodes.retain(|id, _| *id == ROOT);
        let root = self.nodes.get(&ROOT).map(|node| (node.identity, ROOT));
        self.by_identity = root.into_iter().collect();
    }

    /// `/proc/self/fd/N` of a regular file or directory: no special file is
    /// opened, which could do something to the host or keep it waiting.
    pub fn magic(&self, id: u64) -> Result<PathBuf, Errno> {
        let path = self.node(id)?;
        match FileType::from_raw_mode(fstat(path)?.st_mode) {
            FileType::RegularFile | FileType::Directory => {
                Ok(format!("/proc/self/fd/{}", path.as_raw_fd()).into())
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// Opens a known file. One that gives its runner another identity on the
    /// host is not opened for writing.
    pub fn reopen(&self, id: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.magic(id)?;
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        if writes && self.read_only {
            return Err(Errno::ROFS);
        }
        let mode = fstat(self.node(id)?)?.st_mode;
        if writes && mode & SET_ID != 0 && FileType::from_raw_mode(mode).is_file() {
            return Err(Errno::PERM);
        }
        let number = self.node(id)?.as_raw_fd().to_string();
        let flags =
            (flags - OFlags::NOFOLLOW - OFlags::CREATE) | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat(&self.descriptors, number, flags, Mode::empty())
    }

    pub fn add_handle(&mut self, file: OwnedFd, node: u64, flags: OFlags) -> Result<u64, Errno> {
        if self.handles.len() >= self.most_handles || self.next_handle >= NUMBER_END {
            return Err(Errno::NFILE);
        }
        let id = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(id, Handle { file, node, flags });
        Ok(id)
    }

    pub fn handle(&self, id: u64) -> Result<&OwnedFd, Errno> {
        self.handles.get(&id).map(|h| &h.file).ok_or(Errno::BADF)
    }

    /// Nodes as they are found from the folder: id, path, lookups. Those that
    /// cannot be found by that path, such as removed ones, are left out.
    pub fn paths(&self) -> Vec<(u64, PathBuf, u64)> {
        let read = |path: &OwnedFd| {
            let number = path.as_raw_fd().to_string();
            let bytes = readlinkat(&self.descriptors, number, Vec::new()).ok()?;
            Some(PathBuf::from(std::ffi::OsString::from_vec(
                bytes.into_bytes(),
            )))
        };
        let Some(root) = self.nodes.get(&ROOT).and_then(|node| read(&node.path)) else {
            return Vec::new();
        };
        let nodes = self.nodes.iter().filter(|(id, _)| **id != ROOT);
        nodes
            .filter_map(|(id, node)| {
                let path = read(&node.path)?;
                let path = path.strip_prefix(&root).ok()?.to_owned();
                let (_, identity) = self.within(&path).ok()?;
                (identity == node.identity).then_some((*id, path, node.lookups))
            })
            .collect()
    }

    /// What is at a path below the folder now, links not followed.
    fn within(&self, path: &Path) -> Result<(OwnedFd, (u64, u64)), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = openat2(self.node(ROOT)?, path, flags, Mode::empty(), within)?;
        let stat = fstat(&path)?;
        Ok((path, (stat.st_dev, stat.st_ino)))
    }

    /// Takes back what [`Self::paths`] gave and the handles (id, node, flags);
    /// what is no longer there is stale to the guest.
    pub fn restore(&mut self, nodes: &[(u64, PathBuf, u64)], handles: &[(u64, u64, u32)]) {
        self.forget_all();
        // A number that was given once is not given again.
        let after = |id: u64, next: u64| next.max(id.saturating_add(1)).min(NUMBER_END);
        let sane = |id: u64| (ROOT + 1..NUMBER_END).contains(&id);
        for (id, path, lookups) in nodes.iter().take(self.most_nodes) {
            self.next_node = after(*id, self.next_node);
            if let Ok((path, identity)) = self.within(path)
                && sane(*id)
            {
                self.insert(*id, path, identity, *lookups);
            }
        }
        let kept = OFlags::ACCMODE | OFlags::DIRECTORY | OFlags::DSYNC | OFlags::SYNC;
        for &(id, node, flags) in handles.iter().take(self.most_handles) {
            self.next_handle = after(id, self.next_handle);
            let flags = OFlags::from_bits_truncate(flags) & kept;
            if let Ok(file) = self.reopen(node, flags) {
                self.handles.insert(id, Handle { file, node, flags });
            }
        }
    }

    /// What is at the end of a known symbolic link.
    pub fn link_target(&self, id: u64) -> Result<Vec<u8>, Errno> {
        Ok(readlinkat(self.node(id)?, "", Vec::new())?.into_bytes())
    }

    /// Gives a known file another name.
    pub fn link(&self, id: u64, parent: u64, name: &std::ffi::OsStr) -> Result<(), Errno> {
        let number = self.node(id)?.as_raw_fd().to_string();
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(&self.descriptors, number, self.node(parent)?, name, flags)
    }
}
