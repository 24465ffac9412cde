//! The file form of what a monitor is told: lines of `key=value` ([`crate::text`]), lists by repeated keys; `view=` starts a
//! view that the `view.` keys after it describe. Unknown keys are ignored, missing ones take defaults, so that server and
//! monitor may be of different versions. Written by the server before the monitor starts and read once.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{DEFAULT_LINE_MAX, Exec, Launch, Overlay, Pins, Runtime, View};
use crate::text;

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
