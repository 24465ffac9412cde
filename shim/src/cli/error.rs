//! What a verb fails with: one line for a person, a way out where there is one, an exit code.

use std::io;
use std::process::ExitCode;

use tonic::{Code, Status};

use super::output::printable;

/// Result of a verb.
pub type Result<T = ()> = std::result::Result<T, CliError>;

/// Exit code of anything but `run` and `exec`.
const FAILURE: u8 = 1;
/// Exit code of what Ctrl-C has ended.
pub const INTERRUPTED: u8 = 130;

/// With which the server begins messages that kubelet looks at; they tell a person nothing.
const KUBELETS_WORDS: [&str; 2] = ["RegistryUnavailable: ", "ImageVolumeMountFailed: "];

/// A failed verb.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// What was tried and why it failed.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What the shell sees.
    pub code: u8,
    /// What the server said, if it was the server.
    pub status: Option<Code>,
}

impl CliError {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: FAILURE, status: None }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Only an exit code: what there is to say has been said.
    pub fn silent(code: u8) -> Self {
        Self { message: String::new(), hint: None, code, status: None }
    }

    /// Whether the server was not to be reached (any more).
    pub fn is_lost_server(&self) -> bool {
        self.status == Some(Code::Unavailable)
    }

    /// Tells it on standard error.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("error: {}", printable(&self.message));
        }
        if let Some(hint) = &self.hint {
            eprintln!("hint: {}", printable(hint));
        }
        ExitCode::from(self.code)
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        // The transport's own errors carry a source, the server's do not.
        let transport = std::error::Error::source(&status).is_some();
        let (code, text) = (status.code(), status.message().trim());
        let text = KUBELETS_WORDS.iter().find_map(|word| text.strip_prefix(word)).unwrap_or(text);
        let mut error = match code {
            _ if transport && matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                let error = Self::new("the connection to the crisp server broke off");
                return Self {
                    status: Some(Code::Unavailable),
                    ..error.hint("is it still running? \"crisp info\" tells")
                };
            }
            Code::Unimplemented if text.is_empty() => Self::new("the server does not know this request"),
            _ if text.is_empty() => Self::new(format!("the server says no more than {code:?}")),
            _ => Self::new(text),
        };
        if code == Code::Unimplemented && text.is_empty() {
            error.hint = Some("it may be older than this program: compare with \"crisp version\"".to_owned());
        }
        error.status = Some(code);
        error
    }
}

/// Writing to standard output failed. Nobody reads it any more (`crisp ps | head -1`): no reason to complain.
pub fn output(error: io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::silent(0),
        _ => CliError::new(format!("write to standard output: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_words_are_what_a_person_reads() {
        let error = CliError::from(Status::not_found("no container has the id \"x\""));
        assert_eq!((error.message.as_str(), error.hint), ("no container has the id \"x\"", None));
        assert!(!error.message.contains("NotFound"));
        assert_eq!(CliError::from(Status::unavailable("RegistryUnavailable: pulling x: no")).message, "pulling x: no");
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        let error = output(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((error.message.as_str(), error.code), ("", 0));
        assert_eq!(output(io::Error::from(io::ErrorKind::StorageFull)).code, 1);
    }
}
