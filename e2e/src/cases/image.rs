//! Images from an honest registry: names, ids, kinds of layers, removal.

use super::{Ctx, cases};
use crate::{
    fail::{Res, ensure, same},
    push::{Layer, push},
    tar::{Kind, Tar},
};
use crisp_cri_proto::v1::*;
use serde_json::json;

cases!("image":
    pull_status_list_remove, same_id_everywhere, unknown_image, several_tags_on_one_image, by_digest_and_by_id, user_in_status,
    list_filter, pulled_by_ten_at_once, gzip_zstd_and_plain_layers, whiteouts, opaque_directory, links_owners_and_modes,
    a_path_over_a_link_below, removed_while_in_use, filesystem_usage, stream_equals_list, shared_layers_survive_removal, many_layers,
    missing_tag_and_repository, bad_names_are_refused,
);

/// Pushes layers over busybox and pulls the result.
async fn made(ctx: &Ctx, layers: Vec<Layer>) -> Res<String> {
    let name = ctx.fresh("made");
    let all: Vec<Layer> = std::iter::once(super::container::base(ctx).await?).chain(layers).collect();
    push(&ctx.registry, &[&name], &all, &json!({"Env": ["PATH=/bin"]})).await?;
    let image = ctx.image(&name);
    ctx.cri.pull(&image).await?;
    Ok(image)
}

/// Runs a script in the image, and removes it.
async fn look(ctx: &Ctx, image: &str, script: &str) -> Res<String> {
    let pod = ctx.up().await?;
    let out = pod.script(script, |c| c.image = Some(crate::client::spec(image))).await?;
    pod.down().await?;
    ctx.cri.remove_image(image).await?;
    Ok(out)
}

async fn pull_status_list_remove(ctx: &Ctx) -> Res {
    let image = ctx.image("k8s-staging-cri-tools/test-image-1:latest");
    let id = ctx.cri.pull(&image).await?;
    let i = ctx.cri.image(&image).await?.unwrap_or_default();
    same!("id", i.id, id);
    ensure!(i.id.starts_with("sha256:") && i.id.len() == 71, "id {}", i.id);
    same!("tags", i.repo_tags, std::slice::from_ref(&image));
    ensure!(
        i.repo_digests.len() == 1
            && i.repo_digests[0].starts_with(&format!("{}@sha256:", ctx.image("k8s-staging-cri-tools/test-image-1"))),
        "{:?}",
        i.repo_digests
    );
    ensure!(i.size > 0, "size 0");
    ensure!(ctx.cri.images().await?.iter().any(|l| l.id == id), "not in the list");
    ctx.cri.remove_image(&image).await?;
    ensure!(ctx.cri.image(&image).await?.is_none(), "still there");
    Ok(())
}

async fn same_id_everywhere(ctx: &Ctx) -> Res {
    let id = ctx.cri.pull(&ctx.busybox()).await?;
    let pod = ctx.up().await?;
    let c = pod.sleeper().await?;
    same!("ContainerStatus.image_id", ctx.cri.status(&c).await?.image_id, id);
    same!("Image.id", ctx.cri.image(&ctx.busybox()).await?.unwrap_or_default().id, id);
    Ok(())
}

async fn unknown_image(ctx: &Ctx) -> Res {
    let name = ctx.image("not/there:1");
    ensure!(ctx.cri.image(&name).await?.is_none(), "an unknown image has a status");
    ctx.cri.remove_image(&name).await?;
    let pod = ctx.up().await?;
    let mut c = ctx.container("c", &["true"]);
    c.image = Some(crate::client::spec(&name));
    let error = pod.create(&c).await.err();
    ensure!(error.as_ref().is_some_and(|e| e.message().contains("not/there")), "{error:?}");
    Ok(())
}

async fn several_tags_on_one_image(ctx: &Ctx) -> Res {
    let names: Vec<String> =
        (1..=3).map(|i| ctx.image(&format!("k8s-staging-cri-tools/test-image-tags:{i}"))).collect();
    let mut ids = std::collections::BTreeSet::new();
    for n in &names {
        ids.insert(ctx.cri.pull(n).await?);
    }
    same!("ids", ids.len(), 1);
    let mut tags = ctx.cri.image(&names[0]).await?.unwrap_or_default().repo_tags;
    tags.sort();
    same!("tags", tags, names);
    ctx.cri.remove_image(&names[0]).await?;
    ensure!(ctx.cri.image(&names[2]).await?.is_none(), "removing by one tag leaves the others");
    Ok(())
}

async fn by_digest_and_by_id(ctx: &Ctx) -> Res {
    let image = ctx.image("k8s-staging-cri-tools/test-image-2:latest");
    let id = ctx.cri.pull(&image).await?;
    let digest = ctx.cri.image(&image).await?.unwrap_or_default().repo_digests[0].clone();
    same!("status by id", ctx.cri.image(&id).await?.map(|i| i.id), Some(id.clone()));
    same!("by bare hex", ctx.cri.image(&id[7..]).await?.map(|i| i.id), Some(id.clone()));
    same!("by repository digest", ctx.cri.image(&digest).await?.map(|i| i.id), Some(id.clone()));
    ctx.cri.remove_image(&id).await?;
    same!("pulled by digest", ctx.cri.pull(&digest).await?, id);
    let i = ctx.cri.image(&digest).await?.unwrap_or_default();
    same!("tags of an image pulled by digest", i.repo_tags.len(), 0);
    same!("digests", i.repo_digests, std::slice::from_ref(&digest));
    ctx.cri.remove_image(&digest).await?;
    Ok(())
}

async fn user_in_status(ctx: &Ctx) -> Res {
    for (name, uid, user) in [
        ("uid", Some(1002), ""),
        ("username", None, "www-data"),
        ("uid-group", Some(1003), ""),
        ("username-group", None, "www-data"),
    ] {
        let image = ctx.image(&format!("k8s-staging-cri-tools/test-image-user-{name}:latest"));
        ctx.cri.pull(&image).await?;
        let i = ctx.cri.image(&image).await?.unwrap_or_default();
        same!(name, (i.uid.map(|u| u.value), i.username.as_str()), (uid, user));
        ctx.cri.remove_image(&image).await?;
    }
    Ok(())
}

async fn list_filter(ctx: &Ctx) -> Res {
    let image = ctx.image("k8s-staging-cri-tools/test-image-3:latest");
    ctx.cri.pull(&image).await?;
    let filter = |i: &str| ListImagesRequest { filter: Some(ImageFilter { image: Some(crate::client::spec(i)) }) };
    same!("that image", ctx.cri.im.clone().list_images(filter(&image)).await?.into_inner().images.len(), 1);
    same!("no such", ctx.cri.im.clone().list_images(filter("no.such/image:1")).await?.into_inner().images.len(), 0);
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn pulled_by_ten_at_once(ctx: &Ctx) -> Res {
    let image = ctx.image("k8s-staging-cri-tools/test-image-1:latest");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (cri, image) = (ctx.cri.clone(), image.clone());
        tasks.spawn(async move { cri.pull(&image).await });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(r) = tasks.join_next().await {
        ids.insert(r??);
    }
    same!("ids", ids.len(), 1);
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn gzip_zstd_and_plain_layers(ctx: &Ctx) -> Res {
    let mut t = [Tar::default(), Tar::default(), Tar::default()];
    for (i, t) in t.iter_mut().enumerate() {
        t.file(&format!("f{i}"), format!("layer {i}\n"), 0o644);
    }
    let image = made(ctx, vec![Layer::gzip(&t[0])?, Layer::zstd_bytes(&t[1].end())?, Layer::plain(&t[2])]).await?;
    same!("content", look(ctx, &image, "cat /f0 /f1 /f2").await?, "layer 0\nlayer 1\nlayer 2\n");
    Ok(())
}

async fn whiteouts(ctx: &Ctx) -> Res {
    let mut low = Tar::default();
    low.dir("d").file("d/gone", "x", 0o644).file("d/stays", "x", 0o644).dir("e").file("e/x", "x", 0o644);
    let mut high = Tar::default();
    high.file("d/.wh.gone", "", 0o644).file(".wh.e", "", 0o644).file(".wh.not-there", "", 0o644);
    let image = made(ctx, vec![Layer::gzip(&low)?, Layer::gzip(&high)?]).await?;
    same!("left", look(ctx, &image, "ls /d; ls -d /e 2>/dev/null; ls -a / | grep -c wh || true").await?, "stays\n0\n");
    Ok(())
}

async fn opaque_directory(ctx: &Ctx) -> Res {
    let mut low = Tar::default();
    low.dir("d").file("d/old", "x", 0o644).dir("d/sub").file("d/sub/old", "x", 0o644);
    let mut high = Tar::default();
    high.dir("d").file("d/new", "x", 0o644).file("d/.wh..wh..opq", "", 0o644);
    let image = made(ctx, vec![Layer::gzip(&low)?, Layer::gzip(&high)?]).await?;
    same!("left", look(ctx, &image, "ls -a /d").await?, ".\n..\nnew\n");
    Ok(())
}

async fn links_owners_and_modes(ctx: &Ctx) -> Res {
    let mut low = Tar::default();
    low.dir("d").add("d/f", Kind::File(b"body"), 0o4755, 12, 34);
    let mut high = Tar::default();
    high.add("d/hard", Kind::Hardlink("d/f"), 0o4755, 12, 34)
        .add("d/sym", Kind::Symlink("../d/f"), 0o777, 0, 0)
        .add("d/null", Kind::Char(1, 3), 0o666, 0, 0)
        .add("d/fifo", Kind::Fifo, 0o600, 0, 0);
    let image = made(ctx, vec![Layer::gzip(&low)?, Layer::gzip(&high)?]).await?;
    let script = "stat -c '%u %g %a' /d/f; cat /d/hard /d/sym; echo; echo x > /d/null && cat /d/null; test -p /d/fifo && echo fifo; \
                  test $(stat -c %i /d/f) = $(stat -c %i /d/hard) && echo one inode";
    let out = look(ctx, &image, script).await?;
    ensure!(out.starts_with("12 34 4755\nbodybody\nfifo\n"), "{out}");
    Ok(())
}

/// Engines unpack each layer by itself, so the path becomes a directory that hides the link.
async fn a_path_over_a_link_below(ctx: &Ctx) -> Res {
    let mut low = Tar::default();
    low.dir("run").dir("var").add("var/run", Kind::Symlink("/run"), 0o777, 0, 0);
    let mut high = Tar::default();
    high.file("var/run/pid", "1", 0o644);
    let image = made(ctx, vec![Layer::gzip(&low)?, Layer::gzip(&high)?]).await?;
    let script = "cat /var/run/pid; echo; test -d /var/run && test ! -L /var/run && echo directory";
    same!("seen", look(ctx, &image, script).await?, "1\ndirectory\n");
    Ok(())
}

async fn removed_while_in_use(ctx: &Ctx) -> Res {
    let image = made(ctx, vec![Layer::gzip(Tar::default().file("f", "still here", 0o644))?]).await?;
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["sleep", "3600"]);
    config.image = Some(crate::client::spec(&image));
    let c = pod.start(&config).await?;
    // Refused or untagged: both are right. The running container must not notice.
    let _ = ctx.cri.remove_image(&image).await;
    same!("content", ctx.cri.sh(&c, "cat /f").await?, "still here");
    pod.down().await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn filesystem_usage(ctx: &Ctx) -> Res {
    let info = ctx.cri.im.clone().image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
    ensure!(!info.image_filesystems.is_empty(), "no image file system");
    let fs = &info.image_filesystems[0];
    let point = fs.fs_id.clone().unwrap_or_default().mountpoint;
    ensure!(fs.timestamp > 0 && std::path::Path::new(&point).exists(), "{fs:?}");
    ensure!(fs.used_bytes.is_some() && fs.inodes_used.is_some(), "{fs:?}");
    Ok(())
}

async fn stream_equals_list(ctx: &Ctx) -> Res {
    ctx.cri.ensure(&ctx.busybox()).await?;
    let mut stream = ctx.cri.im.clone().stream_images(StreamImagesRequest::default()).await?.into_inner();
    let mut ids = Vec::new();
    while let Some(m) = stream.message().await? {
        ids.extend(m.images.into_iter().map(|i| i.id));
    }
    let mut list: Vec<String> = ctx.cri.images().await?.into_iter().map(|i| i.id).collect();
    ids.sort();
    list.sort();
    same!("ids", ids, list);
    Ok(())
}

async fn shared_layers_survive_removal(ctx: &Ctx) -> Res {
    let shared = Layer::gzip(Tar::default().file("shared", "s", 0o644))?;
    let a = made(ctx, vec![shared.clone(), Layer::gzip(Tar::default().file("a", "a", 0o644))?]).await?;
    let b = made(ctx, vec![shared, Layer::gzip(Tar::default().file("b", "b", 0o644))?]).await?;
    ctx.cri.remove_image(&a).await?;
    same!("content", look(ctx, &b, "cat /shared /b").await?, "sb");
    Ok(())
}

async fn many_layers(ctx: &Ctx) -> Res {
    let mut layers = Vec::new();
    for i in 0..110 {
        layers.push(Layer::gzip(Tar::default().file(&format!("many/{i}"), "x", 0o644))?);
    }
    let image = made(ctx, layers).await?;
    same!("files", look(ctx, &image, "ls /many | wc -l").await?.trim(), "110");
    Ok(())
}

async fn missing_tag_and_repository(ctx: &Ctx) -> Res {
    for name in ["no/such/repository:1", "library/busybox:nosuchtag"] {
        let image = ctx.image(name);
        let error = ctx.cri.pull(&image).await.err();
        same!(name, error.as_ref().map(|e| e.code()), Some(tonic::Code::NotFound));
        ensure!(
            error.as_ref().is_some_and(|e| e.message().contains(name.split(':').next().unwrap_or(name))),
            "{error:?}"
        );
    }
    Ok(())
}

async fn bad_names_are_refused(ctx: &Ctx) -> Res {
    ensure!(ctx.cri.pull("").await.is_err(), "an empty name is pulled");
    for name in [
        "UPPER/case:1",
        "a b",
        "x@sha256:short",
        "x:tag:tag",
        "../../etc/passwd",
        "x/\n",
        &format!("x/{}", "a".repeat(5000)),
    ] {
        ensure!(ctx.cri.pull(&ctx.image(name)).await.is_err(), "{name:?} is pulled");
    }
    Ok(())
}
