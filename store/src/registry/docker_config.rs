//! Credentials from a docker `config.json`: `auths`, `credHelpers`, `credsStore`.
//!
//! An entry is used for the host that it names, and no other. A credential helper is a program,
//! `docker-credential-<name> get`, which reads the host on standard input and answers in JSON
//! (docker-credential-helpers). It gets a deadline and a small environment.

use std::{collections::BTreeMap, io, path::Path, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::{
    credentials::{Secret, decode_auth},
    error::printable,
    hosts::{canonical, same_registry},
};
use crate::reference::DEFAULT_REGISTRY;

/// Largest `config.json`, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Most that a helper may say, in bytes.
const MAX_ANSWER: u64 = 256 << 10;
/// The name that docker gives its own registry here.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What helpers may see of the environment: where to find things, and their cloud's settings.
const ENVIRONMENT: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "TMPDIR", "DOCKER_CONFIG"];
const ENVIRONMENT_PREFIXES: [&str; 9] =
    ["AWS_", "AZURE_", "GOOGLE_", "GCE_", "CLOUDSDK_", "SSL_CERT_", "XDG_", "HTTP", "NO_PROXY"];

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// What the file at `path` has for `registry` (host, or `host:port`); nothing when there is no file or no entry.
/// The error is a sentence.
pub(super) async fn lookup(path: &Path, registry: &str, deadline: Duration) -> Result<Option<Secret>, String> {
    let at = |reason: String| format!("{}: {reason}", path.display());
    let text = match read(path).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error.to_string())),
    };
    // The parser's message has a position and no content, which might be a secret.
    let file: File = serde_json::from_slice(&text)
        .map_err(|e| at(format!("not a docker config (line {}, column {})", e.line(), e.column())))?;
    let helper = file.cred_helpers.iter().find(|(key, _)| same_registry(key, registry)).map(|(_, helper)| helper);
    let helper = helper.or(Some(&file.creds_store)).filter(|name| !name.is_empty());
    if let Some(helper) = helper
        && let Some(secret) = ask_helper(helper, registry, deadline).await?
    {
        return Ok(Some(secret));
    }
    let entry = file.auths.iter().find(|(key, _)| same_registry(key, registry));
    let Some((key, entry)) = entry else { return Ok(None) };
    entry.secret().map_err(|reason| at(format!("auths[{key:?}]: {reason}")))
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    tokio::fs::File::open(path).await?.take(MAX_FILE + 1).read_to_end(&mut text).await?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

impl Entry {
    fn secret(&self) -> Result<Option<Secret>, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Secret::Token(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Secret::Identity(self.identitytoken.clone())));
        }
        if !self.auth.is_empty() {
            return decode_auth(&self.auth).map(Some).ok_or("auth is not base64 of username:password");
        }
        if !self.username.is_empty() {
            return Secret::basic(&self.username, &self.password).map(Some).ok_or("the user name has a colon");
        }
        // An empty entry stands beside a credential store: docker writes it to remember the log-in.
        Ok(None)
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

async fn ask_helper(name: &str, registry: &str, deadline: Duration) -> Result<Option<Secret>, String> {
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(format!("credential helper {name:?}: not a name"));
    }
    let program = format!("docker-credential-{name}");
    let key = if canonical(registry) == DEFAULT_REGISTRY { HUB_KEY } else { registry };
    let fail = |reason: String| format!("{program}: {reason}");
    let (ok, answer) = tokio::time::timeout(deadline, run(&program, key))
        .await
        .map_err(|_| fail(format!("no answer within {} s", deadline.as_secs_f32())))?
        .map_err(|e| fail(e.to_string()))?;
    if !ok {
        let message = printable(&String::from_utf8_lossy(&answer), 200);
        // The words of docker-credential-helpers for "no entry".
        return if message.contains("credentials not found") { Ok(None) } else { Err(fail(message)) };
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| fail("its answer is not JSON".to_owned()))?;
    if answer.username.is_empty() && answer.secret.is_empty() {
        return Ok(None);
    }
    Secret::basic(&answer.username, &answer.secret)
        .map(Some)
        .ok_or_else(|| fail("the user name has a colon".to_owned()))
}

/// Whether the program succeeded, and what it wrote. Ends with this future, if that is dropped.
async fn run(program: &str, key: &str) -> io::Result<(bool, Vec<u8>)> {
    let environment = std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| {
            let upper = name.to_ascii_uppercase();
            ENVIRONMENT.contains(&name) || ENVIRONMENT_PREFIXES.iter().any(|prefix| upper.starts_with(prefix))
        })
    });
    let mut child = Command::new(program)
        .arg("get")
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(key.as_bytes()).await {
            // A helper may know its answer without reading.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    }
    Ok((child.wait().await?.success(), answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn look(text: &str, registry: &str) -> Result<Option<Secret>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        lookup(file.path(), registry, Duration::from_secs(5)).await
    }

    fn basic(username: &str, password: &str) -> Option<Secret> {
        Some(Secret::Basic { username: username.into(), password: password.into() })
    }

    const FILE: &str = r#"{
        "auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnA="},
            "reg.example:5000": {"username": "u", "password": "p"},
            "id.example": {"auth": "eDp5", "identitytoken": "t"},
            "empty.example": {}
        },
        "HttpHeaders": {"x": "y"}
    }"#;

    #[tokio::test]
    async fn an_entry_is_for_the_host_it_names() {
        assert_eq!(look(FILE, "registry-1.docker.io").await, Ok(basic("hub", "p")));
        assert_eq!(look(FILE, "reg.example:5000").await, Ok(basic("u", "p")));
        assert_eq!(look(FILE, "id.example").await, Ok(Some(Secret::Identity("t".into()))));
        for other in ["reg.example", "reg.example:5001", "sub.reg.example:5000", "empty.example"] {
            assert_eq!(look(FILE, other).await, Ok(None), "{other}");
        }
        assert_eq!(lookup(Path::new("/nonexistent/config.json"), "a", Duration::ZERO).await, Ok(None));
    }

    #[tokio::test]
    async fn a_broken_file_is_reported_without_its_content() {
        let error = look(r#"{"auths": {"a": {"auth": 12345}}}"#, "a").await.unwrap_err();
        assert!(!error.contains("12345"), "{error}");
        let error = look(r#"{"auths": {"a": {"auth": "c2VjcmV0"}}}"#, "a").await.unwrap_err();
        assert!(error.contains("auths[\"a\"]") && !error.contains("c2VjcmV0"), "{error}");
        assert!(look(r#"{"credsStore": "../x"}"#, "a").await.is_err());
        let error = look(r#"{"credsStore": "crisp-no-such-helper"}"#, "a").await.unwrap_err();
        assert!(error.starts_with("docker-credential-crisp-no-such-helper: "), "{error}");
    }
}
