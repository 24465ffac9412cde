//! A host as one session sees it: its requests, authenticated, and whether it lately answered.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE},
};
use url::Url;

use super::{
    Cause, Failure,
    auth::Authorizer,
    challenge,
    credentials::Secret,
    hosts::Host,
    http::{Call, Clients, Reply, is_content},
};

/// Times that a challenge is answered for one request: with a token that ran out, then with a new one.
const MAX_CHALLENGES: usize = 2;

/// One host in one session.
#[derive(Debug)]
pub(super) struct Endpoint {
    host: Host,
    authorizer: Authorizer,
    repository: String,
    down: AtomicBool,
}

/// A request for something in the repository.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) method: &'a Method,
    /// `manifests` or `blobs`.
    pub(super) area: &'static str,
    /// A tag or a digest.
    pub(super) name: &'a str,
    pub(super) accept: &'static str,
    /// First byte wanted.
    pub(super) from: u64,
    /// Named by digest.
    pub(super) addressed: bool,
}

impl Endpoint {
    pub(super) fn new(host: Host, given: Option<Secret>, docker_config: Option<PathBuf>, repository: &str) -> Self {
        let authorizer = Authorizer::new(given, docker_config, repository);
        Self { host, authorizer, repository: repository.to_owned(), down: AtomicBool::new(false) }
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Did not answer when it was asked last: others are asked first.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// Sends a request; the answer is a success, or it is a failure.
    pub(super) async fn ask(&self, clients: &Clients, ask: Ask<'_>) -> Result<Reply, Failure> {
        let mut text = format!("{}/{}/{}/{}", self.host.base, self.repository, ask.area, ask.name);
        if let Some(namespace) = &self.host.namespace {
            text.push_str("?ns=");
            text.extend(url::form_urlencoded::byte_serialize(namespace.as_bytes()));
        }
        let url = Url::parse(&text)
            .map_err(|e| self.failure(self.host.base.clone(), Cause::Invalid(format!("not a URL: {e}"))))?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(ask.accept));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if ask.from > 0 {
            let range = HeaderValue::try_from(format!("bytes={}-", ask.from));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let fixed = self.host.headers.contains_key(AUTHORIZATION);
        let mut answered = 0;
        loop {
            let mut private = self.host.headers.clone();
            let (header, generation) =
                if fixed { (None, 0) } else { self.authorizer.header(clients, &self.host).await };
            if let Some(header) = header {
                private.insert(AUTHORIZATION, header);
            }
            let call = Call {
                method: ask.method.clone(),
                url: url.clone(),
                headers: headers.clone(),
                private,
                body: None,
                tls: &self.host.tls,
                connect: self.host.connect,
                addressed: ask.addressed,
            };
            let reply = clients.exchange(call).await.map_err(|(url, cause)| self.failure(url, cause))?;
            if is_content(reply.response.status()) {
                return Ok(reply);
            }
            let Reply { response, url: place, strayed } = reply;
            // A 401 from where a redirect led is not the registry's to ask.
            let challenged = response.status() == StatusCode::UNAUTHORIZED && !strayed && !fixed;
            if !challenged || answered == MAX_CHALLENGES {
                return Err(self.failure(place, clients.refusal(response).await));
            }
            answered += 1;
            let challenges = challenges(&response);
            let refusal = clients.refusal(response).await;
            match self.authorizer.answer(clients, &self.host, generation, &challenges).await {
                Ok(()) => {}
                Err(Cause::Auth(reason)) => {
                    return Err(self.failure(place, Cause::Auth(format!("{refusal} ({reason})"))));
                }
                Err(cause) => return Err(self.failure(place, cause)),
            }
        }
    }

    pub(super) fn failure(&self, url: String, cause: Cause) -> Failure {
        Failure { host: self.host.name.clone(), url, cause }
    }
}

fn challenges(response: &Response) -> Vec<challenge::Challenge> {
    let values = response.headers().get_all(WWW_AUTHENTICATE);
    challenge::parse(values.iter().filter_map(|value| value.to_str().ok()))
}
