//! Hosts: order, fall-over, TLS.

use std::time::{Duration, Instant};

use crisp_store::digest::Digest;
use crisp_store::media;
use crisp_store::registry::{Kind, Registry, RegistryOptions, Session};
use crisp_store::{Options, PullRequest, Store};
use serde_json::json;

use crate::{
    LAYER, Repository, collect, content, layer, linux, options, options_with_hosts, reference,
    server::{CA, CLIENT_CERT, CLIENT_KEY, Reply, Server},
    simple,
};

fn session(options: RegistryOptions, image: &str) -> Session {
    Registry::new(options).unwrap().session(&reference(image), None)
}

#[tokio::test]
async fn mirrors_are_asked_in_the_order_of_the_file_and_told_whom_they_stand_for() {
    let (repository, manifest) = simple();
    let absent = Server::start(|_| Reply::not_found());
    let broken = Server::start(|_| Reply::new(500, ""));
    let mirror = Server::start(move |request| repository.answer(request));
    let hosts = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n[host.\"http://{}\"]",
        absent.host, broken.host, mirror.host
    );
    let dir = tempfile::tempdir().unwrap();
    let session = session(options_with_hosts(dir.path(), "reg.example_5000_", &hosts), "reg.example:5000/a:1");
    assert_eq!(session.head().await.unwrap(), manifest.digest);
    session.resolve(&linux("amd64")).await.unwrap();
    assert_eq!(mirror.seen()[0].target, "/v2/a/manifests/1?ns=reg.example%3A5000");
    // HEAD, and GET for the reason; then each document.
    assert_eq!(absent.seen().len(), 4);
    // One that did not answer is asked last from then on.
    assert_eq!(broken.seen().len(), 1);
}

#[tokio::test]
async fn when_all_fail_all_are_named_and_the_registry_decides() {
    let mirror = Server::start(|_| Reply::new(500, ""));
    let registry = Server::start(|_| Reply::not_found());
    let hosts = format!("[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]", mirror.host);
    let dir = tempfile::tempdir().unwrap();
    let options = options_with_hosts(dir.path(), &registry.host, &hosts);
    let error = session(options, &format!("{}/a:1", registry.host)).head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(error.failures().len(), 3);
    let text = error.to_string();
    for part in
        ["http://127.0.0.1:1/v2/a/manifests/1", "Connection refused", "500 Internal Server Error", "manifest unknown"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn a_host_without_a_capability_is_not_asked_for_it() {
    let (repository, _) = simple();
    let repository = repository.shared();
    let copy = repository.clone();
    let content = Server::start(move |request| copy.answer(request));
    let registry = Server::start(move |request| repository.answer(request));
    let hosts = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\"]", content.host);
    let dir = tempfile::tempdir().unwrap();
    let options = options_with_hosts(dir.path(), &registry.host, &hosts);
    session(options, &format!("{}/a:1", registry.host)).resolve(&linux("amd64")).await.unwrap();
    assert_eq!(registry.lines(), ["HEAD /v2/a/manifests/1"]);
    assert!(content.lines().iter().all(|line| line.starts_with("GET")));
}

#[tokio::test]
async fn the_registry_goes_on_where_a_mirror_broke_off() {
    let bytes = content(200_000);
    let (first, second) = (bytes.clone(), bytes.clone());
    let mirror = Server::start(move |request| Reply::part(request, &first).cut(70_000));
    let registry = Server::start(move |request| Reply::part(request, &second));
    let dir = tempfile::tempdir().unwrap();
    let options = options_with_hosts(dir.path(), &registry.host, &format!("[host.\"http://{}\"]", mirror.host));
    let session = session(options, &format!("{}/a", registry.host));
    assert!(collect(session.blob(&layer(&bytes))).await.unwrap() == bytes);
    assert_eq!((mirror.seen().len(), registry.seen()[0].range()), (1, 70_000));
}

#[tokio::test]
async fn a_mirror_that_cannot_be_reached_costs_its_dial_timeout_once() {
    let (repository, _) = simple();
    let registry = Server::start(move |request| repository.answer(request));
    // TEST-NET-1: packets go nowhere, or the network says so at once.
    let hosts = "[host.\"http://192.0.2.1:5000\"]\ndial_timeout = \"300ms\"";
    let dir = tempfile::tempdir().unwrap();
    let options = options_with_hosts(dir.path(), &registry.host, hosts);
    let start = Instant::now();
    session(options, &format!("{}/a:1", registry.host)).resolve(&linux("amd64")).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(800), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_file_is_read_for_each_session() {
    let (repository, _) = simple();
    let server = Server::start(move |request| repository.answer(request));
    let dir = tempfile::tempdir().unwrap();
    let options = options_with_hosts(dir.path(), "reg.example", "server = \"http://127.0.0.1:1\"");
    let registry = Registry::new(options).unwrap();
    let image = reference("reg.example/a:1");
    assert_eq!(registry.session(&image, None).head().await.unwrap_err().kind(), Kind::Unavailable);
    options_with_hosts(dir.path(), "reg.example", &format!("server = \"http://{}\"", server.host));
    registry.session(&image, None).head().await.unwrap();
    options_with_hosts(dir.path(), "reg.example", "server = [");
    assert_eq!(registry.session(&image, None).head().await.unwrap_err().kind(), Kind::Config);
}

#[tokio::test]
async fn tls_trusts_what_the_file_says() {
    let (repository, _) = simple();
    let server = Server::start_tls(false, move |request| repository.answer(request));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), CA).unwrap();
    let origin = format!("https://localhost:{}", server.port());
    let head = async |extra: &str| {
        let options = options_with_hosts(dir.path(), "reg.example", &format!("server = \"{origin}\"\n{extra}"));
        session(options, "reg.example/a:1").head().await
    };
    head("ca = \"../ca.pem\"").await.unwrap();
    head("skip_verify = true").await.unwrap();
    let error = head("").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("\"ca\" in the host's hosts.toml"), "{error}");
    // The name counts too.
    let options = options_with_hosts(
        dir.path(),
        "reg.example",
        &format!("server = \"https://127.0.0.2:{}\"\nca = \"../ca.pem\"", server.port()),
    );
    assert!(session(options, "reg.example/a:1").head().await.is_err());
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_its_host_and_not_where_that_points() {
    let bytes = content(1000);
    let served = bytes.clone();
    let storage = Server::start_tls(true, move |request| Reply::part(request, &served));
    let target = format!("https://localhost:{}/x", storage.port());
    let server = Server::start_tls(true, move |_| Reply::redirect(&target));
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("ca.crt", CA), ("client.cert", CLIENT_CERT), ("client.key", CLIENT_KEY)] {
        let place = dir.path().join(format!("localhost:{}", server.port()));
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join(name), text).unwrap();
    }
    let options = RegistryOptions { config_path: dir.path().to_owned(), ..options() };
    let session = session(options, &format!("localhost:{}/a", server.port()));
    assert!(collect(session.blob(&layer(&bytes))).await.is_err());
    // The first host took the certificate and answered; the second one, which wants one too, was shown none.
    assert!(!server.seen().is_empty());
    assert!(storage.seen().is_empty());
}

#[tokio::test]
async fn plain_http_behind_an_https_name_is_explained() {
    let server = Server::start(|_| Reply::ok(""));
    let dir = tempfile::tempdir().unwrap();
    let options = options_with_hosts(dir.path(), "reg.example", &format!("server = \"https://{}\"", server.host));
    let error = session(options, "reg.example/a:1").head().await.unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn a_tag_is_not_followed_from_https_to_http() {
    let (repository, manifest) = simple();
    let plain = Server::start(move |request| repository.answer(request));
    let target = format!("http://{}", plain.host);
    let server = Server::start_tls(false, move |request| Reply::redirect(&format!("{target}{}", request.path())));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), CA).unwrap();
    let hosts = format!("server = \"https://localhost:{}\"\nca = \"../ca.pem\"", server.port());
    let options = options_with_hosts(dir.path(), "reg.example", &hosts);
    let error = session(options.clone(), "reg.example/a:1").head().await.unwrap_err();
    assert!(error.to_string().contains("redirect refused"), "{error}");
    // What is named by digest cannot be forged.
    session(options, &format!("reg.example/a@{}", manifest.digest)).resolve(&linux("amd64")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_sends_too_much_of_a_layer_is_not_the_last_one_asked() {
    let tar = vec![0; 1024];
    let mut repository = Repository::default();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [Digest::sha256(&tar)]}});
    let config = repository.blob(media::OCI_CONFIG, serde_json::to_vec(&config).unwrap());
    let layer = repository.blob(LAYER, tar);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = repository.document(media::OCI_MANIFEST, &manifest);
    repository.tag("1", &manifest);
    let path = format!("/v2/a/blobs/{}", layer.digest);
    let (good, repository) = (repository.clone(), repository);
    let mirror = Server::start(move |request| match request.path() == path {
        true => Reply::ok(vec![0; 5000]).chunked(),
        false => repository.answer(request),
    });
    let registry = Server::start(move |request| good.answer(request));
    let dir = tempfile::tempdir().unwrap();
    let hosts = format!("[host.\"http://{}\"]", mirror.host);
    let registry_options = options_with_hosts(dir.path(), &registry.host, &hosts);
    let options = Options { registry: registry_options, ..Options::default() };
    let store = Store::open(dir.path().join("store"), options).unwrap();
    let name = reference(&format!("{}/a:1", registry.host));
    let platform = Some(linux("amd64"));
    store.pull(PullRequest { reference: name, credentials: None, platform, progress: None }).await.unwrap();
    assert!(mirror.lines().iter().any(|line| line.contains(layer.digest.as_str())), "it was asked");
}
