//! Authentication to one host, for one session.
//!
//! ```text
//!   request ──► 401 with challenges ──► Basic: the header, made once
//!                                   └─► Bearer: token server (realm) ──► header, until it expires
//! ```
//!
//! Nothing is sent before it is asked for, but a `registry_token`. Several requests that are challenged at once wait for
//! one answer. Secrets go to the host they belong to and to the token server that this host names: over https, or over
//! http when the host itself is plain HTTP, which only loopback or the configuration makes it. The scheme does not fall.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use reqwest::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use super::{
    Cause,
    challenge::Challenge,
    credentials::Secret,
    docker_config,
    hosts::Host,
    http::{Call, Clients, without_query},
};

/// Largest answer of a token server, in bytes.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// A token without a lifetime lives this long (docker's token specification).
const DEFAULT_LIFETIME: u64 = 60;
/// Longest scope and service that are passed on.
const MAX_PARAMETER: usize = 4096;
/// The name under which tokens are asked for.
const CLIENT_ID: &str = "crisp";

/// Authentication to one host.
#[derive(Debug)]
pub(super) struct Authorizer {
    given: Option<Secret>,
    /// Looked into when a host asks and nothing was given.
    docker_config: Option<PathBuf>,
    /// What a token is asked for when the challenge does not say.
    scope: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counts the headers there were, so that a request knows whether the one that failed is still in use.
    generation: u64,
    header: Option<HeaderValue>,
    /// When the header's token should be replaced.
    stale: Option<Instant>,
    /// Where the token came from.
    token_server: Option<TokenServer>,
    /// Looked up once.
    secret: Option<Option<Secret>>,
}

#[derive(Debug, Clone)]
struct TokenServer {
    realm: Url,
    service: Option<String>,
    scope: String,
}

impl Authorizer {
    pub(super) fn new(given: Option<Secret>, docker_config: Option<PathBuf>, repository: &str) -> Self {
        let header = match &given {
            Some(Secret::Token(token)) => sensitive(&format!("Bearer {token}")).ok(),
            _ => None,
        };
        let state = Mutex::new(State { header, ..State::default() });
        Self { given, docker_config, scope: format!("repository:{repository}:pull"), state }
    }

    /// The header to send now, if there is one, and its generation. A token that is about to expire is replaced.
    pub(super) async fn header(&self, clients: &Clients, host: &Host) -> (Option<HeaderValue>, u64) {
        let mut state = self.state.lock().await;
        if state.stale.is_some_and(|stale| stale <= Instant::now())
            && let Some(server) = state.token_server.clone()
        {
            let secret = state.secret.clone().flatten();
            match fetch(clients, host, &server, secret.as_ref()).await {
                Ok(token) => state.accept(token),
                // The old token may still do; if not, the challenge brings the error.
                Err(error) => tracing::debug!(host = host.name, %error, "token not renewed"),
            }
        }
        (state.header.clone(), state.generation)
    }

    /// Answers a 401 to a request that was sent with the header of `generation`.
    ///
    /// # Errors
    /// Nothing can be shown that was not refused already. The text ends a sentence that begins with the status.
    pub(super) async fn answer(
        &self,
        clients: &Clients,
        host: &Host,
        generation: u64,
        challenges: &[Challenge],
    ) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        if state.generation != generation {
            return Ok(());
        }
        let refuse = |reason: &str| Err(Cause::Auth(reason.to_owned()));
        if matches!(self.given, Some(Secret::Token(_))) {
            return refuse("the registry token that was given is refused");
        }
        let secret = match &state.secret {
            Some(secret) => secret.clone(),
            None => {
                let found = self.secret(clients, host).await?;
                state.secret = Some(found.clone());
                found
            }
        };
        if let Some(Secret::Token(token)) = &secret {
            let header = sensitive(&format!("Bearer {token}"))?;
            if state.header.as_ref() == Some(&header) {
                return refuse("the registry token of the docker config is refused");
            }
            state.set(header);
            return Ok(());
        }
        if let Some(server) = self.token_server(host, challenges)? {
            let token = fetch(clients, host, &server, secret.as_ref()).await?;
            state.token_server = Some(server);
            state.accept(token);
            return Ok(());
        }
        if !challenges.iter().any(|challenge| challenge.scheme == "basic") {
            return refuse("the registry asks for no kind of authentication that is served (Basic, Bearer)");
        }
        match &secret {
            None => refuse("the registry asks for credentials, and there are none for it"),
            Some(Secret::Basic { username, password }) => {
                let header = basic(username, password)?;
                if state.header.as_ref() == Some(&header) {
                    return Err(Cause::Auth(format!("the credentials of user {username:?} are refused")));
                }
                state.set(header);
                Ok(())
            }
            Some(_) => refuse("the registry asks for a user and a password, and a token was given"),
        }
    }

    async fn secret(&self, clients: &Clients, host: &Host) -> Result<Option<Secret>, Cause> {
        match (&self.given, &self.docker_config) {
            (Some(secret), _) => Ok(Some(secret.clone())),
            (None, Some(path)) => {
                docker_config::lookup(path, &host.name, clients.options().timeouts.helper).await.map_err(Cause::Auth)
            }
            (None, None) => Ok(None),
        }
    }

    /// The token server that the challenges name; nothing when none does.
    fn token_server(&self, host: &Host, challenges: &[Challenge]) -> Result<Option<TokenServer>, Cause> {
        let Some(challenge) = challenges.iter().find(|c| c.scheme == "bearer" && c.get("realm").is_some()) else {
            return Ok(None);
        };
        let bounded =
            |name: &str| challenge.get(name).filter(|value| !value.is_empty() && value.len() <= MAX_PARAMETER);
        let realm = challenge.get("realm").unwrap_or_default();
        let bad = |reason: &str| {
            Cause::Auth(format!("the token server {:?} is not asked: {reason}", super::error::printable(realm, 200)))
        };
        let realm = Url::parse(realm).map_err(|e| bad(&e.to_string()))?;
        match realm.scheme() {
            "https" => {}
            "http" if host.base.starts_with("http://") => {}
            "http" => return Err(bad("it is plain HTTP, and the registry is not")),
            _ => return Err(bad("it is neither https nor http")),
        }
        if realm.host_str().is_none() || !realm.username().is_empty() || realm.password().is_some() {
            return Err(bad("not a URL of a server"));
        }
        let scope = bounded("scope").unwrap_or(&self.scope).to_owned();
        Ok(Some(TokenServer { realm, service: bounded("service").map(str::to_owned), scope }))
    }
}

impl State {
    fn set(&mut self, header: HeaderValue) {
        self.header = Some(header);
        self.generation += 1;
    }

    fn accept(&mut self, (header, lifetime): (HeaderValue, Duration)) {
        // Asked for anew a little early; counted from now, because the clocks of two machines differ.
        self.stale = Some(Instant::now() + lifetime.mul_f32(0.9));
        self.set(header);
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

/// Asks a token server: GET with Basic (docker's token specification), or POST for a refresh token (its OAuth2 part).
async fn fetch(
    clients: &Clients,
    host: &Host,
    server: &TokenServer,
    secret: Option<&Secret>,
) -> Result<(HeaderValue, Duration), Cause> {
    let at_home = Url::parse(&host.base).is_ok_and(|base| base.origin() == server.realm.origin());
    let foreign = host.tls.without_client();
    // The first of these headers is the host's own; a token server elsewhere is not shown it.
    let mut private = if at_home { host.headers.clone() } else { HeaderMap::new() };
    private.remove(AUTHORIZATION);
    let mut headers = HeaderMap::new();
    let mut url = server.realm.clone();
    let mut body = None;
    if let Some(Secret::Identity(token)) = secret {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("client_id", CLIENT_ID);
        form.extend_pairs(server.service.iter().map(|service| ("service", service)));
        form.append_pair("scope", &server.scope).append_pair("refresh_token", token);
        body = Some(Bytes::from(form.finish()));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    } else {
        let mut query = url.query_pairs_mut();
        query.extend_pairs(server.service.iter().map(|service| ("service", service)));
        // Several scopes come in one parameter, split by spaces, and go out as several.
        query.extend_pairs(server.scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope)));
        if let Some(Secret::Basic { username, password }) = secret {
            query.append_pair("account", username);
            private.insert(AUTHORIZATION, basic(username, password)?);
        }
        drop(query);
    }
    let call = Call {
        method: if body.is_some() { Method::POST } else { Method::GET },
        url,
        headers,
        private,
        body,
        tls: if at_home { &host.tls } else { &foreign },
        connect: host.connect,
        addressed: false,
    };
    let place = without_query(&server.realm);
    let reply = clients.exchange(call).await.map_err(|(url, cause)| about(&url, cause))?;
    if !reply.response.status().is_success() {
        return Err(about(&place, clients.refusal(reply.response).await));
    }
    let answer = clients.body(reply.response, MAX_TOKEN_ANSWER).await.map_err(|cause| about(&place, cause))?;
    let answer: Option<TokenAnswer> = answer.and_then(|answer| serde_json::from_slice(&answer).ok());
    let bad = |reason: &str| Cause::Auth(format!("token server {place}: {reason}"));
    let answer = answer.ok_or_else(|| bad("its answer is not a token in JSON"))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(bad("its answer has no token"));
    }
    let header = sensitive(&format!("Bearer {token}")).map_err(|_| bad("its token has forbidden characters"))?;
    let lifetime = answer.expires_in.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_LIFETIME).min(24 * 3600);
    Ok((header, Duration::from_secs(lifetime)))
}

/// A token server's failure: a refusal is one of credentials, whatever the status; the rest stays what it is.
fn about(url: &str, cause: Cause) -> Cause {
    match cause {
        Cause::Status { status: 400..=404, .. } => Cause::Auth(format!("token server {url}: {cause}")),
        Cause::Status { status, message, retry_after } => {
            Cause::Status { status, message: format!("token server {url}: {message}"), retry_after }
        }
        Cause::Connect(text) => Cause::Connect(format!("token server {url}: {text}")),
        Cause::Cut(text) => Cause::Cut(format!("token server {url}: {text}")),
        other => other,
    }
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Cause> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn sensitive(text: &str) -> Result<HeaderValue, Cause> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Cause::Auth("the credentials have characters that no header may have".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("generation", &self.generation).finish_non_exhaustive()
    }
}
