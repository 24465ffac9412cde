//! What a monitor is told to run: plain structures. Their file form is in [`conf`].

mod conf;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use conf::ParseError;

/// Name of a container's configuration below its directory.
pub const CONTAINER_CONF: &str = "monitor.conf";
/// Name of an exec's configuration below its directory.
pub const EXEC_CONF: &str = "exec.conf";
/// The longest line that is written to a log in one piece: kubelet and containerd use 16 KiB.
pub const DEFAULT_LINE_MAX: u32 = 16 * 1024;
/// A larger configuration is refused (128 lower directories take less than 8 KiB).
pub const MAX_CONF: u64 = 1024 * 1024;

/// The OCI runtime to call, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runtime {
    /// The program, absolute.
    pub path: PathBuf,
    /// Its `--root`.
    pub root: PathBuf,
    /// Pass `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// More global arguments, before the verb.
    pub args: Vec<OsString>,
    /// Its whole environment: nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
}

/// An overlay to mount as root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// The directory that `lowers` are relative to.
    pub layers_dir: PathBuf,
    /// Topmost first, relative; at least one. A step upwards leads to the store, as the parent of `layers_dir`, at most.
    pub lowers: Vec<PathBuf>,
    /// Absolute; empty and owned by the container's root.
    pub upper: PathBuf,
    /// Absolute, on the file system of `upper`; empty.
    pub work: PathBuf,
    /// Mount with `volatile` (kernel 5.10): no sync on the way; never mount that upper again.
    pub volatile: bool,
}

/// A read-only view of an image or of a part of it (CRI image volume), mounted below the bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Where: relative to the bundle, made if missing. The container's spec binds it from there.
    pub target: PathBuf,
    /// As in [`Overlay`].
    pub layers_dir: PathBuf,
    /// As in [`Overlay`].
    pub lowers: Vec<PathBuf>,
    /// A directory or file inside the image, resolved as if the image were `/`; empty: all of it.
    pub sub_path: PathBuf,
}

/// Which of the pod's pinned namespaces and mounts are laid into the bundle: `ns/ipc`, `ns/uts`, `ns/user`, `shm`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// The private mount namespace (a bind-mounted nsfs file on the host).
    pub mnt_ns: PathBuf,
    /// The pod's directory inside it, holding `ipc`, `uts`, `user` (nsfs files) and `shm` (a tmpfs).
    pub dir: PathBuf,
    /// Wanted: IPC namespace.
    pub ipc: bool,
    /// Wanted: UTS namespace.
    pub uts: bool,
    /// Wanted: user namespace. Also what [`Launch::idmap`] maps by.
    pub user: bool,
    /// Wanted: `/dev/shm`.
    pub shm: bool,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The runtime's id of the container.
    pub id: String,
    /// The container's run directory, absolute; see the crate's map.
    pub dir: PathBuf,
    /// The bundle, absolute: `<dir>/bundle` from [`Self::new`].
    pub bundle: PathBuf,
    /// What runs it.
    pub runtime: Runtime,
    /// The spec has `terminal: true`.
    pub tty: bool,
    /// Keep a standard input open, for attach.
    pub stdin: bool,
    /// Close it when the first attached client leaves.
    pub stdin_once: bool,
    /// The log file, absolute, its directory made by the server; `None`: output is read and dropped.
    pub log_path: Option<PathBuf>,
    /// Longer lines are split (tag `P`), in bytes without the newline; 1 to [`DEFAULT_LINE_MAX`].
    pub line_max: u32,
    /// `None`: the bundle's spec names a root file system that is there.
    pub rootfs: Option<Overlay>,
    /// Image volumes.
    pub views: Vec<View>,
    /// The pod's namespaces.
    pub pins: Option<Pins>,
    /// Map the layers' ids by the pod's user namespace (needs `pins` with `user`).
    pub idmap: bool,
    /// The container's memory cgroup directory, absolute: `memory.events` (v2) or `memory.oom_control` (v1) tells OOM kills.
    pub memory_cgroup: Option<PathBuf>,
    /// Where the exit record goes first: `<dir>/exit.json` from [`Self::new`].
    pub exit_run: PathBuf,
    /// Where it is kept over a reboot; its directory exists.
    pub exit_disk: Option<PathBuf>,
    /// How long each call of the runtime may take before it is killed.
    pub runtime_timeout: Duration,
}

impl Launch {
    /// A container without anything but an id, a place and a runtime.
    pub fn new(id: &str, dir: &Path, runtime: Runtime) -> Self {
        Self {
            id: id.to_owned(),
            dir: dir.to_owned(),
            bundle: dir.join("bundle"),
            runtime,
            tty: false,
            stdin: false,
            stdin_once: false,
            log_path: None,
            line_max: DEFAULT_LINE_MAX,
            rootfs: None,
            views: Vec::new(),
            pins: None,
            idmap: false,
            memory_cgroup: None,
            exit_run: dir.join("exit.json"),
            exit_disk: None,
            runtime_timeout: Duration::from_secs(120),
        }
    }
}

/// One process in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The runtime's id of the container.
    pub id: String,
    /// The exec's own directory, absolute, holding `process.json`.
    pub dir: PathBuf,
    /// What runs it.
    pub runtime: Runtime,
    /// Killed, with its process group, after this time; counted from the start of the helper.
    pub timeout: Option<Duration>,
    /// Killed when the other end of the socket is closed (ExecSync); otherwise it goes on unwatched.
    pub kill_on_hangup: bool,
    /// How long `runtime exec` itself may take.
    pub runtime_timeout: Duration,
}

impl Exec {
    /// An exec without a time limit of its own.
    pub fn new(id: &str, dir: &Path, runtime: Runtime) -> Self {
        Self {
            id: id.to_owned(),
            dir: dir.to_owned(),
            runtime,
            timeout: None,
            kill_on_hangup: false,
            runtime_timeout: Duration::from_secs(120),
        }
    }
}
