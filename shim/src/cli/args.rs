//! What can be typed: the verbs, their options and the examples in their help.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use super::run::args::Run;

/// The socket that the verbs talk to unless told otherwise.
pub const DEFAULT_ENDPOINT: &str = "unix:///run/crisp/crisp.sock";

/// Below the list of verbs.
pub const FIRST_STEPS: &str = "\
First steps:
  sudo crisp serve                                 in one terminal; it needs no configuration
  sudo crisp run --rm busybox echo hello           in another
  sudo crisp run -d --name web -p 8080:80 nginx
  sudo crisp logs -f web";

/// Options of all verbs.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The server's socket: unix:///PATH, or just the path.
    #[arg(long, global = true, env = "CRISP_ENDPOINT", hide_env_values = true, default_value = DEFAULT_ENDPOINT, value_name = "ENDPOINT", display_order = 900)]
    pub endpoint: String,
    /// A table for people, JSON for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table, value_name = "FORMAT", display_order = 901)]
    pub output: Output,
}

/// What answers look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// The verbs, in the order of their help.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Run(Box<Run>),
    Ps(Ps),
    Pods(Pods),
    Logs(Logs),
    Exec(Exec),
    Stop(Stop),
    Rm(Rm),
    Inspect(Inspect),
    Pull(Pull),
    Images(Images),
    Rmi(Rmi),
    /// Show where and how the server runs, and how much it holds.
    Info,
    /// Show the versions of this program and of the server.
    Version,
    #[command(subcommand)]
    Config(Config),
    /// Print a script that completes crisp's commands in a shell.
    #[command(
        after_help = "Examples:\n  crisp completions bash > /etc/bash_completion.d/crisp\n  source <(crisp completions zsh)"
    )]
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the manual pages into a directory, or print the first one.
    #[command(after_help = "Examples:\n  crisp man | man -l -\n  crisp man /usr/local/share/man/man1")]
    Man {
        /// Made if it is missing.
        dir: Option<PathBuf>,
    },
}

/// List containers.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  crisp ps\n  crisp ps --all\n  crisp ps -q | xargs crisp stop\n  crisp ps -o json | jq '.[].image'"
)]
pub struct Ps {
    /// Those that do not run, too.
    #[arg(short, long)]
    pub all: bool,
    /// Ids only.
    #[arg(short, long)]
    pub quiet: bool,
}

/// List pods.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  crisp pods\n  crisp pods -q | xargs crisp stop\n  crisp pods -o json | jq '.[].ips'"
)]
pub struct Pods {
    /// Ids only.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Show what a container has written.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  crisp logs web\n  crisp logs -f --tail 20 web\n  crisp logs --since 10m -t kube-system/coredns-5d78c/coredns\n  crisp logs --since 2026-01-31T12:00:00Z web"
)]
pub struct Logs {
    /// Name, id or beginning of an id, of a container or of a pod with one container.
    #[arg(value_name = "CONTAINER")]
    pub name: String,
    /// Go on with what comes, until the container ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last N lines.
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<usize>,
    /// Only what came since then: a time (2026-01-31T12:00:00Z), or how long ago (90s, 10m, 2h, 1d).
    #[arg(long, value_name = "TIME", value_parser = super::parse::time::since)]
    pub since: Option<i64>,
    /// With the time before each line.
    #[arg(short, long)]
    pub timestamps: bool,
}

/// Run a command in a running container, without a terminal.
#[derive(Debug, Args)]
#[command(
    after_help = "The exit code is the command's. Its output is shown when it has ended.\n\nExamples:\n  crisp exec web nginx -t\n  crisp exec web sh -c 'ls /etc | wc -l'\n  crisp exec --timeout 5s web cat /proc/loadavg"
)]
pub struct Exec {
    /// Kill the command after this time.
    #[arg(long, value_name = "TIME", value_parser = super::parse::time::duration)]
    pub timeout: Option<std::time::Duration>,
    #[arg(short, long, hide = true)]
    pub interactive: bool,
    #[arg(short, long, hide = true)]
    pub tty: bool,
    /// Name, id or beginning of an id, of a container or of a pod with one container.
    #[arg(value_name = "CONTAINER")]
    pub name: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Stop pods or containers.
#[derive(Debug, Args)]
#[command(
    after_help = "A container gets its stop signal and, when the time is over, is killed. A pod's containers are stopped, then its network is given back. Logs and exit codes stay until `crisp rm`.\n\nExamples:\n  crisp stop web\n  crisp stop -t 0 web db\n  crisp stop 1f3a"
)]
pub struct Stop {
    /// How long a container may take to end by itself.
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = super::parse::time::duration)]
    pub time: std::time::Duration,
    /// Names, ids, or beginnings of ids.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Remove pods or containers.
#[derive(Debug, Args)]
#[command(
    after_help = "A pod goes with its containers and, if `crisp run` made it, with its logs.\n\nExamples:\n  crisp rm web\n  crisp rm --force web db"
)]
pub struct Rm {
    /// Also what runs: it is killed.
    #[arg(short, long)]
    pub force: bool,
    /// Names, ids, or beginnings of ids.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Show all that is known of pods, containers or images, as JSON.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  crisp inspect web\n  crisp inspect busybox | jq '.[0].info.env'")]
pub struct Inspect {
    /// Names, ids, or beginnings of ids, of pods, containers or images.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Pull an image from its registry.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  crisp pull busybox\n  crisp pull registry.example/app:1.2\n  crisp pull --creds me registry.example/private     (asks for the password)\n  crisp pull --platform linux/arm64 busybox"
)]
pub struct Pull {
    /// User and password for the registry: USER:PASSWORD; with USER alone the password is asked for.
    #[arg(short = 'u', long, value_name = "USER[:PASSWORD]")]
    pub creds: Option<String>,
    /// Of an image for several machines, the one for this: os/architecture[/variant].
    #[arg(long, value_name = "PLATFORM", default_value = "", hide_default_value = true)]
    pub platform: String,
    /// Show no progress.
    #[arg(short, long)]
    pub quiet: bool,
    /// The image.
    pub image: String,
}

/// List images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  crisp images\n  crisp images -q | xargs crisp rmi")]
pub struct Images {
    /// Ids only.
    #[arg(short, long)]
    pub quiet: bool,
    /// Only this one.
    pub image: Option<String>,
}

/// Remove images.
#[derive(Debug, Args)]
#[command(
    after_help = "A name is taken from its image; with the last name the image goes. An image that a container uses stays, unless --force is given.\n\nExamples:\n  crisp rmi busybox\n  crisp rmi 3f57d9401f8d"
)]
pub struct Rmi {
    /// Also by an id with several names, and though a container uses it.
    #[arg(short, long)]
    pub force: bool,
    /// Names, ids, or beginnings of ids.
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// Show or check the server's configuration.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print the configuration file with every key, its default and what it means.
    #[command(after_help = "Examples:\n  crisp config default | sudo tee /etc/crisp/config.toml")]
    Default,
    /// Read the configuration as the server would and name every mistake in it.
    #[command(after_help = "Examples:\n  crisp config check\n  crisp config check ./new.toml")]
    Check {
        /// The file; default: /etc/crisp/config.toml, if there is one. Files in <FILE>.d are read, too.
        file: Option<PathBuf>,
    },
}
