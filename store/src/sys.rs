//! All unsafe code of this package.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Gives the calling thread a umask and working directory of its own and sets that umask to 0, so that modes in
/// `open`, `mkdir` and `mknod` count as they are. Only for a thread that ends with its work.
pub(crate) fn own_umask() -> io::Result<()> {
    // SAFETY: CLONE_FS only makes this thread's umask, working directory and root private; no fd or memory is shared less.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}

/// Starts writing the dirty pages of a file to the device and, with `wait`, waits until they and earlier ones are there.
pub(crate) fn write_back(file: BorrowedFd<'_>, wait: bool) -> io::Result<()> {
    let mut flags = libc::SYNC_FILE_RANGE_WRITE;
    if wait {
        flags |= libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    }
    // SAFETY: takes an open fd and numbers, touches no memory of ours.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the allocator take large blocks from the system one by one, and give them back when they are freed. By itself
/// glibc raises the size from which it does so, up to 32 MB, and then keeps what a pull's threads used: 14 MB after a
/// zstd pull, with this 2 MB, at no more time.
pub(crate) fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: thread-safe in glibc, sets a number that later allocations go by.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Gives free heap pages back to the system.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: thread-safe in glibc, only releases memory that the allocator holds as free.
    unsafe {
        libc::malloc_trim(0);
    }
}
