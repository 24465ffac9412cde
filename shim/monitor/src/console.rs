//! The terminal of a container: the runtime sends its master end to a socket of ours.

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

/// Where the runtime sends the master to; the file goes with this value.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    file: PathBuf,
    /// What the runtime is told: by way of our descriptor of the directory, since a socket's address has only 108 bytes.
    pub(crate) path: PathBuf,
    _dir: fs::File,
}

impl ConsoleSocket {
    /// Listens in `dir`.
    pub(crate) fn listen(dir: &Path) -> io::Result<Self> {
        const NAME: &str = "console.sock";
        let file = dir.join(NAME);
        let dir = fs::File::open(dir)?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}/{NAME}", std::process::id(), dir.as_raw_fd()));
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, file, path, _dir: dir })
    }

    /// The master, once the runtime has returned; it sends before that.
    pub(crate) fn take(self) -> io::Result<OwnedFd> {
        let (socket, _) = self.listener.accept()?;
        socket.set_nonblocking(true)?;
        let (_, mut fds) = receive(socket.as_fd())?;
        let master = fds.pop().ok_or_else(|| io::Error::other("the runtime sent no terminal"))?;
        // Lines are logged as they were written, without the carriage returns that a terminal adds.
        let mut modes = tcgetattr(&master)?;
        modes.output_modes.remove(OutputModes::ONLCR);
        tcsetattr(&master, OptionalActions::Now, &modes)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(master)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// Sets a terminal's size; zero by zero is none.
pub(crate) fn resize(master: BorrowedFd<'_>, rows: u16, cols: u16) -> io::Result<()> {
    if rows == 0 && cols == 0 {
        return Ok(());
    }
    Ok(tcsetwinsize(master, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// One message's first byte (0: none) and descriptors, at most four.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 256];
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("too many descriptors in one message"));
    }
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    Ok((data[0], fds))
}
