//! The child: reads the disk through its parent.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::protocol::{self, ANSWER, Answer, LONGEST_READ, Question, READ};
use crate::read::{Budget, Cached, ReadAt};
use crate::survey::Survey;

/// CPU time, in seconds; an honest disk takes milliseconds.
const SECONDS: u64 = 20;
/// Address space: this program and half a GiB for its work.
const MEMORY: u64 = 2 << 30;

/// The disk, as the parent shows it.
struct Remote {
    size: u64,
    socket: Rc<RefCell<UnixStream>>,
}

impl ReadAt for Remote {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, mut offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut socket = self.socket.borrow_mut();
        for part in out.chunks_mut(LONGEST_READ as usize) {
            let mut request = [READ; 13];
            let fields = offset.to_le_bytes().into_iter();
            let fields = fields.chain((part.len() as u32).to_le_bytes());
            for (slot, byte) in request.iter_mut().skip(1).zip(fields) {
                *slot = byte;
            }
            socket.write_all(&request)?;
            let mut status = [0];
            socket.read_exact(&mut status)?;
            if status != [0] {
                return Err(io::Error::other("the host cannot read the disk there"));
            }
            socket.read_exact(part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }
}

/// Answers the one question that comes by standard input, a socket. What it
/// loads goes to standard output, a file. The exit status.
pub fn serve() -> u8 {
    let answered = catch_unwind(AssertUnwindSafe(answer));
    match answered {
        Ok(Ok(())) => 0,
        // The parent sees that there is no answer.
        Ok(Err(_)) | Err(_) => 1,
    }
}

fn answer() -> io::Result<()> {
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let question: Question = protocol::receive(&mut socket)?;
    let limit = question.load.as_ref().map_or(0, |load| load.limit);
    confine(limit, &socket, &output)?;
    // Its message would go nowhere: the answer has it.
    std::panic::set_hook(Box::new(|_| {}));
    let socket = Rc::new(RefCell::new(socket));
    let remote = Remote {
        size: question.size,
        socket: socket.clone(),
    };
    let work = AssertUnwindSafe(|| work(question, remote, &output));
    let answer = catch_unwind(work).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("no reason");
        Answer::Failed(format!("its reader gave up: {text}"))
    });
    let mut socket = socket.borrow_mut();
    socket.write_all(&[ANSWER])?;
    protocol::send(&mut *socket, &answer)
}

fn work(question: Question, remote: Remote, output: &File) -> Answer {
    let survey = Survey::new(Rc::new(Cached::new(remote, Budget::default())));
    let found = survey.found();
    let Some(load) = question.load else {
        return Answer::Found(found);
    };
    let Some(index) = found.choose(load.entry.as_deref()) else {
        return Answer::Refused(found, None, "there is no such entry".into());
    };
    let mut write = |at: u64, bytes: &[u8]| output.write_all_at(bytes, at);
    match survey.load(index, load.limit, &mut write) {
        Ok(pieces) => Answer::Loaded(found, index, pieces),
        Err(problem) => Answer::Refused(found, Some(index), problem),
    }
}

/// Gives up everything that reading a disk does not take.
fn confine(limit: u64, socket: &UnixStream, output: &File) -> io::Result<()> {
    let most = |resource, value| {
        let both = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, both).map_err(io::Error::from)
    };
    most(Resource::Core, 0)?;
    most(Resource::Cpu, SECONDS)?;
    most(Resource::As, MEMORY)?;
    // Kernel, initrd and the gap between them.
    let file = limit.saturating_mul(2).saturating_add(1 << 20);
    most(Resource::Fsize, file)?;
    let filter = filter(socket.as_raw_fd(), output.as_raw_fd()).map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter).map_err(io::Error::other)
}

/// Memory, the end, and these two descriptors: others may have been inherited
/// from whoever started the parent.
fn filter(socket: RawFd, output: RawFd) -> Result<BpfProgram, seccompiler::BackendError> {
    let on = |descriptor: RawFd| {
        let length = SeccompCmpArgLen::Dword;
        let same = SeccompCmpOp::Eq;
        let condition = SeccompCondition::new(0, length, same, descriptor as u64)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_sendto,
        libc::SYS_recvfrom,
    ] {
        rules.insert(call, on(socket)?);
    }
    rules.insert(libc::SYS_pwrite64, on(output)?);
    for call in [
        libc::SYS_mmap,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_close,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigaction,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_tgkill,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ] {
        rules.insert(call, Vec::new());
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let (others, these) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, others, these, architecture)?.try_into()
}
