//! Starts `runtime create`: pipes or terminal, a forked child, mounts of its own, then the runtime in it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use crisp_monitor::launch::Launch;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, getppid, set_parent_process_death_signal, setpgid};

use crate::console::ConsoleSocket;
use crate::mounts;
use crate::runtime::{self, Job, Tail, Verb};
use crate::streams::Streams;
use crate::sys;

/// Name of the file that the runtime writes the container's pid to.
pub(crate) const PID_FILE: &str = "pid";

/// What a create under way has made.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) job: Job,
    /// Where the terminal will come from.
    pub(crate) console: Option<ConsoleSocket>,
    /// The writing end of the container's standard input.
    pub(crate) stdin: Option<OwnedFd>,
}

/// `oom_score_adj` is what the runtime is to inherit.
pub(crate) fn start(launch: &Launch, streams: &mut Streams, oom_score_adj: &str) -> io::Result<Creation> {
    let dir = &launch.dir;
    match fs::remove_file(dir.join(PID_FILE)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let log_start = runtime::log_length(dir);
    let console = if launch.tty { Some(ConsoleSocket::listen(dir)?) } else { None };
    let (read_out, out) = crate::pipe()?;
    let (read_err, err) =
        if launch.tty { (None, out.try_clone()?) } else { crate::pipe().map(|(r, w)| (Some(r), w))? };
    let (input, stdin) = if launch.stdin && !launch.tty {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (Stdio::from(read), Some(write))
    } else {
        (Stdio::null(), None)
    };
    let monitor = rustix::process::getpid();
    let Some(pid) = sys::fork()? else {
        let trouble = err.try_clone();
        let error = become_runtime(launch, monitor, oom_score_adj, console.as_ref(), [input, out.into(), err.into()]);
        if let Ok(trouble) = trouble {
            let _ = File::from(trouble).write_all(error.as_bytes());
        }
        std::process::exit(127);
    };
    // With a terminal, only the runtime itself writes to the pipe: its output is no line of the container's.
    let said = match read_err {
        None => Tail::new(Some(read_out)),
        Some(read_err) => {
            streams.add(0, "stdout", read_out)?;
            streams.add(1, "stderr", read_err)?;
            Tail::new(None)
        }
    };
    Ok(Creation { job: Job::new(Verb::Create, pid, log_start, launch.runtime_timeout, said), console, stdin })
}

/// The child's part; returns only to say what went wrong.
fn become_runtime(
    launch: &Launch,
    monitor: rustix::process::Pid,
    oom_score_adj: &str,
    console: Option<&ConsoleSocket>,
    [input, out, err]: [Stdio; 3],
) -> String {
    // A create without its monitor has nobody to tell: it ends with it, and recovery finds nothing half-done that still moves.
    let bound = set_parent_process_death_signal(Some(Signal::KILL)).and_then(|()| setpgid(None, None));
    if let Err(e) = bound {
        return format!("bind runtime create to its monitor: {e}");
    }
    if getppid() != Some(monitor) {
        std::process::exit(127);
    }
    let _ = fs::write("/proc/self/oom_score_adj", oom_score_adj);
    if let Err(e) = mounts::prepare(launch) {
        return e.to_string();
    }
    let mut command = runtime::command(&launch.runtime, &launch.dir, Verb::Create);
    command.arg("--bundle").arg(&launch.bundle).arg("--pid-file").arg(launch.dir.join(PID_FILE));
    if let Some(console) = console {
        command.arg("--console-socket").arg(&console.path);
    }
    command.arg(&launch.id).stdin(input).stdout(out).stderr(err);
    let error = command.exec();
    format!("run {}: {error}", Path::new(&launch.runtime.path).display())
}
