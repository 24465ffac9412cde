//! Removes a tree of any depth: what a container or an archive made may be deeper than a stack, a table of open files or
//! `PATH_MAX` allows.
//!
//! ```text
//!   top/a/b/c   ──▶   top/a  top/0 (was a/b)   ──▶   top/0  top/1 (was b/c)   ──▶   …
//! ```
//!
//! Before a directory goes, the directories in it that are not empty move up into the top one under a number. So three
//! are open at most, nothing recurses, and what is left to do are the numbers between two counters. A crash leaves a tree
//! that the next try removes as well. Links are unlinked; what is mounted in the tree stays, and is an error.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir};
use rustix::io::Errno;

use crate::merged::open_dir;

/// Passes over the top directory: more than one only if somebody still makes files in it.
const PASSES: usize = 8;

/// Removes a file, a link or a whole tree; that there is none is no error. Needs little memory and stack and a few open
/// files, whatever is in it.
///
/// # Errors
/// A system call fails, or something is mounted in the tree; what was removed until then is gone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove_tree_at(CWD, path.as_os_str().as_encoded_bytes())
}

/// The same for a name in an open directory.
pub(crate) fn remove_tree_at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    if remove(dir, name)? {
        return Ok(());
    }
    let top = match open_dir(dir, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut tree = Tree { top: top.as_fd(), made: 0 };
    for _ in 0..PASSES {
        tree.empty()?;
        if remove(dir, name)? {
            return Ok(());
        }
    }
    Err(Errno::NOTEMPTY.into())
}

struct Tree<'a> {
    top: BorrowedFd<'a>,
    /// The next number to give.
    made: u64,
}

impl Tree<'_> {
    fn empty(&mut self) -> io::Result<()> {
        let mut done = self.made;
        each(self.top, |name| if remove(self.top, name)? { Ok(()) } else { self.flatten(name) })?;
        while done < self.made {
            self.flatten(done.to_string().as_bytes())?;
            done += 1;
        }
        Ok(())
    }

    /// Removes a directory in the top one; what is in it and not empty comes up.
    fn flatten(&mut self, name: &[u8]) -> io::Result<()> {
        let dir = match open_dir(self.top, name) {
            // Seen under a number by the pass over the top directory already.
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        each(dir.as_fd(), |inner| if remove(dir.as_fd(), inner)? { Ok(()) } else { self.lift(dir.as_fd(), inner) })?;
        // If somebody still writes here, the next pass looks again.
        remove(self.top, name).map(drop)
    }

    fn lift(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        loop {
            let number = self.made.to_string();
            self.made += 1;
            match rustix::fs::renameat(dir, name, self.top, number.as_bytes()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // The tree has such a name of its own.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Removes anything but a directory with entries; false for that.
fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e.into()),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn each(dir: BorrowedFd<'_>, mut act: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => act(name)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::Mode;

    use super::*;

    /// With the stack that the background threads have.
    fn on_a_small_stack(path: &Path) {
        let path = path.to_owned();
        let work = move || remove_tree(&path).unwrap();
        std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
    }

    /// A chain of directories, with `width` full ones beside each.
    fn deep(path: &Path, depth: usize, width: usize) {
        fs::create_dir(path).unwrap();
        let mut here = open_dir(CWD, path.as_os_str().as_encoded_bytes()).unwrap();
        for _ in 0..depth {
            for name in (0..width).map(|i| i.to_string()) {
                rustix::fs::mkdirat(&here, &name, Mode::RWXU).unwrap();
                rustix::fs::symlinkat("x", &here, format!("{name}/in")).unwrap();
            }
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = open_dir(here.as_fd(), b"d").unwrap();
        }
    }

    #[test]
    fn depth_costs_neither_stack_nor_open_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep");
        deep(&path, 20_000, 0);
        on_a_small_stack(&path);
        deep(&path, 300, 3);
        on_a_small_stack(&path);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, tree) = (dir.path().join("outside"), dir.path().join("tree"));
        fs::create_dir_all(outside.join("d")).unwrap();
        fs::write(outside.join("d/kept"), "").unwrap();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        for link in ["l", "a/l", "a/b/l"] {
            symlink(&outside, tree.join(link)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("d/kept").exists());
        symlink(&outside, &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(tree.symlink_metadata().is_err() && outside.join("d/kept").exists());
    }

    #[test]
    fn a_file_goes_and_what_is_not_there_is_gone_already() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        remove_tree(&file).unwrap();
        remove_tree(&file).unwrap();
        remove_tree(&dir.path().join("no/such/place")).unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(remove_tree(&file.join("x")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn names_of_its_own_that_are_numbers_are_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for path in ["0/0/0/0", "1", "2/1/1", "a/b/c/d"] {
            fs::create_dir_all(tree.join(path)).unwrap();
        }
        fs::write(tree.join("3"), "").unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
