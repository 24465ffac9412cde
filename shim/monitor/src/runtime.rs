//! The only place that calls the OCI runtime: command lines, time limits, and its errors in its own words.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crisp_monitor::json::{self, Value};
use crisp_monitor::launch::Runtime;
use crisp_monitor::protocol::{MAX_TEXT, clip};
use rustix::process::{Pid, Signal, kill_process_group};

/// Name of the runtime's log file in the container's or exec's directory.
const LOG: &str = "runtime.log";
/// As much of the end of the runtime's log is searched for its error.
const LOG_TAIL: u64 = 16 * 1024;

/// What the runtime is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Create,
    Start,
    Delete,
    Exec,
}

impl Verb {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Delete => "delete",
            Self::Exec => "exec",
        }
    }
}

/// The command up to and including the verb; environment and working directory are set, standard streams are not.
///
/// It gets a process group of its own, so that a script's children are killed with it.
pub(crate) fn command(runtime: &Runtime, dir: &Path, verb: Verb) -> Command {
    let mut command = Command::new(&runtime.path);
    command.args(&runtime.args).arg("--root").arg(&runtime.root).arg("--log").arg(dir.join(LOG));
    command.args(["--log-format", "json"]);
    if runtime.systemd_cgroup {
        command.arg("--systemd-cgroup");
    }
    command.arg(verb.name()).env_clear().envs(runtime.env.iter().map(|(k, v)| (k, v))).process_group(0);
    crate::sys::with_no_signal_blocked(&mut command);
    command
}

/// A call of the runtime that has not returned.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) verb: Verb,
    pub(crate) pid: i32,
    deadline: Instant,
    limit: Duration,
    /// Its time was over.
    pub(crate) killed: bool,
    log_start: u64,
    /// The end of what it printed.
    pub(crate) said: Tail,
}

impl Job {
    /// Starts `command` with its output going to a pipe that [`Tail`] reads.
    pub(crate) fn spawn(verb: Verb, mut command: Command, dir: &Path, limit: Duration) -> io::Result<Self> {
        let log_start = log_length(dir);
        let (read, write) = crate::pipe()?;
        command.stdin(Stdio::null()).stdout(write.try_clone()?).stderr(write);
        let child = command.spawn()?;
        Ok(Self::new(verb, child.id().cast_signed(), log_start, limit, Tail::new(Some(read))))
    }

    /// For a process started by other means; `log_start` is [`log_length`] before that.
    pub(crate) fn new(verb: Verb, pid: i32, log_start: u64, limit: Duration, said: Tail) -> Self {
        Self { verb, pid, deadline: Instant::now() + limit, limit, killed: false, log_start, said }
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (!self.killed).then_some(self.deadline)
    }

    /// Kills it if its time is over.
    pub(crate) fn expire(&mut self) {
        if !self.killed && Instant::now() >= self.deadline {
            self.killed = true;
            if let Some(pid) = Pid::from_raw(self.pid) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
    }

    /// Why it failed, once it has ended; `None`: it did not.
    pub(crate) fn failure(&mut self, status: i32, dir: &Path) -> Option<String> {
        let status = ExitStatus::from_raw(status);
        if status.success() {
            return None;
        }
        let verb = self.verb.name();
        if self.killed {
            return Some(format!("runtime {verb} was killed: it took longer than {:?}", self.limit));
        }
        self.said.read();
        let said = String::from_utf8_lossy(&self.said.bytes);
        let text = logged_error(dir, self.log_start).unwrap_or_else(|| said.trim().to_owned());
        Some(if text.is_empty() {
            format!("runtime {verb} ended with {status} and said nothing")
        } else {
            clip(&text).to_owned()
        })
    }
}

/// The runtime's log so far.
pub(crate) fn log_length(dir: &Path) -> u64 {
    dir.join(LOG).metadata().map_or(0, |m| m.len())
}

/// The `msg` of the last line of level error or worse that was logged from `start` on.
fn logged_error(dir: &Path, start: u64) -> Option<String> {
    let mut file = File::open(dir.join(LOG)).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL)))).ok()?;
    let mut text = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut text).ok()?;
    text.split(|&b| b == b'\n').rev().find_map(error_message)
}

fn error_message(line: &[u8]) -> Option<String> {
    let (mut bad, mut message) = (false, None);
    json::members(line, |key, value| match (key, value) {
        ("level", Value::Text(level)) => bad = matches!(level.as_str(), "error" | "fatal" | "panic"),
        ("msg", Value::Text(text)) => message = Some(text),
        _ => {}
    })?;
    message.filter(|text| bad && !text.is_empty())
}

/// The last [`MAX_TEXT`] bytes that came through a pipe.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) pipe: Option<OwnedFd>,
    bytes: Vec<u8>,
}

impl Tail {
    /// Reads `pipe`, whose end is non-blocking; without one only [`Self::add`] adds.
    pub(crate) fn new(pipe: Option<OwnedFd>) -> Self {
        Self { pipe, bytes: Vec::new() }
    }

    /// Adds what was read elsewhere.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(MAX_TEXT)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(MAX_TEXT);
        self.bytes.drain(..excess.min(self.bytes.len()));
        self.bytes.extend_from_slice(bytes);
    }

    /// Reads what is there, a pipe's worth at most; closes the pipe at its end.
    pub(crate) fn read(&mut self) {
        let mut chunk = [0; 1024];
        for _ in 0..64 {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe.as_fd(), &mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(n) => self.add(&chunk[..n]),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_in_the_log_speaks() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "{\"level\":\"error\",\"msg\":\"old\"}\n";
        std::fs::write(dir.path().join(LOG), lines).unwrap();
        assert_eq!(logged_error(dir.path(), 0).unwrap(), "old");
        let start = log_length(dir.path());
        assert_eq!(logged_error(dir.path(), start), None);
        let more = "{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"warning\",\"msg\":\"w\"}\nrubbish {\n\n";
        std::fs::write(dir.path().join(LOG), [lines, more].concat()).unwrap();
        assert_eq!(logged_error(dir.path(), start).unwrap(), "first");
    }

    #[test]
    fn a_tail_keeps_the_end() {
        let mut tail = Tail::new(None);
        for n in 0..2000 {
            tail.add(format!("{n}\n").as_bytes());
            assert!(tail.bytes.len() <= MAX_TEXT);
        }
        tail.add(&[b'x'; 2 * MAX_TEXT]);
        tail.add(b"end");
        assert_eq!(tail.bytes.len(), MAX_TEXT);
        assert!(tail.bytes.ends_with(b"xend"));
    }
}
