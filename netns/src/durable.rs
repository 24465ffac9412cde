//! The one way this package writes a file that must survive `kill -9` and a power cut: written beside, flushed, renamed,
//! and the directory flushed. A reader sees the old content or the new, never a part.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes `bytes` to `path`, readable by root alone, and returns when they are on disk. One writer for each path.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = replace(path, bytes, true)?;
    std::fs::rename(&beside, path)?;
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(dir)?.sync_all()
}

/// As [`write`], but a power cut may lose the file, or leave it empty.
pub(crate) fn write_lazily(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::rename(replace(path, bytes, false)?, path)
}

fn replace(path: &Path, bytes: &[u8], flush: bool) -> io::Result<std::path::PathBuf> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        if flush { file.sync_all() } else { Ok(()) }
    };
    match write() {
        Ok(()) => Ok(beside.into()),
        Err(error) => {
            let _ = std::fs::remove_file(&beside);
            Err(error)
        }
    }
}

/// Removes a file; one that is not there is removed.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
