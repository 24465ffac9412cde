//! Registries that fail, lie or attack: a clear error, nothing kept, nothing written outside.

use super::{Ctx, cases};
use crate::{
    client::spec,
    fail::{Res, ensure, same},
    hostile::{Hostile, Reply, Wares},
    push::{Layer, architecture, digest},
    tar::Tar,
};
use crisp_cri_proto::v1::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

cases!("registry":
    honest, status_codes, nobody_listens, truncated_layer_is_resumed_or_refused, wrong_layer_bytes, wrong_size, wrong_diff_id,
    wrong_config_bytes, manifest_is_not_json, manifest_is_huge, manifest_is_deep, config_is_not_json, other_platform,
    index_picks_the_platform, redirects, redirect_loop, bearer_token, basic_auth, credentials_stay_with_their_host,
    stalled_layer_ends_with_the_call, a_failed_pull_leaves_nothing,
);

fn layer(text: &str) -> Res<Layer> {
    Layer::gzip(Tar::default().file("f", text, 0o644))
}

pub(crate) fn wares(ctx: &Ctx) -> Res<Wares> {
    Ok(Wares::new(vec![layer(&format!("unique {}", ctx.number()))?], &json!({"Cmd": ["x"]})))
}

/// Pulls `t/x:1` from a registry that answers so.
pub(crate) async fn pull(
    ctx: &Ctx,
    answer: impl Fn(&crate::hostile::Ask) -> Reply + Send + Sync + 'static,
) -> Res<(Hostile, Result<String, Status>)> {
    let h = Hostile::start(answer).await?;
    let image = format!("{}/t/x:1", h.host);
    let r = tokio::time::timeout(Duration::from_secs(60), ctx.cri.pull(&image)).await;
    let r = r.unwrap_or_else(|_| Err(Status::deadline_exceeded("the pull hangs")));
    if r.is_err() {
        ensure!(ctx.cri.image(&image).await?.is_none(), "the pull fails and the image is there");
    }
    Ok((h, r))
}

/// The same, and the pull must fail with an error that names the image or its host.
pub(crate) async fn refused(
    ctx: &Ctx,
    answer: impl Fn(&crate::hostile::Ask) -> Reply + Send + Sync + 'static,
) -> Res<Status> {
    let (h, r) = pull(ctx, answer).await?;
    let Err(e) = r else { return crate::fail::wrong("the pull succeeds") };
    ensure!(!e.message().contains("hangs"), "the pull hangs");
    ensure!(
        e.message().contains(&h.host) || e.message().contains("t/x"),
        "the message names neither image nor host: {}",
        e.message()
    );
    Ok(e)
}

async fn honest(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let (h, r) = pull(ctx, move |a| w.answer(a)).await?;
    r?;
    ctx.cri.remove_image(&format!("{}/t/x:1", h.host)).await?;
    Ok(())
}

async fn status_codes(ctx: &Ctx) -> Res {
    let crisp = ctx.kind == Some(crate::server::Kind::Crisp);
    for (status, code, want) in [
        (401, "UNAUTHORIZED", &[Code::Unauthenticated, Code::PermissionDenied][..]),
        (403, "DENIED", &[Code::PermissionDenied]),
        (404, "MANIFEST_UNKNOWN", &[Code::NotFound]),
        (429, "TOOMANYREQUESTS", &[Code::ResourceExhausted]),
        // kubelet's client hands on the word that kubelet looks for only with this code.
        (500, "UNKNOWN", &[Code::Unknown]),
        (503, "UNAVAILABLE", &[Code::Unknown]),
    ] {
        let t = Instant::now();
        let e = refused(ctx, move |_| Reply::error(status, code)).await?;
        let right = want.contains(&e.code()) && (status < 500 || e.message().starts_with("RegistryUnavailable"));
        // containerd has its own code for few of them.
        let right = right || !crisp && e.code() == Code::Unknown;
        ensure!(right, "{status} becomes {:?}: {}", e.code(), e.message());
        ensure!(!crisp || e.message().matches("/t/x:1").count() == 1, "the image is not named once: {}", e.message());
        ensure!(t.elapsed() < Duration::from_secs(45), "{status}: {:?}", t.elapsed());
    }
    Ok(())
}

async fn nobody_listens(ctx: &Ctx) -> Res {
    let image = format!("127.0.0.1:{}/x:1", crate::registry::free_port()?);
    let e = ctx.cri.pull(&image).await.err();
    ensure!(e.as_ref().is_some_and(|e| e.message().contains("refused") && e.message().contains("127.0.0.1")), "{e:?}");
    Ok(())
}

fn is_layer(path: &str, w: &Wares) -> bool {
    path.ends_with(&digest(&w.layers[0].blob))
}

async fn truncated_layer_is_resumed_or_refused(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    refused(ctx, move |a| {
        let r = w.answer(a);
        if is_layer(&a.path, &w) { Reply { cut: Some(20), ..r } } else { r }
    })
    .await
    .map(drop)
}

async fn wrong_layer_bytes(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let other = layer("not what was promised")?;
    refused(
        ctx,
        move |a| if is_layer(&a.path, &w) { Reply::ok("application/octet-stream", &other.blob) } else { w.answer(a) },
    )
    .await
    .map(drop)
}

async fn wrong_size(ctx: &Ctx) -> Res {
    let mut w = wares(ctx)?;
    let mut m: Value = serde_json::from_slice(&w.manifest)?;
    m["layers"][0]["size"] = json!(7);
    w.manifest = m.to_string().into_bytes();
    refused(ctx, move |a| w.answer(a)).await.map(drop)
}

async fn wrong_diff_id(ctx: &Ctx) -> Res {
    let mut l = layer(&format!("diff {}", ctx.number()))?;
    l.diff_id = digest(b"another tar");
    let w = Wares::new(vec![l], &json!({}));
    refused(ctx, move |a| w.answer(a)).await.map(drop)
}

async fn wrong_config_bytes(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let path = digest(&w.config);
    refused(ctx, move |a| if a.path.ends_with(&path) { Reply::ok("application/json", b"{}") } else { w.answer(a) })
        .await
        .map(drop)
}

async fn manifest_is_not_json(ctx: &Ctx) -> Res {
    for body in [&b"<html>"[..], b"", b"null", b"[]", b"{}", b"{\"schemaVersion\":2,\"layers\":7}"] {
        let mut w = wares(ctx)?;
        w.manifest = body.to_vec();
        refused(ctx, move |a| w.answer(a)).await?;
    }
    Ok(())
}

async fn manifest_is_huge(ctx: &Ctx) -> Res {
    let mut w = wares(ctx)?;
    let mut m: Value = serde_json::from_slice(&w.manifest)?;
    m["annotations"] = json!({"pad": "x".repeat(40 << 20)});
    w.manifest = m.to_string().into_bytes();
    let asked = std::sync::Arc::new(w);
    refused(ctx, move |a| asked.answer(a)).await.map(drop)
}

async fn manifest_is_deep(ctx: &Ctx) -> Res {
    let mut w = wares(ctx)?;
    w.manifest = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes();
    refused(ctx, move |a| w.answer(a)).await.map(drop)
}

async fn config_is_not_json(ctx: &Ctx) -> Res {
    let l = vec![layer(&format!("c {}", ctx.number()))?];
    for body in [&b"garbage"[..], b"{}", b"{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"x\",\"y\",\"z\"]}}"] {
        let w = Wares { manifest: crate::push::manifest_json(&l, body), config: body.to_vec(), layers: l.clone() };
        refused(ctx, move |a| w.answer(a)).await?;
    }
    Ok(())
}

async fn other_platform(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        {"mediaType": crate::push::MANIFEST, "digest": digest(&w.manifest), "size": w.manifest.len(), "platform": {"os": "linux", "architecture": "s390x"}}]});
    let index = index.to_string();
    let e = refused(ctx, move |a| {
        if a.path.ends_with("/manifests/1") || a.path.ends_with(&digest(index.as_bytes())) {
            Reply::ok("application/vnd.oci.image.index.v1+json", index.as_bytes())
                .with("Docker-Content-Digest", &digest(index.as_bytes()))
        } else {
            w.answer(a)
        }
    });
    let e = e.await?;
    ensure!(e.message().contains(architecture()) || e.message().contains("platform"), "{}", e.message());
    Ok(())
}

async fn index_picks_the_platform(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let config = digest(&w.config);
    let entry = |arch: &str, d: &str, size: usize| json!({"mediaType": crate::push::MANIFEST, "digest": d, "size": size, "platform": {"os": "linux", "architecture": arch}});
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        entry("s390x", &digest(b"other"), 5), entry(architecture(), &digest(&w.manifest), w.manifest.len()), entry("ppc64le", &digest(b"third"), 5)]});
    let index = index.to_string();
    let (h, r) = pull(ctx, move |a| {
        if a.path.ends_with("/manifests/1") || a.path.ends_with(&digest(index.as_bytes())) {
            Reply::ok("application/vnd.oci.image.index.v1+json", index.as_bytes())
                .with("Docker-Content-Digest", &digest(index.as_bytes()))
        } else {
            w.answer(a)
        }
    })
    .await?;
    same!("id", r?, config);
    ctx.cri.remove_image(&format!("{}/t/x:1", h.host)).await?;
    Ok(())
}

async fn redirects(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let store = w.clone();
    let cdn = Hostile::start(move |a| store.answer(a)).await?;
    let target = cdn.host.clone();
    let (h, r) = pull(ctx, move |a| {
        if a.path.contains("/blobs/") {
            Reply::error(307, "X").with("Location", &format!("http://{target}{}?signed=1", a.path))
        } else {
            w.answer(a)
        }
    })
    .await?;
    r?;
    let asked = cdn.asked();
    ensure!(!asked.is_empty() && asked.iter().all(|a| a.path.ends_with("?signed=1")), "the store was asked {asked:?}");
    ctx.cri.remove_image(&format!("{}/t/x:1", h.host)).await?;
    Ok(())
}

async fn redirect_loop(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    refused(ctx, move |a| {
        if a.path.contains("/blobs/") { Reply::error(307, "X").with("Location", &a.path) } else { w.answer(a) }
    })
    .await
    .map(drop)
}

async fn bearer_token(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let host = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let known = host.clone();
    let h = Hostile::start(move |a| {
        if a.path.starts_with("/token") {
            let basic = a.headers.get("authorization").is_some_and(|v| v == "Basic dTpw");
            return if basic {
                Reply::ok("application/json", b"{\"token\":\"good\",\"expires_in\":60}")
            } else {
                Reply::error(401, "UNAUTHORIZED")
            };
        }
        if a.headers.get("authorization").is_some_and(|v| v == "Bearer good") {
            return w.answer(a);
        }
        let host = known.get().cloned().unwrap_or_default();
        Reply::error(401, "UNAUTHORIZED").with(
            "WWW-Authenticate",
            &format!("Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:t/x:pull\""),
        )
    })
    .await?;
    let _ = host.set(h.host.clone());
    let image = format!("{}/t/x:1", h.host);
    let auth = |p: &str| Some(AuthConfig { username: "u".into(), password: p.into(), ..Default::default() });
    ensure!(ctx.cri.pull(&image).await.is_err(), "without credentials");
    ensure!(ctx.cri.pull_as(&image, auth("wrong")).await.is_err(), "with wrong credentials");
    ctx.cri.pull_as(&image, auth("p")).await?;
    ctx.only_crisp("a present image is pulled again by anybody")
        .or_else(|e| if matches!(e, crate::fail::Fail::Skip(_)) { Ok(()) } else { Err(e) })?;
    let nobody = ctx.cri.pull(&image).await;
    ctx.cri.remove_image(&image).await?;
    ensure!(nobody.is_err(), "whoever comes after a pull with credentials gets the image without any");
    Ok(())
}

async fn basic_auth(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let h = Hostile::start(move |a| {
        if a.headers.get("authorization").is_some_and(|v| v == "Basic dTpw") {
            w.answer(a)
        } else {
            Reply::error(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"r\"")
        }
    })
    .await?;
    let image = format!("{}/t/x:1", h.host);
    ensure!(ctx.cri.pull(&image).await.is_err(), "without credentials");
    let encoded =
        AuthConfig { auth: "dTpw".into(), server_address: format!("http://{}", h.host), ..Default::default() };
    ctx.cri.pull_as(&image, Some(encoded)).await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn credentials_stay_with_their_host(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let store = w.clone();
    let cdn = Hostile::start(move |a| store.answer(a)).await?;
    let target = cdn.host.replace("127.0.0.1", "127.0.0.2");
    let direct = cdn.host.clone();
    let _ = target;
    let (_h, _) = {
        let h = Hostile::start(move |a| {
            if !a.headers.contains_key("authorization") {
                return Reply::error(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"r\"");
            }
            if a.path.contains("/blobs/") {
                Reply::error(307, "X").with(
                    "Location",
                    &format!("http://localhost:{}{}", direct.rsplit(':').next().unwrap_or("1"), a.path),
                )
            } else {
                w.answer(a)
            }
        })
        .await?;
        let auth = AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
        let image = format!("{}/t/x:1", h.host);
        let r = ctx.cri.pull_as(&image, Some(auth)).await;
        let _ = ctx.cri.remove_image(&image).await;
        (h, r)
    };
    ensure!(!cdn.asked().is_empty(), "the redirect was not followed");
    ensure!(
        cdn.asked().iter().all(|a| !a.headers.contains_key("authorization")),
        "the password went to the host that the registry pointed at"
    );
    let other = wares(ctx)?;
    let e = Hostile::start(move |a| other.answer(a)).await?;
    let auth = AuthConfig {
        username: "u".into(),
        password: "p".into(),
        server_address: "registry.example".into(),
        ..Default::default()
    };
    let image = format!("{}/t/x:1", e.host);
    let _ = ctx.cri.pull_as(&image, Some(auth)).await;
    let _ = ctx.cri.remove_image(&image).await;
    ensure!(
        e.asked().iter().all(|a| !a.headers.contains_key("authorization")),
        "credentials for registry.example went to {}",
        e.host
    );
    Ok(())
}

async fn stalled_layer_ends_with_the_call(ctx: &Ctx) -> Res {
    let w = wares(ctx)?;
    let h = Hostile::start(move |a| {
        let r = w.answer(a);
        if is_layer(&a.path, &w) { Reply { stall: true, ..r } } else { r }
    })
    .await?;
    let image = format!("{}/t/x:1", h.host);
    let mut request = tonic::Request::new(PullImageRequest { image: Some(spec(&image)), ..Default::default() });
    request.set_timeout(Duration::from_secs(3));
    let t = Instant::now();
    let r = ctx.cri.im.clone().pull_image(request).await;
    ensure!(r.is_err() && t.elapsed() < Duration::from_secs(10), "a stalled pull ends after {:?}: {r:?}", t.elapsed());
    // The server goes on answering, and others pull meanwhile.
    ctx.cri.pull(&ctx.busybox()).await?;
    drop(h);
    Ok(())
}

async fn a_failed_pull_leaves_nothing(ctx: &Ctx) -> Res {
    // The second of two layers is wrong; the leak check after the case finds what the first may have left.
    let w =
        Wares::new(vec![layer(&format!("a {}", ctx.number()))?, layer(&format!("b {}", ctx.number()))?], &json!({}));
    let bad = digest(&w.layers[1].blob);
    refused(ctx, move |a| if a.path.ends_with(&bad) { Reply::error(404, "BLOB_UNKNOWN") } else { w.answer(a) })
        .await
        .map(drop)
}
