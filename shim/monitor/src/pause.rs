//! Role `pause`: PID 1 of a PID namespace that a pod's containers share. Reaps orphans, ends on TERM or INT, does nothing else.
//!
//! Its system calls, for a seccomp allow-list, are in the test that traces them (`tests/pause.rs`).

use rustix::process::{WaitOptions, wait};

use crate::sys;

/// Never returns before a signal asks for it. (PID 1 gets only signals that it asked for: a blocked one counts as such.)
pub(crate) fn run() -> i32 {
    sys::block_signals();
    loop {
        match sys::wait_signal() {
            libc::SIGTERM | libc::SIGINT => return 0,
            _ => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
        }
    }
}
