//! The registry client: from a [`Reference`] to manifests and verified-size streams of layers.
//!
//! ```text
//!   Registry ── session(reference, credentials) ──► Session         one per pull; tokens live and die with it
//!      │                                              │  hosts      certs.d/<registry>/hosts.toml, read for this pull
//!      │ clients: one pool per TLS setting            │  auth       one per host: challenge → token or Basic
//!      ▼                                              ▼
//!   http  ◄──────────────── one request: redirects, credentials, timers ────────── head · resolve · manifest · config · blob
//! ```
//!
//! Every request goes down the list of hosts, mirrors first, the registry last, until one has an answer; when all fail
//! for reasons that may pass, it goes round again after a pause. What is content-addressed is verified here, or by the
//! consumer of a [`BlobStream`], so a mirror needs no trust.
//!
//! Follows the distribution specification (v1.1), docker's token authentication, and containerd's `hosts.toml`.

mod auth;
mod blob;
mod challenge;
mod credentials;
mod docker_config;
mod endpoint;
mod error;
mod hosts;
mod hosts_toml;
mod http;
mod resolve;
mod rota;
mod session;
mod tls;

use std::{path::PathBuf, sync::Arc, time::Duration};

use self::http::Clients;
pub use self::{
    blob::BlobStream,
    credentials::Credentials,
    error::{Cause, Error, Failure, Kind},
    resolve::Resolved,
    session::Session,
};
use crate::reference::Reference;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Directory of `<host>/hosts.toml` files in containerd's format (`certs.d`); read anew for each session.
    /// Empty for none; where it does not exist, nothing is configured.
    pub config_path: PathBuf,
    /// A docker `config.json`, whose credentials are used where the caller gives none; read anew for each session.
    pub docker_config: Option<PathBuf>,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// Limits on waiting.
    pub timeouts: Timeouts,
    /// Requests in vain, counted per transfer since its last progress, before it is given up.
    pub tries: u32,
    /// The pause before the second try; it doubles with each further one.
    pub backoff: Duration,
}

/// Limits on waiting. None limits a whole transfer: what moves may take its time.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Name, TCP, TLS; `dial_timeout` of a host replaces it.
    pub connect: Duration,
    /// From the request to the head of the answer.
    pub answer: Duration,
    /// Between two pieces of a body; also the span in which at least a little must come.
    pub stall: Duration,
    /// The longest `Retry-After` that is honoured.
    pub retry_after: Duration,
    /// For a `docker-credential-*` program.
    pub helper: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            stall: Duration::from_secs(20),
            retry_after: Duration::from_secs(30),
            helper: Duration::from_secs(20),
        }
    }
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            config_path: PathBuf::new(),
            docker_config: None,
            user_agent: concat!("crisp/", env!("CARGO_PKG_VERSION")).to_owned(),
            timeouts: Timeouts::default(),
            tries: 5,
            backoff: Duration::from_millis(250),
        }
    }
}

/// The client: options and connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    clients: Arc<Clients>,
}

impl Registry {
    /// A client without connections. Touches neither network nor files.
    ///
    /// # Errors
    /// `Options` for a user agent that no header may have.
    pub fn new(options: RegistryOptions) -> Result<Self, Error> {
        if reqwest::header::HeaderValue::from_str(&options.user_agent).is_err() {
            return Err(Error::Options(format!(
                "user agent {:?} has characters that no header may have",
                options.user_agent
            )));
        }
        Ok(Self { clients: Arc::new(Clients::new(Arc::new(options))) })
    }

    /// One pull's view of the registry of `reference`. Credentials and tokens are never shared between sessions;
    /// connections are. Configuration is read with the first request, and its mistakes are reported there.
    pub fn session(&self, reference: &Reference, credentials: Option<Credentials>) -> Session {
        Session::new(self.clone(), reference, credentials)
    }
}
