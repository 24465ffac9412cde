//! Role `exec`: runs one process in a container and reports how it ended.
//!
//! The socket on standard input brings the process' descriptors and takes states: `running` as soon as the process is
//! recorded in `exec.json`, then `exited`; or `failed`. The descriptors are closed here once the runtime has them, so
//! that whoever reads the other ends sees the end of the output when the process and its children are done.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crisp_monitor::exec_record;
use crisp_monitor::exit_record::{ExitRecord, REASON_TIMEOUT};
use crisp_monitor::launch::{EXEC_CONF, Exec, MAX_CONF};
use crisp_monitor::protocol::{Message, Phase, State, VERSION, encode_message};
use crisp_monitor::spawn::{HAS_STDERR, HAS_STDIN, HAS_STDOUT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group};

use crate::create::PID_FILE;
use crate::process::{self, exit_code, named_child, reap};
use crate::runtime::{self, Job, Tail, Verb};
use crate::{complain, console, stamp, sys};

/// Runs until the process has ended.
pub(crate) fn run(dir: &Path) -> i32 {
    let socket = match process::take_stdio() {
        Ok([socket, _]) => UnixStream::from(socket),
        Err(e) => {
            complain(&format!("exec in {}: {e}", dir.display()));
            return 1;
        }
    };
    let began = Instant::now();
    let result = start(dir, &socket).and_then(|mut helper| {
        helper.until = helper.exec.timeout.map(|timeout| began + timeout);
        helper.wait_for_runtime()?;
        helper.wait_for_process();
        Ok(())
    });
    if let Err(text) = result {
        send(&socket, State { phase: Phase::Failed, text, ..State::default() });
        return 1;
    }
    0
}

fn start(dir: &Path, socket: &UnixStream) -> Result<Helper, String> {
    let prepare = || -> io::Result<(OwnedFd, Exec, Job)> {
        process::detach()?;
        let mut conf = Vec::new();
        File::open(dir.join(EXEC_CONF))?.take(MAX_CONF).read_to_end(&mut conf)?;
        let exec = Exec::from_conf(&conf).map_err(io::Error::other)?;
        let (present, fds) = console::receive(socket.as_fd())?;
        socket.set_nonblocking(true)?;
        let children = sys::child_signals()?;
        let job = run_exec(&exec, present, fds)?;
        Ok((children, exec, job))
    };
    let (children, exec, job) = prepare().map_err(|e| format!("exec in {}: {e}", dir.display()))?;
    let socket = socket.try_clone().map_err(|e| e.to_string())?;
    let state = State { version: VERSION, ..State::default() };
    Ok(Helper { exec, socket, children, job, state, until: None, hung_up: false, killed: None })
}

/// The runtime's own errors come through its log: the standard streams are the process'.
fn run_exec(exec: &Exec, present: u8, fds: Vec<OwnedFd>) -> io::Result<Job> {
    let Exec { id, dir, runtime, runtime_timeout, .. } = exec;
    let log_start = runtime::log_length(dir);
    let mut command = runtime::command(runtime, dir, Verb::Exec);
    command
        .arg("--detach")
        .arg("--pid-file")
        .arg(dir.join(PID_FILE))
        .arg("--process")
        .arg(dir.join("process.json"))
        .arg(id);
    let mut fds = fds.into_iter();
    let mut stream = |bit| {
        let fd = if present & bit == 0 { None } else { fds.next() };
        fd.map_or_else(Stdio::null, Stdio::from)
    };
    command.stdin(stream(HAS_STDIN)).stdout(stream(HAS_STDOUT)).stderr(stream(HAS_STDERR));
    let child =
        command.spawn().map_err(|e| io::Error::new(e.kind(), format!("run {}: {e}", runtime.path.display())))?;
    Ok(Job::new(Verb::Exec, child.id().cast_signed(), log_start, *runtime_timeout, Tail::new(None)))
}

struct Helper {
    exec: Exec,
    socket: UnixStream,
    children: OwnedFd,
    job: Job,
    state: State,
    /// When the process is killed.
    until: Option<Instant>,
    hung_up: bool,
    /// Why we killed it.
    killed: Option<&'static str>,
}

impl Helper {
    /// `runtime exec` is never killed for the process' timeout: it would leave the process behind, without a name.
    fn wait_for_runtime(&mut self) -> Result<(), String> {
        let status = loop {
            if let Some(status) = reap(self.job.pid) {
                break status;
            }
            self.job.expire();
            self.turn(self.job.deadline());
        };
        if let Some(text) = self.job.failure(status, &self.exec.dir) {
            return Err(text);
        }
        let dir = &self.exec.dir;
        let process = named_child(&dir.join(PID_FILE)).map_err(|e| format!("runtime exec: {e}"))?;
        if let Err(e) = exec_record::write(dir, process) {
            complain(&format!("record exec in {}: {e}", dir.display()));
        }
        self.state.process = Some(process);
        self.state.started_at = stamp::now();
        self.state.phase = Phase::Running;
        send(&self.socket, self.state.clone());
        Ok(())
    }

    fn wait_for_process(&mut self) {
        let Some(process) = self.state.process else { return };
        let status = loop {
            let mut found = None;
            while let Some(pid) = sys::peek_child() {
                let status = reap(pid);
                if pid == process.pid {
                    found = status;
                }
            }
            if let Some(status) = found {
                break status;
            }
            if self.killed.is_none() {
                if self.until.is_some_and(|at| Instant::now() >= at) {
                    self.kill(process.pid, REASON_TIMEOUT);
                } else if self.hung_up && self.exec.kill_on_hangup {
                    self.kill(process.pid, "");
                }
            }
            self.turn(if self.killed.is_none() { self.until } else { None });
        };
        let (exit_code, signal) = exit_code(status);
        self.state.phase = Phase::Exited;
        self.state.exit = Some(ExitRecord {
            exit_code,
            signal,
            oom_killed: false,
            started_at: self.state.started_at,
            finished_at: stamp::now(),
            // It may have ended by itself just before.
            reason: self.killed.filter(|_| signal == libc::SIGKILL).unwrap_or_default().to_owned(),
            message: String::new(),
        });
        send(&self.socket, self.state.clone());
    }

    /// It is our child and not reaped: the number is its own. The runtime makes it the leader of a session.
    fn kill(&mut self, pid: i32, reason: &'static str) {
        self.killed = Some(reason);
        if let Some(pid) = Pid::from_raw(pid) {
            if getpgid(Some(pid)) == Ok(pid) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Waits for a child, the other side, or a time.
    fn turn(&mut self, until: Option<Instant>) {
        let watched = PollFd::new(&self.children, PollFlags::IN);
        let mut fds = [watched, PollFd::new(&self.socket, PollFlags::IN)];
        let fds = if self.hung_up { &mut fds[..1] } else { &mut fds[..] };
        let left = until.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = left.and_then(|t| Timespec::try_from(t).ok());
        if poll(fds, timeout.as_ref()).is_err() {
            return;
        }
        let (child, socket) = (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()));
        if child {
            let _ = rustix::io::read(&self.children, &mut [0u8; 128]);
        }
        if socket {
            // Nothing is asked of an exec yet: what comes is read and dropped.
            self.hung_up |= match (&self.socket).read(&mut [0; 256]) {
                Ok(read) => read == 0,
                Err(e) => e.kind() != io::ErrorKind::WouldBlock,
            };
        }
    }
}

/// Two short frames in all: they fit into the socket's buffer, and nobody may keep us waiting.
fn send(socket: &UnixStream, state: State) {
    let mut frame = Vec::new();
    encode_message(0, &Message::State(state), &mut frame);
    let mut socket = socket;
    let _ = socket.write_all(&frame);
}
