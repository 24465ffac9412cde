//! One run of a plugin (CNI specification, section 2): found, started, bounded in time and output, understood.
//!
//! The process gets an environment by allow-list, a group of its own, and its configuration as an open file. It is never
//! tied to the server's life (no PDEATHSIG, which would follow the thread): a plugin that is half done is waited for.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Deserialize;

use super::error::Error;

/// A plugin that writes more than this to its standard output is killed.
const LONGEST_OUTPUT: usize = 1 << 20;
/// This much of the end of its standard error is kept.
const KEPT_STDERR: usize = 16 << 10;

/// What a plugin is asked (section 2, "CNI operations").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Verb {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

/// The parameters of one run.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) plugin: &'a str,
    pub(crate) verb: Verb,
    /// `CNI_…` variables besides the verb and the search path.
    pub(crate) environment: &'a [(&'static str, String)],
    pub(crate) deadline: Duration,
}

/// Finds the program of a plugin type.
pub(crate) fn find(plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf, Error> {
    let paths = dirs.iter().map(|dir| dir.join(plugin));
    let mut files = paths.filter(|path| path.is_file());
    files.next().ok_or_else(|| Error::Missing { plugin: plugin.to_owned(), dirs: dirs.to_vec() })
}

/// Runs the plugin and gives what it wrote to its standard output, if it succeeded.
pub(crate) fn run(call: &Call<'_>, dirs: &[PathBuf], input: File) -> Result<Vec<u8>, Error> {
    let path = find(call.plugin, dirs)?;
    let mut child = start(call, &path, dirs, input).map_err(|source| Error::Run { path: path.clone(), source })?;
    let mut output = Output::default();
    let end = wait(&mut child, &mut output, call);
    if !matches!(end, Ok(End::Exited)) {
        kill(&child);
    }
    let status = child.wait().map_err(|source| Error::Run { path: path.clone(), source });
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if !stderr.trim().is_empty() {
        tracing::debug!(plugin = call.plugin, verb = call.verb.as_str(), stderr = stderr.trim(), "CNI plugin wrote");
    }
    let (plugin, verb) = (call.plugin.to_owned(), call.verb.as_str());
    match end.map_err(|source| Error::Run { path, source })? {
        End::Exited => judge(call, status?, output.stdout, stderr),
        End::Deadline => Err(Error::Timeout { plugin, verb, after: call.deadline, stderr }),
        End::TooLong => {
            Err(Error::Rubbish { plugin, verb, reason: format!("it wrote more than {LONGEST_OUTPUT} bytes") })
        }
    }
}

fn start(call: &Call<'_>, path: &Path, dirs: &[PathBuf], input: File) -> io::Result<Child> {
    let search = std::env::join_paths(dirs).map_err(io::Error::other)?;
    let path_variable = std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("PATH", path_variable)
        .env("CNI_COMMAND", call.verb.as_str())
        .env("CNI_PATH", search)
        .envs(call.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut attempts = 0..25;
    loop {
        match command.spawn() {
            // An installer is writing the program at this moment.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && attempts.next().is_some() => {
                std::thread::sleep(Duration::from_millis(40));
            }
            spawned => return spawned,
        }
    }
}

#[derive(Debug, Default)]
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

enum End {
    Exited,
    Deadline,
    TooLong,
}

/// Reads both streams until the process ends. What a process that it left behind may write later is not waited for.
fn wait(child: &mut Child, output: &mut Output, call: &Call<'_>) -> io::Result<End> {
    let begin = Instant::now();
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    for fd in stdout.iter().map(AsFd::as_fd).chain(stderr.iter().map(AsFd::as_fd)) {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    loop {
        let exited = {
            let left = call.deadline.saturating_sub(begin.elapsed());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
            fds.extend(stdout.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            fds.extend(stderr.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            !fds[0].revents().is_empty()
        };
        // Everything that the process itself wrote is in the pipes by now, when it has ended.
        drain(&mut stdout, |bytes| output.stdout.extend_from_slice(bytes))?;
        drain(&mut stderr, |bytes| {
            output.stderr.extend_from_slice(bytes);
            let surplus = output.stderr.len().saturating_sub(KEPT_STDERR);
            output.stderr.drain(..surplus);
        })?;
        if output.stdout.len() > LONGEST_OUTPUT {
            // DEL has no result: what it prints is nobody's business.
            if call.verb != Verb::Del {
                return Ok(End::TooLong);
            }
            output.stdout.clear();
        }
        if exited {
            return Ok(End::Exited);
        }
        if begin.elapsed() >= call.deadline {
            return Ok(End::Deadline);
        }
    }
}

/// Reads what is in a pipe now, at most a few buffers so that no writer keeps us here; closes it at its end.
fn drain(pipe: &mut Option<impl Read>, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = [0; 64 << 10];
    for _ in 0..4 {
        let Some(open) = pipe else { return Ok(()) };
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(read) => take(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Kills the plugin and all it started. It is not reaped yet, so the number is still its own.
fn kill(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// Section 5, "Error".
#[derive(Deserialize)]
struct Answer {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

fn judge(call: &Call<'_>, status: ExitStatus, stdout: Vec<u8>, stderr: String) -> Result<Vec<u8>, Error> {
    if status.success() {
        return Ok(stdout);
    }
    let (plugin, verb) = (call.plugin.to_owned(), call.verb.as_str());
    if let Ok(Answer { code, msg, details }) = serde_json::from_slice(&stdout) {
        return Err(Error::Plugin { plugin, verb, code, msg, details, stderr });
    }
    let status = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    };
    let text = if stderr.trim().is_empty() { &String::from_utf8_lossy(&stdout) } else { stderr.as_str() };
    let start = text.char_indices().rev().nth(1023).map_or(0, |(at, _)| at);
    Err(Error::Died { plugin, verb, status, output: text[start..].trim().to_owned() })
}

#[cfg(test)]
#[path = "plugin_tests.rs"]
mod tests;
