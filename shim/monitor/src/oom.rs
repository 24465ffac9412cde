//! Out-of-memory kills, as the container's memory cgroup counts them.
//!
//! The counter is of all processes: one that was killed long ago does not make the SIGKILL of a later stop an OOM kill. So each
//! rise is remembered with its time. The kernel gives notice of it: inotify on `memory.events` (cgroup v2); an eventfd for
//! `memory.oom_control` (v1), which speaks before the kill is counted, so a second look follows.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;

const V2: &str = "memory.events";
const V1: &str = "memory.oom_control";
/// A kill is seen, and the first process reaped, within this time.
const MOMENT: Duration = Duration::from_secs(2);
/// When the second look follows.
const SETTLED: Duration = Duration::from_millis(500);

/// The counter of one cgroup.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    cgroup: PathBuf,
    /// Readable when the counter may have risen.
    notice: Option<OwnedFd>,
    kills: u64,
    rose: Option<Instant>,
    again: Option<Instant>,
}

impl Watch {
    /// From now on. Without notices, which are not worth failing for, a kill counts as one of the last moment.
    pub(crate) fn new(cgroup: &Path) -> Self {
        let notice = by_inotify(cgroup).or_else(|| by_eventfd(cgroup));
        let kills = kills(cgroup).unwrap_or(0);
        Self { cgroup: cgroup.to_owned(), notice, kills, rose: None, again: None }
    }

    /// What to poll for reading.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.notice.as_ref().map(AsFd::as_fd)
    }

    /// When [`Self::time_passed`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.again
    }

    pub(crate) fn noticed(&mut self) {
        // Room for a few inotify events, or for an eventfd's number.
        let read = self.fd().map(|fd| rustix::io::read(fd, &mut [0_u8; 128]));
        if !matches!(read, Some(Ok(1..))) {
            self.notice = None;
        }
        self.look();
        self.again = Some(Instant::now() + SETTLED);
    }

    pub(crate) fn time_passed(&mut self) {
        if self.again.is_some_and(|at| Instant::now() >= at) {
            self.look();
            self.again = None;
        }
    }

    /// Whether a process was killed within the last moment; asked when the first process has ended.
    pub(crate) fn is_fresh(&mut self) -> bool {
        self.look();
        self.rose.is_some_and(|at| at.elapsed() <= MOMENT)
    }

    /// A cgroup that is gone counts no more: what was seen last stays.
    fn look(&mut self) {
        if let Some(kills) = kills(&self.cgroup).filter(|kills| *kills > self.kills) {
            (self.kills, self.rose) = (kills, Some(Instant::now()));
        }
    }
}

fn by_inotify(cgroup: &Path) -> Option<OwnedFd> {
    let notice = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
    inotify::add_watch(&notice, cgroup.join(V2), inotify::WatchFlags::MODIFY).ok()?;
    Some(notice)
}

/// The kernel's Documentation/admin-guide/cgroup-v1/memory.rst, section 10.
fn by_eventfd(cgroup: &Path) -> Option<OwnedFd> {
    let counted = File::open(cgroup.join(V1)).ok()?;
    let notice = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    let registration = format!("{} {}", notice.as_raw_fd(), counted.as_raw_fd());
    fs::write(cgroup.join("cgroup.event_control"), registration).ok()?;
    Some(notice)
}

/// Kills so far: `oom_kill` of `memory.events` (cgroup v2) or `memory.oom_control` (v1, kernel 4.13).
fn kills(cgroup: &Path) -> Option<u64> {
    count(&[V2, V1].iter().find_map(|name| fs::read_to_string(cgroup.join(name)).ok())?)
}

fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_count() {
        let v2 = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n";
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n";
        assert_eq!((count(v2), count(v1), count("oom 5\n")), (Some(3), Some(4), None));
        assert_eq!(kills(Path::new("/nonexistent")), None);
    }

    #[test]
    fn only_a_rise_of_the_last_moment_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |kills: u32| fs::write(dir.path().join(V2), format!("oom_kill {kills}\n")).unwrap();
        write(7);
        let mut watch = Watch::new(dir.path());
        assert!(!watch.is_fresh());
        // Seen when it happened, long ago.
        write(8);
        watch.noticed();
        assert!(watch.fd().is_some() && watch.deadline().is_some() && watch.is_fresh());
        watch.rose = Instant::now().checked_sub(MOMENT + SETTLED);
        assert!(watch.rose.is_some() && !watch.is_fresh());
        // Another one, which nobody has told of yet.
        write(9);
        assert!(watch.is_fresh());
        // The cgroup is gone: what was seen counts.
        drop(dir);
        assert!(watch.is_fresh());
        assert!(!Watch::new(Path::new("/nonexistent")).is_fresh());
    }
}
