//! Options of `crisp run`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::parse::{port, quantity, volume};

/// When `run` pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PullWhen {
    // Comments, no docs: clap would show them and spread the help over twice as many lines.
    // Ask the registry each time.
    Always,
    // Only when the image is not here.
    Missing,
    // Fail when the image is not here.
    Never,
}

/// Run a command in a new container, in a pod of its own.
#[derive(Debug, Args)]
#[command(after_help = "\
The image is pulled if it is missing. Without -d the container's output is shown until it ends, and its exit code is \
crisp's; 125: crisp failed, 126: the command cannot be run, 127: there is no such command. Ctrl-C stops the container, \
a second one kills it.

Examples:
  crisp run --rm busybox echo hello
  crisp run -d --name web -p 8080:80 nginx
  crisp run --rm -v ./data:/data:ro -e MODE=test -w /data busybox ls -l
  crisp run --memory 256m --cpus 1.5 --read-only busybox top -b")]
pub struct Run {
    /// Leave it running and print its name.
    #[arg(short, long)]
    pub detach: bool,
    /// Remove it when it has ended.
    #[arg(long)]
    pub rm: bool,
    /// What it is called; default: a name is made up.
    #[arg(long, value_name = "NAME", value_parser = super::name::checked)]
    pub name: Option<String>,
    /// Host port that leads to a port of the container: [IP:]HOST:CONTAINER[/PROTOCOL].
    #[arg(short = 'p', long = "publish", value_name = "PORT", value_parser = port::port)]
    pub ports: Vec<port::Port>,
    /// Environment variable: KEY=VALUE, or KEY to pass on crisp's own.
    #[arg(short, long = "env", value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// File with environment variables, one a line.
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Host path in the container: SOURCE:DESTINATION[:ro,rro,rslave,rshared].
    #[arg(short, long = "volume", value_name = "VOLUME", value_parser = volume::volume)]
    pub volumes: Vec<volume::Volume>,
    /// Working directory.
    #[arg(short, long, value_name = "DIR", default_value = "", hide_default_value = true)]
    pub workdir: String,
    /// User and group: UID[:GID] or NAME.
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Program instead of the image's entrypoint.
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Limit of memory, like 256m.
    #[arg(short, long, value_name = "SIZE", value_parser = quantity::memory)]
    pub memory: Option<i64>,
    /// Limit of processors, like 1.5.
    #[arg(long, value_name = "NUMBER", value_parser = quantity::cpus)]
    pub cpus: Option<i64>,
    /// Host name inside; default: the name.
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// pod: a network of its own; host: the host's.
    #[arg(long, value_enum, default_value_t = Network::Pod)]
    pub network: Network,
    /// Make the root file system read-only.
    #[arg(long)]
    pub read_only: bool,
    /// All capabilities, all devices, no confinement.
    #[arg(long)]
    pub privileged: bool,
    /// Handler of the OCI runtime, as the server's configuration names it.
    #[arg(long, value_name = "HANDLER", default_value = "", hide_default_value = true)]
    pub runtime: String,
    /// Label: KEY=VALUE.
    #[arg(short, long = "label", value_name = "LABEL", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// When to pull the image.
    #[arg(long, value_enum, default_value_t = PullWhen::Missing, value_name = "WHEN")]
    pub pull: PullWhen,
    /// User and password for the registry: USER:PASSWORD; with USER alone the password is asked for.
    #[arg(long, value_name = "USER[:PASSWORD]")]
    pub creds: Option<String>,
    #[arg(short, long, hide = true)]
    pub interactive: bool,
    #[arg(short, long, hide = true)]
    pub tty: bool,
    /// The image.
    pub image: String,
    /// The command and its arguments; default: the image's.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Whose network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    Pod,
    Host,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() || key.starts_with("io.crisp.") {
        return Err(format!(
            "{text:?} is no label: write it like KEY=VALUE; keys that begin with io.crisp. are crisp's own"
        ));
    }
    Ok((key.to_owned(), value.to_owned()))
}
