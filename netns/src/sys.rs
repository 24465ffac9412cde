//! The calls that Rust cannot check.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

use crate::userns::Child;

/// Moves the calling thread out of namespaces, or of the file system state, that it shares with other threads.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(rustix::io::Errno::INVAL);
    }
    // SAFETY: the only unsound flag, FILES, is refused above.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Turns the interface `lo` on in the calling thread's network namespace. Allocates nothing.
pub(crate) fn loopback_up(socket: impl AsFd) -> rustix::io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = *from as libc::c_char;
    }
    // SAFETY: the request outlives the call, is an ifreq as this ioctl wants it, and its name ends with a NUL.
    if unsafe { libc::ioctl(fd, libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
        return Err(last_errno());
    }
    // SAFETY: SIOCGIFFLAGS has filled the union's `ifru_flags`.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: as for SIOCGIFFLAGS.
    if unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw mut request) } < 0 {
        return Err(last_errno());
    }
    Ok(())
}

/// Where a forked child has its socket; it has nothing open behind it.
const CHILD_SOCKET: i32 = 3;

/// Forks a process that keeps standard streams and `socket`, runs `child` and ends. The caller reaps it.
pub(crate) fn fork(child: &Child<'_>, socket: BorrowedFd<'_>) -> io::Result<Pid> {
    // SAFETY: the process may have threads, so the child may only make async-signal-safe calls. `Child::run` keeps to
    // that: it makes raw system calls on memory that was prepared before, allocates nothing, takes no lock, and
    // cannot unwind out of here because `_exit` follows it and it does not panic.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // It never execs, so close-on-exec does not help: a lock or another pod's socket must not live on in it.
            // SAFETY: the child's own table of descriptors; nothing in the child refers to one of them but by `socket`.
            let kept = unsafe {
                libc::dup2(socket.as_raw_fd(), CHILD_SOCKET) == CHILD_SOCKET
                    && libc::syscall(libc::SYS_close_range, CHILD_SOCKET + 1, libc::c_uint::MAX, 0) == 0
            };
            if kept {
                // SAFETY: open, by `dup2`, as long as the child lives.
                child.run(unsafe { BorrowedFd::borrow_raw(CHILD_SOCKET) });
            }
            // SAFETY: always sound; it ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave no pid")),
    }
}

fn last_errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO)
}
