//! A container with everything that the server would prepare, in a temporary directory, and a client that speaks to its monitor.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crisp_monitor::exit_record::ExitRecord;
use crisp_monitor::launch::{Launch, Overlay, Runtime};
use crisp_monitor::protocol::{Frames, Message, Phase, Request, State, decode_message, encode_request};
use crisp_monitor::spawn;
use tempfile::TempDir;

/// The real thing: static, optimised, as it is embedded.
pub(crate) fn monitor() -> File {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let path = BUILT.get_or_init(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        crate::static_build::build(&workspace, &Path::new(env!("CARGO_TARGET_TMPDIR")).join("static")).unwrap()
    });
    File::open(path).unwrap()
}

/// Every runc that the machine has: Debian's, and the newer one of the cache.
pub(crate) fn runcs() -> Vec<PathBuf> {
    let cache = std::env::var("CRISP_CACHE").unwrap_or_else(|_| "/var/cache/crisp".into());
    let all = [PathBuf::from("/usr/sbin/runc"), Path::new(&cache).join("bin/runc")];
    let found: Vec<_> = all.into_iter().filter(|p| p.exists()).collect();
    assert!(!found.is_empty(), "no runc: apt-get install runc");
    found
}

pub(crate) fn runc() -> PathBuf {
    runcs().pop().unwrap()
}

/// The cgroup of container `id` for this controller. Version 2 has one tree for all of them, version 1 one for each.
pub(crate) fn cgroup(controller: &str, id: &str) -> PathBuf {
    let top = Path::new("/sys/fs/cgroup");
    if top.join("cgroup.controllers").exists() { top.join(id) } else { top.join(controller).join(id) }
}

/// One container; everything of it goes when it is dropped.
pub(crate) struct Sut {
    pub(crate) temp: TempDir,
    pub(crate) launch: Launch,
    /// `"process"`, `"linux"` and `"mounts"` details of config.json.
    pub(crate) spec: Spec,
    pub(crate) child: Option<Child>,
    pub(crate) client: Option<Client>,
}

pub(crate) struct Spec {
    pub(crate) args: Vec<String>,
    pub(crate) namespaces: Vec<(&'static str, Option<PathBuf>)>,
    pub(crate) mounts: Vec<String>,
    pub(crate) memory: Option<u64>,
    /// More members of `linux`, each with its comma in front.
    pub(crate) linux: String,
    /// The same of `process`.
    pub(crate) process: &'static str,
    pub(crate) rootfs_propagation: &'static str,
    /// Capabilities, bounding to effective.
    pub(crate) caps: &'static str,
}

impl Sut {
    /// A container that will run `script` with busybox' sh.
    pub(crate) fn new(runtime: &Path, script: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("crisp-monitor-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let temp = TempDir::with_prefix(&id).unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let dir = temp.path().join("run");
        for name in ["run/bundle/rootfs", "upper", "work", "runtime", "log", "disk"] {
            fs::create_dir_all(temp.path().join(name)).unwrap();
        }
        let layers = temp.path().join("layers");
        make_layer(&layers.join("base/fs"));
        fs::create_dir_all(layers.join("top/fs/etc")).unwrap();
        fs::write(layers.join("top/fs/etc/top"), "top\n").unwrap();
        let env = vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())];
        let runtime =
            Runtime { path: runtime.to_owned(), root: temp.path().join("runtime"), env, ..Default::default() };
        let mut launch = Launch::new(&id, &dir, runtime);
        launch.log_path = Some(temp.path().join("log/0.log"));
        launch.exit_disk = Some(temp.path().join("disk/exit.json"));
        launch.memory_cgroup = Some(cgroup("memory", &id));
        launch.rootfs = Some(Overlay {
            layers_dir: layers,
            lowers: vec!["top/fs".into(), "base/fs".into()],
            upper: temp.path().join("upper"),
            work: temp.path().join("work"),
            volatile: true,
        });
        let spec = Spec {
            args: ["/bin/sh", "-c", script].map(String::from).to_vec(),
            namespaces: ["pid", "mount", "ipc", "uts"].map(|n| (n, None)).to_vec(),
            mounts: Vec::new(),
            memory: None,
            linux: String::new(),
            process: "",
            rootfs_propagation: "rslave",
            caps: "\"CAP_KILL\"",
        };
        Self { temp, launch, spec, child: None, client: None }
    }

    pub(crate) fn write_spec(&self) {
        let caps = self.spec.caps;
        let quoted = |text: &str| format!("{text:?}");
        let args = self.spec.args.iter().map(|a| quoted(a)).collect::<Vec<_>>().join(",");
        let namespaces: Vec<_> = self
            .spec
            .namespaces
            .iter()
            .map(|(kind, path)| {
                let path =
                    path.as_ref().map_or(String::new(), |p| format!(",\"path\":{}", quoted(p.to_str().unwrap())));
                format!("{{\"type\":\"{kind}\"{path}}}")
            })
            .collect();
        let mut mounts = vec![
            r#"{"destination":"/proc","type":"proc","source":"proc"}"#.to_owned(),
            r#"{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755"]}"#.to_owned(),
            r#"{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620"]}"#.to_owned(),
        ];
        mounts.extend(self.spec.mounts.iter().cloned());
        let memory = self
            .spec
            .memory
            .map_or(String::new(), |m| format!(",\"resources\":{{\"memory\":{{\"limit\":{m},\"swap\":{m}}}}}"));
        let config = format!(
            r#"{{"ociVersion":"1.0.2","process":{{"terminal":{},"user":{{"uid":0,"gid":0}},"args":[{args}],"env":["PATH=/bin"],"cwd":"/",
               "capabilities":{{"bounding":[{caps}],"effective":[{caps}],"permitted":[{caps}]}}{}}},
               "root":{{"path":"rootfs"}},"mounts":[{}],
               "linux":{{"cgroupsPath":"/{}","rootfsPropagation":"{}","namespaces":[{}]{memory}{}}}}}"#,
            self.launch.tty,
            self.spec.process,
            mounts.join(","),
            self.launch.id,
            self.spec.rootfs_propagation,
            namespaces.join(","),
            self.spec.linux,
        );
        fs::write(self.launch.bundle.join("config.json"), config).unwrap();
    }

    /// Starts the monitor and connects to it.
    pub(crate) fn spawn(&mut self) -> &mut Self {
        self.write_spec();
        let exe = monitor();
        self.child = Some(spawn::container(exe.as_fd(), &self.launch).unwrap());
        self.client = spawn::connect(self.dir()).ok().map(|socket| Client::over(socket).greet());
        self
    }

    pub(crate) fn client(&mut self) -> &mut Client {
        self.client.as_mut().unwrap()
    }

    /// Created; or the text of the failure, from the record where the monitor was gone before it could be asked.
    pub(crate) fn create(&mut self) -> Result<State, String> {
        self.spawn();
        if let Some(client) = &mut self.client {
            while let Some((_, message)) = client.next() {
                match message {
                    Message::State(State { phase: Phase::Creating, .. }) | Message::Reply(_) => {}
                    Message::State(State { phase: Phase::Failed, text, .. }) => return Err(text),
                    Message::State(state) => return Ok(state),
                }
            }
        }
        assert!(self.child.as_mut().unwrap().wait().unwrap().success());
        Err(ExitRecord::read(&self.launch.exit_run).unwrap().unwrap().message)
    }

    pub(crate) fn start(&mut self) -> Result<(), String> {
        self.client().ask(&Request::Start)
    }

    /// Create, start, wait for the end: its last state.
    pub(crate) fn run(&mut self) -> State {
        self.create().unwrap();
        self.start().unwrap();
        self.finish()
    }

    pub(crate) fn finish(&mut self) -> State {
        let state = self.client().until(|s| s.phase == Phase::Deleted);
        let status = self.child.as_mut().unwrap().wait().unwrap();
        assert!(status.success());
        assert_eq!(ExitRecord::read(&self.launch.exit_run).unwrap(), state.exit);
        assert_eq!(ExitRecord::read(self.launch.exit_disk.as_ref().unwrap()).unwrap(), state.exit);
        assert!(!spawn::is_locked(&self.launch.dir).unwrap());
        state
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The log's lines: stream, tag, content.
    pub(crate) fn log(&self) -> Vec<(String, String, String)> {
        let text = fs::read(self.launch.log_path.as_ref().unwrap()).unwrap();
        parse_log(&String::from_utf8_lossy(&text))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.launch.dir
    }
}

pub(crate) fn parse_log(text: &str) -> Vec<(String, String, String)> {
    assert!(text.is_empty() || text.ends_with('\n'));
    let mut last = String::new();
    text.split_terminator('\n')
        .map(|line| {
            let mut parts = line.splitn(4, ' ').map(String::from);
            let time = parts.next().unwrap();
            assert!(time.len() == 30 && time.ends_with('Z') && time >= last, "{time} after {last}");
            last = time;
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
        })
        .collect()
}

pub(crate) fn line(stream: &str, tag: &str, text: &str) -> (String, String, String) {
    (stream.into(), tag.into(), text.into())
}

impl Drop for Sut {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let id = &self.launch.id;
        // Whatever a failed test left: by the real runtime, for scripts have no state.
        let _ = Command::new(runc())
            .arg("--root")
            .arg(self.temp.path().join("runtime"))
            .args(["delete", "--force", id])
            .output();
        for controller in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let _ = fs::remove_dir(cgroup(&controller.file_name().to_string_lossy(), id));
        }
    }
}

fn make_layer(root: &Path) {
    for dir in ["bin", "proc", "dev", "sys", "tmp", "etc", "mnt"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("apt-get install busybox-static");
    for applet in [
        "sh", "cat", "echo", "sleep", "ls", "mount", "umount", "id", "stat", "tail", "dd", "kill", "ps", "setsid",
        "stty", "seq", "touch", "head",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

/// A blocking client with a time limit on everything.
pub(crate) struct Client {
    socket: UnixStream,
    frames: Frames,
    seq: u32,
    /// Every state that came, in order.
    pub(crate) states: Vec<State>,
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

impl Client {
    pub(crate) fn connect(dir: &Path) -> Self {
        let socket = spawn::connect(dir).unwrap();
        Self::over(socket).greet()
    }

    /// A connection that is there.
    pub(crate) fn over(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, frames: Frames::default(), seq: 0, states: Vec::new() }
    }

    fn greet(mut self) -> Self {
        self.send(&Request::Hello { version: 1 });
        self
    }

    pub(crate) fn send(&mut self, request: &Request) -> u32 {
        self.seq += 1;
        let mut frame = Vec::new();
        encode_request(self.seq, request, &mut frame);
        self.socket.write_all(&frame).unwrap();
        self.seq
    }

    /// The next message; `None`: the other side is gone.
    pub(crate) fn next(&mut self) -> Option<(u32, Message)> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                let (seq, message) = decode_message(frame).unwrap();
                if let Message::State(state) = &message {
                    self.states.push(state.clone());
                }
                return Some((seq, message));
            }
            let mut chunk = [0; 4096];
            match self.socket.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.frames.push(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("no message within {PATIENCE:?}: {e}; so far {:?}", self.states),
            }
        }
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Result<(), String> {
        let seq = self.send(request);
        loop {
            match self.next().expect("the monitor is gone") {
                (answered, Message::Reply(error)) if answered == seq => return error.map_or(Ok(()), Err),
                _ => {}
            }
        }
    }

    /// The first state, of those seen and those to come, that fits.
    pub(crate) fn until(&mut self, fits: impl Fn(&State) -> bool) -> State {
        loop {
            if let Some(state) = self.states.iter().find(|s| fits(s)) {
                return state.clone();
            }
            assert!(self.next().is_some(), "the monitor is gone after {:?}", self.states);
        }
    }
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10));
    }
}

/// A runtime that is a shell script; `$verb` is what it is asked for, `$1`… are its arguments.
pub(crate) fn script_runtime(dir: &Path, body: &str) -> PathBuf {
    let path = dir.join("script-runtime");
    let text = format!(
        "#!/bin/sh\nfor a in \"$@\"; do case $a in create|start|delete|exec) verb=$a; break;; esac; done\n{body}\n"
    );
    // Not by a descriptor of ours: a fork elsewhere in the tests would hold it open for writing (ETXTBSY).
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(&path).stdin(std::process::Stdio::piped());
    let mut child = shell.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    path
}
