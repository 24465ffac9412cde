//! From a name to a manifest.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crisp_store::{
    digest::Digest,
    media::{self, Descriptor, Platform},
    registry::{Error, Kind},
};
use serde_json::json;

use crate::{
    Repository, linux,
    server::{Reply, Server},
    session, simple,
};

#[tokio::test]
async fn a_tag_is_asked_by_head_and_fetched_by_digest() {
    let (repository, manifest) = simple();
    let server = Server::start(move |request| repository.answer(request));
    let session = session(&format!("{}/a:1", server.host));
    assert_eq!(session.head().await.unwrap(), manifest.digest);
    let resolved = session.resolve(&linux("amd64")).await.unwrap();
    assert_eq!((resolved.digest, resolved.index), (manifest.digest.clone(), None));
    assert_eq!(resolved.descriptor.digest, manifest.digest);
    assert_eq!(Digest::sha256(&resolved.raw), manifest.digest);
    // The config was looked at for its platform; it is not fetched again.
    session.config(&resolved.manifest.config).await.unwrap();
    let lines = server.lines();
    assert_eq!(lines[0], "HEAD /v2/a/manifests/1");
    assert_eq!(lines[1], format!("GET /v2/a/manifests/{}", manifest.digest));
    assert_eq!(lines[2], format!("GET /v2/a/blobs/{}", resolved.manifest.config.digest));
    assert_eq!(lines.len(), 3);
    let accept = server.seen()[0].header("accept").unwrap().to_owned();
    assert!(
        [media::OCI_INDEX, media::DOCKER_LIST, media::OCI_MANIFEST, media::DOCKER_MANIFEST]
            .iter()
            .all(|t| accept.contains(t))
    );
}

#[tokio::test]
async fn servers_without_head_or_without_its_digest_are_asked_by_get() {
    for status in [200, 400, 405, 501] {
        let (repository, manifest) = simple();
        let server = Server::start(move |request| match request.method.as_str() {
            "HEAD" => Reply::new(status, ""),
            _ => repository.answer(request),
        });
        let session = session(&format!("{}/a:1", server.host));
        assert_eq!(session.head().await.unwrap(), manifest.digest);
        // The bytes came along.
        session.resolve(&linux("amd64")).await.unwrap();
        assert_eq!(server.lines()[..2], ["HEAD /v2/a/manifests/1", "GET /v2/a/manifests/1"]);
        assert_eq!(server.lines().len(), 3);
    }
}

#[tokio::test]
async fn a_digest_is_asked_for_too_and_decides_over_the_tag() {
    let (repository, manifest) = simple();
    let server = Server::start(move |request| repository.answer(request));
    let there = session(&format!("{}/a:other@{}", server.host, manifest.digest));
    assert_eq!(there.head().await.unwrap(), manifest.digest);
    assert_eq!(server.lines(), [format!("HEAD /v2/a/manifests/{}", manifest.digest)]);
    let absent = session(&format!("{}/a@{}", server.host, Digest::sha256(b"absent")));
    assert_eq!(absent.head().await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_lie_about_the_digest_is_found_out() {
    let (repository, manifest) = simple();
    let wanted = manifest.digest.clone();
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" => repository.answer(request),
        _ => Reply::ok(r#"{"schemaVersion":2,"manifests":[]}"#).with("docker-content-digest", wanted.as_str()),
    });
    for name in ["a:1".to_owned(), format!("a@{}", manifest.digest)] {
        let error = session(&format!("{}/{name}", server.host)).resolve(&linux("amd64")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains("the content is sha256:"), "{error}");
    }
    // An answer to a request by digest that names another one.
    let server = Server::start(|_| Reply::ok("").with("docker-content-digest", Digest::sha256(b"x").as_str()));
    let error = session(&format!("{}/a@{}", server.host, manifest.digest)).head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
}

#[tokio::test]
async fn manifests_are_bounded_with_and_without_a_length() {
    for chunked in [false, true] {
        let server = Server::start(move |request| {
            let reply = Reply::ok(vec![b' '; 5 << 20]);
            match request.method.as_str() {
                "HEAD" => Reply::new(405, ""),
                _ if chunked => reply.chunked(),
                _ => reply,
            }
        });
        let error = session(&format!("{}/a", server.host)).resolve(&linux("amd64")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("larger than 4194304 bytes"), "{error}");
    }
    let session = session("127.0.0.1:1/a");
    let huge = Descriptor::new(media::OCI_CONFIG, Digest::sha256(b""), 1 << 40);
    assert!(matches!(session.config(&huge).await, Err(Error::Image { .. })));
}

#[tokio::test]
async fn refusals_keep_the_registrys_words() {
    for (status, kind) in [(404, Kind::NotFound), (403, Kind::Unauthorized), (418, Kind::Invalid)] {
        // HEAD is refused without words, so that GET is asked for them.
        let words = r#"{"errors":[{"code":"X","message":"these are\nmy words"}]}"#;
        let server = Server::start(move |_| Reply::new(status, words));
        let error = session(&format!("{}/a:1", server.host)).head().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        let url = format!("http://{}/v2/a/manifests/1", server.host);
        assert!(text.contains(&url) && text.contains("X: these are my words"), "{text}");
        assert_eq!(server.lines().len(), 2, "a final answer is not asked for again");
    }
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_a_few_times() {
    for status in [500, 502, 503, 429] {
        let server = Server::start(move |_| Reply::new(status, ""));
        let error = session(&format!("{}/a", server.host)).head().await.unwrap_err();
        assert_eq!(error.kind(), if status == 429 { Kind::RateLimited } else { Kind::Unavailable });
        assert_eq!(server.lines().len(), 3);
    }
    let (repository, manifest) = simple();
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503, ""),
        _ => repository.answer(request),
    });
    assert_eq!(session(&format!("{}/a:1", server.host)).head().await.unwrap(), manifest.digest);
}

#[tokio::test]
async fn retry_after_is_waited_for_unless_it_is_too_long() {
    let (repository, manifest) = simple();
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(429, "").with("retry-after", "1"),
        _ => repository.answer(request),
    });
    let start = Instant::now();
    assert_eq!(session(&format!("{}/a:1", server.host)).head().await.unwrap(), manifest.digest);
    assert!(start.elapsed() > Duration::from_millis(700), "{:?}", start.elapsed());
    let server = Server::start(|_| Reply::new(429, "").with("retry-after", "3600"));
    let error = session(&format!("{}/a:1", server.host)).head().await.unwrap_err();
    assert_eq!((error.kind(), server.lines().len()), (Kind::RateLimited, 1));
}

#[tokio::test]
async fn silence_and_refused_connections_end_in_time() {
    let server = Server::start(|_| Reply::silent());
    let start = Instant::now();
    let error = session(&format!("{}/a", server.host)).head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("no answer within"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    // Port 1 of loopback: nobody listens there.
    let error = session("127.0.0.1:1/a").head().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn what_is_no_image_is_refused_by_name() {
    let cases = [
        ("text/html", b"<html>Sign in".to_vec(), "not a valid manifest"),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", b"{}".to_vec(), "schema 1"),
        ("application/json", br#"{"schemaVersion":2}"#.to_vec(), "neither an image manifest nor"),
    ];
    for (media_type, body, message) in cases {
        let server = Server::start(move |_| Reply::ok(body.clone()).with("content-type", media_type));
        let error = session(&format!("{}/a", server.host)).resolve(&linux("amd64")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[tokio::test]
async fn an_index_leads_to_the_best_manifest_for_the_platform() {
    let mut repository = Repository::default();
    let (amd64, v3) = (repository.image("linux", "amd64", None), repository.image("linux", "amd64", Some("v3")));
    let arm = repository.image("linux", "arm", Some("v7"));
    let attestation = repository.document(media::OCI_MANIFEST, &json!({"schemaVersion": 2}));
    let nested = repository.index(&[(arm.clone(), Some(Platform::new("linux", "arm", Some("v7"))))]);
    let index = repository.index(&[
        (attestation, Some(Platform::new("unknown", "unknown", None))),
        (amd64.clone(), Some(linux("amd64"))),
        (v3.clone(), Some(Platform::new("linux", "amd64", Some("v3")))),
        (nested, None),
    ]);
    repository.tag("1", &index);
    let server = Server::start(move |request| repository.answer(request));
    let resolve = async |platform: Platform| session(&format!("{}/a:1", server.host)).resolve(&platform).await;
    for (platform, manifest) in [
        (linux("amd64"), &amd64),
        (Platform::new("linux", "amd64", Some("v4")), &v3),
        (Platform::new("linux", "arm64", Some("v8")), &arm),
    ] {
        let resolved = resolve(platform).await.unwrap();
        assert_eq!((&resolved.digest, &resolved.descriptor.digest), (&index.digest, &manifest.digest));
        assert_eq!(Digest::sha256(&resolved.index.unwrap()), index.digest);
    }
    let error = resolve(linux("s390x")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PlatformMismatch);
    assert!(
        error.to_string().contains("no image for linux/s390x; there is: linux/amd64, linux/amd64/v3, linux/arm/v7"),
        "{error}"
    );
}

#[tokio::test]
async fn without_a_platform_the_config_tells() {
    let mut repository = Repository::default();
    let (windows, amd64) = (repository.image("windows", "amd64", None), repository.image("linux", "amd64", None));
    let index = repository.index(&[(windows.clone(), None), (amd64.clone(), None)]);
    repository.tag("index", &index);
    repository.tag("windows", &windows);
    let server = Server::start(move |request| repository.answer(request));
    let resolved = session(&format!("{}/a:index", server.host)).resolve(&linux("amd64")).await.unwrap();
    assert_eq!(resolved.descriptor.digest, amd64.digest);
    for tag in ["index", "windows"] {
        let error = session(&format!("{}/a:{tag}", server.host)).resolve(&linux("riscv64")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::PlatformMismatch);
        assert!(error.to_string().contains("there is: windows/amd64"), "{error}");
    }
}

#[tokio::test]
async fn nesting_and_number_of_documents_are_bounded() {
    let mut repository = Repository::default();
    let mut index = repository.image("linux", "amd64", None);
    for _ in 0..4 {
        index = repository.index(&[(index, None)]);
    }
    repository.tag("deep", &index);
    let many: Vec<_> = (0..100).map(|n| (repository.image("windows", "amd64", Some(&format!("v{n}"))), None)).collect();
    let wide = repository.index(&many);
    repository.tag("wide", &wide);
    let server = Server::start(move |request| repository.answer(request));
    let error = session(&format!("{}/a:deep", server.host)).resolve(&linux("amd64")).await.unwrap_err();
    assert!(error.to_string().contains("nested more than 3 deep"), "{error}");
    let before = server.lines().len();
    let error = session(&format!("{}/a:wide", server.host)).resolve(&linux("amd64")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PlatformMismatch);
    assert!(server.lines().len() - before < 40);
}
