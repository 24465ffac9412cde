//! The OCI runtimes: found at start, asked for their features once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::host::Features;
use crate::paths::Paths;

/// A runtime that can be called.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The handler's name.
    pub name: String,
    /// The program, absolute.
    pub path: PathBuf,
    /// What it can do.
    pub features: Features,
    /// How the monitor calls it.
    pub call: crisp_monitor::launch::Runtime,
    /// How long one call may take.
    pub timeout: Duration,
}

/// All handlers of the configuration.
#[derive(Debug)]
pub struct Runtimes {
    default: String,
    /// A handler that cannot be used keeps the reason.
    found: BTreeMap<String, Result<Runtime, String>>,
}

impl Runtimes {
    /// Looks for every runtime of the configuration.
    pub fn find(config: &Config, paths: &Paths) -> Self {
        let found = config.runtimes.iter().map(|(name, runtime)| {
            let found = locate(&runtime.path).map(|path| Runtime {
                name: name.clone(),
                features: features(&path),
                call: crisp_monitor::launch::Runtime {
                    path: path.clone(),
                    root: paths.runtime_root(name),
                    systemd_cgroup: false,
                    args: Vec::new(),
                    env: environment(),
                },
                path,
                timeout: runtime.timeout,
            });
            if let Err(error) = &found {
                tracing::warn!(handler = %name, %error, "runtime handler cannot be used");
            }
            (name.clone(), found)
        });
        Self { default: config.default_runtime.clone(), found: found.collect() }
    }

    /// The runtime of a handler; an empty name is the default one.
    pub fn get(&self, handler: &str) -> Result<&Runtime> {
        let name = if handler.is_empty() { &self.default } else { handler };
        match self.found.get(name) {
            Some(Ok(runtime)) => Ok(runtime),
            Some(Err(why)) => Err(Error::Precondition(format!("runtime handler {name:?} cannot be used: {why}"))),
            None => {
                let known: Vec<&str> = self.found.keys().map(String::as_str).collect();
                Err(Error::Invalid(format!(
                    "there is no runtime handler {name:?}: configured are {}; add [runtimes.{name}] to the configuration",
                    known.join(", ")
                )))
            }
        }
    }

    /// The usable ones.
    pub fn usable(&self) -> impl Iterator<Item = &Runtime> {
        self.found.values().filter_map(|found| found.as_ref().ok())
    }

    /// The default one's name.
    pub fn default_name(&self) -> &str {
        &self.default
    }
}

/// What a runtime may see of the server's environment: nothing that leaks into a container or makes it wait (a
/// NOTIFY_SOCKET makes `runc start` hang).
pub fn environment() -> Vec<(OsString, OsString)> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    vec![("PATH".into(), path)]
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn locate(path: &Path) -> Result<PathBuf, String> {
    let runnable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
    if path.is_absolute() {
        return if runnable(path) { Ok(path.to_owned()) } else { Err(format!("{} is not a program", path.display())) };
    }
    let dirs = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let found = std::env::split_paths(&dirs).map(|dir| dir.join(path)).find(|program| runnable(program));
    found.ok_or_else(|| format!("no program {:?} in PATH ({})", path.display(), dirs.display()))
}

/// `<runtime> features`; a runtime that does not know the verb has no features beyond the oldest ones.
fn features(path: &Path) -> Features {
    let mut command = Command::new(path);
    command.arg("features");
    match run(&mut command, FEATURES) {
        Some(output) => Features::parse(&output).unwrap_or_default(),
        None => Features::default(),
    }
}

/// How long `features` may take: runc needs 5 ms.
const FEATURES: Duration = Duration::from_secs(10);
/// More output than this is none of a runtime's.
const MAX_OUTPUT: u64 = 1 << 20;

/// Runs a runtime by itself, for calls that no monitor makes; its output, if it ended well and in time.
pub fn run(command: &mut Command, limit: Duration) -> Option<Vec<u8>> {
    command.env_clear().envs(environment()).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let stdout = child.stdout.take()?;
    let reader = std::thread::spawn(move || {
        let mut output = Vec::new();
        let read = stdout.take(MAX_OUTPUT).read_to_end(&mut output);
        read.is_ok().then_some(output)
    });
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                let output = reader.join().ok().flatten();
                return output.filter(|_| status.success());
            }
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            _ => {
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.wait();
                return None;
            }
        }
    }
}
