//! Volumes: kinds, read-only, propagation, links, images as volumes.

use super::{
    Ctx, Pod, cases,
    security::{in_userns, userns, userns_pod},
};
use crate::{
    client::spec,
    fail::{Res, ensure, same},
    push::{Layer, push},
    tar::Tar,
};
use crisp_cri_proto::v1::*;
use serde_json::json;
use std::{fs, path::Path};

cases!("mounts":
    directory_and_file, read_only, missing_source_is_made, symlink_source_is_followed, symlink_in_the_image_stays_inside,
    host_to_container_propagation, bidirectional_propagation, private_propagation, recursive_read_only, overrides_of_pod_files,
    nested_mounts_in_any_order, image_volume, image_volume_sub_path, image_volume_missing_sub_path,
    image_volume_in_a_user_namespace, relative_paths_are_refused, volumes_of_the_image, many_mounts,
);

fn mount(host: &Path, container: &str) -> Mount {
    Mount { host_path: host.to_string_lossy().into(), container_path: container.into(), ..Default::default() }
}

async fn directory_and_file(ctx: &Ctx) -> Res {
    let dir = ctx.tmp()?;
    fs::write(dir.join("f"), "host")?;
    let pod = ctx.up().await?;
    let out = pod
        .script("cat /d/f /one; echo made > /d/g", |c| {
            c.mounts = vec![mount(&dir, "/d"), mount(&dir.join("f"), "/one")]
        })
        .await?;
    same!("content", out, "hosthost");
    same!("written", fs::read_to_string(dir.join("g"))?, "made\n");
    Ok(())
}

async fn read_only(ctx: &Ctx) -> Res {
    let dir = ctx.tmp()?;
    let pod = ctx.up().await?;
    let out = pod
        .script("echo x > /d/x 2>&1 || echo refused", |c| {
            c.mounts = vec![Mount { readonly: true, ..mount(&dir, "/d") }]
        })
        .await?;
    ensure!(out.contains("refused") && !dir.join("x").exists(), "a read-only volume was written: {out}");
    Ok(())
}

async fn missing_source_is_made(ctx: &Ctx) -> Res {
    let dir = ctx.tmp()?.join("not/yet");
    let pod = ctx.up().await?;
    pod.script("test -d /d", |c| c.mounts = vec![mount(&dir, "/d")]).await?;
    ensure!(dir.is_dir(), "{} was not made", dir.display());
    Ok(())
}

async fn symlink_source_is_followed(ctx: &Ctx) -> Res {
    let dir = ctx.tmp()?;
    fs::create_dir(dir.join("real"))?;
    fs::write(dir.join("real/f"), "x")?;
    std::os::unix::fs::symlink("real", dir.join("link"))?;
    let pod = ctx.up().await?;
    same!("content", pod.script("cat /d/f", |c| c.mounts = vec![mount(&dir.join("link"), "/d")]).await?, "x");
    Ok(())
}

async fn symlink_in_the_image_stays_inside(ctx: &Ctx) -> Res {
    let name = ctx.fresh("link");
    let victim = ctx.tmp()?;
    let mut tar = Tar::default();
    tar.add("evil", crate::tar::Kind::Symlink(&victim.to_string_lossy()), 0o777, 0, 0);
    push(
        &ctx.registry,
        &[&name],
        &[super::container::base(ctx).await?, Layer::gzip(&tar)?],
        &json!({"Env": ["PATH=/bin"]}),
    )
    .await?;
    let image = ctx.image(&name);
    ctx.cri.pull(&image).await?;
    let dir = ctx.tmp()?;
    let pod = ctx.up().await?;
    let out = pod.script("echo x > /evil/sub/x; ls /evil/sub", |c| {
        c.image = Some(spec(&image));
        c.mounts = vec![mount(&dir, "/evil/sub")];
    });
    let _ = out.await;
    same!("files made on the host", fs::read_dir(&victim)?.count(), 0);
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

/// A pod whose container sees `dir` at /d with this propagation.
async fn propagated(ctx: &Ctx, dir: &Path, p: MountPropagation) -> Res<(String, bool)> {
    crate::sh::script(dir, "mkdir -p in sub; mount -t tmpfs e2e in; mount --make-rshared in; mkdir in/late", 10)
        .await?;
    let pod = ctx.up_as(privileged_pod(ctx)).await?;
    let mut config = ctx.container("c", &["sleep", "3600"]);
    config.mounts = vec![Mount { propagation: p as i32, ..mount(&dir.join("in"), "/d") }];
    super::security(&mut config).privileged = true;
    let c = pod.start(&config).await?;
    crate::sh::script(dir, "mount -t tmpfs e2e-late in/late; echo seen > in/late/f", 10).await?;
    let seen = ctx.cri.sh(&c, "cat /d/late/f 2>/dev/null || echo nothing").await?;
    ctx.cri.sh(&c, "mkdir -p /d/own; mount -t tmpfs x /d/own; echo back > /d/own/f").await?;
    let back = dir.join("in/own/f").exists();
    pod.down().await?;
    crate::sh::script(dir, "umount -R in", 10).await?;
    Ok((seen, back))
}

fn privileged_pod(ctx: &Ctx) -> PodSandboxConfig {
    let mut config = ctx.pod();
    super::pod_security(&mut config).privileged = true;
    config
}

async fn host_to_container_propagation(ctx: &Ctx) -> Res {
    ctx.world()?;
    let dir = ctx.tmp()?;
    same!(
        "seen inside, seen on the host",
        propagated(ctx, &dir, MountPropagation::PropagationHostToContainer).await?,
        ("seen\n".to_owned(), false)
    );
    Ok(())
}

async fn bidirectional_propagation(ctx: &Ctx) -> Res {
    ctx.world()?;
    let dir = ctx.tmp()?;
    same!(
        "seen inside, seen on the host",
        propagated(ctx, &dir, MountPropagation::PropagationBidirectional).await?,
        ("seen\n".to_owned(), true)
    );
    Ok(())
}

async fn private_propagation(ctx: &Ctx) -> Res {
    ctx.world()?;
    let dir = ctx.tmp()?;
    same!(
        "seen inside, seen on the host",
        propagated(ctx, &dir, MountPropagation::PropagationPrivate).await?,
        ("nothing\n".to_owned(), false)
    );
    Ok(())
}

async fn recursive_read_only(ctx: &Ctx) -> Res {
    ctx.world()?;
    let status = ctx.cri.rt.clone().status(StatusRequest { verbose: false }).await?.into_inner();
    if !status.runtime_handlers.iter().any(|h| h.features.as_ref().is_some_and(|f| f.recursive_read_only_mounts)) {
        return crate::fail::skip("no handler announces recursive read-only mounts");
    }
    let dir = ctx.tmp()?;
    crate::sh::script(&dir, "mkdir sub; mount -t tmpfs e2e sub", 10).await?;
    let pod = ctx.up().await?;
    let plain = pod
        .script("echo x > /d/sub/x && echo written", |c| c.mounts = vec![Mount { readonly: true, ..mount(&dir, "/d") }])
        .await;
    let rro = pod.script("echo x > /d/sub/y 2>/dev/null || echo refused", |c| {
        c.mounts = vec![Mount { readonly: true, recursive_read_only: true, ..mount(&dir, "/d") }];
    });
    let rro = rro.await;
    let mut config = ctx.container("bad", &["true"]);
    config.mounts = vec![Mount { recursive_read_only: true, ..mount(&dir, "/d") }];
    let bad = pod.create(&config).await;
    pod.down().await?;
    crate::sh::script(&dir, "umount sub", 10).await?;
    same!("plain read-only leaves mounts below writable", plain?, "written\n");
    same!("recursive", rro?, "refused\n");
    ensure!(bad.is_err(), "recursive without read-only is accepted");
    Ok(())
}

async fn overrides_of_pod_files(ctx: &Ctx) -> Res {
    let dir = ctx.tmp()?;
    fs::write(dir.join("hosts"), "10.9.8.7 mine\n")?;
    let pod = ctx.up().await?;
    let out = pod.script("cat /etc/hosts; touch /dev/shm/mark", |c| {
        c.mounts = vec![mount(&dir.join("hosts"), "/etc/hosts"), mount(&dir, "/dev/shm")];
    });
    same!("hosts", out.await?, "10.9.8.7 mine\n");
    ensure!(dir.join("mark").exists(), "/dev/shm is not the volume");
    Ok(())
}

async fn nested_mounts_in_any_order(ctx: &Ctx) -> Res {
    let (a, b) = (ctx.tmp()?, ctx.tmp()?);
    fs::write(b.join("inner"), "x")?;
    let pod = ctx.up().await?;
    let out = pod.script("cat /v/sub/inner", |c| c.mounts = vec![mount(&b, "/v/sub"), mount(&a, "/v")]).await?;
    same!("content", out, "x");
    Ok(())
}

/// Pulls an image with `/data/deep/f` and returns its name.
async fn volume_image(ctx: &Ctx) -> Res<String> {
    let name = ctx.fresh("vol");
    let mut tar = Tar::default();
    tar.dir("data").dir("data/deep").file("data/deep/f", "in the image", 0o644);
    push(&ctx.registry, &[&name], &[Layer::gzip(&tar)?], &json!({})).await?;
    let image = ctx.image(&name);
    ctx.cri.pull(&image).await?;
    Ok(image)
}

fn image_mount(image: &str, sub: &str) -> Mount {
    Mount {
        container_path: "/img".into(),
        image: Some(spec(image)),
        image_sub_path: sub.into(),
        readonly: true,
        ..Default::default()
    }
}

async fn with_image(pod: &Pod<'_>, image: &str, sub: &str, script: &str) -> Res<String> {
    pod.script(script, |c| c.mounts = vec![image_mount(image, sub)]).await
}

async fn image_volume(ctx: &Ctx) -> Res {
    let image = volume_image(ctx).await?;
    let pod = ctx.up().await?;
    let out =
        with_image(&pod, &image, "", "cat /img/data/deep/f; echo x > /img/x 2>/dev/null || echo ' refused'").await?;
    same!("content, write", out, "in the image refused\n");
    pod.down().await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn image_volume_sub_path(ctx: &Ctx) -> Res {
    let image = volume_image(ctx).await?;
    let pod = ctx.up().await?;
    same!("content", with_image(&pod, &image, "data/deep", "cat /img/f").await?, "in the image");
    pod.down().await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn image_volume_in_a_user_namespace(ctx: &Ctx) -> Res {
    let image = volume_image(ctx).await?;
    let pod = userns_pod(ctx).await?;
    for (sub, file) in [("", "/img/data/deep/f"), ("data/deep", "/img/f")] {
        let script = format!("cat {file}; stat -c ' %u' {file}");
        let out = pod.script(&script, |c| {
            in_userns(c);
            // kubelet says the pod's mapping of each mount, whatever it is of.
            let UserNamespace { uids, gids, .. } = userns();
            c.mounts = vec![Mount { uid_mappings: uids, gid_mappings: gids, ..image_mount(&image, sub) }];
        });
        same!("content, owner", out.await?, "in the image 0\n");
    }
    pod.down().await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn image_volume_missing_sub_path(ctx: &Ctx) -> Res {
    let image = volume_image(ctx).await?;
    let pod = ctx.up().await?;
    for sub in ["nope", "../../../etc", "/etc"] {
        let r = with_image(&pod, &image, sub, "ls /img").await;
        ensure!(r.is_err(), "sub path {sub:?} is accepted");
    }
    pod.down().await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn relative_paths_are_refused(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["true"]);
    config.mounts = vec![Mount { container_path: "/d".into(), host_path: String::new(), ..Default::default() }];
    ensure!(pod.create(&config).await.is_err(), "an empty host path is accepted");
    config.mounts = vec![Mount { container_path: String::new(), host_path: "/tmp".into(), ..Default::default() }];
    let r = match pod.create(&config).await {
        Ok(c) => ctx.cri.start(&c).await,
        Err(e) => Err(e),
    };
    ensure!(r.is_err(), "an empty container path is accepted");
    Ok(())
}

async fn volumes_of_the_image(ctx: &Ctx) -> Res {
    let name = ctx.fresh("volumes");
    let mut tar = Tar::default();
    tar.add("vol", crate::tar::Kind::Dir, 0o750, 12, 34).add("vol/f", crate::tar::Kind::File(b"copied"), 0o600, 12, 34);
    let config = json!({"Env": ["PATH=/bin"], "Volumes": {"/vol": {}}});
    push(&ctx.registry, &[&name], &[super::container::base(ctx).await?, Layer::gzip(&tar)?], &config).await?;
    let image = ctx.image(&name);
    ctx.cri.pull(&image).await?;
    let pod = ctx.up().await?;
    let out = pod.script(
        "cat /vol/f; echo; stat -c '%u %g %a' /vol /vol/f; grep -c ' /vol ' /proc/mounts; echo x > /vol/x",
        |c| {
            c.image = Some(spec(&image));
        },
    );
    same!("copied up with owners", out.await?, "copied\n12 34 750\n12 34 600\n1\n");
    pod.down().await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn many_mounts(ctx: &Ctx) -> Res {
    let dir = ctx.tmp()?;
    let pod = ctx.up().await?;
    let out = pod
        .script("ls -d /m/* | wc -l", |c| c.mounts = (0..150).map(|i| mount(&dir, &format!("/m/{i}"))).collect())
        .await?;
    same!("mounts", out.trim(), "150");
    Ok(())
}
