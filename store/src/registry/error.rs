//! What can go wrong between a reference and its bytes.
//!
//! An [`Error`] says what was wanted and, for each host that was tried, one [`Failure`]: the URL and the [`Cause`]. Its
//! [`Kind`] is what a caller decides by; it is the kind of the last failure, because the registry itself is asked last,
//! after its mirrors. URLs are kept without query: pre-signed links carry secrets there.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{digest, media};

/// A registry operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every host that was asked failed.
    #[error("{what}: {}", list(.failures))]
    Failed {
        /// What was wanted: a reference, a blob.
        what: String,
        /// One per host and reason, in the order in which they happened.
        failures: Vec<Failure>,
    },
    /// The registry answered, and the image is not usable here.
    #[error("{what}: {source}")]
    Image {
        /// The reference or the manifest.
        what: String,
        /// Why.
        #[source]
        source: media::Error,
    },
    /// A file that says how to reach the registry cannot be used.
    #[error("{}: {reason}", .path.display())]
    Config {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Credentials that no request can be made from.
    #[error("credentials for {registry}: {reason}")]
    Credentials {
        /// The registry they are for.
        registry: String,
        /// What is wrong; never the secret itself.
        reason: String,
    },
    /// The options of the client make no sense.
    #[error("registry client: {0}")]
    Options(String),
}

/// What a caller may want to decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The registry does not have it.
    NotFound,
    /// Credentials are missing, wrong, or not enough.
    Unauthorized,
    /// Too many requests.
    RateLimited,
    /// No usable answer: name, connection, TLS, time, 5xx, a cut.
    Unavailable,
    /// An answer that must not be used: digest, size, shape.
    Invalid,
    /// The image does not run on this platform.
    PlatformMismatch,
    /// The configuration on this machine is wrong.
    Config,
}

/// One host's answer.
#[derive(Debug)]
pub struct Failure {
    /// Host, or `host:port`.
    pub host: String,
    /// The URL asked for, without query.
    pub url: String,
    /// What came of it.
    pub cause: Cause,
}

/// Why a host was of no use.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// An HTTP status that is no success.
    #[error("{}", status_text(*.status, .message))]
    Status {
        /// The code.
        status: u16,
        /// The registry's own words, bounded and printable; may be empty.
        message: String,
        /// The wait that a 429 or 503 asked for.
        retry_after: Option<Duration>,
    },
    /// Authentication did not come about.
    #[error("{0}")]
    Auth(String),
    /// No connection: name, TCP, TLS, proxy.
    #[error("{0}")]
    Connect(String),
    /// Nothing came in time.
    #[error("no {what} within {} s", .after.as_secs_f32())]
    Timeout {
        /// `connection`, `answer`, `data`.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The transfer broke off.
    #[error("{0}")]
    Cut(String),
    /// A redirect that is not followed.
    #[error("redirect refused: {0}")]
    Redirect(String),
    /// An answer that contradicts what was promised.
    #[error("{0}")]
    Invalid(String),
    /// Content with another digest or size.
    #[error(transparent)]
    Mismatch(#[from] digest::Mismatch),
    /// A manifest that cannot be used.
    #[error(transparent)]
    Image(#[from] media::Error),
}

impl Error {
    /// The category.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Failed { failures, .. } => failures.last().map_or(Kind::Unavailable, |failure| failure.cause.kind()),
            Self::Image { source, .. } => image_kind(source),
            Self::Config { .. } | Self::Options(_) => Kind::Config,
            Self::Credentials { .. } => Kind::Unauthorized,
        }
    }

    /// The failures by host; none for errors of another kind.
    pub fn failures(&self) -> &[Failure] {
        match self {
            Self::Failed { failures, .. } => failures,
            _ => &[],
        }
    }
}

impl Cause {
    /// The category.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Status { status: 404, .. } => Kind::NotFound,
            Self::Status { status: 401 | 403, .. } | Self::Auth(_) => Kind::Unauthorized,
            Self::Status { status: 429, .. } => Kind::RateLimited,
            Self::Status { status: 408 | 500.., .. } => Kind::Unavailable,
            Self::Connect(_) | Self::Timeout { .. } | Self::Cut(_) => Kind::Unavailable,
            Self::Status { .. } | Self::Redirect(_) | Self::Invalid(_) | Self::Mismatch(_) => Kind::Invalid,
            Self::Image(error) => image_kind(error),
        }
    }

    /// Whether the same request may well succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self.kind(), Kind::Unavailable | Kind::RateLimited)
    }
}

fn image_kind(error: &media::Error) -> Kind {
    match error {
        media::Error::PlatformMismatch { .. } => Kind::PlatformMismatch,
        _ => Kind::Invalid,
    }
}

fn list(failures: &[Failure]) -> String {
    if failures.is_empty() {
        return "no host to ask".to_owned();
    }
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.cause)
    }
}

fn status_text(status: u16, message: &str) -> String {
    let reason = reqwest::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("status");
    if message.is_empty() { format!("{status} {reason}") } else { format!("{status} {reason}: {message}") }
}

/// The words of an error answer (distribution-spec, "Error Codes"), or the start of a plain text one: printable, one
/// line, at most 300 characters. HTML is dropped.
pub(super) fn registry_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Entry>,
        #[serde(default)]
        error: serde_json::Value,
        #[serde(default)]
        error_description: serde_json::Value,
        #[serde(default)]
        details: serde_json::Value,
        #[serde(default)]
        message: serde_json::Value,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: serde_json::Value,
        #[serde(default)]
        message: serde_json::Value,
    }
    let joined = |parts: &[&serde_json::Value]| {
        parts.iter().filter_map(|part| part.as_str()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
    };
    let text = match serde_json::from_slice::<Body>(body) {
        Ok(Body { errors, .. }) if !errors.is_empty() => {
            errors.iter().take(4).map(|e| joined(&[&e.code, &e.message])).collect::<Vec<_>>().join(", ")
        }
        Ok(body) => joined(&[&body.error, &body.error_description, &body.details, &body.message]),
        Err(_) if body.trim_ascii_start().starts_with(b"<") => String::new(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    printable(&text, 300)
}

/// `text` on one line, without control characters, at most `limit` characters.
pub(super) fn printable(text: &str, limit: usize) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_registrys_own_words_are_kept() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(registry_message(body), "MANIFEST_UNKNOWN: manifest unknown");
        assert_eq!(
            registry_message(br#"{"details":"incorrect username or password"}"#),
            "incorrect username or password"
        );
        assert_eq!(registry_message(b"Client sent an HTTP\nrequest\x1b[31m"), "Client sent an HTTP request [31m");
        assert_eq!(registry_message(b"<html>"), "");
        assert_eq!(registry_message(b""), "");
    }

    #[test]
    fn every_host_is_named_and_the_last_one_decides() {
        let failure = |host: &str, cause| Failure { host: host.into(), url: format!("https://{host}/v2/"), cause };
        let error = Error::Failed {
            what: "a:1".into(),
            failures: vec![
                failure("mirror", Cause::Connect("connection refused".into())),
                failure("origin", Cause::Status { status: 404, message: String::new(), retry_after: None }),
            ],
        };
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.to_string(), "a:1: https://mirror/v2/: connection refused; https://origin/v2/: 404 Not Found");
    }

    proptest! {
        #[test]
        fn hostile_bodies_become_one_bounded_line(body: Vec<u8>, text: String) {
            for message in [registry_message(&body), registry_message(text.as_bytes())] {
                prop_assert!(message.chars().count() <= 301);
                prop_assert!(!message.chars().any(char::is_control));
            }
        }
    }
}
