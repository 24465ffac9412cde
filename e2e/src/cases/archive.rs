//! Layers that attack: whether one is refused or unpacked, nothing is written outside of its root.

use super::{
    Ctx, cases,
    registry::{pull, refused, wares},
};
use crate::{
    fail::{Res, ensure, same},
    hostile::Wares,
    push::{Layer, digest},
    tar::{Kind, Tar},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tonic::Status;

cases!("registry":
    layer_with_dot_dot, layer_with_absolute_names, layer_through_a_symlink, hard_link_outside, bomb_is_bounded, not_a_tar,
    thousands_of_whiteouts,
);

/// Pulls an image with a hostile layer over busybox; whether it is refused is the server's choice, what it may write is not.
async fn unpack(ctx: &Ctx, tar: &Tar) -> Res<Result<String, Status>> {
    let base = super::container::base(ctx).await?;
    let w = Wares::new(vec![base, Layer::gzip(tar)?], &json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]}));
    let (h, r) = pull(ctx, move |a| w.answer(a)).await?;
    if r.is_ok() {
        ctx.cri.remove_image(&format!("{}/t/x:1", h.host)).await?;
    }
    Ok(r)
}

async fn layer_with_dot_dot(ctx: &Ctx) -> Res {
    let victim = ctx.tmp()?;
    let up = format!("{}{}/escaped", "../".repeat(30), victim.display().to_string().trim_start_matches('/'));
    let mut tar = Tar::default();
    tar.dir("a").file(&up, "x", 0o644).file("a/../../../../../../../../../../etc/crisp-e2e-escaped", "x", 0o644);
    let _ = unpack(ctx, &tar).await?;
    ensure!(
        !victim.join("escaped").exists() && !std::path::Path::new("/etc/crisp-e2e-escaped").exists(),
        "a layer wrote outside its root"
    );
    Ok(())
}

async fn layer_with_absolute_names(ctx: &Ctx) -> Res {
    let victim = ctx.tmp()?;
    let _ = unpack(ctx, Tar::default().file(&format!("{}/escaped", victim.display()), "x", 0o644)).await?;
    ensure!(!victim.join("escaped").exists(), "a layer wrote outside its root");
    Ok(())
}

async fn layer_through_a_symlink(ctx: &Ctx) -> Res {
    let victim = ctx.tmp()?;
    let v = victim.to_string_lossy().into_owned();
    let mut tar = Tar::default();
    tar.add("link", Kind::Symlink(&v), 0o777, 0, 0).file("link/escaped", "x", 0o644).add(
        "up",
        Kind::Symlink("../../../../../../../.."),
        0o777,
        0,
        0,
    );
    tar.file(&format!("up{v}/escaped2"), "x", 0o644).file("link/.wh.keep", "", 0o644).add(
        "link",
        Kind::Dir,
        0o777,
        0,
        0,
    );
    std::fs::write(victim.join("keep"), "x")?;
    let _ = unpack(ctx, &tar).await?;
    same!(
        "files there",
        std::fs::read_dir(&victim)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>(),
        ["keep"]
    );
    Ok(())
}

async fn hard_link_outside(ctx: &Ctx) -> Res {
    let victim = ctx.tmp()?.join("secret");
    std::fs::write(&victim, "secret")?;
    let mut tar = Tar::default();
    tar.add("grab", Kind::Hardlink(&victim.to_string_lossy()), 0o644, 0, 0).add(
        "grab2",
        Kind::Hardlink(&format!("{}{}", "../".repeat(30), victim.display())),
        0o644,
        0,
        0,
    );
    let _ = unpack(ctx, &tar).await?;
    same!("links to the host's file", std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(&victim)?), 1);
    Ok(())
}

async fn bomb_is_bounded(ctx: &Ctx) -> Res {
    // 64 MB of zeros in 64 kB: fine. A layer whose manifest promises less than it sends is not.
    let mut tar = Tar::default();
    tar.file("zeros", vec![0; 64 << 20], 0o644);
    unpack(ctx, &tar).await??;
    let mut w = wares(ctx)?;
    let big = Layer::gzip(&tar)?;
    let mut m: Value = serde_json::from_slice(&w.manifest)?;
    m["layers"][0] = json!({"mediaType": crate::push::GZIP, "digest": digest(&big.blob), "size": 100});
    w.manifest = m.to_string().into_bytes();
    w.layers = vec![big];
    refused(ctx, move |a| w.answer(a)).await.map(drop)
}

async fn not_a_tar(ctx: &Ctx) -> Res {
    for bytes in [vec![b'x'; 5000], vec![0xff; 512]] {
        let w = Wares::new(vec![Layer::gzip_bytes(&bytes)?], &json!({}));
        refused(ctx, move |a| w.answer(a)).await?;
    }
    Ok(())
}

async fn thousands_of_whiteouts(ctx: &Ctx) -> Res {
    let mut tar = Tar::default();
    for i in 0..5000 {
        tar.file(&format!("d/.wh.f{i}"), "", 0o644);
    }
    let t = Instant::now();
    let _ = unpack(ctx, &tar).await?;
    ensure!(t.elapsed() < Duration::from_secs(30), "{:?}", t.elapsed());
    Ok(())
}
