//! Everything that looks at crisp from outside: black-box cases, real clients, benches, the demo.
//!
//! ```text
//! demo      one pod, shown to a person                demo.rs, on the machine itself
//! verify    units, blackbox, clients                  verify.rs, the latter two in a world of their own (world.rs)
//! run       the cases against one server              run.rs → cases/*.rs, leaks.rs
//! bench     the table of figures, beside containerd   bench.rs
//! setup     parts.rs (Debian packages, Go parts), registry.rs, images.rs
//! ```

mod bench;
mod bigimage;
mod budget;
mod cases;
mod client;
mod clients;
mod demo;
mod fail;
mod hostile;
mod images;
mod leaks;
mod logs;
mod parts;
mod proxy;
mod push;
mod registry;
mod run;
mod server;
mod sh;
mod tar;
mod verify;
mod world;

use clap::{Parser, Subcommand};
use fail::Res;
use std::{path::PathBuf, process::ExitCode};

#[derive(Debug, Parser)]
#[command(about = "Tests, benches and the demo of crisp")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the black-box cases
    Run {
        /// A server that runs already; what needs a server of its own is skipped
        #[arg(long)]
        endpoint: Option<String>,
        /// The registry that such a server pulls from
        #[arg(long, default_value = "127.0.0.1:5000")]
        registry: String,
        /// Run them against containerd 2.4.2 instead
        #[arg(long)]
        containerd: bool,
        /// The crisp to test instead of target/release/crisp
        #[arg(long)]
        crisp: Option<PathBuf>,
        /// The OCI runtime to use instead of the pinned runc
        #[arg(long)]
        runtime: Option<PathBuf>,
        /// Only cases whose `topic::name` holds one of these words
        words: Vec<String>,
    },
    /// Show the main job on this machine: a registry, a server, a pod with a web page
    Demo,
    /// Run all tests, or one layer of them
    Verify {
        #[arg(value_enum)]
        layer: Option<verify::Layer>,
    },
    /// Run the real clients: crictl, older, kubelet, critest
    Clients {
        /// Against containerd 2.4.2 instead
        #[arg(long)]
        containerd: bool,
        /// The crisp to test instead of target/release/crisp
        #[arg(long)]
        crisp: Option<PathBuf>,
        /// Only those whose name holds one of these words
        words: Vec<String>,
    },
    /// Print the table of figures, beside containerd's
    Bench {
        /// Fewer rounds
        #[arg(long)]
        quick: bool,
        /// The crisp to measure instead of target/release/crisp
        #[arg(long)]
        crisp: Option<PathBuf>,
        /// Only these groups of rows: pods, execs, pulls, logs, many, growth
        words: Vec<String>,
    },
    /// Install and build what the tests need
    Setup,
}

fn main() -> ExitCode {
    match proxy::spare_loopback().and_then(|()| work()) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            eprintln!("crisp-e2e: {e}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn work() -> Res<i32> {
    // oci-client's TLS, which plain HTTP never reaches, wants to know its cryptography all the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let verb = Cli::parse().verb;
    // The demo has to clean up after itself: it is on the machine, not in namespaces that end with this program.
    let demo = matches!(verb, Verb::Demo);
    tokio::select! {
        r = dispatch(verb) => r,
        _ = tokio::signal::ctrl_c(), if !demo => fail::wrong("interrupted"),
    }
}

async fn dispatch(verb: Verb) -> Res<i32> {
    match verb {
        Verb::Setup => {
            setup(false).await?;
            Ok(0)
        }
        Verb::Demo => demo::demo().await.map(|()| 0),
        Verb::Verify { layer } => verify::verify(layer).await,
        Verb::Clients { containerd, crisp, words } => {
            setup(false).await?;
            if let Some(code) = world::enter().await? {
                return Ok(code);
            }
            let world = world::World::new(crisp).await?;
            let sums = clients::all(&world, kind(containerd), &words).await?;
            Ok(i32::from(sums.failed > 0))
        }
        Verb::Bench { quick, crisp, words } => {
            setup(true).await?;
            if let Some(code) = world::enter().await? {
                return Ok(code);
            }
            bench::bench(world::World::new(crisp).await?, quick, &words).await.map(|()| 0)
        }
        Verb::Run { endpoint: Some(e), registry, words, .. } => {
            Ok(i32::from(run::endpoint(&e, &registry, &words).await?.failed > 0))
        }
        Verb::Run { containerd, crisp, runtime, words, .. } => {
            setup(false).await?;
            if let Some(code) = world::enter().await? {
                return Ok(code);
            }
            let mut world = world::World::new(crisp).await?;
            if let Some(runtime) = runtime {
                world.runc = runtime;
            }
            let (sums, _world) = run::server(world, kind(containerd), &words).await?;
            Ok(i32::from(sums.failed > 0))
        }
    }
}

fn kind(containerd: bool) -> server::Kind {
    if containerd { server::Kind::Containerd } else { server::Kind::Crisp }
}

/// Debian packages, Go parts and images, the `big` one too; before the namespaces are entered, because there is no way out
/// from in there.
async fn setup(big: bool) -> Res {
    if world::inside() {
        return Ok(());
    }
    parts::apt(parts::DEMO).await?;
    parts::apt(parts::TESTS).await?;
    let _lock = parts::lock().await?;
    parts::Parts::all().await?;
    fill(big).await
}

/// Fills the registry in the cache with the test images, and the big one for benches if asked.
async fn fill(big: bool) -> Res {
    let dir = std::env::temp_dir().join(world::mark()).join("setup");
    let storage = parts::cache().join("registry");
    let filled = async {
        let r = registry::Registry::start(&storage, &dir).await?;
        images::fill(&r.host, &storage).await?;
        if big { bigimage::fill(&r.host, &storage).await } else { Ok(()) }
    };
    let filled = filled.await;
    let _ = std::fs::remove_dir_all(dir.parent().unwrap_or(&dir));
    filled
}
