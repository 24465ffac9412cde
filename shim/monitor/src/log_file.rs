//! The container's log file: appends lines, survives rotation, and never stops the container.
//!
//! kubelet rotates by renaming the file and asking for a reopen; when that call fails it renames the file back, over the
//! one that may have been opened meanwhile. So the open file is looked at once a second while lines are written and when a
//! server connects: if it has no name left, the path is opened anew and what went to the nameless file since it was opened
//! is copied over. A write that fails is counted and its lines are lost; reading goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::cri_log::Tag;
use crate::stamp;
use crate::sys::Pages;

/// Lines are collected up to this size, then written at once: the longest line with its prefix fits, and so does what is read
/// at a time if it is lines of 100 bytes.
const BATCH: usize = 24 * 1024;
/// From a file that lost its name at most the last so many bytes are copied (kubelet rotates at 10 MiB).
const RESCUE_MAX: u64 = 16 * 1024 * 1024;

/// One log file, or none: then everything is dropped.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: Option<PathBuf>,
    file: Option<File>,
    /// Length of the file when it was opened: what is beyond is ours.
    opened_at: u64,
    batch: Pages,
    len: usize,
    /// The last write ended inside a line.
    torn: bool,
    /// Written since the last [`Self::check`].
    dirty: bool,
    /// Failed writes so far.
    pub(crate) errors: u64,
}

impl LogFile {
    /// A log at `path`, whose directory exists; not open yet.
    pub(crate) fn new(path: Option<PathBuf>) -> io::Result<Self> {
        let batch = Pages::new(BATCH)?;
        Ok(Self { path, file: None, opened_at: 0, batch, len: 0, torn: false, dirty: false, errors: 0 })
    }

    /// Opens the path, anew if it is open; on an error the file that is open stays.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut options = OpenOptions::new();
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = options.read(true).append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        self.flush();
        (self.file, self.opened_at, self.torn) = (Some(file), metadata.len(), false);
        Ok(())
    }

    /// Adds one piece of a line, read at `time` (see [`stamp::format`]); written at the next [`Self::flush`] at the latest.
    pub(crate) fn line(&mut self, time: &[u8; stamp::LEN], stream: &str, tag: Tag, content: [&[u8]; 2]) {
        if self.file.is_none() {
            return;
        }
        let tag: &[u8] = if tag == Tag::Full { b" F " } else { b" P " };
        let parts: [&[u8]; 7] = [time, b" ", stream.as_bytes(), tag, content[0], content[1], b"\n"];
        let size: usize = parts.iter().map(|p| p.len()).sum();
        if self.len + size > BATCH {
            self.flush();
        }
        for part in parts {
            self.batch.bytes_mut()[self.len..][..part.len()].copy_from_slice(part);
            self.len += part.len();
        }
    }

    /// Writes what was added. What cannot be written is lost, but never leaves half a line in front of a later one.
    pub(crate) fn flush(&mut self) {
        let Some(file) = self.file.as_mut().filter(|_| self.len > 0) else { return };
        let mut rest = &self.batch.bytes()[..self.len];
        self.len = 0;
        self.dirty = true;
        if self.torn && file.write_all(b"\n").is_err() {
            self.errors += 1;
            return;
        }
        self.torn = false;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(n @ 1..) => {
                    self.torn = rest[n - 1] != b'\n';
                    rest = &rest[n..];
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.errors += 1;
                    return;
                }
            }
        }
    }

    /// Whether [`Self::check`] has something to look at.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Finds out whether the open file lost its name, and saves what went to it.
    pub(crate) fn check(&mut self) {
        self.flush();
        self.dirty = false;
        let Some(old) = self.file.as_ref() else { return };
        let (Ok(metadata), Ok(orphan)) = (old.metadata(), old.try_clone()) else { return };
        if metadata.nlink() > 0 {
            return;
        }
        let from = self.opened_at.max(metadata.len().saturating_sub(RESCUE_MAX));
        let whole = from == self.opened_at;
        if self.reopen().is_err() {
            // No directory any more: the pod is being removed. Looked at again while lines are written.
            return;
        }
        self.rescue(&orphan, from, metadata.len(), whole);
    }

    fn rescue(&mut self, orphan: &File, mut from: u64, to: u64, mut at_line_start: bool) {
        let Some(file) = self.file.as_mut() else { return };
        while from < to {
            let want = usize::try_from(to - from).unwrap_or(BATCH).min(BATCH);
            let Ok(n @ 1..) = orphan.read_at(&mut self.batch.bytes_mut()[..want], from) else { return };
            from += n as u64;
            let mut chunk = &self.batch.bytes()[..n];
            if !at_line_start {
                let Some(newline) = chunk.iter().position(|&b| b == b'\n') else { continue };
                chunk = &chunk[newline + 1..];
                at_line_start = true;
            }
            if file.write_all(chunk).is_err() {
                self.errors += 1;
                return;
            }
        }
    }

    /// Gives the memory of the batch back, for a container that is silent.
    pub(crate) fn release(&mut self) {
        self.flush();
        self.batch.release();
    }
}
