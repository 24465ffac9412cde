//! Extended attributes between open files.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// The kernel's bounds (linux/limits.h): of a value, and of the list of names.
const MAX: usize = 64 << 10;

/// Copies the attributes that `wanted` says yes to. Those that the destination cannot have are left out.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, wanted: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let mut names = vec![0; MAX];
    let len = match rustix::fs::flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty() && wanted(name)) {
        let mut value = vec![0; MAX];
        let len = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
