//! What a monitor is told to run: plain structures, and their file form.
//!
//! The file is lines of `key=value` ([`crate::text`]), lists by repeated keys; `view=` starts a view that the `view.` keys after
//! it describe. Unknown keys are ignored, missing ones take defaults, so that server and monitor may be of different
//! versions. Written by the server before the monitor starts and read once.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::text;

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
    /// Topmost first, relative, no `..`; at least one.
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

/// Why a configuration could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A line without `=`, with a broken escape or a bad value.
    #[error("line {0}: not key=value, or a bad value")]
    Line(usize),
    /// A key that must be there.
    #[error("no `{0}`")]
    Missing(&'static str),
}

impl Launch {
    /// The file form.
    pub fn to_conf(&self) -> Vec<u8> {
        let Self {
            id,
            dir,
            bundle,
            runtime,
            tty,
            stdin,
            stdin_once,
            log_path,
            line_max,
            rootfs,
            views,
            pins,
            idmap,
            ..
        } = self;
        let Self { memory_cgroup, exit_run, exit_disk, runtime_timeout, .. } = self;
        let mut conf = Conf::default();
        conf.text("id", id).path("dir", dir).path("bundle", bundle).runtime(runtime);
        conf.flag("tty", *tty).flag("stdin", *stdin).flag("stdin_once", *stdin_once).flag("idmap", *idmap);
        conf.optional("log_path", log_path.as_deref()).text("line_max", &line_max.to_string());
        if let Some(Overlay { layers_dir, lowers, upper, work, volatile }) = rootfs {
            conf.path("layers_dir", layers_dir).paths("lower", lowers).path("upper", upper).path("work", work);
            conf.flag("volatile", *volatile);
        }
        for View { target, layers_dir, lowers, sub_path } in views {
            conf.path("view", target).path("view.layers_dir", layers_dir).paths("view.lower", lowers);
            conf.path("view.sub_path", sub_path);
        }
        if let Some(Pins { mnt_ns, dir, ipc, uts, user, shm }) = pins {
            conf.path("pins.mnt_ns", mnt_ns).path("pins.dir", dir);
            conf.flag("pins.ipc", *ipc).flag("pins.uts", *uts).flag("pins.user", *user).flag("pins.shm", *shm);
        }
        conf.optional("memory_cgroup", memory_cgroup.as_deref());
        conf.path("exit_run", exit_run).optional("exit_disk", exit_disk.as_deref());
        conf.millis("runtime_timeout_ms", *runtime_timeout);
        conf.0
    }

    /// Reads what [`Self::to_conf`] wrote.
    pub fn from_conf(text: &[u8]) -> Result<Self, ParseError> {
        let mut launch = Self::new("", Path::new(""), Runtime::default());
        (launch.bundle, launch.exit_run) = Default::default();
        lines(text, |key, value| {
            let Some(value) = launch.runtime.set(key, value) else { return Some(()) };
            match key {
                "id" => launch.id = String::from_utf8(value).ok()?,
                "dir" => launch.dir = path(value),
                "bundle" => launch.bundle = path(value),
                "tty" => launch.tty = flag(&value),
                "stdin" => launch.stdin = flag(&value),
                "stdin_once" => launch.stdin_once = flag(&value),
                "idmap" => launch.idmap = flag(&value),
                "log_path" => launch.log_path = Some(path(value)),
                "line_max" => launch.line_max = number(&value)?,
                "memory_cgroup" => launch.memory_cgroup = Some(path(value)),
                "exit_run" => launch.exit_run = path(value),
                "exit_disk" => launch.exit_disk = Some(path(value)),
                "runtime_timeout_ms" => launch.runtime_timeout = Duration::from_millis(number(&value)?),
                "layers_dir" | "lower" | "upper" | "work" | "volatile" => {
                    let overlay = launch.rootfs.get_or_insert_default();
                    match key {
                        "layers_dir" => overlay.layers_dir = path(value),
                        "lower" => overlay.lowers.push(path(value)),
                        "upper" => overlay.upper = path(value),
                        "work" => overlay.work = path(value),
                        _ => overlay.volatile = flag(&value),
                    }
                }
                "view" => launch.views.push(View { target: path(value), ..Default::default() }),
                "view.layers_dir" => launch.views.last_mut()?.layers_dir = path(value),
                "view.lower" => launch.views.last_mut()?.lowers.push(path(value)),
                "view.sub_path" => launch.views.last_mut()?.sub_path = path(value),
                _ if key.starts_with("pins.") => {
                    let pins = launch.pins.get_or_insert_default();
                    match key {
                        "pins.mnt_ns" => pins.mnt_ns = path(value),
                        "pins.dir" => pins.dir = path(value),
                        "pins.ipc" => pins.ipc = flag(&value),
                        "pins.uts" => pins.uts = flag(&value),
                        "pins.user" => pins.user = flag(&value),
                        "pins.shm" => pins.shm = flag(&value),
                        _ => {}
                    }
                }
                _ => {}
            }
            Some(())
        })?;
        required(&launch.id, "id")?;
        for (path, key) in [(&launch.dir, "dir"), (&launch.bundle, "bundle"), (&launch.exit_run, "exit_run")] {
            required(path.as_os_str(), key)?;
        }
        required(launch.runtime.path.as_os_str(), "runtime.path")?;
        launch.line_max = launch.line_max.clamp(1, DEFAULT_LINE_MAX);
        Ok(launch)
    }
}

impl Exec {
    /// The file form.
    pub fn to_conf(&self) -> Vec<u8> {
        let Self { id, dir, runtime, timeout, kill_on_hangup, runtime_timeout } = self;
        let mut conf = Conf::default();
        conf.text("id", id).path("dir", dir).runtime(runtime).flag("kill_on_hangup", *kill_on_hangup);
        if let Some(timeout) = timeout {
            conf.millis("timeout_ms", *timeout);
        }
        conf.millis("runtime_timeout_ms", *runtime_timeout);
        conf.0
    }

    /// Reads what [`Self::to_conf`] wrote.
    pub fn from_conf(text: &[u8]) -> Result<Self, ParseError> {
        let mut exec = Self::new("", Path::new(""), Runtime::default());
        lines(text, |key, value| {
            let Some(value) = exec.runtime.set(key, value) else { return Some(()) };
            match key {
                "id" => exec.id = String::from_utf8(value).ok()?,
                "dir" => exec.dir = path(value),
                "timeout_ms" => exec.timeout = Some(Duration::from_millis(number(&value)?)),
                "kill_on_hangup" => exec.kill_on_hangup = flag(&value),
                "runtime_timeout_ms" => exec.runtime_timeout = Duration::from_millis(number(&value)?),
                _ => {}
            }
            Some(())
        })?;
        required(&exec.id, "id")?;
        required(exec.dir.as_os_str(), "dir")?;
        required(exec.runtime.path.as_os_str(), "runtime.path")?;
        Ok(exec)
    }
}

impl Runtime {
    /// Takes a `runtime.` key; gives the value back if it is another.
    fn set(&mut self, key: &str, value: Vec<u8>) -> Option<Vec<u8>> {
        match key {
            "runtime.path" => self.path = path(value),
            "runtime.root" => self.root = path(value),
            "runtime.systemd_cgroup" => self.systemd_cgroup = flag(&value),
            "runtime.arg" => self.args.push(OsString::from_vec(value)),
            "runtime.env" => {
                // A name may not hold `=`, a value may.
                let at = value.iter().position(|&b| b == b'=').unwrap_or(value.len());
                let content = value.get(at + 1..).unwrap_or_default();
                self.env.push((OsStr::from_bytes(&value[..at]).to_owned(), OsStr::from_bytes(content).to_owned()));
            }
            _ => return Some(value),
        }
        None
    }
}

#[derive(Default)]
struct Conf(Vec<u8>);

impl Conf {
    fn bytes(&mut self, key: &str, value: &[u8]) -> &mut Self {
        text::push_pair(key, value, b'\n', &mut self.0);
        self
    }
    fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.bytes(key, value.as_bytes())
    }
    fn path(&mut self, key: &str, value: &Path) -> &mut Self {
        self.bytes(key, value.as_os_str().as_bytes())
    }
    fn optional(&mut self, key: &str, value: Option<&Path>) -> &mut Self {
        if let Some(value) = value { self.path(key, value) } else { self }
    }
    fn paths(&mut self, key: &str, values: &[PathBuf]) -> &mut Self {
        values.iter().fold(self, |conf, value| conf.path(key, value))
    }
    fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        if value { self.text(key, "1") } else { self }
    }
    fn millis(&mut self, key: &str, value: Duration) -> &mut Self {
        self.text(key, &value.as_millis().to_string())
    }
    fn runtime(&mut self, Runtime { path, root, systemd_cgroup, args, env }: &Runtime) -> &mut Self {
        self.path("runtime.path", path).path("runtime.root", root).flag("runtime.systemd_cgroup", *systemd_cgroup);
        for arg in args {
            self.bytes("runtime.arg", arg.as_bytes());
        }
        for (name, value) in env {
            self.bytes("runtime.env", &[name.as_bytes(), b"=", value.as_bytes()].concat());
        }
        self
    }
}

fn lines(text: &[u8], mut each: impl FnMut(&str, Vec<u8>) -> Option<()>) -> Result<(), ParseError> {
    for (index, line) in text.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        text::pair(line).and_then(|(key, value)| each(key, value)).ok_or(ParseError::Line(index + 1))?;
    }
    Ok(())
}

fn required(value: impl AsRef<OsStr>, key: &'static str) -> Result<(), ParseError> {
    if value.as_ref().is_empty() { Err(ParseError::Missing(key)) } else { Ok(()) }
}

fn path(value: Vec<u8>) -> PathBuf {
    OsString::from_vec(value).into()
}

fn flag(value: &[u8]) -> bool {
    value == b"1"
}

fn number<N: std::str::FromStr>(value: &[u8]) -> Option<N> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
