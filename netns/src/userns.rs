//! Namespaces owned by a user namespace of the pod, made in a child process.
//!
//! `unshare(CLONE_NEWUSER)` is refused to a thread of a threaded program, so a child is forked:
//!
//! ```text
//!   server                                child (raw system calls only)
//!     │  fork ─────────────────────────────► unshare(user)
//!     │  ◄──────────────────────── ready ───  │
//!     │  write uid_map, gid_map               │
//!     │  mapped ───────────────────────────►  uid 0, gid 0 of the new namespace
//!     │                                       unshare(net, ipc, uts): owned by it
//!     │                                       lo, names, parameters
//!     │  ◄────────────── done, or (step, errno)
//!     │  open /proc/<child>/ns/*              │
//!     │  close ────────────────────────────►  ends
//! ```
//! Either side sees the other's death as the end of the socket pair, and ends too: nothing outlives a crash. The child never
//! execs, so it first closes what it inherited; children that held each other's sockets would wait for each other for ever.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::process::{Gid, Pid, Uid, WaitOptions};
use rustix::thread::UnshareFlags;

use crate::pin::{Error, IdMapping, UserMapping};
use crate::setup::Setup;
use crate::sys;

/// The namespaces of a pod, as descriptors; `None` where it shares the host's.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) user: Option<OwnedFd>,
    pub(crate) net: Option<OwnedFd>,
    pub(crate) ipc: Option<OwnedFd>,
    pub(crate) uts: Option<OwnedFd>,
}

/// Makes a user namespace with the given mapping and the namespaces in `flags`, owned by it and set up.
pub(crate) fn make(mapping: &UserMapping, flags: UnshareFlags, setup: &Setup) -> Result<Made, Error> {
    let io = |action: &'static str| {
        move |source: io::Error| Error::Namespace { action, subject: "user namespace".to_owned(), source }
    };
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| io("make a socket pair for")(errno.into()))?;
    let pid = sys::fork(&Child { flags, setup }, theirs.as_fd()).map_err(io("fork a child for"))?;
    drop(theirs);
    let made = talk(pid, &ours, mapping, flags, setup);
    // Closing would not do: a child that was forked this moment may still have a copy.
    let _ = rustix::net::shutdown(&ours, Shutdown::Both);
    // The child ends at the end of the socket pair, so this does not wait for long.
    while let Err(Errno::INTR) = rustix::process::waitpid(Some(pid), WaitOptions::empty()) {}
    made
}

/// The server's side of the conversation.
fn talk(pid: Pid, socket: &OwnedFd, mapping: &UserMapping, flags: UnshareFlags, setup: &Setup) -> Result<Made, Error> {
    let pid = pid.as_raw_nonzero();
    receive(socket, UNSHARED_USER, setup)?;
    for (name, ids) in [("gid_map", &mapping.gids), ("uid_map", &mapping.uids)] {
        let path = format!("/proc/{pid}/{name}");
        // One write: the kernel takes a mapping once and whole (user_namespaces(7)).
        std::fs::write(&path, lines(ids)).map_err(|source| Error::Namespace {
            action: "write the mapping",
            subject: format!("{name} of a user namespace: {}", lines(ids).trim_end().replace('\n', ", ")),
            source,
        })?;
    }
    rustix::net::send(socket, &[0], SendFlags::NOSIGNAL).map_err(|errno| Error::Namespace {
        action: "speak to the child that makes",
        subject: "user namespace".to_owned(),
        source: errno.into(),
    })?;
    receive(socket, SET_UP, setup)?;
    let open = |wanted: bool, name: &str| -> Result<Option<OwnedFd>, Error> {
        if !wanted {
            return Ok(None);
        }
        let path = format!("/proc/{pid}/ns/{name}");
        match File::open(&path) {
            Ok(file) => Ok(Some(file.into())),
            Err(source) => Err(Error::Namespace { action: "open", subject: path, source }),
        }
    };
    Ok(Made {
        user: open(true, "user")?,
        net: open(flags.contains(UnshareFlags::NEWNET), "net")?,
        ipc: open(flags.contains(UnshareFlags::NEWIPC), "ipc")?,
        uts: open(flags.contains(UnshareFlags::NEWUTS), "uts")?,
    })
}

fn lines(ids: &[IdMapping]) -> String {
    ids.iter().map(|id| format!("{} {} {}\n", id.container_id, id.host_id, id.length)).collect()
}

/// Waits for the child's report of `stage`.
fn receive(socket: &OwnedFd, stage: u8, setup: &Setup) -> Result<(), Error> {
    let mut report = [0; REPORT];
    let got = loop {
        match rustix::net::recv(socket, &mut report, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            got => break got,
        }
    };
    let fail =
        |action, source: io::Error| Err(Error::Namespace { action, subject: "user namespace".to_owned(), source });
    match got.map(|(read, _)| read) {
        Ok(REPORT) => {}
        Ok(_) => return fail("lost the child that makes", Errno::CHILD.into()),
        Err(errno) => return fail("listen to the child that makes", errno.into()),
    }
    let number = |offset: usize| i32::from_le_bytes(std::array::from_fn(|byte| report[offset + byte]));
    let (reached, errno, step) = (report[0], number(1), number(5));
    if reached == stage && errno == 0 {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(errno);
    match reached {
        UNSHARED_USER => fail("make", source),
        BECAME_ROOT => fail("become root of", source),
        UNSHARED_REST => fail("make namespaces in", source),
        _ => Err(setup.error(usize::try_from(step).unwrap_or(usize::MAX), source)),
    }
}

/// The stages that the child reports: the one it failed at, or one of the two that the server waits for.
const UNSHARED_USER: u8 = 0;
const BECAME_ROOT: u8 = 1;
const UNSHARED_REST: u8 = 2;
const SET_UP: u8 = 3;
/// A report: stage, errno (0: reached), step of the set-up; little endian.
const REPORT: usize = 9;

/// What the forked child works from.
#[derive(Debug)]
pub(crate) struct Child<'a> {
    flags: UnshareFlags,
    setup: &'a Setup,
}

impl Child<'_> {
    /// The child's whole life. Async-signal-safe: nothing is allocated, no lock is taken.
    pub(crate) fn run(&self, socket: BorrowedFd<'_>) {
        let (stage, step, errno) = match self.make(socket) {
            Ok(()) => (SET_UP, 0, 0),
            Err((stage, step, errno)) => (stage, step, errno.raw_os_error()),
        };
        report(socket, stage, errno, step);
        wait(socket);
    }

    fn make(&self, socket: BorrowedFd<'_>) -> Result<(), (u8, usize, Errno)> {
        sys::unshare(UnshareFlags::NEWUSER).map_err(|errno| (UNSHARED_USER, 0, errno))?;
        report(socket, UNSHARED_USER, 0, 0);
        if !wait(socket) {
            return Err((UNSHARED_USER, 0, Errno::PIPE));
        }
        // The kernel gives parts of the new namespaces (files below /proc/sys, sysfs) to their owner's uid 0.
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
            .and_then(|()| rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
            .map_err(|errno| (BECAME_ROOT, 0, errno))?;
        sys::unshare(self.flags).map_err(|errno| (UNSHARED_REST, 0, errno))?;
        self.setup.run().map_err(|(step, errno)| (SET_UP, step, errno))
    }
}

fn report(socket: BorrowedFd<'_>, stage: u8, errno: i32, step: usize) {
    let mut report = [stage; REPORT];
    report[1..5].copy_from_slice(&errno.to_le_bytes());
    report[5..].copy_from_slice(&(step as u32).to_le_bytes());
    let _ = rustix::net::send(socket, &report, SendFlags::NOSIGNAL);
}

/// Waits for the server's next word; false at the end of the conversation.
fn wait(socket: BorrowedFd<'_>) -> bool {
    let mut word = [0];
    loop {
        match rustix::net::recv(socket, &mut word, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            got => return matches!(got, Ok((1, _))),
        }
    }
}
