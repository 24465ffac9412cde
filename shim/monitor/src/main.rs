//! The process beside each container. One static program, one thread, three roles:
//!
//! ```text
//! crisp-monitor container <dir>   owns a container: output, log, exit record (container.rs)
//! crisp-monitor exec <dir>        runs one process in a container (exec.rs)
//! crisp-monitor pause             PID 1 of a pod's shared PID namespace (pause.rs)
//! ```
//!
//! A container's monitor, from `container` down:
//!
//! ```text
//! container ── create ── mounts, overlay        in a forked child that becomes `runtime create`
//!     │  └──── runtime                          calls of the OCI runtime, and what they say
//!     ├─────── streams ── cri_log ── log_file   pipe or terminal (console) → lines → file
//!     ├─────── clients                          monitor.sock
//!     └─────── oom, process                     why and how it ended
//! ```
//!
//! Small on purpose: there is one for each container of a node (128 kB of its own, checked by a test).

// The C library calls `main` (sys.rs) itself: what std does before it (reading /proc/self/maps for a stack guard…) costs 250 kB
// of touched pages and a good part of a quick exec's time.
#![cfg_attr(not(test), no_main)]

mod clients;
mod console;
mod container;
mod create;
mod cri_log;
mod exec;
mod log_file;
mod mounts;
mod oom;
mod overlay;
mod pause;
mod process;
mod runtime;
mod stamp;
mod streams;
mod sys;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::pipe::{PipeFlags, pipe_with};

/// What [`sys`]' `main` runs; the result is the exit status.
#[cfg_attr(test, allow(dead_code))]
fn run() -> i32 {
    let mut args = std::env::args_os().skip(1);
    let (role, dir) = (args.next(), args.next());
    match (role.as_deref().and_then(|r| r.to_str()), dir.as_deref()) {
        (Some("container"), Some(dir)) => container::run(Path::new(dir)),
        (Some("exec"), Some(dir)) => exec::run(Path::new(dir)),
        (Some("pause"), None) => pause::run(),
        _ => {
            complain("usage: crisp-monitor container DIR | exec DIR | pause");
            2
        }
    }
}

/// To whoever started us, if it still reads: trouble that has no other way out.
fn complain(text: &str) {
    let line = format!("crisp-monitor: {text}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

/// A pipe that children do not inherit, its reading end non-blocking.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}
