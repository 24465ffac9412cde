//! Running code inside a pod's network namespace.
//!
//! `setns` moves one thread. A thread that runs other work afterwards would have to be moved back, and could not be if
//! that failed; so each entry is a thread of its own, which ends inside. It costs some 50 µs.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` inside the network namespace that is pinned at `path`.
///
/// # Errors
/// The path cannot be opened, is no network namespace, or no thread could be started; whatever `work` returns is
/// handed back inside `Ok`.
pub fn netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(path)?;
    netns_fd(file.as_fd(), work)
}

/// Runs `work` inside the network namespace behind `fd`.
///
/// # Errors
/// As [`netns`].
pub fn netns_fd<T: Send>(fd: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread("netns", || {
        move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })?
}

/// Runs `work` on a thread of its own, waits for it and hands a panic on.
pub(crate) fn thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(result) => Ok(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_network_namespace() {
        let ran = netns(Path::new("/proc/self/ns/uts"), || ());
        assert_eq!(ran.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(netns(Path::new("/nonexistent"), || ()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn runs_inside_and_leaves_the_caller_outside() {
        // Root: enters the namespace it is in already.
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let there = netns(Path::new("/proc/self/ns/net"), || std::fs::read_link("/proc/thread-self/ns/net").unwrap());
        assert_eq!(there.unwrap(), here);
    }
}
