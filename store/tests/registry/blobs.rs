//! Blobs from hosts that cut, stall, lie and point elsewhere.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crisp_store::{
    digest::Digest,
    media::Descriptor,
    registry::{Error, Kind, Registry},
};
use futures_util::StreamExt;

use crate::{
    collect, content, layer, options_with_hosts, reference,
    server::{Reply, Request, Server},
    session,
};

const SIZE: usize = 300_000;

/// Pulls a blob of `SIZE` bytes from a server; the requests it took. The closure gets the number of the request.
async fn pull(
    answer: impl Fn(usize, &Request, &[u8]) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>, Error>, Vec<Request>) {
    let bytes = Arc::new(content(SIZE));
    let asked = AtomicUsize::new(0);
    let served = bytes.clone();
    let server = Server::start(move |request| answer(asked.fetch_add(1, Ordering::SeqCst), request, &served));
    let session = session(&format!("{}/a", server.host));
    let descriptor = layer(&bytes);
    let whole = collect(session.blob(&descriptor));
    let result = tokio::time::timeout(Duration::from_secs(20), whole).await.expect("it goes on for ever");
    if let Ok(got) = &result {
        assert!(*got == *bytes, "the bytes differ");
    }
    (result, server.seen())
}

#[tokio::test]
async fn a_blob_comes_whole_in_one_request() {
    let (result, seen) = pull(|_, request, bytes| Reply::part(request, bytes)).await;
    result.unwrap();
    assert_eq!(seen.len(), 1);
    let (result, _) = pull(|_, request, bytes| Reply::part(request, bytes).chunked()).await;
    result.unwrap();
}

#[tokio::test]
async fn an_empty_blob_needs_no_request() {
    let session = session("127.0.0.1:1/a");
    assert_eq!(collect(session.blob(&layer(b""))).await.unwrap(), b"");
}

#[tokio::test]
async fn a_cut_is_resumed_where_it_happened() {
    let (result, seen) = pull(|n, request, bytes| {
        let reply = Reply::part(request, bytes);
        if n < 2 { reply.cut(100_000) } else { reply }
    })
    .await;
    result.unwrap();
    assert_eq!(seen.iter().map(Request::range).collect::<Vec<_>>(), [0, 100_000, 200_000]);
}

#[tokio::test]
async fn a_stall_is_resumed_and_does_not_last() {
    let start = Instant::now();
    let (result, seen) = pull(|n, request, bytes| {
        let reply = Reply::part(request, bytes);
        if n == 0 { reply.stall(5_000) } else { reply }
    })
    .await;
    result.unwrap();
    assert_eq!(seen[1].range(), 5_000);
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_trickle_is_given_up_for_another_try() {
    let (result, seen) = pull(|n, request, bytes| {
        let reply = Reply::part(request, bytes);
        if n == 0 { reply.trickle(Duration::from_millis(50)) } else { reply }
    })
    .await;
    result.unwrap();
    assert_eq!(seen.len(), 2);
    assert!((1..100).contains(&seen[1].range()));
}

#[tokio::test]
async fn a_server_that_ignores_range_begins_anew_and_the_known_part_is_dropped() {
    let (result, seen) = pull(|n, _, bytes| {
        let reply = Reply::ok(bytes);
        if n == 0 { reply.cut(123_456) } else { reply }
    })
    .await;
    result.unwrap();
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_server_that_never_gets_on_is_given_up() {
    let (result, seen) = pull(|_, request, bytes| Reply::part(request, bytes).cut(10)).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().starts_with("blob 127.0.0.1:"), "{error}");
    assert_eq!(seen.len(), 4);
}

#[tokio::test]
async fn a_size_that_differs_is_an_error_before_or_after_the_bytes() {
    let shorter = pull(|_, _, bytes| Reply::ok(&bytes[1..])).await;
    let longer = pull(|_, _, bytes| Reply::ok([bytes, b"x"].concat())).await;
    let longer_unannounced = pull(|_, _, bytes| Reply::ok([bytes, b"x"].concat()).chunked()).await;
    for (result, seen) in [shorter, longer, longer_unannounced] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains("expected 300000 bytes"), "{error}");
        assert_eq!(seen.len(), 1);
    }
    let (result, _) = pull(|_, _, bytes| Reply::ok(&bytes[1..]).chunked()).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("ended 1 bytes early"), "{error}");
}

#[tokio::test]
async fn a_wrong_part_is_refused() {
    for range in ["bytes 7-9/300000", "bytes 100000-299999/400000", "nonsense"] {
        let (result, _) = pull(move |n, request, bytes| match n {
            0 => Reply::part(request, bytes).cut(100_000),
            _ => Reply::new(206, &bytes[100_000..]).with("content-range", range),
        })
        .await;
        assert_eq!(result.unwrap_err().kind(), Kind::Invalid);
    }
}

#[tokio::test]
async fn a_slow_consumer_is_no_stall() {
    let bytes = content(4 << 20);
    let served = bytes.clone();
    let server = Server::start(move |request| Reply::part(request, &served));
    let mut blob = session(&format!("{}/a", server.host)).blob(&layer(&bytes));
    let mut got = blob.next().await.unwrap().unwrap().to_vec();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    while let Some(piece) = blob.next().await {
        got.extend_from_slice(&piece.unwrap());
    }
    assert!(got == bytes);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn redirects_lose_what_is_private_and_keep_the_range() {
    let bytes = Arc::new(content(SIZE));
    let (served, asked) = (bytes.clone(), AtomicUsize::new(0));
    let storage = Server::start(move |request| {
        let reply = Reply::part(request, &served);
        if asked.fetch_add(1, Ordering::SeqCst) == 0 { reply.cut(1000) } else { reply }
    });
    let target = format!("http://{}/bucket/x?signature=secret", storage.host);
    let registry = Server::start(move |request| match request.header("authorization") {
        Some(_) => Reply::redirect(&target),
        None => Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\""),
    });
    let dir = tempfile::tempdir().unwrap();
    let hosts = format!("server = \"http://{0}\"\n[header]\nX-Private = \"1\"", registry.host);
    let options = options_with_hosts(dir.path(), &registry.host, &hosts);
    let credentials = crate::auth::user("u", "p");
    let session =
        Registry::new(options).unwrap().session(&reference(&format!("{}/a", registry.host)), Some(credentials));
    assert!(collect(session.blob(&layer(&bytes))).await.unwrap() == *bytes);
    assert!(registry.seen().iter().all(|request| request.header("x-private") == Some("1")));
    let seen = storage.seen();
    assert_eq!(seen.iter().map(Request::range).collect::<Vec<_>>(), [0, 1000]);
    for request in seen {
        assert!(request.header("authorization").is_none() && request.header("x-private").is_none());
        assert_eq!(request.target, "/bucket/x?signature=secret");
    }
}

#[tokio::test]
async fn a_failing_redirect_is_reported_without_its_signature() {
    let storage = Server::start(|_| Reply::new(403, "<Error>expired</Error>"));
    let target = format!("http://{}/x?signature=secret", storage.host);
    let registry = Server::start(move |_| Reply::redirect(&target));
    let error = collect(session(&format!("{}/a", registry.host)).blob(&layer(b"x"))).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("http://{}/x: 403", storage.host)) && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn endless_and_odd_redirects_are_refused() {
    for location in ["/again", "ftp://elsewhere/x", "file:///etc/passwd", "http://[bad"] {
        let server = Server::start(move |_| Reply::redirect(location));
        let error = collect(session(&format!("{}/a", server.host)).blob(&layer(b"x"))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("redirect refused"), "{error}");
        assert!(server.seen().len() <= 11);
    }
}

#[tokio::test]
async fn bytes_that_were_wrong_are_fetched_from_another_host() {
    let bytes = content(SIZE);
    let (served, descriptor) = (bytes.clone(), layer(&bytes));
    let liar = Server::start(|_| Reply::ok(vec![0; SIZE]));
    let honest = Server::start(move |request| Reply::part(request, &served));
    let dir = tempfile::tempdir().unwrap();
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]", honest.host, liar.host);
    let options = options_with_hosts(dir.path(), "reg.example", &hosts);
    let session = Registry::new(options).unwrap().session(&reference("reg.example/a"), None);
    let first = collect(session.blob(&descriptor)).await.unwrap();
    assert_ne!(Digest::sha256(&first), descriptor.digest);
    assert!(session.reject(&descriptor.digest));
    assert!(collect(session.blob(&descriptor)).await.unwrap() == bytes);
    assert!(!session.reject(&descriptor.digest), "no host is left");
    assert_eq!((liar.seen().len(), honest.seen().len()), (1, 1));
    assert!(collect(session.blob(&descriptor)).await.is_err());
}

#[tokio::test]
async fn a_foreign_layer_is_looked_for_at_its_own_place_over_https_only() {
    let server = Server::start(|_| Reply::not_found());
    let elsewhere = Server::start(|_| Reply::ok("x"));
    let mut descriptor =
        Descriptor::new("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest::sha256(b"x"), 1);
    descriptor.urls = vec![format!("http://{}/x", elsewhere.host), format!("https://localhost:{}/x", elsewhere.port())];
    let error = collect(session(&format!("{}/a", server.host)).blob(&descriptor)).await.unwrap_err();
    assert!(error.to_string().contains(&format!("https://localhost:{}/x", elsewhere.port())), "{error}");
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}
