//! The one way this package writes a file that must survive `kill -9` and a power cut: written beside, flushed, renamed,
//! and the directory flushed. A reader sees the old content or the new, never a part.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes `bytes` to `path`, readable by root alone, and returns when they are on disk. One writer for each path.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = replace(path, bytes)?;
    File::open(&beside)?.sync_all()?;
    std::fs::rename(&beside, path)?;
    flush_dir(path)
}

/// Writes a file that `kill -9` does not harm, but a power cut may lose, or leave empty, until [`flush`] has returned.
pub(crate) fn write_lazily(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::rename(replace(path, bytes)?, path)
}

/// Brings what [`write_lazily`] wrote to disk. It takes milliseconds, which something else can use.
pub(crate) fn flush(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    flush_dir(path)
}

fn flush_dir(path: &Path) -> io::Result<()> {
    File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let open = || OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside);
    match open().and_then(|mut file| file.write_all(bytes)) {
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
