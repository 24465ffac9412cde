//! A CRI server under test: crisp or containerd, started with roots, sockets and names of its own, stopped, killed, started again.
//!
//! ```text
//! <dir>/            one directory per server, below the run's temporary root
//!   root/ state/    what the server keeps
//!   s.sock          where it listens
//!   log             what it said
//!   cni/ certs.d/   networks and registry hosts it is given
//! ```

use crate::{
    client::Cri,
    fail::{Fail, Res, wrong},
    parts::Parts,
    world::World,
};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Crisp,
    Containerd,
}

/// What network its pods get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    /// bridge + host-local + portmap from CNI plugins 1.9.1.
    Cni,
    /// crisp's own.
    Builtin,
    /// CNI from a directory that holds no configuration.
    Empty,
    /// A plugin of this name, from a directory of plugins.
    Plugin(String, PathBuf),
}

/// How a server differs from the ordinary one.
#[derive(Clone, Debug)]
pub(crate) struct Opts {
    pub(crate) kind: Kind,
    pub(crate) net: Net,
    /// Other than the pinned runc.
    pub(crate) runtime: Option<PathBuf>,
    /// Other than below `<dir>`.
    pub(crate) root: Option<PathBuf>,
    /// Other than below `<dir>`.
    pub(crate) state: Option<PathBuf>,
    /// Lines of `certs.d/<host>/hosts.toml`.
    pub(crate) hosts: Vec<(String, String)>,
    /// Added to crisp's configuration, in the table of its runtime and after.
    pub(crate) extra: String,
    /// Added to crisp's table `cni`.
    pub(crate) cni: String,
    /// Added to the server's environment.
    pub(crate) env: Vec<(String, String)>,
}

impl Opts {
    /// The ordinary server of this kind.
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            net: Net::Cni,
            runtime: None,
            root: None,
            state: None,
            hosts: Vec::new(),
            extra: String::new(),
            cni: String::new(),
            env: Vec::new(),
        }
    }
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) kind: Kind,
    /// Unique on the machine: crisp's `--instance`, and part of every path.
    pub(crate) instance: String,
    pub(crate) dir: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) sock: PathBuf,
    command: Vec<String>,
    env: Vec<(String, String)>,
    path: String,
    child: Option<Child>,
    /// The bridge that CNI's plugin makes with the first pod, and never removes.
    bridge: String,
}

static NEXT: AtomicU32 = AtomicU32::new(1);

impl Server {
    /// Starts it and waits until it answers.
    pub(crate) async fn start(world: &World, opts: &Opts) -> Res<Self> {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("e{}-{n}z", crate::world::pid() % 10_000);
        let dir = world.dir.join(&instance);
        let root = opts.root.clone().unwrap_or_else(|| dir.join("root"));
        let state = opts.state.clone().unwrap_or_else(|| dir.join("state"));
        let sock = dir.join("s.sock");
        for d in [&root, &state, &dir.join("certs.d")] {
            fs::create_dir_all(d)?;
        }
        let bins = network(&dir, &opts.net, &world.parts, n)?;
        for (host, toml) in &opts.hosts {
            let d = dir.join("certs.d").join(host);
            fs::create_dir_all(&d)?;
            fs::write(d.join("hosts.toml"), toml)?;
        }
        let runtime = match &opts.runtime {
            Some(r) => r.clone(),
            None => world.runc.clone(),
        };
        let mut server = Self {
            kind: opts.kind,
            instance,
            dir,
            root,
            state,
            sock,
            command: Vec::new(),
            env: opts.env.clone(),
            path: std::env::var("PATH").unwrap_or_default(),
            child: None,
            bridge: format!("cbr{n}"),
        };
        match opts.kind {
            Kind::Crisp => server.crisp(world, opts, &bins, &runtime)?,
            Kind::Containerd => server.containerd(world, &bins, &runtime)?,
        }
        server.spawn()?;
        server.wait(opts.net != Net::Empty).await?;
        Ok(server)
    }

    /// crisp below `dir` on the machine itself, with no configuration at all.
    pub(crate) async fn plain(dir: &Path, crisp: &Path) -> Res<Self> {
        let instance = format!("d{}z", crate::world::pid() % 100_000);
        let dir = dir.join(&instance);
        let (root, state, sock) = (dir.join("root"), dir.join("state"), dir.join("s.sock"));
        fs::create_dir_all(&dir)?;
        let mut server = Self {
            kind: Kind::Crisp,
            instance,
            dir,
            root,
            state,
            sock,
            command: Vec::new(),
            env: Vec::new(),
            path: std::env::var("PATH").unwrap_or_default(),
            child: None,
            bridge: String::new(),
        };
        server.command = server.serve(crisp, None);
        server.spawn()?;
        server.wait(true).await?;
        Ok(server)
    }

    /// `crisp serve` with our directories and names.
    fn serve(&self, crisp: &Path, config: Option<&Path>) -> Vec<String> {
        let s = |p: &Path| p.to_string_lossy().into_owned();
        let mut command = vec![s(crisp), "serve".into()];
        if let Some(c) = config {
            command.extend(["--config".into(), s(c)]);
        }
        command.extend([
            "--instance".into(),
            self.instance.clone(),
            "--root".into(),
            s(&self.root),
            "--state".into(),
            s(&self.state),
        ]);
        command.extend(["--listen".into(), format!("unix://{}", self.sock.display())]);
        command
    }

    /// What was executed, as a person would type it.
    pub(crate) fn command_line(&self) -> String {
        self.command.join(" ")
    }

    fn crisp(&mut self, world: &World, opts: &Opts, bins: &Path, runtime: &Path) -> Res {
        let mode = if opts.net == Net::Builtin { "builtin" } else { "cni" };
        let d = self.dir.display();
        let config = format!(
            "default_runtime = \"runc\"\n[network]\nmode = \"{mode}\"\n[cni]\nconf_dir = \"{d}/cni\"\nbin_dirs = [\"{}\"]\n{}\n\
             [registry]\nconfig_path = \"{d}/certs.d\"\n[runtimes.runc]\npath = \"{}\"\n{}",
            bins.display(),
            opts.cni,
            runtime.display(),
            opts.extra
        );
        let file = self.dir.join("config.toml");
        fs::write(&file, config)?;
        self.command = self.serve(&world.crisp, Some(&file));
        Ok(())
    }

    fn containerd(&mut self, world: &World, bins: &Path, runtime: &Path) -> Res {
        let d = self.dir.display();
        let config = format!(
            r#"version = 3
root = "{root}"
state = "{state}"
[grpc]
  address = "{sock}"
[ttrpc]
  address = "{d}/ttrpc.sock"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{bins}"]
    conf_dir = "{d}/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "{runtime}"
[plugins.'io.containerd.cri.v1.images']
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "{d}/certs.d"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{host}/pause:3.10"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
"#,
            root = self.root.display(),
            state = self.state.display(),
            sock = self.sock.display(),
            bins = bins.display(),
            runtime = runtime.display(),
            host = world.host
        );
        let file = self.dir.join("config.toml");
        fs::write(&file, config)?;
        let bin = world.parts.dir("containerd")?;
        self.path = format!("{}:{}", bin.display(), self.path);
        self.command = vec![
            bin.join("containerd").to_string_lossy().into_owned(),
            "--config".into(),
            file.to_string_lossy().into_owned(),
        ];
        Ok(())
    }

    fn spawn(&mut self) -> Res {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log"))?;
        let (program, args) = self.command.split_first().ok_or_else(|| Fail::Wrong("no command".into()))?;
        let child = Command::new(program)
            .args(args)
            .env("PATH", &self.path)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|e| Fail::Wrong(format!("{program}: {e}")))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it serves, and its network is ready if that is expected.
    pub(crate) async fn wait(&mut self, network: bool) -> Res {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                return wrong(format!(
                    "{} ended with {status} instead of serving: {}",
                    self.command[0],
                    self.last_words()
                ));
            }
            let state = async {
                let cri = Cri::connect(&self.sock).await?;
                cri.conditions().await
            };
            match tokio::time::timeout(Duration::from_secs(5), state).await {
                Ok(Ok(c)) if c.iter().all(|(what, ok, _)| *ok || !what.ends_with("Ready")) || !network => return Ok(()),
                other if Instant::now() > until => {
                    return wrong(format!(
                        "{} is not ready after 30 s: {other:?}: {}",
                        self.command[0],
                        self.last_words()
                    ));
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(4).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// A new connection.
    pub(crate) async fn cri(&self) -> Res<Cri> {
        Cri::connect(&self.sock).await
    }

    /// The process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGKILL, and waits for the end. Everything it started lives on.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, up to ten seconds, then SIGKILL. Everything it started lives on.
    pub(crate) async fn stop(&mut self) {
        if let Some(child) = &mut self.child {
            let pid = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            for _ in 0..500 {
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.kill9();
    }

    /// Starts it again and does not wait.
    pub(crate) fn spawn_again(&mut self) -> Res {
        self.spawn()
    }

    /// Starts it again with the same roots; returns how long until its first answer.
    pub(crate) async fn start_again(&mut self) -> Res<Duration> {
        let t = Instant::now();
        self.spawn()?;
        self.wait(false).await?;
        Ok(t.elapsed())
    }

    /// Removes all pods, stops the server and deletes its directories.
    pub(crate) async fn finish(mut self) -> Res {
        let cri = self.cri().await?;
        cri.remove_everything().await?;
        self.stop().await;
        let _ = fs::remove_file(format!("/run/crisp-{}.lock", self.instance));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
        // Monitors and shims that a failed case left behind, found by our own unique directory in their command line or cgroup.
        crate::world::kill_marked(&self.dir.to_string_lossy());
        crate::world::kill_marked(&self.instance);
        crate::world::unmount_below(&self.dir);
        if !self.bridge.is_empty() {
            let _ = Command::new("ip").args(["link", "del", &self.bridge]).stderr(Stdio::null()).status();
        }
        if std::env::var_os("CRISP_E2E_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Writes the CNI configuration and returns the directory of its plugins.
fn network(dir: &Path, net: &Net, parts: &Parts, n: u32) -> Res<PathBuf> {
    let conf = dir.join("cni");
    fs::create_dir_all(&conf)?;
    let bins = match net {
        Net::Plugin(..) => dir.join("plugins"),
        _ => parts.dir("cni")?,
    };
    let plugins = match net {
        Net::Builtin | Net::Empty => return Ok(bins),
        Net::Cni => format!(
            r#"{{"type":"bridge","bridge":"cbr{n}","isGateway":true,"ipMasq":true,"hairpinMode":true,
                "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.88.{n}.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
              {{"type":"portmap","capabilities":{{"portMappings":true}}}}"#,
            dir.join("ipam").display()
        ),
        Net::Plugin(name, from) => {
            // The loopback plugin is beside it: containerd calls it for every pod.
            fs::create_dir_all(&bins)?;
            for d in [parts.dir("cni")?, from.clone()] {
                for f in fs::read_dir(d)?.flatten() {
                    fs::copy(f.path(), bins.join(f.file_name()))?;
                }
            }
            format!(r#"{{"type":"{name}"}}"#)
        }
    };
    fs::write(
        conf.join("10-e2e.conflist"),
        format!(r#"{{"cniVersion":"1.0.0","name":"e2e{n}","plugins":[{plugins}]}}"#),
    )?;
    Ok(bins)
}
