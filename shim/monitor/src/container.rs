//! Role `container`: one poll loop over a container's life.
//!
//! ```text
//! create ──► Creating ──► Created ──start──► Running ──► init ends: drain pipes, exit.json, push `exited`,
//!               │ fails                                  runtime delete ∥ exit record to disk, push `deleted`,
//!               ▼                                        drain pipes till their end (bounded), fsync, exit
//!         runtime delete, exit.json, push `failed`, exit
//! ```
//!
//! Killed at any point: before `create` returned, the runtime dies with us (PDEATHSIG); later the container goes on without a log until
//! it is stopped, and the server finds the lock free and no exit.json.

mod ending;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crisp_monitor::launch::{CONTAINER_CONF, Launch, MAX_CONF};
use crisp_monitor::protocol::{Message, Phase, Process, Request, State, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use self::ending::not_created;
use crate::clients::{ClientId, Clients, MAX_CLIENTS};
use crate::console::{self, ConsoleSocket};
use crate::create::{self, PID_FILE};
use crate::log_file::LogFile;
use crate::oom::Watch;
use crate::process::{self, named_child, reap};
use crate::runtime::{self, Job, Verb};
use crate::streams::Streams;
use crate::{complain, stamp, sys};

/// How long output is awaited that a process outside the container still may write, once the container is deleted.
const LINGER: Duration = Duration::from_secs(3);
/// How often the log file is looked at while lines are written, and after which silence buffers are given back.
const TICK: Duration = Duration::from_secs(1);
/// Asked for; the kernel refuses what is below its start value without CAP_SYS_RESOURCE.
const OOM_SCORE_ADJ: &str = "-998";

/// Runs until the container is gone.
pub(crate) fn run(dir: &Path) -> i32 {
    match start(dir) {
        Ok(mut monitor) => {
            monitor.create();
            monitor.run();
            0
        }
        Err(e) => {
            // No state to tell yet: the record says it to whoever sees the connection end.
            let text = format!("start the monitor in {}: {e}", dir.display());
            complain(&text);
            let _ = not_created(&text).write(&dir.join("exit.json"), false);
            1
        }
    }
}

fn start(dir: &Path) -> io::Result<Monitor> {
    let [socket, lock] = process::take_stdio()?;
    process::detach()?;
    let mut conf = Vec::new();
    File::open(dir.join(CONTAINER_CONF))?.take(MAX_CONF).read_to_end(&mut conf)?;
    let launch = Launch::from_conf(&conf).map_err(io::Error::other)?;
    let oom_score_adj = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    Ok(Monitor {
        clients: Clients::new(UnixListener::from(socket))?,
        children: sys::child_signals()?,
        streams: Streams::new(launch.line_max)?,
        log: LogFile::new(launch.log_path.clone())?,
        launch,
        oom_score_adj,
        console: None,
        stdin: None,
        state: State { version: VERSION, ..State::default() },
        job: None,
        starters: Vec::new(),
        ended: None,
        start_error: None,
        by_force: false,
        oom: Watch::default(),
        linger: None,
        tick: None,
        active: false,
        _lock: lock,
    })
}

struct Monitor {
    launch: Launch,
    clients: Clients,
    children: OwnedFd,
    streams: Streams,
    log: LogFile,
    /// As it was when we started, for the runtime.
    oom_score_adj: String,
    console: Option<ConsoleSocket>,
    /// The writing end of the container's standard input, kept open for attach.
    stdin: Option<OwnedFd>,
    state: State,
    job: Option<Job>,
    /// Who waits for the start job.
    starters: Vec<(ClientId, u32)>,
    /// Wait status of init, and when it ended.
    ended: Option<(i32, i64)>,
    start_error: Option<String>,
    /// The runtime is asked to delete what it does not take for stopped, too.
    by_force: bool,
    oom: Watch,
    linger: Option<Instant>,
    tick: Option<Instant>,
    /// Lines came since the last tick.
    active: bool,
    /// Held as long as this process lives.
    _lock: OwnedFd,
}

impl Monitor {
    fn create(&mut self) {
        if let (Err(e), Some(path)) = (self.log.reopen(), &self.launch.log_path) {
            return self.create_failed(format!("open log file {}: {e}", path.display()));
        }
        match create::start(&self.launch, &mut self.streams, self.oom_score_adj.trim()) {
            Ok(creation) => {
                self.job = Some(creation.job);
                self.console = creation.console;
                self.stdin = creation.stdin;
            }
            Err(e) => self.create_failed(format!("start runtime create: {e}")),
        }
    }

    fn run(&mut self) {
        while !self.is_done() {
            self.turn();
        }
        // The last line of a writer that did not end in time.
        self.streams.drain(&mut self.log);
        // Whoever came meanwhile gets the last word, too.
        self.clients.accept();
        self.serve();
        self.flush();
    }

    fn is_done(&self) -> bool {
        match self.state.phase {
            Phase::Failed => true,
            Phase::Deleted => self.streams.ended() || self.linger.is_some_and(|at| Instant::now() >= at),
            _ => false,
        }
    }

    /// Waits for something to happen, and handles it.
    fn turn(&mut self) {
        const FIXED: usize = 6;
        let mut ready = [false; FIXED + MAX_CLIENTS];
        {
            let said = self.job.as_ref().and_then(|job| job.said.pipe.as_ref());
            let fixed: [Option<BorrowedFd<'_>>; FIXED] = [
                Some(self.children.as_fd()),
                Some(self.clients.door()),
                self.streams.fd(0),
                self.streams.fd(1),
                said.map(AsFd::as_fd),
                self.oom.fd(),
            ];
            let read = fixed.iter().enumerate().filter_map(|(slot, fd)| fd.map(|fd| (slot, fd, PollFlags::IN)));
            let clients = self.clients.sockets().enumerate().map(|(index, (fd, unread))| {
                let flags = if unread { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                (FIXED + index, fd, flags)
            });
            let mut slots = [0; FIXED + MAX_CLIENTS];
            let mut fds = Vec::with_capacity(FIXED + MAX_CLIENTS);
            for (slot, fd, flags) in read.chain(clients) {
                slots[fds.len()] = slot;
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
            let timeout = self.timeout().and_then(|t| Timespec::try_from(t).ok());
            if poll(&mut fds, timeout.as_ref()).is_ok() {
                for (fd, slot) in fds.iter().zip(slots) {
                    ready[slot] = !fd.revents().is_empty();
                }
            }
        }
        if ready[0] {
            let _ = rustix::io::read(&self.children, &mut [0u8; 128]);
            self.reap_all();
        }
        for slot in 0..2 {
            if ready[2 + slot] {
                self.output(slot);
            }
        }
        if let (true, Some(job)) = (ready[4], &mut self.job) {
            job.said.read();
        }
        if ready[5] {
            self.oom.noticed();
        }
        // Those that left make room for those that come.
        if ready[FIXED..].contains(&true) {
            self.serve();
        }
        if ready[1] && self.clients.accept() {
            self.log.check();
        }
        self.time_passed();
    }

    fn timeout(&self) -> Option<Duration> {
        let job = self.job.as_ref().and_then(Job::deadline);
        let next =
            [job, self.linger, self.tick, self.streams.deadline(), self.oom.deadline()].into_iter().flatten().min()?;
        // One more millisecond: waking a moment early would mean waking again.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    fn time_passed(&mut self) {
        if let Some(job) = &mut self.job {
            job.expire();
        }
        self.oom.time_passed();
        if self.tick.is_some_and(|at| Instant::now() >= at) {
            if self.log.is_dirty() {
                self.log.check();
                self.state.log_errors = self.log.errors;
            }
            self.tick = self.active.then(|| Instant::now() + TICK);
            if !self.active {
                self.log.release();
                self.streams.release();
            }
            self.active = false;
        }
    }

    fn output(&mut self, slot: usize) {
        match (&mut self.job, self.state.phase) {
            (Some(job), Phase::Creating) => self.streams.divert(slot, &mut job.said),
            _ => {
                self.streams.pump(slot, &mut self.log);
                // A closed terminal that is looked at again is no activity.
                if self.streams.fd(slot).is_some() || self.streams.ended() {
                    self.active = true;
                    self.tick.get_or_insert_with(|| Instant::now() + TICK);
                }
            }
        }
    }

    // Children.

    fn reap_all(&mut self) {
        // The job first: init becomes our child, and has a name, only when the runtime is gone.
        if let Some(status) = self.job.as_ref().and_then(|job| reap(job.pid)) {
            self.job_ended(status);
        }
        while let Some(pid) = sys::peek_child() {
            let Some(status) = reap(pid) else { break };
            if self.job.as_ref().is_some_and(|job| job.pid == pid) {
                self.job_ended(status);
            } else if self.state.process.is_some_and(|p| p.pid == pid) && self.ended.is_none() {
                self.ended = Some((status, stamp::now()));
            }
            // Anything else is an orphan of the runtime's, or of a container that shares our PID namespace.
        }
        let alive = matches!(self.state.phase, Phase::Created | Phase::Running);
        if let (Some((status, finished_at)), None, true) = (self.ended, &self.job, alive) {
            self.exited(status, finished_at);
        }
    }

    fn job_ended(&mut self, status: i32) {
        let Some(mut job) = self.job.take() else { return };
        if job.verb == Verb::Create {
            (0..2).for_each(|slot| self.streams.divert(slot, &mut job.said));
        }
        let failure = job.failure(status, &self.launch.dir);
        match (job.verb, failure) {
            (Verb::Create, None) => self.created(),
            (Verb::Create, Some(text)) => self.create_failed(text),
            // A runtime that hangs would hang by force, too.
            (Verb::Delete, Some(_)) if !self.by_force && !job.killed => self.delete_by_force(),
            (Verb::Delete, failure) => self.deleted(failure),
            (Verb::Start | Verb::Exec, failure) => self.start_ended(failure),
        }
    }

    fn created(&mut self) {
        let console = self.console.take().map(ConsoleSocket::take).transpose();
        let result = console.and_then(|master| {
            master.map_or(Ok(()), |master| self.streams.add_terminal(master))?;
            named_child(&self.launch.dir.join(PID_FILE))
        });
        match result {
            Err(e) => self.create_failed(format!("runtime create: {e}")),
            Ok(process) => {
                self.oom = self.launch.memory_cgroup.as_deref().map(Watch::new).unwrap_or_default();
                self.state.process = Some(process);
                self.enter(Phase::Created);
            }
        }
    }

    fn create_failed(&mut self, text: String) {
        self.console = None;
        self.state.text = text;
        self.delete_by_force();
    }

    fn start_ended(&mut self, failure: Option<String>) {
        match &failure {
            None => {
                self.state.started_at = stamp::now();
                self.enter(Phase::Running);
            }
            Some(_) => {
                // Not reaped yet, so the number is still its own.
                if let (Some(Process { pid, .. }), None) = (self.state.process, self.ended) {
                    let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
                }
                self.start_error.clone_from(&failure);
            }
        }
        for (client, seq) in std::mem::take(&mut self.starters) {
            self.clients.answer(client, seq, &Message::Reply(failure.clone()));
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.state.phase = phase;
        self.state.log_errors = self.log.errors;
        self.clients.push(self.state.clone());
    }

    // Requests.

    fn serve(&mut self) {
        for (client, seq, request) in self.clients.exchange() {
            let answer = match request {
                Request::Hello { .. } | Request::Status => Some(Message::State(self.state.clone())),
                Request::Start => self.start(client, seq).map(Message::Reply),
                Request::ReopenLog => Some(Message::Reply(self.log.reopen().err().map(|e| e.to_string()))),
                Request::Resize { rows, cols } => {
                    Some(Message::Reply(self.resize(rows, cols).err().map(|e| e.to_string())))
                }
            };
            if let Some(answer) = answer {
                self.clients.answer(client, seq, &answer);
            }
        }
    }

    /// The answer, unless it comes when the runtime returns.
    fn start(&mut self, client: ClientId, seq: u32) -> Option<Option<String>> {
        match self.state.phase {
            Phase::Running => return Some(None),
            Phase::Created if self.start_error.is_some() => return Some(self.start_error.clone()),
            Phase::Created if self.ended.is_none() || self.job.is_some() => {}
            Phase::Creating => return Some(Some("the container is being created".to_owned())),
            _ => return Some(Some("the container has exited".to_owned())),
        }
        if self.job.is_none() {
            let Launch { id, dir, runtime, runtime_timeout, .. } = &self.launch;
            let mut command = runtime::command(runtime, dir, Verb::Start);
            command.arg(id);
            match Job::spawn(Verb::Start, command, dir, *runtime_timeout) {
                Ok(job) => self.job = Some(job),
                Err(e) => return Some(Some(format!("run {}: {e}", runtime.path.display()))),
            }
        }
        self.starters.push((client, seq));
        None
    }

    fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        match self.streams.terminal() {
            Some(master) => console::resize(master, rows, cols),
            _ => Err(io::Error::other("the container has no terminal")),
        }
    }
}
