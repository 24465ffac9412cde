//! The user's verbs: one file each. All of them talk to a server over its socket; none touches its files, but for reading
//! logs.
//!
//! ```text
//! args.rs    what can be typed        world.rs   pods and containers, and which a name means
//! parse/     values that are typed    output.rs, table.rs   what is shown
//! client.rs  the connection           log.rs     log files
//! error.rs   how a verb fails         pull/      the progress of a pull
//! ```

pub mod args;
pub mod client;
mod config;
mod error;
mod exec;
mod images;
mod info;
mod inspect;
mod interrupts;
mod log;
mod logs;
mod output;
mod parse;
mod pods;
mod program;
mod ps;
mod pull;
mod rm;
mod rmi;
mod run;
mod stop;
mod table;
mod world;

use std::process::ExitCode;

use args::{Global, Verb};
use client::Client;
use error::{CliError, Result};
use output::Out;

/// Runs a verb; `program` is the whole command line's definition, for completions and manual pages.
pub fn run(verb: Verb, global: &Global, program: clap::Command) -> ExitCode {
    let out = Out::new(global.output);
    let result = match verb {
        Verb::Config(verb) => config::config(verb, out),
        Verb::Completions { shell } => program::completions(shell, program, out),
        Verb::Man { dir } => program::man(dir.as_deref(), program, out),
        verb => with_server(verb, global, out),
    };
    match result {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}

fn with_server(verb: Verb, global: &Global, out: Out) -> Result<ExitCode> {
    // Two threads: a reader that does not read our output must not keep us from hearing Ctrl-C.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| CliError::new(format!("start threads: {error}")))?;
    let result = runtime.block_on(async {
        if let Verb::Run(run) = verb {
            return run::run(*run, &global.endpoint, out).await;
        }
        if matches!(verb, Verb::Version) {
            return info::version(&global.endpoint, out).await;
        }
        let client = &mut Client::connect(&global.endpoint).await?;
        let done = |()| ExitCode::SUCCESS;
        match verb {
            Verb::Ps(args) => ps::ps(client, &args, out).await.map(done),
            Verb::Pods(args) => pods::pods(client, &args, out).await.map(done),
            Verb::Logs(args) => logs::logs(client, args).await.map(done),
            Verb::Exec(args) => exec::exec(client, args).await,
            Verb::Stop(args) => stop::stop(client, &args, out).await,
            Verb::Rm(args) => rm::rm(client, &args, out).await,
            Verb::Inspect(args) => inspect::inspect(client, &args, out).await,
            Verb::Pull(args) => pull::pull(client, &args, out).await.map(done),
            Verb::Images(args) => images::images(client, &args, out).await.map(done),
            Verb::Rmi(args) => rmi::rmi(client, &args, out).await,
            Verb::Info => info::info(client, &global.endpoint, out).await.map(done),
            Verb::Run(_) | Verb::Version | Verb::Config(_) | Verb::Completions { .. } | Verb::Man { .. } => {
                Ok(ExitCode::SUCCESS)
            }
        }
    });
    // A write that nobody reads may never come back.
    runtime.shutdown_background();
    result
}

/// Does the same for each of several names; goes on after an error, tells each, and fails if there was one.
async fn each<T>(names: &[T], mut one: impl AsyncFnMut(&T) -> Result) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        if let Err(error) = one(name).await {
            code = error.report();
        }
    }
    code
}

/// What is typed by habit and not served yet.
fn no_terminal(interactive: bool, tty: bool, instead: &str) -> Result {
    if !interactive && !tty {
        return Ok(());
    }
    let flags = match (interactive, tty) {
        (true, true) => "-i and -t",
        (true, false) => "-i",
        _ => "-t",
    };
    Err(CliError::new(format!("{flags}: this version of crisp gives containers neither input nor a terminal"))
        .hint(instead))
}
