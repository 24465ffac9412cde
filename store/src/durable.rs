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
//! wrote survives `kill -9`, not a power cut, after which the file may be the old one, absent or
//! empty ([`Disk::read`] then says [`ErrorKind::Damaged`]).
//!
//! Every effect passes a [`Seam`], so that a test can fail or end the program at the k-th of them.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

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

    /// True when the device is full or a quota is used up.
    pub fn is_no_space(&self) -> bool {
        matches!(&self.kind, ErrorKind::Io(_, e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Result of an effect on records.
pub type Result<T> = std::result::Result<T, Error>;

/// An effect on the disk, as a [`Seam`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A temporary file is created and filled.
    Write,
    /// A file is flushed to the device.
    Sync,
    /// A file or directory takes its name.
    Rename,
    /// A directory is flushed to the device.
    SyncDir,
    /// A file, link or tree is removed.
    Remove,
    /// A directory is made.
    MakeDir,
}

/// Called before each effect; an error takes the place of the effect.
pub trait Seam: Send + Sync + fmt::Debug {
    /// `path` is what the effect is on; for a rename, the new name.
    fn before(&self, effect: Effect, path: &Path) -> io::Result<()>;
}

/// What a [`Countdown`] does at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// This one effect fails with `EIO`.
    Fail,
    /// This one and all later ones fail: as seen from the disk, the program was killed here.
    Die,
    /// The program aborts.
    Abort,
}

/// A [`Seam`] that lets `k` effects pass.
#[derive(Debug)]
pub struct Countdown {
    left: AtomicI64,
    then: Then,
}

impl Countdown {
    /// Lets `k` effects pass, then does `then`.
    pub fn new(k: u32, then: Then) -> Self {
        Self { left: AtomicI64::new(i64::from(k)), then }
    }

    /// From an environment variable that holds k (for a program under test): aborts there.
    pub fn abort_from_env(name: &str) -> Option<Self> {
        let k = std::env::var(name).ok()?.parse().ok()?;
        Some(Self::new(k, Then::Abort))
    }

    /// True once the countdown has ended.
    pub fn reached(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }
}

impl Seam for Countdown {
    fn before(&self, _: Effect, _: &Path) -> io::Result<()> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        match self.then {
            _ if left > 0 => Ok(()),
            Then::Abort => std::process::abort(),
            Then::Fail if left < 0 => Ok(()),
            Then::Fail | Then::Die => Err(rustix::io::Errno::IO.into()),
        }
    }
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

    /// Writes a file that is not a record (a manifest, say) in the same way.
    pub fn write_bytes(&self, path: &Path, bytes: &[u8], durable: bool) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let dir = path.parent().ok_or_else(|| Error::damaged(path, "a record needs a directory"))?;
        let temp = dir.join(format!("{TEMP}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let done = self.fill(&temp, bytes, durable).and_then(|()| self.rename(&temp, path));
        if done.is_err() && self.pass(Effect::Remove, &temp).is_ok() {
            // The first error counts; what stays behind is swept at the next start.
            let _ = fs::remove_file(&temp);
        }
        done?;
        if durable { self.sync_dir(dir) } else { Ok(()) }
    }

    fn fill(&self, temp: &Path, bytes: &[u8], durable: bool) -> Result<()> {
        let write = || {
            self.pass(Effect::Write, temp)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temp)?;
            file.write_all(bytes)?;
            Ok(file)
        };
        let file = write().map_err(|e| Error::io(temp, "write", e))?;
        if durable {
            self.pass(Effect::Sync, temp).and_then(|()| file.sync_all()).map_err(|e| Error::io(temp, "flush", e))?;
        }
        Ok(())
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
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
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
        let removed = self.pass(Effect::Remove, path).and_then(|()| match fs::symlink_metadata(path)?.is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        });
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|e| Error::io(path, "remove", e)),
        }
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
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Pet {
        name: String,
        legs: u32,
    }

    impl Record for Pet {
        const KIND: &'static str = "pet";
        const VERSION: u32 = 2;

        fn upgrade(version: u32, mut data: serde_json::Value) -> Option<serde_json::Value> {
            (version == 1).then(|| {
                data["legs"] = 4.into();
                data
            })
        }
    }

    fn pet(legs: u32) -> Pet {
        Pet { name: "Rex".into(), legs }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pet.json");
        let disk = Disk::new();
        assert_eq!(disk.read::<Pet>(&path).unwrap(), None);
        disk.write(&path, &pet(4)).unwrap();
        disk.write_volatile(&path, &pet(3)).unwrap();
        assert_eq!(disk.read(&path).unwrap(), Some(pet(3)));
        disk.remove(&path).unwrap();
        disk.remove(&path).unwrap();
        assert_eq!(disk.read::<Pet>(&path).unwrap(), None);
    }

    #[test]
    fn older_versions_are_upgraded_and_newer_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pet.json");
        let disk = Disk::new();
        fs::write(&path, br#"{"kind":"pet","version":1,"data":{"name":"Rex"}}"#).unwrap();
        assert_eq!(disk.read(&path).unwrap(), Some(pet(4)));
        fs::write(&path, br#"{"kind":"pet","version":3,"data":{}}"#).unwrap();
        let error = disk.read::<Pet>(&path).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::TooNew { found: 3, known: 2 }), "{error}");
    }

    #[test]
    fn damage_is_told_from_absence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pet.json");
        for bytes in ["", "{", r#"{"kind":"car","version":2,"data":{}}"#, r#"{"kind":"pet","version":0,"data":{}}"#] {
            fs::write(&path, bytes).unwrap();
            let error = Disk::new().read::<Pet>(&path).unwrap_err();
            assert!(matches!(error.kind, ErrorKind::Damaged(_)), "{bytes}: {error}");
        }
    }

    #[test]
    fn a_crash_at_any_effect_leaves_the_old_or_the_new_record() {
        for then in [Then::Fail, Then::Die] {
            for k in 0.. {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("pet.json");
                Disk::new().write(&path, &pet(4)).unwrap();
                let seam = Arc::new(Countdown::new(k, then));
                let result = Disk::with_seam(seam.clone()).write(&path, &pet(3));
                assert_eq!(result.is_err(), seam.reached());
                let disk = Disk::new();
                let after = disk.read::<Pet>(&path).unwrap().unwrap();
                assert!(after == pet(3) || result.is_err() && after == pet(4));
                disk.sweep(dir.path()).unwrap();
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{k}");
                if !seam.reached() {
                    assert!(k >= 4, "write, sync, rename and sync of the directory pass the seam");
                    break;
                }
            }
        }
    }

    #[test]
    fn a_half_written_file_is_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".tmp-1-1"), "").unwrap();
        fs::write(dir.path().join("a.json"), "").unwrap();
        assert_eq!(Disk::new().list(dir.path()).unwrap(), ["a.json"]);
        assert!(Disk::new().list(&dir.path().join("absent")).unwrap().is_empty());
    }
}
