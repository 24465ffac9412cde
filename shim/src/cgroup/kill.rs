//! Killing every process of a container, whoever started it.
//!
//! cgroup v2 does it in one write (`cgroup.kill`, Linux 5.14). Else the cgroup is frozen first: while nobody runs, nobody
//! forks away and no number of a process is used again.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::path::OwnCgroup;
use super::remove::is_gone;
use super::{CgroupError, Hierarchies};

/// How long freezing may take. A process in the kernel freezes when it comes out; the others are killed meanwhile.
const FREEZE: Duration = Duration::from_millis(500);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// Rounds of killing: only a process that does not freeze can start another in between.
const ROUNDS: usize = 10;
/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// Kills every process in a container's cgroup and below, and waits until they are gone. A cgroup that is not there has
/// none. Whoever was killed before it could thaw a cgroup leaves it frozen: the next call thaws it.
///
/// # Errors
/// Processes that do not end, or the kernel's answer.
pub fn kill(cgroups: &Hierarchies, cgroup: &OwnCgroup) -> Result<(), CgroupError> {
    let Some(dir) = process_dir(cgroups, cgroup) else { return Ok(()) };
    if !dir.exists() {
        return Ok(());
    }
    match super::write(&dir.join("cgroup.kill"), "1") {
        Ok(()) => {}
        Err(error) if is_gone(&error) => kill_frozen(&dir)?,
        Err(source) => return Err(CgroupError::io("kill all in", dir, source)),
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = pids_below(&dir)?.len();
        match left {
            0 => return Ok(()),
            count if Instant::now() > deadline => return Err(CgroupError::Busy { path: dir, count }),
            _ => std::thread::sleep(PAUSE),
        }
    }
}

/// Where a container's processes are listed: v2, else the freezer, else any hierarchy that runtimes put them in.
pub(super) fn process_dir(cgroups: &Hierarchies, cgroup: &OwnCgroup) -> Option<std::path::PathBuf> {
    let by_name = |name: &str| cgroups.with(name);
    let hierarchy = match cgroups.version {
        super::Version::V2 => cgroups.unified(),
        _ => by_name("freezer").or_else(|| by_name("pids")).or_else(|| by_name("memory")).or(cgroups.all.first()),
    };
    hierarchy.map(|hierarchy| hierarchy.dir(cgroup.as_str()))
}

/// Freeze, SIGKILL, thaw. Thawed in any case: a frozen process does not die.
fn kill_frozen(dir: &Path) -> Result<(), CgroupError> {
    let freezer = Freezer::of(dir);
    let killed = freezer.freeze().and_then(|()| {
        for _ in 0..ROUNDS {
            let pids = pids_below(dir)?;
            pids.iter().for_each(|pid| {
                // Gone already is as good.
                let _ = rustix::process::kill_process(*pid, Signal::KILL);
            });
            if freezer.is_frozen() || pids.is_empty() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    });
    freezer.thaw().and(killed)
}

/// The files that freeze a cgroup.
struct Freezer<'a> {
    dir: &'a Path,
    control: &'static str,
    state: &'static str,
    words: [&'static str; 2],
    frozen: &'static str,
}

impl<'a> Freezer<'a> {
    fn of(dir: &'a Path) -> Self {
        if dir.join("cgroup.freeze").exists() {
            Self { dir, control: "cgroup.freeze", state: "cgroup.events", words: ["1", "0"], frozen: "frozen 1" }
        } else {
            let words = ["FROZEN", "THAWED"];
            Self { dir, control: "freezer.state", state: "freezer.state", words, frozen: "FROZEN" }
        }
    }

    /// Waits a while for it; without a freezer nothing is frozen.
    fn freeze(&self) -> Result<(), CgroupError> {
        self.write(self.words[0])?;
        let deadline = Instant::now() + FREEZE;
        while !self.is_frozen() && self.dir.join(self.control).exists() && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn thaw(&self) -> Result<(), CgroupError> {
        self.write(self.words[1])
    }

    fn is_frozen(&self) -> bool {
        let state = std::fs::read_to_string(self.dir.join(self.state)).unwrap_or_default();
        state.lines().any(|line| line == self.frozen)
    }

    fn write(&self, word: &str) -> Result<(), CgroupError> {
        let path = self.dir.join(self.control);
        match super::write(&path, word) {
            Ok(()) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(source) => Err(CgroupError::io("write", path, source)),
        }
    }
}

/// All processes of a cgroup and those below; none if it is not there.
pub(super) fn pids_below(top: &Path) -> Result<Vec<Pid>, CgroupError> {
    let mut found = Vec::new();
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        let path = dir.join("cgroup.procs");
        match std::fs::read_to_string(&path) {
            // 0 stands for a process of a PID namespace that cannot be seen from here.
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw))),
            Err(error) if is_gone(&error) => continue,
            // A threaded cgroup lists its processes at its root only.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {}
            Err(source) => return Err(CgroupError::io("read", path, source)),
        }
        dirs.extend(super::remove::children(&dir)?);
    }
    let own = rustix::process::getpid();
    found.retain(|pid| *pid != own && pid.as_raw_nonzero().get() > 1);
    Ok(found)
}
