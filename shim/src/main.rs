//! crisp: a Kubernetes container runtime, and its command line.
//!
//! ```text
//! main ── serve ── recover ── cri (services) ── ops (verbs) ──┬── store, netns
//!   │                                                        └── monitor (one small process a container)
//!   └── cli (user verbs) ── the same socket
//! ```

#![allow(missing_docs, unreachable_pub, reason = "a program: its public items are its commands")]

mod api;
mod cgroup;
mod cli;
mod config;
mod container;
mod cri;
mod epoch;
mod error;
mod flusher;
mod host;
mod model;
mod monitor;
mod node;
mod ops;
mod paths;
mod recover;
mod registry;
mod runtimes;
mod sandbox;
mod serve;
mod signals;
mod spec;
mod sys;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::config::Config;
use crate::node::Place;

/// A Kubernetes container runtime: the server, and commands for people.
#[derive(Debug, Parser)]
#[command(name = "crisp", version, after_help = cli::args::FIRST_STEPS)]
struct Arguments {
    #[command(flatten)]
    global: cli::args::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the server that kubelet, crictl and the other verbs talk to.
    Serve(Serve),
    #[command(flatten)]
    User(cli::args::Verb),
}

/// Options of `crisp serve`.
#[derive(Debug, clap::Args)]
struct Serve {
    /// Configuration file; none is needed.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prefix of all that the server names in the kernel, so that several servers never meet.
    #[arg(long, default_value = "crisp")]
    instance: String,
    /// What survives a reboot.
    #[arg(long, default_value = "/var/lib/crisp")]
    root: PathBuf,
    /// What belongs to this boot.
    #[arg(long, default_value = "/run/crisp")]
    state: PathBuf,
    /// The socket; default: crisp.sock in the state directory.
    #[arg(long, value_name = "unix:///PATH")]
    listen: Option<String>,
}

fn main() -> ExitCode {
    let Arguments { global, command } = Arguments::parse();
    match command {
        Command::User(verb) => cli::run(verb, &global, Arguments::command()),
        Command::Serve(serve) => match run(serve) {
            Ok(()) => ExitCode::SUCCESS,
            Err(text) => {
                eprintln!("error: {text}");
                ExitCode::FAILURE
            }
        },
    }
}

/// How long work on blocking threads may go on once requests are over.
const LAST_WORK: std::time::Duration = std::time::Duration::from_secs(1);

fn run(serve: Serve) -> Result<(), String> {
    // Modes are given where files are made; a login shell's 077 would close the way to user namespaces' roots.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let Serve { config, instance, root, state, listen } = serve;
    let config = Config::load(config.as_deref()).map_err(|error| error.to_string())?;
    let filter = tracing_subscriber::EnvFilter::new(&config.log.level);
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_target(false).with_ansi(colours).init();
    sys::raise_open_files();
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if instance.is_empty() || instance.len() > 32 || !instance.chars().all(good) || instance.starts_with('-') {
        return Err(format!("--instance {instance:?}: use up to 32 lower-case letters, digits and '-'"));
    }
    for dir in [&root, &state] {
        if !dir.is_absolute() {
            return Err(format!("{} is not an absolute path", dir.display()));
        }
    }
    let listen = match listen.as_deref().map(|text| text.strip_prefix("unix://").unwrap_or(text)) {
        Some(path) if !path.starts_with('/') => return Err(format!("--listen {path:?}: give unix:///PATH")),
        path => path.map(PathBuf::from),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("crisp").build();
    let runtime = runtime.map_err(|error| format!("start threads: {error}"))?;
    let served = runtime.block_on(serve::serve(Place { instance, root, state }, config, listen));
    // A plugin or a runtime that hangs holds up no one: who starts next finishes what it does.
    runtime.shutdown_timeout(LAST_WORK);
    served.map_err(|error| error.chain())
}
