//! How a container ended: the file that outlives monitor and server.
//!
//! One flat JSON object, version 1; unknown members are ignored, so that a server reads records of newer monitors. Written to
//! the run directory first (temp, rename), then to the disk with fsync: a busy disk delays nobody who waits for the exit.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::json::{self, Value};

/// The record's version: a higher one means that a member of version 1 changed its meaning.
pub const VERSION: i64 = 1;
/// Larger files are no records.
const MAX_SIZE: u64 = 64 * 1024;

/// `reason`: `runtime create` failed or took too long; `message` says why. There never was a process.
pub const REASON_CREATE_ERROR: &str = "CreateError";
/// `reason`: `runtime start` failed (CRI `StartError`); the exit code is 128.
pub const REASON_START_ERROR: &str = "StartError";
/// `reason`: an exec ran into its timeout and was killed.
pub const REASON_TIMEOUT: &str = "Timeout";

/// How a container's or an exec's first process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExitRecord {
    /// Exit status, 128 + signal, or 128 where the process never ran.
    pub exit_code: i32,
    /// The signal that ended it, 0 if none did.
    pub signal: i32,
    /// Killed by SIGKILL while the memory cgroup counted an out-of-memory kill.
    pub oom_killed: bool,
    /// Wall clock, nanoseconds since 1970; 0: never started.
    pub started_at: i64,
    /// Wall clock, nanoseconds since 1970.
    pub finished_at: i64,
    /// Empty, or one of the `REASON_` constants: what only the monitor knows. CRI reasons are derived by the server.
    pub reason: String,
    /// For people; set with `reason`.
    pub message: String,
}

impl ExitRecord {
    /// The record as one line of JSON.
    pub fn to_json(&self) -> String {
        let Self { exit_code, signal, oom_killed, started_at, finished_at, reason, message } = self;
        let mut out = format!(
            "{{\"version\":{VERSION},\"exit_code\":{exit_code},\"signal\":{signal},\"oom_killed\":{oom_killed},\
             \"started_at\":{started_at},\"finished_at\":{finished_at},\"reason\":"
        );
        json::push_string(reason, &mut out);
        out.push_str(",\"message\":");
        json::push_string(message, &mut out);
        out.push_str("}\n");
        out
    }

    /// Reads what [`Self::to_json`] wrote; `None` if that is not it, or of a later version.
    pub fn from_json(text: &[u8]) -> Option<Self> {
        let mut record = Self::default();
        let (mut version, mut finished) = (0, false);
        json::members(text, |key, value| match (key, value) {
            ("version", Value::Integer(n)) => version = n,
            ("exit_code", Value::Integer(n)) => record.exit_code = i32::try_from(n).unwrap_or(255),
            ("signal", Value::Integer(n)) => record.signal = i32::try_from(n).unwrap_or(0),
            ("oom_killed", Value::Bool(b)) => record.oom_killed = b,
            ("started_at", Value::Integer(n)) => record.started_at = n,
            ("finished_at", Value::Integer(n)) => (record.finished_at, finished) = (n, true),
            ("reason", Value::Text(s)) => record.reason = s,
            ("message", Value::Text(s)) => record.message = s,
            _ => {}
        })?;
        (version == VERSION && finished).then_some(record)
    }

    /// The record at `path`; `None`: no such file. A file that is no record is an error of kind `InvalidData`.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut text = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut text)?;
        let record = Self::from_json(&text);
        record
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{}: no exit record", path.display())))
    }

    /// Replaces the file at `path`; with `durable` it survives a power cut once this returns.
    pub fn write(&self, path: &Path, durable: bool) -> io::Result<()> {
        replace(path, self.to_json().as_bytes(), durable)
    }
}

/// Replaces `path` by way of a temporary name beside it, mode 0600.
pub(crate) fn replace(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let temp = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    file.write_all(content)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temp, path)?;
    if durable { sync_parent(path) } else { Ok(()) }
}

/// Makes a record that was written otherwise durable.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_is_replaced_whole_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        assert_eq!(ExitRecord::read(&path).unwrap(), None);
        for exit_code in [1, 2] {
            let record = ExitRecord { exit_code, ..Default::default() };
            record.write(&path, exit_code == 2).unwrap();
            assert_eq!(ExitRecord::read(&path).unwrap(), Some(record));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, "{").unwrap();
        assert_eq!(ExitRecord::read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn later_versions_are_refused_and_unknown_members_ignored() {
        assert_eq!(ExitRecord::from_json(br#"{"version":2,"exit_code":1,"finished_at":1}"#), None);
        let record = ExitRecord::from_json(br#"{"version":1,"exit_code":3,"finished_at":9,"new":{"a":1}}"#).unwrap();
        assert_eq!((record.exit_code, record.finished_at), (3, 9));
    }

    proptest! {
        #[test]
        fn records_come_back(exit_code: i32, signal: i32, oom_killed: bool, started_at: i64, finished_at: i64, reason: String, message: String) {
            let record = ExitRecord { exit_code, signal, oom_killed, started_at, finished_at, reason, message };
            prop_assert_eq!(ExitRecord::from_json(record.to_json().as_bytes()), Some(record));
        }
    }
}
