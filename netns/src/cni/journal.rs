//! Locks that a running plugin holds, so that ADD and DEL never race, not even across a crash of the server.
//!
//! A lock is a file, locked with `flock`. It also holds the configuration of the plugin that runs, and is that plugin's
//! standard input: the lock belongs to the open file, so it stays as long as the server *or* the plugin has it open.
//!
//! ```text
//! <state>/cni/<id>.lock   one pod's ADD, DEL, CHECK: one at a time
//! <state>/cni/.lock       GC exclusively, ADD and DEL together (specification, section 3, "Lifecycle & Ordering")
//! ```
//!
//! A server kills a plugin at its deadline. One whose server died has nobody to do that: whoever waits for the lock
//! does, when the file was last written (a plugin was started) longer ago than the deadline, and it has itself waited that long:
//! a clock that is set forward makes no plugin old.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::error::{Error, state};

/// A plugin's server gets this much longer to kill it than the plugin has to end.
const GRACE: Duration = Duration::from_secs(2);
/// How often all processes are looked at for the holder.
const LOOK: Duration = Duration::from_secs(1);

/// How the lock is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    Alone,
    Together,
}

/// A lock that is held until it is dropped, and by plugins that were given it.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock. Plugins that outlived their server and `deadline` are killed.
    pub(crate) fn take(path: &Path, hold: Hold, deadline: Duration) -> Result<Self, Error> {
        let operation = match hold {
            Hold::Alone => FlockOperation::NonBlockingLockExclusive,
            Hold::Together => FlockOperation::NonBlockingLockShared,
        };
        let fail = |error: io::Error| state("lock", path)(error);
        let mut pause = Duration::from_millis(1);
        let mut look_at = Instant::now() + deadline;
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
            let file = file.map_err(fail)?;
            match rustix::fs::flock(&file, operation) {
                // Whoever had it may have removed the file: then a lock on it locks nothing.
                Ok(()) if is_at(&file, path) => return Ok(Self { file, path: path.to_owned() }),
                Ok(()) => continue,
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(errno) => return Err(fail(errno.into())),
            }
            let started =
                file.metadata().and_then(|metadata| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
            if Instant::now() >= look_at && started.elapsed().is_ok_and(|age| age > deadline + GRACE) {
                kill_holders(&file);
                look_at = Instant::now() + LOOK;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Writes what a plugin is to read, and gives the open file for its standard input.
    pub(crate) fn hand_over(&self, config: &[u8]) -> Result<File, Error> {
        use std::io::{Seek, Write};
        let mut file = &self.file;
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(config));
        written.and_then(|()| file.rewind()).and_then(|()| file.try_clone()).map_err(state("write", &self.path))
    }

    /// Removes the file: nothing is left of the pod.
    pub(crate) fn remove(self) -> Result<(), Error> {
        crate::durable::remove(&self.path).map_err(state("remove", &self.path))
    }
}

impl Drop for Lock {
    /// A process that a plugin left behind may still have the file open; the lock is over all the same.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let Ok(there) = std::fs::metadata(path) else { return false };
    file.metadata().is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
}

/// Kills the process groups of all processes, but for this one, that have the file as standard input.
fn kill_holders(file: &File) {
    let Ok(wanted) = file.metadata() else { return };
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(input) = std::fs::metadata(process.path().join("fd/0")) else { continue };
        if (input.dev(), input.ino()) != (wanted.dev(), wanted.ino()) || pid.cast_unsigned() == std::process::id() {
            continue;
        }
        tracing::warn!(pid, "killing a CNI plugin that outlived its server and its deadline");
        let Some(pid) = Pid::from_raw(pid) else { continue };
        // Plugins are started as leaders of their group. Their children are killed with them.
        let leads = rustix::process::getpgid(Some(pid)) == Ok(pid);
        let _ = if leads {
            rustix::process::kill_process_group(pid, Signal::KILL)
        } else {
            rustix::process::kill_process(pid, Signal::KILL)
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn lock(path: &Path, hold: Hold) -> Lock {
        Lock::take(path, hold, Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn one_waits_for_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a1.lock");
        let first = lock(&path, Hold::Alone);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let begin = Instant::now();
                drop(lock(&path, Hold::Alone));
                begin.elapsed()
            });
            std::thread::sleep(Duration::from_millis(80));
            // Removed with the lock held: the waiter must not hold a file that nobody finds.
            first.remove().unwrap();
            assert!(second.join().unwrap() >= Duration::from_millis(70));
        });
        assert!(path.exists());
    }

    #[test]
    fn several_hold_it_together_and_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let together = [lock(&path, Hold::Together), lock(&path, Hold::Together)];
        let alone = File::open(&path).unwrap();
        assert_eq!(rustix::fs::flock(&alone, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
        drop(together);
        drop(lock(&path, Hold::Alone));
    }

    /// A plugin whose server died: only it has the locked file, as its standard input.
    fn orphan(path: &Path, command: &str) -> std::process::Child {
        let script = format!("exec 0<>\"$1\"; flock -x 0; echo; {command}");
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script, "sh"])
            .arg(path)
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    #[test]
    fn a_plugin_without_a_server_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a1.lock");
        let mut child = orphan(&path, "sleep 0.2");
        let begin = Instant::now();
        drop(lock(&path, Hold::Alone));
        assert!(begin.elapsed() >= Duration::from_millis(150), "{:?}", begin.elapsed());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_plugin_without_a_server_is_killed_at_its_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a1.lock");
        let mut child = orphan(&path, "sleep 1000; sleep 1000");
        let old = SystemTime::now() - Duration::from_secs(10);
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        let begin = Instant::now();
        drop(Lock::take(&path, Hold::Alone, Duration::from_millis(700)).unwrap());
        // What the clock says is not enough.
        assert!(begin.elapsed() >= Duration::from_millis(700), "{:?}", begin.elapsed());
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    }

    #[test]
    fn what_a_plugin_left_behind_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a1.lock");
        let first = lock(&path, Hold::Alone);
        let input = first.hand_over(b"{}").unwrap();
        let mut daemon = Command::new("/bin/sleep").arg("1000").stdin(Stdio::from(input)).spawn().unwrap();
        drop(first);
        drop(lock(&path, Hold::Alone));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
}
