//! The black-box cases, by topic. A case is one async function that reads like the behaviour it pins; what it made is
//! removed after it, and then everything on the machine must be as it was before.

pub(crate) mod archive;
pub(crate) mod badinput;
pub(crate) mod cli;
pub(crate) mod container;
pub(crate) mod differences;
pub(crate) mod exec;
pub(crate) mod faults;
pub(crate) mod image;
pub(crate) mod log;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod outlive;
pub(crate) mod registry;
pub(crate) mod restart;
pub(crate) mod sandbox;
pub(crate) mod security;
pub(crate) mod stop;

use crate::{
    client::{Cri, NAMESPACE, Said, spec},
    fail::{Res, skip, wrong},
    images, logs,
    server::{Kind, Opts, Server},
    world::World,
};
use crisp_cri_proto::v1::*;
use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
};

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) topic: &'static str,
    pub(crate) name: &'static str,
    pub(crate) run: for<'a> fn(&'a Ctx) -> Pin<Box<dyn Future<Output = Res> + 'a>>,
}

/// Lists the functions of a topic as cases.
macro_rules! cases {
    ($topic:literal: $($name:ident),+ $(,)?) => {
        /// The cases of this topic.
        pub(crate) fn all() -> Vec<$crate::cases::Case> {
            vec![$($crate::cases::Case { topic: $topic, name: stringify!($name), run: |c| Box::pin($name(c)) }),+]
        }
    };
}
pub(crate) use cases;

/// All cases, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    [
        sandbox::all(),
        container::all(),
        stop::all(),
        exec::all(),
        log::all(),
        mounts::all(),
        security::all(),
        network::all(),
        image::all(),
        registry::all(),
        archive::all(),
        badinput::all(),
        restart::all(),
        outlive::all(),
        node::all(),
        cli::all(),
        faults::all(),
    ]
    .concat()
}

/// What a case works with.
pub(crate) struct Ctx {
    /// `None` for an endpoint that was given from outside.
    pub(crate) world: Option<World>,
    pub(crate) kind: Option<Kind>,
    pub(crate) server: Mutex<Option<Server>>,
    pub(crate) cri: Cri,
    /// Temporary directory of all cases.
    pub(crate) dir: PathBuf,
    /// Prefix of image names.
    pub(crate) registry: String,
    pub(crate) cgroup: String,
    next: AtomicU32,
}

impl Ctx {
    /// Everything for the cases of one server.
    pub(crate) fn new(
        world: Option<World>,
        kind: Option<Kind>,
        server: Option<Server>,
        cri: Cri,
        registry: String,
    ) -> Res<Self> {
        let dir = std::env::temp_dir().join(crate::world::mark()).join("cases");
        std::fs::create_dir_all(&dir)?;
        let cgroup = format!("/{}", crate::world::mark());
        Ok(Self { world, kind, server: Mutex::new(server), cri, dir, registry, cgroup, next: AtomicU32::new(1) })
    }

    /// A number that no other case has.
    pub(crate) fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A reference in the test registry.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry)
    }

    /// The name of an image to push that no other case has, here or in another run that shares the registry's storage.
    pub(crate) fn fresh(&self, what: &str) -> String {
        format!("cases/{}/{what}:{}", crate::world::mark(), self.number())
    }

    /// busybox.
    pub(crate) fn busybox(&self) -> String {
        self.image(images::BUSYBOX)
    }

    /// The world, or a skip where the endpoint came from outside.
    pub(crate) fn world(&self) -> Res<&World> {
        self.world.as_ref().map_or_else(|| skip("needs a server of its own"), Ok)
    }

    /// The shared server.
    pub(crate) fn shared(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Which server, or a skip where the endpoint came from outside.
    pub(crate) fn kind(&self) -> Res<Kind> {
        self.kind.map_or_else(|| skip("needs a server of its own"), Ok)
    }

    /// Skips what is promised by crisp only.
    pub(crate) fn only_crisp(&self, why: &str) -> Res {
        if self.kind == Some(Kind::Containerd) { skip(format!("containerd differs: {why}")) } else { Ok(()) }
    }

    /// Fails unless the call was refused; where crisp answers, with this code.
    pub(crate) fn refused<T>(&self, what: &str, r: Result<T, tonic::Status>, code: tonic::Code) -> Res {
        let Err(e) = r else { return wrong(format!("{what} is accepted")) };
        let right = e.code() == code || self.kind != Some(Kind::Crisp);
        if right { Ok(()) } else { wrong(format!("{what} is {:?} instead of {code:?}: {}", e.code(), e.message())) }
    }

    /// A server of this case's own, of the kind under test.
    pub(crate) async fn own(&self, change: impl FnOnce(&mut Opts)) -> Res<Server> {
        let mut opts = Opts::new(self.kind()?);
        change(&mut opts);
        Server::start(self.world()?, &opts).await
    }

    /// A fresh directory for this case's files on the host.
    pub(crate) fn tmp(&self) -> Res<PathBuf> {
        let d = self.dir.join(format!("t{}", self.number()));
        std::fs::create_dir_all(&d)?;
        Ok(d)
    }

    /// A pod as kubelet would ask for.
    pub(crate) fn pod(&self) -> PodSandboxConfig {
        let n = self.number();
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: format!("pod{n}"),
                uid: format!("{}-{n}", crate::world::mark()),
                namespace: NAMESPACE.into(),
                attempt: 0,
            }),
            hostname: format!("host{n}"),
            log_directory: self.dir.join(format!("logs{n}")).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod{n}", self.cgroup),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A busybox container as kubelet would ask for.
    pub(crate) fn container(&self, name: &str, cmd: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(spec(&self.busybox())),
            command: cmd.iter().map(|s| (*s).to_owned()).collect(),
            log_path: format!("{name}/0.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    cpu_shares: 100,
                    memory_limit_in_bytes: 128 << 20,
                    ..Default::default()
                }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    /// A pod that is there.
    pub(crate) async fn up(&self) -> Res<Pod<'_>> {
        self.up_as(self.pod()).await
    }

    /// A pod with this configuration, its log directory made as kubelet makes it.
    pub(crate) async fn up_as(&self, config: PodSandboxConfig) -> Res<Pod<'_>> {
        self.up_on(&self.cri, config).await
    }

    /// The same on another server.
    pub(crate) async fn up_on(&self, cri: &Cri, config: PodSandboxConfig) -> Res<Pod<'_>> {
        if !config.log_directory.is_empty() {
            std::fs::create_dir_all(&config.log_directory)?;
        }
        cri.ensure(&self.busybox()).await?;
        let id = cri.run_pod(&config).await?;
        Ok(Pod { ctx: self, cri: cri.clone(), id, config })
    }
}

/// What kubelet asks for an ordinary pod: a PID namespace for each container.
pub(crate) fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() }
}

/// A pod in use by a case.
pub(crate) struct Pod<'a> {
    pub(crate) ctx: &'a Ctx,
    pub(crate) cri: Cri,
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
}

impl Pod<'_> {
    /// Creates and starts a container.
    pub(crate) async fn start(&self, config: &ContainerConfig) -> Res<String> {
        let id = self.cri.create(&self.id, config, &self.config).await?;
        self.cri.start(&id).await?;
        Ok(id)
    }

    /// Creates it only.
    pub(crate) async fn create(&self, config: &ContainerConfig) -> Result<String, tonic::Status> {
        self.cri.create(&self.id, config, &self.config).await
    }

    /// A container that sleeps.
    pub(crate) async fn sleeper(&self) -> Res<String> {
        self.start(&self.ctx.container(&format!("s{}", self.ctx.number()), &["sleep", "3600"])).await
    }

    /// Runs a container to its end, and what its log says.
    pub(crate) async fn run(&self, config: &ContainerConfig) -> Res<Said> {
        let id = self.start(config).await?;
        let status = self.cri.wait_exit(&id, 20).await?;
        let lines = logs::read(&self.log(config))?;
        self.cri.remove(&id).await?;
        Ok(Said {
            code: status.exit_code,
            stdout: logs::stream(&lines, "stdout"),
            stderr: logs::stream(&lines, "stderr"),
        })
    }

    /// Runs `sh -c script` in a container made from `change`d defaults; stdout, an error unless it exits with 0.
    pub(crate) async fn script(&self, script: &str, change: impl FnOnce(&mut ContainerConfig)) -> Res<String> {
        let mut config = self.ctx.container(&format!("c{}", self.ctx.number()), &["sh", "-c", script]);
        change(&mut config);
        let said = self.run(&config).await?;
        crate::fail::ensure!(said.code == 0, "`{script}` exits with {}: {}{}", said.code, said.stdout, said.stderr);
        Ok(said.stdout)
    }

    /// Where a container's log is.
    pub(crate) fn log(&self, config: &ContainerConfig) -> PathBuf {
        PathBuf::from(&self.config.log_directory).join(&config.log_path)
    }

    /// Stops and removes it.
    pub(crate) async fn down(&self) -> Res {
        self.cri.stop_pod(&self.id).await?;
        self.cri.remove_pod(&self.id).await?;
        Ok(())
    }
}

/// The security context of a container, to be changed.
pub(crate) fn security(c: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    c.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The namespaces of a pod, to be changed.
pub(crate) fn pod_namespaces(p: &mut PodSandboxConfig) -> &mut NamespaceOption {
    pod_security(p).namespace_options.get_or_insert_default()
}

/// The security context of a pod, to be changed.
pub(crate) fn pod_security(p: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    p.linux.get_or_insert_default().security_context.get_or_insert_default()
}
