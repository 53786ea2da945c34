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

/// Most files known at once; Linux forgets the least used when told to.
const NODES_MAX: usize = 200_000;
/// Most files open at once.
const HANDLES_MAX: usize = 16_384;

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
    pub fn open(folder: &Path) -> Result<Self, Errno> {
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
        })
    }

    pub fn node(&self, id: u64) -> Result<&OwnedFd, Errno> {
        self.nodes.get(&id).map(|n| &n.path).ok_or(Errno::STALE)
    }

    /// Looks up a name; the node and what it is.
    pub fn lookup(&mut self, parent: u64, name: &std::ffi::OsStr) -> Result<(u64, Stat), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = openat(self.node(parent)?, name, flags, Mode::empty())?;
        let stat = fstat(&path)?;
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(&id) = self.by_identity.get(&identity)
            && let Some(node) = self.nodes.get_mut(&id)
        {
            node.lookups = node.lookups.saturating_add(1);
            return Ok((id, stat));
        }
        if self.nodes.len() >= NODES_MAX {
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
            self.by_identity.remove(&node.identity);
            self.nodes.remove(&id);
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

    /// Opens a known file.
    pub fn reopen(&self, id: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.magic(id)?;
        let number = self.node(id)?.as_raw_fd().to_string();
        let flags =
            (flags - OFlags::NOFOLLOW - OFlags::CREATE) | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat(&self.descriptors, number, flags, Mode::empty())
    }

    pub fn add_handle(&mut self, file: OwnedFd, node: u64, flags: OFlags) -> Result<u64, Errno> {
        if self.handles.len() >= HANDLES_MAX {
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
    /// were removed are left out.
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
                Some((*id, path, node.lookups))
            })
            .collect()
    }

    /// Takes back what [`Self::paths`] gave and the handles (id, node, flags);
    /// what is no longer there is stale to the guest.
    pub fn restore(&mut self, nodes: &[(u64, PathBuf, u64)], handles: &[(u64, u64, u32)]) {
        self.forget_all();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        for (id, path, lookups) in nodes.iter().take(NODES_MAX) {
            self.next_node = self.next_node.max(id.saturating_add(1));
            let Ok(root) = self.node(ROOT) else {
                return;
            };
            let opened = openat2(root, path, flags, Mode::empty(), within);
            let Ok((path, stat)) = opened.and_then(|path| fstat(&path).map(|stat| (path, stat)))
            else {
                continue;
            };
            if *id != ROOT {
                self.insert(*id, path, (stat.st_dev, stat.st_ino), *lookups);
            }
        }
        for &(id, node, flags) in handles.iter().take(HANDLES_MAX) {
            self.next_handle = self.next_handle.max(id.saturating_add(1));
            let flags = OFlags::from_bits_truncate(flags) - OFlags::TRUNC - OFlags::EXCL;
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
