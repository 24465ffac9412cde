//! What the two roles that watch processes have in common: becoming a subreaper, and naming children.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use crisp_monitor::protocol::Process;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::sys;

/// Its own process group, orphans come here, no signal but SIGKILL ends it, and it keeps no directory busy.
///
/// No session of its own: where the kernel schedules by session (autogroup), a new one competes with all that is busy on its
/// own, and `runtime exec` in it took 15 ms longer on a loaded machine. A terminal's signals are blocked anyway.
pub(crate) fn detach() -> io::Result<()> {
    const NAME: &CStr = c"crisp-monitor";
    let _ = rustix::process::setpgid(None, None);
    sys::block_signals();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::thread::set_name(NAME)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    std::env::set_current_dir("/")
}

/// Takes over the descriptors that came as standard input and output, and opens /dev/null in their place.
pub(crate) fn take_stdio() -> io::Result<[OwnedFd; 2]> {
    let taken = [fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?, fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?];
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(taken)
}

/// Reaps `pid` if it has ended: its wait status.
pub(crate) fn reap(pid: i32) -> Option<i32> {
    let (_, status) = waitpid(Some(Pid::from_raw(pid)?), WaitOptions::NOHANG).ok()??;
    Some(status.as_raw())
}

/// Exit code as a shell would tell it, and the signal (0: none), of a wait status.
pub(crate) fn exit_code(status: i32) -> (i32, i32) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, signal)
    } else {
        (libc::WEXITSTATUS(status), 0)
    }
}

/// The process that the runtime names in its pid file, if it really is a child of ours, ended or not.
///
/// Anything else is refused: the server signals by this number.
pub(crate) fn named_child(pid_file: &Path) -> io::Result<Process> {
    let mut text = String::new();
    File::open(pid_file)?.take(32).read_to_string(&mut text)?;
    let pid: i32 = text.trim().parse().map_err(|_| io::Error::other("the runtime's pid file holds no number"))?;
    let (parent, start_time) = parent_and_start(pid)
        .ok_or_else(|| io::Error::other(format!("process {pid} was gone before the runtime returned")))?;
    if parent != std::process::id() {
        return Err(io::Error::other(format!("process {pid} was not made by the runtime")));
    }
    Ok(Process { pid, start_time })
}

/// Fields 4 and 22 of `/proc/<pid>/stat`. The command before them may hold anything, parentheses too.
fn parent_and_start(pid: i32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let parent = fields.nth(1)?.parse().ok()?;
    Some((parent, fields.nth(17)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_children_are_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        for (text, good) in [("1", false), ("x", false), ("", false), ("-1", false), (&*child.id().to_string(), true)] {
            fs::write(&file, text).unwrap();
            assert_eq!(named_child(&file).is_ok(), good, "{text}");
        }
        assert!(named_child(&dir.path().join("none")).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_code(3 << 8), (3, 0));
        assert_eq!(exit_code(9), (137, 9));
        assert_eq!(exit_code(6 | 0x80), (134, 6));
    }
}
