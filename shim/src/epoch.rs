//! Reads the [`Epoch`] that this server runs in, and names processes by number and start time.

use std::io;

use crate::model::{Epoch, Process};

/// The current boot, and PID 1 of the namespace the server runs in.
pub fn current() -> io::Result<Epoch> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let init_start = start_time(1).ok_or_else(|| io::Error::other("/proc/1/stat has no start time"))?;
    Ok(Epoch { boot_id, init_start })
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)); `None`: no such process, or only its zombie is left.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything, more parentheses too.
    let mut rest = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    match rest.next()? {
        "Z" | "X" => None,
        _ => rest.nth(18)?.parse().ok(),
    }
}

/// Whether exactly this process is there and not a zombie.
pub fn is_alive(process: Process) -> bool {
    start_time(process.pid) == Some(process.start_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_its_start_time_too() {
        let me = i32::try_from(std::process::id()).unwrap();
        let start_time = start_time(me).unwrap();
        assert!(is_alive(Process { pid: me, start_time }));
        assert!(!is_alive(Process { pid: me, start_time: start_time + 1 }));
        assert!(!is_alive(Process { pid: i32::MAX, start_time }));
    }
}
