//! System calls that need more than one line, and all that is unsafe in this package.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit};
use tokio::io::unix::AsyncFd;

use crate::epoch;
use crate::model::Process;

/// Wall clock in nanoseconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Digits of an id.
pub const ID_LEN: usize = 64;

/// Whether a text is an id as [`new_id`] makes them.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A new id: 64 hexadecimal digits.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0_u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether programs below `dir` may not be run.
pub fn is_noexec(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

/// Sends a signal to exactly this process; `false`: it is not there any more.
pub fn signal(process: Process, number: i32) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no process id", process.pid)));
    };
    // The descriptor names a process for good; the start time then tells whether it is the one that was meant.
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        other => other?,
    };
    if epoch::start_time(process.pid) != Some(process.start_time) {
        return Ok(false);
    }
    // SAFETY: the descriptor is open, the third argument may be null (pidfd_send_signal(2)), nothing is written to.
    // By hand, since rustix knows no real-time signals and stop signals may be such.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), number, 0_usize, 0) };
    if sent == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(false) } else { Err(error) }
}

/// Waits for a child without holding a thread.
pub async fn reaped(mut child: std::process::Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // SAFETY: an OwnedFd names one open descriptor as long as it lives.
    let watch = |fd| unsafe { AsyncFd::register(fd) }.ok();
    let ended = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).and_then(watch);
    if let Some(ended) = ended {
        let _ = ended.readable().await;
        let _ = child.wait();
    } else {
        let _ = tokio::task::spawn_blocking(move || child.wait()).await;
    }
}

/// Raises the soft limit of open files to the hard one: 1024 are a few hundred containers.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
