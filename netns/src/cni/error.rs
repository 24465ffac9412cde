//! What can go wrong between the runtime and a plugin.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a CNI operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No configuration serves; the text says which files were refused and why.
    #[error("{0}")]
    NoConfig(String),
    /// The plugin answered with an error of the specification's form.
    #[error("CNI plugin {plugin} {verb}: {msg}{} (code {code})", among(details))]
    Plugin {
        /// Its type.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// The specification's error codes; 100 and above are the plugin's own.
        code: u64,
        /// Its short message.
        msg: String,
        /// Its longer message.
        details: String,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// The plugin failed and gave no reason in the specification's form.
    #[error("CNI plugin {plugin} {verb}: {status}{}", among(output))]
    Died {
        /// Its type.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// Exit status or signal.
        status: String,
        /// The end of what it wrote, to whichever stream.
        output: String,
    },
    /// The plugin succeeded, and what it wrote is no result.
    #[error("CNI plugin {plugin} {verb} gave no valid result: {reason}")]
    Rubbish {
        /// Its type.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The plugin was killed at its deadline.
    #[error("CNI plugin {plugin} {verb} did not end within {after:?} and was killed{}", among(stderr))]
    Timeout {
        /// Its type.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// The deadline.
        after: Duration,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// There is no such plugin.
    #[error("CNI plugin {plugin} is not in {}", paths(dirs))]
    Missing {
        /// Its type.
        plugin: String,
        /// Where it was searched.
        dirs: Vec<PathBuf>,
    },
    /// The plugin's program could not be run.
    #[error("cannot run CNI plugin {}", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The chain ended well, and the pod has no address.
    #[error("CNI network {network} gave the pod no IP address")]
    NoAddress {
        /// The network's name.
        network: String,
    },
    /// A text that cannot be handed to plugins.
    #[error("{what} {value:?} cannot be handed to CNI plugins")]
    Argument {
        /// What it is.
        what: &'static str,
        /// The text.
        value: String,
    },
    /// ADD failed, and so did the DEL that should undo it. `detach` finishes it.
    #[error("{}; undoing it failed too: {}", whole(add), whole(undo))]
    NotUndone {
        /// The first failure.
        add: Box<Self>,
        /// The second.
        undo: Box<Self>,
    },
    /// Several failures of an operation that goes on.
    #[error("{}", .0.iter().map(|error| whole(error)).collect::<Vec<_>>().join("; "))]
    Several(Vec<Self>),
    /// The runtime's own files.
    #[error("{action} {}", path.display())]
    State {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

pub(crate) fn state(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::State { action, path, source }
}

/// An error with all its causes, for one line of text.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn among(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
