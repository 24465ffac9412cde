//! Copies a directory of a merged tree to the host: the first content of an image's VOLUME.
//!
//! Sources are reached by [`crate::merged`], so links in the image lead nowhere outside and are copied as links. The
//! destination is a directory of ours that nobody else writes to yet. Directories are done from a list, not by
//! recursion, and found anew by their path: depth costs neither stack nor fds.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::merged::{self, Dir, Leaf, Merged, Node};
use crate::unpack::{as_os, wanted_xattr};
use crate::xattr;

/// Copies what is in the directory `path` into `dest`, an existing directory, and `path`'s own attributes onto it.
/// False, and nothing done, if `path` does not exist.
pub(crate) fn copy_out(from: &Merged, path: &[u8], dest: &Path) -> io::Result<bool> {
    let Some(top) = from.get(path, true)? else { return Ok(false) };
    let Node::Dir(top) = top else { return Err(Errno::NOTDIR.into()) };
    let tree = Merged::over(top);
    let mut links = HashMap::new();
    let mut todo = vec![PathBuf::new()];
    let mut done = Vec::new();
    while let Some(relative) = todo.pop() {
        let Some(Node::Dir(dir)) = tree.get(relative.as_os_str().as_encoded_bytes(), false)? else { continue };
        let to = dest.join(&relative);
        for name in dir.names()? {
            match dir.get(&name)? {
                None => {}
                Some(Node::Dir(_)) => {
                    let sub = relative.join(as_os(&name));
                    rustix::fs::mkdir(dest.join(&sub), Mode::RWXU)?;
                    todo.push(sub);
                }
                Some(Node::Leaf(leaf)) => copy_leaf(&leaf, &to.join(as_os(&name)), &mut links)?,
            }
        }
        done.push(relative);
    }
    // Last, and from the bottom up: entries change the times of their directory.
    for relative in done.iter().rev() {
        if let Some(Node::Dir(dir)) = tree.get(relative.as_os_str().as_encoded_bytes(), false)? {
            copy_dir_attributes(&dir, &dest.join(relative))?;
        }
    }
    Ok(true)
}

fn copy_dir_attributes(dir: &Dir, to: &Path) -> io::Result<()> {
    let to =
        rustix::fs::open(to, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    set_attributes(dir.top(), to.as_fd(), &rustix::fs::fstat(dir.top())?)
}

fn set_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    xattr::copy(from, to, wanted_xattr)?;
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// `links` remembers where files with several names went.
fn copy_leaf(leaf: &Leaf, to: &Path, links: &mut HashMap<(u64, u64), PathBuf>) -> io::Result<()> {
    let stat = &leaf.stat;
    if stat.st_nlink > 1 {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = links.get(&key) {
            return fs::hard_link(first, to);
        }
        links.insert(key, to.to_owned());
    }
    match leaf.file_type() {
        FileType::RegularFile => {
            let from = leaf.open()?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let to = File::from(rustix::fs::open(to, flags, Mode::RUSR | Mode::WUSR)?);
            copy_data(&from, &to, stat.st_size as u64)?;
            return set_attributes(from.as_fd(), to.as_fd(), stat);
        }
        FileType::Symlink => rustix::fs::symlink(as_os(&leaf.target()?), to)?,
        kind => rustix::fs::mknodat(CWD, to, kind, Mode::RUSR, stat.st_rdev)?,
    }
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::chownat(CWD, to, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if leaf.file_type() != FileType::Symlink {
        rustix::fs::chmodat(CWD, to, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    copy_named_xattrs(leaf, to)?;
    Ok(rustix::fs::utimensat(CWD, to, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Of entries that must not be opened.
fn copy_named_xattrs(leaf: &Leaf, to: &Path) -> io::Result<()> {
    let from = merged::fd_path(leaf.dir.as_fd()).join(as_os(&leaf.name));
    let mut names = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(&from, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty() && wanted_xattr(name)) {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(&from, name, &mut value[..])?;
        match rustix::fs::lsetxattr(to, name, &value[..len], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Shares the blocks where the file system can, else copies them in the kernel, and keeps holes.
fn copy_data(from: &File, to: &File, size: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        // No more data, or a file system that cannot tell.
        at = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(()),
            Err(_) => at,
        };
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(at)).unwrap_or(size).min(size);
        while at < end {
            let (mut read_at, mut write_at) = (at, at);
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), len) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => at += n as u64,
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                    at += copy_piece(from, to, at, len)?
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

fn copy_piece(from: &File, to: &File, at: u64, len: usize) -> io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; len.min(128 << 10)];
    let n = from.read_at(&mut buffer, at)?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    to.write_all_at(&buffer[..n], at)?;
    Ok(n as u64)
}

#[cfg(test)]
mod tests {
    //! These make owners and whiteouts, so they run as root.

    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_directory_of_the_merged_tree_is_copied_with_everything() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["low/data/sub/deep", "low/secret", "top/data/sub", "dest"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        for (path, text) in [
            ("low/data/a", "low"),
            ("low/data/sub/x", "x"),
            ("low/data/gone", ""),
            ("top/data/a", "top"),
            ("low/secret/s", "s"),
        ] {
            fs::write(at(path), text).unwrap();
        }
        rustix::fs::mknodat(CWD, at("top/data/gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        fs::hard_link(at("low/data/sub/x"), at("low/data/sub/y")).unwrap();
        symlink("/secret", at("low/data/link")).unwrap();
        symlink("data", at("low/alias")).unwrap();
        let hole = File::create(at("low/data/hole")).unwrap();
        hole.set_len(5 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&hole, b"end", 4 << 20).unwrap();
        rustix::fs::setxattr(at("low/data/sub/x"), "user.note", b"hi", XattrFlags::empty()).unwrap();
        std::os::unix::fs::chown(at("top/data"), Some(5), Some(6)).unwrap();
        fs::set_permissions(at("top/data"), fs::Permissions::from_mode(0o2770)).unwrap();
        fs::set_permissions(at("low/data/sub/deep"), fs::Permissions::from_mode(0o500)).unwrap();
        rustix::fs::mknodat(CWD, at("low/data/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        std::os::unix::fs::lchown(at("low/data/link"), Some(7), Some(8)).unwrap();

        let (top, low, dest) = (at("top"), at("low"), at("dest"));
        let merged = Merged::open([top.as_path(), low.as_path()]).unwrap();
        assert!(copy_out(&merged, b"/alias", &dest).unwrap());
        let meta = |path: &str| fs::symlink_metadata(dest.join(path)).unwrap();
        let mut names: Vec<_> = fs::read_dir(&dest).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "hole", "link", "pipe", "sub"]);
        assert_eq!((meta("").mode(), meta("").uid(), meta("").gid()), (0o42770, 5, 6));
        assert_eq!(fs::read_to_string(dest.join("a")).unwrap(), "top");
        assert_eq!((meta("sub/x").ino(), meta("sub/x").nlink()), (meta("sub/y").ino(), 2));
        assert_eq!(meta("sub/deep").mode(), 0o40500);
        assert_eq!((fs::read_link(dest.join("link")).unwrap(), meta("link").uid()), (PathBuf::from("/secret"), 7));
        assert_eq!((meta("hole").size(), meta("hole").blocks() < 100), (5 << 20, true));
        assert_eq!(&fs::read(dest.join("hole")).unwrap()[4 << 20..(4 << 20) + 4], b"end\0");
        let mut value = [0; 8];
        assert_eq!(rustix::fs::getxattr(dest.join("sub/x"), "user.note", &mut value[..]), Ok(2));

        assert!(!copy_out(&merged, b"/absent", &dest).unwrap());
        assert_eq!(copy_out(&merged, b"/secret/s", &dest).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
