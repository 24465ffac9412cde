//! How the server starts the program and reaches it again.
//!
//! Lock and socket are made *before* the process: whoever comes after a crash finds either a free lock (no monitor, and
//! none in the making) or a socket that accepts. The monitor inherits them as its standard input and output, since
//! only these can be handed over without code between fork and exec, so that std can use posix_spawn.
//!
//! The runtime's processes do not inherit the lock: a container that waits for its start would hold it for as long as it
//! waits. `runtime create` is killed with its monitor instead (PR_SET_PDEATHSIG; the monitor has one thread).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::launch::{CONTAINER_CONF, EXEC_CONF, Exec, Launch};

/// Name of the lock file in a container's directory.
pub const LOCK: &str = "lock";
/// Name of the socket in a container's directory.
pub const SOCKET: &str = "monitor.sock";

/// Bits of the first byte on an exec's socket: which descriptors come with it, in this order.
pub const HAS_STDIN: u8 = 1;
/// See [`HAS_STDIN`].
pub const HAS_STDOUT: u8 = 2;
/// See [`HAS_STDIN`].
pub const HAS_STDERR: u8 = 4;

/// What could not be done, on what.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Another monitor lives, or one is in the making.
    #[error("{}: a monitor holds the lock", .0.display())]
    Locked(PathBuf),
    /// Anything else.
    #[error("{what} {}", .path.display())]
    Io {
        /// The step.
        what: &'static str,
        /// Its object.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpawnError {
    move |source| SpawnError::Io { what, path: path.to_owned(), source }
}

/// Starts the monitor of one container. `exe` is the program, opened for reading (`O_PATH` will do).
///
/// `launch.dir` exists. On an error nothing runs. The child is the caller's to reap; it ends when the container is gone,
/// which may be before a [`connect`] gets through: then its exit record tells why.
pub fn container(exe: BorrowedFd<'_>, launch: &Launch) -> Result<Child, SpawnError> {
    let dir = launch.dir.as_path();
    let lock_path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    let lock = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let lock = lock.open(&lock_path).map_err(failed("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(SpawnError::Locked(lock_path)),
        Err(TryLockError::Error(e)) => return Err(failed("lock", &lock_path)(e)),
    }
    let conf = dir.join(CONTAINER_CONF);
    write_conf(&conf, &launch.to_conf())?;
    let listener = listen(dir).map_err(failed("listen on", &dir.join(SOCKET)))?;
    run(exe, "container", dir, listener.into(), lock.into())
}

/// Whether a monitor lives in `dir`, or is in the making: its lock is held.
///
/// Taking the lock for a moment could make a start at the same time fail, so ask only where no start can be under way.
pub fn is_locked(dir: &Path) -> io::Result<bool> {
    match File::open(dir.join(LOCK)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
        Ok(lock) => match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e),
        },
    }
}

/// Connects to the monitor in `dir`, whatever the length of the path; refused or not found means that none lives.
pub fn connect(dir: &Path) -> io::Result<UnixStream> {
    let dir = File::open(dir)?;
    UnixStream::connect(short_path(dir.as_fd()))
}

/// What an exec's process reads and writes; what is missing is `/dev/null`.
#[derive(Debug, Default)]
pub struct ExecStdio<'a> {
    /// Standard input.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Standard output.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Standard error.
    pub stderr: Option<BorrowedFd<'a>>,
}

/// Starts the helper of one exec; states come on the socket without hello (`running`, then `exited`; or `failed`).
///
/// `exec.dir` exists and holds `process.json`. The helper gets copies of `stdio`, so drop the caller's for an end of file.
pub fn exec(exe: BorrowedFd<'_>, exec: &Exec, stdio: &ExecStdio<'_>) -> Result<(Child, UnixStream), SpawnError> {
    let dir = exec.dir.as_path();
    write_conf(&dir.join(EXEC_CONF), &exec.to_conf())?;
    let (ours, theirs) = UnixStream::pair().map_err(failed("make a socket for", dir))?;
    send_stdio(&ours, stdio).map_err(failed("send descriptors for", dir))?;
    let null = File::options().write(true).open("/dev/null").map_err(failed("open", Path::new("/dev/null")))?;
    let child = run(exe, "exec", dir, theirs.into(), null.into())?;
    Ok((child, ours))
}

fn send_stdio(socket: &UnixStream, stdio: &ExecStdio<'_>) -> io::Result<()> {
    let all = [(stdio.stdin, HAS_STDIN), (stdio.stdout, HAS_STDOUT), (stdio.stderr, HAS_STDERR)];
    let fds: Vec<BorrowedFd<'_>> = all.iter().filter_map(|(fd, _)| *fd).collect();
    let present = all.iter().filter(|(fd, _)| fd.is_some()).fold(0, |bits, (_, bit)| bits | bit);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(socket, &[IoSlice::new(&[present])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn write_conf(path: &Path, content: &[u8]) -> Result<(), SpawnError> {
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed("open", path))?;
    io::Write::write_all(&mut file, content).map_err(failed("write", path))
}

fn listen(dir: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(dir.join(SOCKET)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let dir = File::open(dir)?;
    UnixListener::bind(short_path(dir.as_fd()))
}

/// A socket's address has 108 bytes; a path by way of the directory's descriptor always fits.
fn short_path(dir: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()).into()
}

fn run(exe: BorrowedFd<'_>, role: &str, dir: &Path, stdin: OwnedFd, stdout: OwnedFd) -> Result<Child, SpawnError> {
    let program = PathBuf::from(format!("/proc/self/fd/{}", exe.as_raw_fd()));
    let mut command = Command::new(&program);
    command.arg0("crisp-monitor").arg(role).arg(dir).env_clear();
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::inherit());
    command.spawn().map_err(failed("run the monitor for", dir))
}
