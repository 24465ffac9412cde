//! Authentication: who is shown what.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use crisp_store::media::Descriptor;
use crisp_store::registry::{Credentials, Kind, Registry, RegistryOptions, Session};

use crate::{
    Repository, collect, content, layer, linux, options, options_with_hosts, reference,
    server::{CA, Reply, Request, Server},
    simple,
};

pub(crate) fn user(username: &str, password: &str) -> Credentials {
    Credentials { username: username.into(), password: password.into(), ..Credentials::default() }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

fn session(image: &str, credentials: Option<Credentials>) -> Session {
    Registry::new(options()).unwrap().session(&reference(image), credentials)
}

/// A registry that wants tokens of `auth`: each request's token is checked by `good`.
fn guarded(auth: &Server, repository: Arc<Repository>, good: impl Fn(&str) -> bool + Send + Sync + 'static) -> Server {
    let challenge =
        format!("Bearer realm=\"http://{}/token\",service=\"the registry\",scope=\"repository:a:pull\"", auth.host);
    Server::start(move |request| match request.header("authorization").and_then(|h| h.strip_prefix("Bearer ")) {
        Some(token) if good(token) => repository.answer(request),
        _ => Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
            .with("www-authenticate", &challenge),
    })
}

fn token(text: &str) -> Reply {
    Reply::ok(format!(r#"{{"token":"{text}","expires_in":300}}"#))
}

#[tokio::test]
async fn basic_is_sent_when_asked_for_and_then_kept() {
    let (repository, _) = simple();
    let server = Server::start(move |request| match request.header("authorization") {
        Some(header) if header == basic("u", "p:w") => repository.answer(request),
        _ => Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\""),
    });
    let image = format!("{}/a:1", server.host);
    session(&image, Some(user("u", "p:w"))).resolve(&linux("amd64")).await.unwrap();
    let sent: Vec<bool> = server.seen().iter().map(|r| r.header("authorization").is_some()).collect();
    assert_eq!(sent, [false, true, true, true]);

    let before = server.seen().len();
    let error = session(&image, Some(user("u", "hunter2"))).head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    let text = format!("{error} {error:?}");
    assert!(text.contains("user \\\"u\\\" are refused") && !text.contains("hunter2"), "{text}");
    assert_eq!(server.seen().len() - before, 2, "a refused password is not repeated");

    let error = session(&image, None).head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert!(error.to_string().contains("asks for credentials, and there are none"), "{error}");
}

#[tokio::test]
async fn a_token_is_fetched_with_the_challenges_words() {
    let (repository, _) = simple();
    let auth = Server::start(|request| match request.header("authorization") {
        Some(header) if header == basic("u", "p") => token("for-u"),
        Some(_) => Reply::new(401, r#"{"details":"incorrect username or password"}"#),
        None => token("anonymous"),
    });
    let server = guarded(&auth, repository.shared(), |token| matches!(token, "for-u" | "anonymous"));
    let image = format!("{}/a:1", server.host);
    session(&image, Some(user("u", "p"))).resolve(&linux("amd64")).await.unwrap();
    assert_eq!(auth.seen().len(), 1);
    let target = &auth.seen()[0].target;
    assert_eq!(target, "/token?service=the+registry&scope=repository%3Aa%3Apull&account=u");
    assert!(server.seen().iter().all(|r| !r.header("authorization").is_some_and(|h| h.starts_with("Basic"))));

    session(&image, None).head().await.unwrap();
    let error = session(&image, Some(user("u", "wrong"))).head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert!(error.to_string().contains("incorrect username or password"), "{error}");
}

#[tokio::test]
async fn sessions_share_no_tokens() {
    let (repository, _) = simple();
    let auth = Server::start(|request| match request.header("authorization") {
        Some(_) => token("private"),
        None => token("public"),
    });
    let server = guarded(&auth, repository.shared(), |token| token == "private");
    let registry = Registry::new(options()).unwrap();
    let image = reference(&format!("{}/a:1", server.host));
    registry.session(&image, Some(user("u", "p"))).head().await.unwrap();
    let error = registry.session(&image, None).head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized, "{error}");
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let (repository, _) = simple();
    let auth = Server::start(|request| {
        assert_eq!(request.method, "POST");
        Reply::ok(r#"{"access_token":"exchanged"}"#)
    });
    let server = guarded(&auth, repository.shared(), |token| token == "exchanged");
    let given = Credentials { identity_token: "re fresh".into(), ..Credentials::default() };
    session(&format!("{}/a:1", server.host), Some(given)).head().await.unwrap();
    let request = &auth.seen()[0];
    assert_eq!(
        request.body,
        "grant_type=refresh_token&client_id=crisp&service=the+registry&scope=repository%3Aa%3Apull&refresh_token=re+fresh"
    );
    assert_eq!((request.target.as_str(), request.header("authorization")), ("/token", None));
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let (repository, _) = simple();
    let auth = Server::start(|_| token("never"));
    let server = guarded(&auth, repository.shared(), |token| token == "as-it-is");
    let given = |token: &str| Some(Credentials { registry_token: token.into(), ..Credentials::default() });
    let image = format!("{}/a:1", server.host);
    session(&image, given("as-it-is")).head().await.unwrap();
    assert_eq!(server.seen().len(), 1);
    let error = session(&image, given("another")).head().await.unwrap_err();
    assert_eq!((error.kind(), auth.seen().len()), (Kind::Unauthorized, 0));
}

#[tokio::test]
async fn requests_at_once_wait_for_one_token_and_an_expired_one_is_replaced() {
    let mut repository = Repository::default();
    let blobs: Vec<Descriptor> = (0..8).map(|n| repository.blob(crate::LAYER, content(1000 + n))).collect();
    let issued = Arc::new(AtomicUsize::new(0));
    let count = issued.clone();
    let auth = Server::start(move |_| token(&format!("t{}", count.fetch_add(1, Ordering::SeqCst))));
    // Good is only the newest.
    let server = guarded(&auth, repository.shared(), {
        let issued = issued.clone();
        move |token| token == format!("t{}", issued.load(Ordering::SeqCst) - 1)
    });
    let session = session(&format!("{}/a", server.host), None);
    let all = blobs.iter().map(|blob| collect(session.blob(blob)));
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    assert_eq!(issued.load(Ordering::SeqCst), 1);
    // The registry forgets the token in the middle of the pull.
    issued.store(5, Ordering::SeqCst);
    collect(session.blob(&blobs[0])).await.unwrap();
    assert_eq!(issued.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let (repository, _) = simple();
    let auth = Server::start(|_| Reply::ok(r#"{"token":"short","expires_in":1}"#));
    let server = guarded(&auth, repository.shared(), |token| token == "short");
    let session = session(&format!("{}/a:1", server.host), None);
    session.head().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    session.resolve(&linux("amd64")).await.unwrap();
    assert_eq!(auth.seen().len(), 2);
    let refused = server.seen().iter().filter(|request| request.header("authorization").is_none()).count();
    assert_eq!(refused, 1, "only the first request went without a token");
}

#[tokio::test]
async fn a_registry_that_refuses_its_own_tokens_is_not_asked_for_ever() {
    let (repository, _) = simple();
    let auth = Server::start(|_| token("t"));
    let server = guarded(&auth, repository.shared(), |_| false);
    let error = session(&format!("{}/a:1", server.host), None).head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert!(server.seen().len() <= 3 && auth.seen().len() <= 2);
}

#[tokio::test]
async fn bad_token_servers_are_reported_by_name() {
    let (repository, _) = simple();
    let repository = repository.shared();
    let replies: [(fn() -> Reply, Kind); 6] = [
        (|| Reply::ok("not json"), Kind::Unauthorized),
        (|| Reply::ok("{}"), Kind::Unauthorized),
        (|| Reply::ok(r#"{"token":"a\nb"}"#), Kind::Unauthorized),
        (|| Reply::ok(vec![b' '; 3 << 20]), Kind::Unauthorized),
        (|| Reply::new(403, ""), Kind::Unauthorized),
        (|| Reply::new(503, ""), Kind::Unavailable),
    ];
    for (reply, kind) in replies {
        let auth = Server::start(move |_| reply());
        let server = guarded(&auth, repository.clone(), |_| true);
        let error = session(&format!("{}/a:1", server.host), None).head().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(&format!("token server http://{}/token", auth.host)), "{error}");
    }
}

#[tokio::test]
async fn secrets_stay_off_plain_http_when_the_registry_is_https() {
    let auth = Server::start(|_| token("t"));
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", auth.host);
    let server = Server::start_tls(false, move |_| Reply::new(401, "").with("www-authenticate", &challenge));
    let dir = tempfile::tempdir().unwrap();
    let name = format!("localhost:{}", server.port());
    std::fs::create_dir(dir.path().join(&name)).unwrap();
    std::fs::write(dir.path().join(&name).join("ca.crt"), CA).unwrap();
    let options = RegistryOptions { config_path: dir.path().to_owned(), ..options() };
    let session = Registry::new(options).unwrap().session(&reference(&format!("{name}/a:1")), Some(user("u", "p")));
    let error = session.head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert!(error.to_string().contains("it is plain HTTP, and the registry is not"), "{error}");
    assert_eq!(auth.seen().len(), 0);
}

/// A registry with a mirror before it; both want Basic and keep what they are shown.
fn registry_and_mirror() -> (Server, Server, RegistryOptions, tempfile::TempDir) {
    let (repository, _) = simple();
    let mirror = Server::start(|_| Reply::new(401, "").with("www-authenticate", "Basic realm=\"m\""));
    let registry = Server::start(move |request: &Request| match request.header("authorization") {
        Some(_) => repository.answer(request),
        None => Reply::new(401, "").with("www-authenticate", "Basic realm=\"r\""),
    });
    let dir = tempfile::tempdir().unwrap();
    let options = options_with_hosts(dir.path(), &registry.host, &format!("[host.\"http://{}\"]", mirror.host));
    (registry, mirror, options, dir)
}

#[tokio::test]
async fn credentials_of_the_call_are_for_the_registry_and_no_mirror() {
    let (registry, mirror, options, _dir) = registry_and_mirror();
    let image = reference(&format!("{}/a:1", registry.host));
    Registry::new(options).unwrap().session(&image, Some(user("u", "p"))).head().await.unwrap();
    assert_eq!(mirror.seen().len(), 1);
    assert!(mirror.seen()[0].header("authorization").is_none());
}

#[tokio::test]
async fn a_server_address_chooses_another_host() {
    let (registry, mirror, options, _dir) = registry_and_mirror();
    let image = reference(&format!("{}/a:1", registry.host));
    let mut given = user("u", "p");
    given.server_address = format!("http://{}/v2/", mirror.host);
    let error = Registry::new(options.clone()).unwrap().session(&image, Some(given.clone())).head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert_eq!(mirror.seen()[1].header("authorization"), Some(basic("u", "p").as_str()));
    given.server_address = "elsewhere.example".into();
    Registry::new(options).unwrap().session(&image, Some(given)).head().await.unwrap_err();
    assert!(registry.seen().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn the_docker_config_serves_each_host_its_own() {
    let (registry, mirror, mut options, dir) = registry_and_mirror();
    let file = dir.path().join("config.json");
    let auth = |text: &str| STANDARD.encode(text);
    let entries = serde_json::json!({"auths": {
        (registry.host.clone()): {"auth": auth("r:1")},
        (format!("http://{}/v1/", mirror.host)): {"auth": auth("m:2")},
    }});
    std::fs::write(&file, entries.to_string()).unwrap();
    options.docker_config = Some(file);
    let image = reference(&format!("{}/a:1", registry.host));
    Registry::new(options).unwrap().session(&image, None).head().await.unwrap();
    assert_eq!(mirror.seen()[1].header("authorization"), Some(basic("m", "2").as_str()));
    assert_eq!(registry.seen()[1].header("authorization"), Some(basic("r", "1").as_str()));
}

#[tokio::test]
async fn a_challenge_from_where_a_redirect_led_is_not_answered() {
    let trap = Server::start(|_| token("t"));
    let challenge = format!("Bearer realm=\"http://{}/token\"", trap.host);
    let storage = Server::start(move |_| Reply::new(401, "").with("www-authenticate", &challenge));
    let target = format!("http://{}/x", storage.host);
    let registry = Server::start(move |_| Reply::redirect(&target));
    let session = session(&format!("{}/a", registry.host), Some(user("u", "p")));
    let error = collect(session.blob(&layer(b"x"))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert_eq!((trap.seen().len(), storage.seen().len()), (0, 1));
}
