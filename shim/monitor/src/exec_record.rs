//! Which process an exec runs: written as soon as it is known, so that timeouts, StopContainer and recovery can kill it.
//!
//! Killing `runtime exec` leaves the process that it made alive; only pid and start time name it for sure.

use std::fs;
use std::io;
use std::path::Path;

use crate::exit_record::replace;
use crate::json::{self, Value};
use crate::protocol::Process;

/// Reads `<dir>/exec.json`; `None`: the exec has no process yet, or never had.
pub fn read(dir: &Path) -> io::Result<Option<Process>> {
    let path = dir.join("exec.json");
    let text = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let (mut pid, mut start_time) = (None, None);
    json::members(&text, |key, value| match (key, value) {
        ("pid", Value::Integer(n)) => pid = i32::try_from(n).ok(),
        ("start_time", Value::Integer(n)) => start_time = u64::try_from(n).ok(),
        _ => {}
    });
    match (pid, start_time) {
        (Some(pid), Some(start_time)) => Ok(Some(Process { pid, start_time })),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{}: no exec record", path.display()))),
    }
}

/// Writes `<dir>/exec.json`.
pub fn write(dir: &Path, process: Process) -> io::Result<()> {
    let Process { pid, start_time } = process;
    let text = format!("{{\"version\":1,\"pid\":{pid},\"start_time\":{start_time}}}\n");
    replace(&dir.join("exec.json"), text.as_bytes(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        write(dir.path(), Process { pid: 7, start_time: 99 }).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(Process { pid: 7, start_time: 99 }));
        fs::write(dir.path().join("exec.json"), "{}").unwrap();
        assert_eq!(read(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
