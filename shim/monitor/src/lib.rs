//! What the server and the monitor agree on: how a monitor is started, what it is told, what it says, what it leaves behind.
//!
//! The program itself (`main.rs`: roles `container`, `exec` and `pause`) is built static and carried inside the server's binary.
//!
//! ```text
//! <state>/containers/<id>/            made by the server            <state>/execs/<id>/
//! ├── lock          flocked by the monitor as long as it lives      ├── exec.conf     what to run
//! ├── monitor.conf  what to run ([`launch::Launch`])                ├── process.json  OCI process
//! ├── monitor.sock  requests and states ([`protocol`])              ├── pid           written by the runtime
//! ├── bundle/       config.json, rootfs/, ns/, shm/, views/         ├── runtime.log
//! ├── runtime.log   the OCI runtime's own log (JSON lines)          └── exec.json     pid, start time ([`exec_record`])
//! ├── pid           written by the runtime
//! └── exit.json     how it ended ([`exit_record::ExitRecord`]), a copy goes to the disk
//! ```
//!
//! Whether a monitor lives is told by the kernel: its lock is held, its socket accepts. A connection that ends without a
//! last state means "read `exit.json`"; no file there means that the monitor was killed.

pub mod exec_record;
pub mod exit_record;
pub mod json;
pub mod launch;
pub mod protocol;
pub mod spawn;
pub mod text;
