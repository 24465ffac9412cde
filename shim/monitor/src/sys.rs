//! All that needs `unsafe`: calls that neither std nor rustix offers safely.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The program's entry, without what std does before its `main`. (std reads the arguments by itself, with glibc.)
#[cfg(not(test))]
// SAFETY: no other symbol of this name is linked, since the crate is `no_main`.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
    crate::run()
}

/// Whole pages of memory of their own, which cost nothing until they are written to and can be given back.
#[derive(Debug)]
pub(crate) struct Pages {
    start: *mut u8,
    len: usize,
}

impl Pages {
    /// `len` zero bytes.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no other memory.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }?;
        Ok(Self { start: start.cast(), len })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `start..start + len` is mapped readable as long as `self` lives, and only reached through it.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    /// The bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, mapped writable too, and `&mut self` excludes every other reference.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Gives the memory back to the kernel; the bytes are zero again.
    pub(crate) fn release(&mut self) {
        // SAFETY: the range is a private anonymous mapping of ours, and zero is a valid byte.
        let _ = unsafe { madvise(self.start.cast(), self.len, Advice::LinuxDontNeed) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

/// `fork(2)`: the child's pid for the parent, `None` for the child.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the process has one thread, so the child's memory is consistent and it may do what the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// A copy of the mount namespace, for this process alone.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS changes what paths mean; no memory or descriptor is affected.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?)
}

/// What [`set_mount`] changes of a mount.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountChange<'a> {
    /// Make it read-only.
    pub(crate) read_only: bool,
    /// Leave its peer group.
    pub(crate) private: bool,
    /// Map ids by this user namespace; the mount must be detached and not mapped yet.
    pub(crate) idmap: Option<BorrowedFd<'a>>,
}

/// `mount_setattr(2)` (kernel 5.12) on the one mount that `mount` is.
pub(crate) fn set_mount(mount: BorrowedFd<'_>, change: MountChange<'_>) -> io::Result<()> {
    let mut attributes = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    if change.read_only {
        attributes.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    if change.private {
        attributes.propagation = libc::MS_PRIVATE;
    }
    if let Some(namespace) = change.idmap {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = u64::from(namespace.as_raw_fd().unsigned_abs());
    }
    // SAFETY: an empty path that ends in NUL and a structure of the length that is passed, both alive during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw mut attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A child that ended and was not reaped yet, left as it is.
pub(crate) fn peek_child() -> Option<i32> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` has room for what waitid writes.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) };
    // SAFETY: zeroed at first, so initialised whether or not waitid wrote to it; si_pid is valid for what waitid writes.
    let pid = unsafe { info.assume_init().si_pid() };
    (result == 0 && pid > 0).then_some(pid)
}

/// Blocks every signal that can be blocked: what matters is read with [`child_signals`] or [`wait_signal`].
pub(crate) fn block_signals() {
    // SAFETY: a local signal set, filled before it is used.
    unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigfillset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
    }
}

/// Lets a command start with no signal blocked: the monitor's own mask would go on to the container's programs.
pub(crate) fn with_no_signal_blocked(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let unblock = || {
        // SAFETY: a local signal set, filled before it is used.
        let result = unsafe {
            let mut set = MaybeUninit::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: sigemptyset and sigprocmask are async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(unblock) };
}

/// A descriptor that is readable when a child ended; SIGCHLD must be blocked.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: a local signal set, initialised before it is used; the descriptor that comes back is ours alone.
    unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        match libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Waits for any blocked signal and takes it.
pub(crate) fn wait_signal() -> i32 {
    // SAFETY: a local signal set, filled before it is used; a null pointer for the details is allowed.
    unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigfillset(set.as_mut_ptr());
        libc::sigwaitinfo(set.as_ptr(), ptr::null_mut())
    }
}
