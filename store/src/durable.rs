//! Records on disk: the one place that writes them.
//!
//! ```text
//! write:  dir/.tmp-<pid>-<n>  ── write ── fsync ── rename ──▶ dir/<name> ── fsync dir
//! ```
//!
//! A record is a small JSON file in a versioned envelope: `{"kind": "layer", "version": 1, "data": {…}}`.
//! Readers see the old record or the new one, never a part. After a crash at any instruction a
//! `.tmp-…` file may be left over: [`Disk::list`] does not show it and [`Disk::sweep`] removes it.
//!
//! [`Disk::write`] is durable when it returns. [`Disk::write_volatile`] leaves out both fsyncs: what it
//! wrote survives `kill -9`, not a power cut, after which the file may be the old one or, if there was
//! none, absent or empty ([`Disk::read`] then says [`ErrorKind::Damaged`]).
//!
//! Every effect passes a [`Seam`], so that a test can fail or end the program at the k-th of them.

mod seam;
mod tree;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys;

pub use seam::{Countdown, Effect, Seam, Then};
pub use tree::remove_tree;
pub(crate) use tree::remove_tree_at;

/// Prefix of the names of half-written files.
const TEMP: &str = ".tmp-";

/// A record larger than this is damage or an attack, not a record.
const MAX_RECORD: u64 = 16 << 20;

/// What can be kept as a record.
pub trait Record: Serialize + DeserializeOwned {
    /// Names the type in the envelope, so that a file in the wrong place is noticed.
    const KIND: &'static str;
    /// Version of the fields that this build writes, from 1.
    const VERSION: u32;

    /// Turns the fields of an older `version` into those of [`Self::VERSION`]; `None` where that is
    /// not possible. A newer version than ours is never asked for: it is an error.
    fn upgrade(version: u32, data: serde_json::Value) -> Option<serde_json::Value> {
        let _ = (version, data);
        None
    }
}

#[derive(Serialize)]
struct EnvelopeOut<'a, T> {
    kind: &'a str,
    version: u32,
    data: &'a T,
}

#[derive(Deserialize)]
struct EnvelopeIn {
    kind: String,
    version: u32,
    data: serde_json::Value,
}

/// A failed effect on a record, or a record that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct Error {
    /// The file or directory.
    pub path: PathBuf,
    /// What went wrong.
    #[source]
    pub kind: ErrorKind,
}

/// What went wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// A system call failed.
    #[error("cannot {0} it: {1}")]
    Io(&'static str, #[source] io::Error),
    /// Not a record: cut off, empty, not JSON, another kind, or fields missing.
    #[error("damaged record: {0}")]
    Damaged(String),
    /// Written by a newer version of this program.
    #[error("record version {found} is newer than {known}, the newest that is known here")]
    TooNew {
        /// Version in the file.
        found: u32,
        /// Version of this build.
        known: u32,
    },
}

impl Error {
    fn io(path: &Path, verb: &'static str, error: io::Error) -> Self {
        Self { path: path.to_owned(), kind: ErrorKind::Io(verb, error) }
    }

    fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self { path: path.to_owned(), kind: ErrorKind::Damaged(why.into()) }
    }

    /// True when it is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(&self.kind, ErrorKind::Io(_, e) if e.kind() == io::ErrorKind::NotFound)
    }

    /// True when the device is full or a quota is used up.
    pub fn is_no_space(&self) -> bool {
        matches!(&self.kind, ErrorKind::Io(_, e) if is_no_space(e))
    }
}

/// True when the device is full or a quota is used up.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Result of an effect on records.
pub type Result<T> = std::result::Result<T, Error>;

/// How far a file is written before it takes its name.
#[derive(Debug, Clone, Copy)]
enum Flush {
    No,
    /// Its data is handed to the device; nothing waits for the device's cache.
    WriteBack,
    Device,
}

/// Writes and reads records. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    seam: Option<Arc<dyn Seam>>,
}

impl Disk {
    /// The real disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The real disk behind `seam`.
    pub fn with_seam(seam: Arc<dyn Seam>) -> Self {
        Self { seam: Some(seam) }
    }

    fn pass(&self, effect: Effect, path: &Path) -> io::Result<()> {
        self.seam.as_ref().map_or(Ok(()), |seam| seam.before(effect, path))
    }

    /// Writes a record; durable when this returns. The directory must exist.
    pub fn write<T: Record>(&self, path: &Path, record: &T) -> Result<()> {
        self.write_bytes(path, &encode(path, record)?, true)
    }

    /// Writes a record that need not survive a power cut: no fsync.
    pub fn write_volatile<T: Record>(&self, path: &Path, record: &T) -> Result<()> {
        self.write_bytes(path, &encode(path, record)?, false)
    }

    /// Writes a record without a wait for the disk, whatever was there: a power cut may leave it empty. For records that are
    /// flushed soon ([`Disk::sync`]), and whose loss is made good at the next start.
    pub fn write_unflushed<T: Record>(&self, path: &Path, record: &T) -> Result<()> {
        self.put(path, &encode(path, record)?, Flush::No)
    }

    /// Writes a file that is not a record (a manifest, say) in the same way.
    pub fn write_bytes(&self, path: &Path, bytes: &[u8], durable: bool) -> Result<()> {
        let flush = match durable {
            true => Flush::Device,
            // XFS may order the rename before the data: a record that was durable would be an empty one.
            false if path.exists() => Flush::WriteBack,
            false => Flush::No,
        };
        self.put(path, bytes, flush)
    }

    fn put(&self, path: &Path, bytes: &[u8], flush: Flush) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let dir = path.parent().ok_or_else(|| Error::damaged(path, "a record needs a directory"))?;
        let temp = dir.join(format!("{TEMP}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let done = self.fill(&temp, bytes, flush).and_then(|()| self.rename(&temp, path));
        if done.is_err() && self.pass(Effect::Remove, &temp).is_ok() {
            // The first error counts; what stays behind is swept at the next start.
            let _ = fs::remove_file(&temp);
        }
        done?;
        if matches!(flush, Flush::Device) { self.sync_dir(dir) } else { Ok(()) }
    }

    fn fill(&self, temp: &Path, bytes: &[u8], flush: Flush) -> Result<()> {
        let write = || {
            self.pass(Effect::Write, temp)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temp)?;
            file.write_all(bytes)?;
            Ok(file)
        };
        let file = write().map_err(|e| Error::io(temp, "write", e))?;
        let sync = || match flush {
            Flush::No => Ok(()),
            Flush::WriteBack => self.pass(Effect::Sync, temp).and_then(|()| sys::write_back(file.as_fd(), true)),
            Flush::Device => self.pass(Effect::Sync, temp).and_then(|()| file.sync_all()),
        };
        sync().map_err(|e| Error::io(temp, "flush", e))
    }

    /// Makes a file that was written volatile durable, its name too.
    pub fn sync(&self, path: &Path) -> Result<()> {
        self.pass(Effect::Sync, path)
            .and_then(|()| File::open(path)?.sync_all())
            .map_err(|e| Error::io(path, "flush", e))?;
        path.parent().map_or(Ok(()), |dir| self.sync_dir(dir))
    }

    /// Reads a record; `None` where there is no file.
    pub fn read<T: Record>(&self, path: &Path) -> Result<Option<T>> {
        let Some(bytes) = self.read_bytes(path, MAX_RECORD)? else { return Ok(None) };
        decode(path, &bytes).map(Some)
    }

    /// Reads a whole file of at most `max` bytes; `None` where there is none.
    pub fn read_bytes(&self, path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(Error::io(path, "open", e)),
        };
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
        if bytes.len() as u64 > max {
            return Err(Error::damaged(path, format!("larger than {max} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Removes a record; that there is none is no error. Durable when this returns.
    pub fn remove(&self, path: &Path) -> Result<()> {
        self.pass(Effect::Remove, path).map_err(|e| Error::io(path, "remove", e))?;
        match fs::remove_file(path) {
            Ok(()) => path.parent().map_or(Ok(()), |dir| self.sync_dir(dir)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(path, "remove", e)),
        }
    }

    /// Gives a file or directory another name on the same file system, in place of what was there.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.pass(Effect::Rename, to).and_then(|()| fs::rename(from, to)).map_err(|e| Error::io(to, "rename to", e))
    }

    /// Makes a directory with exactly `mode`, whatever the umask; its parent must exist, itself may.
    pub fn make_dir(&self, path: &Path, mode: u32) -> Result<()> {
        let make = || {
            self.pass(Effect::MakeDir, path)?;
            match fs::DirBuilder::new().mode(mode).create(path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        };
        make().map_err(|e| Error::io(path, "make", e))
    }

    /// Flushes the names in a directory to the device.
    pub fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.pass(Effect::SyncDir, dir)
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(|e| Error::io(dir, "flush", e))
    }

    /// Removes a whole tree without following links out of it; that there is none is no error.
    pub fn remove_tree(&self, path: &Path) -> Result<()> {
        self.pass(Effect::Remove, path).and_then(|()| remove_tree(path)).map_err(|e| Error::io(path, "remove", e))
    }

    /// Names of the entries of a directory, without half-written ones; empty where there is none.
    pub fn list(&self, dir: &Path) -> Result<Vec<String>> {
        Ok(self.entries(dir)?.into_iter().filter(|name| !name.starts_with(TEMP)).collect())
    }

    /// Removes what crashed writers left in a directory. Only for a directory that nobody writes to now.
    pub fn sweep(&self, dir: &Path) -> Result<()> {
        for name in self.entries(dir)?.iter().filter(|name| name.starts_with(TEMP)) {
            self.remove_tree(&dir.join(name))?;
        }
        Ok(())
    }

    /// Names that are not UTF-8 are nobody's records and are left out.
    fn entries(&self, dir: &Path) -> Result<Vec<String>> {
        let read = match fs::read_dir(dir) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(dir, "list", e)),
        };
        let mut names = Vec::new();
        for entry in read {
            let name = entry.map_err(|e| Error::io(dir, "list", e))?.file_name();
            names.extend(OsStr::to_str(&name).map(str::to_owned));
        }
        Ok(names)
    }
}

fn encode<T: Record>(path: &Path, record: &T) -> Result<Vec<u8>> {
    let envelope = EnvelopeOut { kind: T::KIND, version: T::VERSION, data: record };
    serde_json::to_vec(&envelope).map_err(|e| Error::damaged(path, format!("cannot be written as JSON: {e}")))
}

fn decode<T: Record>(path: &Path, bytes: &[u8]) -> Result<T> {
    let envelope: EnvelopeIn = serde_json::from_slice(bytes).map_err(|e| Error::damaged(path, e.to_string()))?;
    if envelope.kind != T::KIND {
        return Err(Error::damaged(path, format!("holds a record of kind {:?}, not {:?}", envelope.kind, T::KIND)));
    }
    let data = match envelope.version {
        v if v == T::VERSION => envelope.data,
        found if found > T::VERSION => {
            return Err(Error { path: path.to_owned(), kind: ErrorKind::TooNew { found, known: T::VERSION } });
        }
        older => T::upgrade(older, envelope.data)
            .ok_or_else(|| Error::damaged(path, format!("version {older} cannot be upgraded")))?,
    };
    serde_json::from_value(data).map_err(|e| Error::damaged(path, e.to_string()))
}

#[cfg(test)]
mod tests;
