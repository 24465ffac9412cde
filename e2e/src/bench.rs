//! The table of figures: crisp on the same CNI plugins, crisp on its own network, and containerd 2.4.2, in one run with one
//! runc, so that the ratios count; absolute figures belong to the machine.

mod disk;
mod many;
mod pull;
mod table;

use crate::{
    bigimage,
    cases::namespaces,
    client::{Cri, spec},
    fail::{Fail, Res},
    images, logs, parts,
    server::{Kind, Net, Opts, Server},
    world::World,
};
use crisp_cri_proto::v1::*;
use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// Figures of one server, by name.
type Figures = BTreeMap<&'static str, f64>;

/// Measures all, or some groups, and prints the table; `quick` takes fewer rounds.
pub(crate) async fn bench(world: World, quick: bool, words: &[String]) -> Res {
    if let Some(word) = words.iter().find(|word| !GROUPS.contains(&word.as_str())) {
        return Err(Fail::Wrong(format!("there is no group {word:?} of figures: {}", GROUPS.join(", "))));
    }
    let storage = parts::cache().join("registry");
    bigimage::fill(&world.host, &storage).await?;
    let servers = [
        ("containerd", Kind::Containerd, Net::Cni),
        ("crisp, same CNI", Kind::Crisp, Net::Cni),
        ("crisp, built-in", Kind::Crisp, Net::Builtin),
    ];
    let mut all = Vec::new();
    for (name, kind, net) in servers {
        println!("measuring {name}");
        all.push((name, measure(&world, net, kind, quick, words).await?));
    }
    if wanted(words, "pulls")
        && let [(_, peer), (_, ours), ..] = &mut all[..]
    {
        println!("measuring pulls");
        let mut kinds = [(Kind::Containerd, peer), (Kind::Crisp, ours)];
        pull::cold(&world, if quick { 1 } else { 3 }, &mut kinds).await?;
    }
    table::print(&all);
    Ok(())
}

fn p50(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ms(t: Instant) -> f64 {
    t.elapsed().as_secs_f64() * 1e3
}

/// Makes pods for measurements.
#[derive(Clone)]
struct Maker {
    cri: Cri,
    image: String,
    dir: PathBuf,
    cgroup: String,
    next: Arc<AtomicUsize>,
}

/// Times of one pod's start: the whole, and its three calls.
type Times = [f64; 4];

impl Maker {
    fn configs(&self, cmd: &[&str]) -> Res<(PodSandboxConfig, ContainerConfig)> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let logs = self.dir.join(format!("logs{n}"));
        fs::create_dir_all(&logs)?;
        let pod = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: format!("b{n}"),
                uid: format!("b{n}"),
                namespace: crate::client::NAMESPACE.into(),
                attempt: 0,
            }),
            hostname: format!("b{n}"),
            log_directory: logs.to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(spec(&self.image)),
            command: cmd.iter().map(|s| (*s).to_owned()).collect(),
            log_path: "c.log".into(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    cpu_shares: 100,
                    memory_limit_in_bytes: 256 << 20,
                    ..Default::default()
                }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        Ok((pod, container))
    }

    async fn start(&self, cmd: &[&str]) -> Res<(String, String, PathBuf, Times)> {
        let (pod, container) = self.configs(cmd)?;
        let all = Instant::now();
        let id = self.cri.run_pod(&pod).await?;
        let run = ms(all);
        let t = Instant::now();
        let c = self.cri.create(&id, &container, &pod).await?;
        let create = ms(t);
        let t = Instant::now();
        self.cri.start(&c).await?;
        Ok((id, c, PathBuf::from(&pod.log_directory).join("c.log"), [ms(all), run, create, ms(t)]))
    }

    async fn end(&self, pod: &str, container: &str) -> Res<f64> {
        let t = Instant::now();
        self.cri.stop(container, 0).await?;
        self.cri.remove(container).await?;
        self.cri.stop_pod(pod).await?;
        self.cri.remove_pod(pod).await?;
        Ok(ms(t))
    }
}

/// Does `n` things, four at a time; things a second.
async fn four<F, Fut>(n: usize, f: F) -> Res<f64>
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Res> + Send,
{
    let t = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (f, next) = (f.clone(), next.clone());
        tasks.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < n {
                f().await.map_err(|e| e.to_string())?;
            }
            Ok::<_, String>(())
        });
    }
    while let Some(r) = tasks.join_next().await {
        r?.map_err(Fail::Wrong)?;
    }
    Ok(n as f64 / t.elapsed().as_secs_f64())
}

/// The groups of rows, by which some can be measured alone.
const GROUPS: [&str; 6] = ["pods", "execs", "pulls", "logs", "many", "growth"];

fn wanted(words: &[String], group: &str) -> bool {
    words.is_empty() || words.iter().any(|word| word == group)
}

async fn measure(world: &World, net: Net, kind: Kind, quick: bool, words: &[String]) -> Res<Figures> {
    let wanted = |group: &str| wanted(words, group);
    let growth = net == Net::Builtin && !quick;
    // As on a node: root and logs on a disk, the state on a tmpfs.
    let disk = disk::Disk::fresh(&world.dir, "disk").await?;
    let state = PathBuf::from(format!("/run/bench-{kind:?}-{net:?}"));
    let (root, state) = (Some(disk.mount.join("root")), Some(state));
    let mut server = Server::start(world, &Opts { net, root, state, ..Opts::new(kind) }).await?;
    let rounds = if quick { 8 } else { 40 };
    let mut out = Figures::new();
    let maker = Maker {
        cri: server.cri().await?,
        image: world.image(images::BUSYBOX),
        dir: disk.mount.join("logs"),
        cgroup: format!("{}/bench", world.cgroup),
        next: Arc::default(),
    };
    maker.cri.ensure(&maker.image).await?;
    let (pod, c, ..) = maker.start(&["sleep", "3600"]).await?;
    maker.end(&pod, &c).await?;
    if wanted("pods") {
        pods(&maker, rounds, &mut out).await?;
    }
    if wanted("execs") {
        // Short, so more of them: a rate over two seconds says little on a shared machine.
        execs(&maker, rounds * 4, &mut out).await?;
    }
    if wanted("logs") {
        out.insert("log throughput", log_rate(&maker, if quick { 50 } else { 200 }).await?);
    }
    if wanted("many") {
        many::forty(&maker, &mut server, &mut out).await?;
    }
    if growth && wanted("growth") {
        // The server may have been started again: a new connection.
        many::growth(&Maker { cri: server.cri().await?, ..maker }, &mut out).await?;
    }
    server.finish().await?;
    Ok(out)
}

async fn pods(maker: &Maker, rounds: usize, out: &mut Figures) -> Res {
    let (mut starts, mut stops) = ([const { Vec::new() }; 4], Vec::new());
    for _ in 0..rounds {
        let (pod, c, _, times) = maker.start(&["sleep", "3600"]).await?;
        starts.iter_mut().zip(times).for_each(|(all, t)| all.push(t));
        stops.push(maker.end(&pod, &c).await?);
    }
    let [all, run, create, start] = starts;
    out.insert("pod start p50", p50(all));
    out.insert("  RunPodSandbox p50", p50(run));
    out.insert("  CreateContainer p50", p50(create));
    out.insert("  StartContainer p50", p50(start));
    out.insert("pod stop p50", p50(stops));
    let m = maker.clone();
    let rate = four(rounds * 2, move || {
        let m = m.clone();
        async move {
            let (pod, c, ..) = m.start(&["sleep", "3600"]).await?;
            m.end(&pod, &c).await.map(drop)
        }
    });
    out.insert("pods/s, 4 at a time", rate.await?);
    Ok(())
}

async fn execs(maker: &Maker, rounds: usize, out: &mut Figures) -> Res {
    let (pod, c, ..) = maker.start(&["sleep", "3600"]).await?;
    let mut execs = Vec::new();
    for _ in 0..rounds {
        let t = Instant::now();
        maker.cri.exec(&c, &["true"], 30).await?;
        execs.push(ms(t));
    }
    out.insert("ExecSync p50", p50(execs));
    let (cri, id) = (maker.cri.clone(), c.clone());
    let rate = four(rounds * 4, move || {
        let (cri, id) = (cri.clone(), id.clone());
        async move { Ok(cri.exec(&id, &["true"], 30).await.map(drop)?) }
    });
    out.insert("execs/s, 4 at a time", rate.await?);
    maker.end(&pod, &c).await.map(drop)
}

/// A container writes MB of 100-byte lines by `cat` of a block, so that the writer is never what is measured.
async fn log_rate(maker: &Maker, mb: usize) -> Res<f64> {
    let line = "x".repeat(99);
    let script = format!(
        "i=0; while [ $i -lt 50000 ]; do echo {line}; i=$((i+1)); done > /tmp/block; for i in $(seq {}); do cat /tmp/block; done",
        mb / 5
    );
    let (pod, c, log, _) = maker.start(&["sh", "-c", &script]).await?;
    maker.cri.wait_exit(&c, 120).await?;
    let want = mb / 5 * 50_000;
    let lines = logs::until(&log, 60, "all lines", |l| l.len() >= want).await?;
    let clock = |l: Option<&logs::Line>| {
        let text = l.map_or("", |l| l.time.as_str());
        let day = text.split(['T', 'Z', '+']).nth(1).unwrap_or("0:0:0");
        day.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap_or(0.0))
    };
    let took = clock(lines.last()) - clock(lines.first());
    maker.end(&pod, &c).await?;
    Ok(mb as f64 / took)
}
