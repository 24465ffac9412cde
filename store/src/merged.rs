//! Looks into a stack of layers as overlayfs would show it, without a mount.
//!
//! A directory of the merged tree is the list of the layer directories that contribute to it, topmost first. For a
//! name in it the layers are asked from the top down until one decides:
//!
//! ```text
//!   absent          ask the next one
//!   whiteout        nothing below counts            (character device 0/0)
//!   not a directory is the answer, unless a directory was found above
//!   directory       contributes; when it is opaque, nothing below counts   (trusted.overlay.opaque=y)
//! ```
//!
//! (Kernel documentation, filesystems/overlayfs.rst.) Every step opens one component without following links, links
//! are resolved here with the merged root as `/`: nothing in a layer can point out of it, and a process that changes
//! an upper directory meanwhile can at worst make a look-up fail.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Links in one look-up, as in the kernel.
const MAX_LINKS: usize = 40;

/// Marks a directory that hides what layers below have in it.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// A stack of layers.
#[derive(Debug)]
pub(crate) struct Merged {
    root: Dir,
}

/// A directory of the merged tree: contributing directories, topmost first, never empty.
#[derive(Debug)]
pub(crate) struct Dir {
    parts: Vec<OwnedFd>,
}

/// What a name in the merged tree stands for.
#[derive(Debug)]
pub(crate) enum Node {
    /// A directory.
    Dir(Dir),
    /// Anything else: an entry of one layer's directory.
    Leaf(Leaf),
}

/// An entry that is no directory.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// The directory of the one layer that has it.
    pub(crate) dir: OwnedFd,
    pub(crate) name: Vec<u8>,
    pub(crate) stat: Stat,
}

/// True for the device node by which overlayfs hides a name.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Opens a directory below `dir` for reading, if it is one itself.
pub(crate) fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// True for a directory that hides what layers below have in it.
pub(crate) fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0; 4];
    matches!(rustix::fs::fgetxattr(dir, OPAQUE, &mut value[..]), Ok(1)) && value[0] == b'y'
}

impl Dir {
    /// The topmost of the contributing directories: attributes of the merged one are its own.
    pub(crate) fn top(&self) -> BorrowedFd<'_> {
        self.parts[0].as_fd()
    }

    /// The contributing directories, topmost first.
    pub(crate) fn parts(&self) -> &[OwnedFd] {
        &self.parts
    }

    /// One name in this directory, links not followed.
    pub(crate) fn get(&self, name: &[u8]) -> io::Result<Option<Node>> {
        let mut parts = Vec::new();
        for dir in &self.parts {
            let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            };
            if is_whiteout(&stat) {
                break;
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                if parts.is_empty() {
                    let dir = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
                    return Ok(Some(Node::Leaf(Leaf { dir, name: name.to_owned(), stat })));
                }
                break;
            }
            let part = open_dir(dir.as_fd(), name)?;
            let opaque = is_opaque(&part);
            parts.push(part);
            if opaque {
                break;
            }
        }
        Ok((!parts.is_empty()).then_some(Node::Dir(Self { parts })))
    }

    /// The names in this directory, sorted. Some may be hidden: [`Dir::get`] tells.
    pub(crate) fn names(&self) -> io::Result<BTreeSet<Vec<u8>>> {
        let mut names = BTreeSet::new();
        for part in &self.parts {
            for entry in rustix::fs::Dir::read_from(part)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if !matches!(&name[..], b"." | b"..") {
                    names.insert(name);
                }
            }
        }
        Ok(names)
    }

    fn duplicate(&self) -> io::Result<Self> {
        let parts = self.parts.iter().map(|part| rustix::io::fcntl_dupfd_cloexec(part, 0)).collect::<Result<_, _>>()?;
        Ok(Self { parts })
    }
}

impl Leaf {
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Where a symbolic link points.
    pub(crate) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.dir, &self.name[..], Vec::new())?.into_bytes())
    }

    /// Opens a regular file, and only that: opening a device or a FIFO has effects.
    pub(crate) fn open(&self) -> io::Result<std::fs::File> {
        let path = rustix::fs::openat(
            &self.dir,
            &self.name[..],
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        if FileType::from_raw_mode(rustix::fs::fstat(&path)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("not a regular file"));
        }
        std::fs::File::open(fd_path(path.as_fd()))
    }
}

/// A path to what an fd refers to, for calls that take no `O_PATH` fd.
pub(crate) fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

impl Merged {
    /// A stack of layer directories, topmost first.
    pub(crate) fn open<'a>(layers: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parts: Vec<_> =
            layers.into_iter().map(|path| rustix::fs::open(path, flags, Mode::empty())).collect::<Result<_, _>>()?;
        if parts.is_empty() {
            return Err(io::Error::other("no layers"));
        }
        Ok(Self { root: Dir { parts } })
    }

    /// The tree below a directory of another one.
    pub(crate) fn over(root: Dir) -> Self {
        Self { root }
    }

    /// What `path` stands for, links resolved on the way; the last one too if `follow`. `None` if there is nothing.
    pub(crate) fn get(&self, path: &[u8], follow: bool) -> io::Result<Option<Node>> {
        let mut way = vec![self.root.duplicate()?];
        let mut links = 0;
        let mut todo: VecDeque<Vec<u8>> = parts(path).collect();
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let Some(here) = way.last() else { break };
            match here.get(&name)? {
                None => return Ok(None),
                Some(Node::Dir(dir)) => way.push(dir),
                Some(Node::Leaf(leaf)) if leaf.file_type() == FileType::Symlink && (follow || !todo.is_empty()) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = leaf.target()?;
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    for part in parts(&target).rev() {
                        todo.push_front(part);
                    }
                }
                Some(leaf) if todo.is_empty() => return Ok(Some(leaf)),
                Some(_) => return Ok(None),
            }
        }
        Ok(way.pop().map(Node::Dir))
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    //! These make whiteouts and opaque directories, so they run as root.

    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn whiteout(path: &Path) {
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    fn read(merged: &Merged, path: &str) -> Option<String> {
        match merged.get(path.as_bytes(), true).unwrap()? {
            Node::Dir(_) => Some("dir".into()),
            Node::Leaf(leaf) => {
                let mut text = String::new();
                leaf.open().unwrap().read_to_string(&mut text).unwrap();
                Some(text)
            }
        }
    }

    fn stack() -> (tempfile::TempDir, Merged) {
        let dir = tempfile::tempdir().unwrap();
        let (low, top) = (dir.path().join("low"), dir.path().join("top"));
        for path in ["low/d", "low/gone", "low/etc", "low/opaque", "low/usr/lib", "top/d", "top/opaque", "top/file"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for (path, text) in [
            ("low/d/a", "low a"),
            ("low/d/b", "low b"),
            ("top/d/b", "top b"),
            ("low/gone/x", "x"),
            ("low/opaque/x", "x"),
            ("low/file", "file"),
            ("low/etc/passwd", "root"),
            ("low/usr/lib/l", "lib"),
        ] {
            fs::write(dir.path().join(path), text).unwrap();
        }
        whiteout(&top.join("gone"));
        rustix::fs::setxattr(top.join("opaque"), OPAQUE, b"y", rustix::fs::XattrFlags::empty()).unwrap();
        symlink("/usr/lib", low.join("lib")).unwrap();
        symlink("../../../../etc", low.join("d/up")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        let merged = Merged::open([top.as_path(), low.as_path()]).unwrap();
        (dir, merged)
    }

    #[test]
    fn layers_above_win_and_directories_merge() {
        let (_dir, merged) = stack();
        assert_eq!(read(&merged, "d/a").unwrap(), "low a");
        assert_eq!(read(&merged, "/d//./b").unwrap(), "top b");
        assert_eq!(read(&merged, "file").unwrap(), "dir");
        assert_eq!(read(&merged, "").unwrap(), "dir");
    }

    #[test]
    fn whiteouts_and_opaque_directories_hide() {
        let (_dir, merged) = stack();
        assert_eq!(read(&merged, "gone"), None);
        assert_eq!(read(&merged, "gone/x"), None);
        assert_eq!(read(&merged, "opaque"), Some("dir".into()));
        assert_eq!(read(&merged, "opaque/x"), None);
    }

    #[test]
    fn links_stay_inside() {
        let (_dir, merged) = stack();
        assert_eq!(read(&merged, "lib/l").unwrap(), "lib");
        assert_eq!(read(&merged, "d/up/passwd").unwrap(), "root");
        assert_eq!(read(&merged, "d/up/../file").unwrap(), "dir");
        assert_eq!(merged.get(b"loop", true).unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert!(matches!(merged.get(b"loop", false).unwrap(), Some(Node::Leaf(_))));
        assert!(merged.get(b"d/a/x", true).unwrap().is_none(), "a file has no entries");
    }
}
