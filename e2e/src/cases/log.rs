//! Log files: format, partial lines, rotation, where they may be.

use super::{Ctx, cases};
use crate::{
    fail::{Res, ensure, same},
    logs,
};
use crisp_cri_proto::v1::*;
use std::{fs, os::unix::fs::PermissionsExt};

cases!("log":
    both_streams_in_order, long_lines_are_split, last_line_without_newline, odd_bytes, reopen_loses_nothing,
    reopen_needs_a_running_container, no_log_path_discards, path_outside_is_refused, symlinked_directory_is_refused, file_is_private,
    fast_writer_is_whole, deleted_log_does_not_stop_the_container, tty_is_one_stream,
);

async fn both_streams_in_order(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let config = ctx
        .container("c", &["sh", "-c", "for i in 1 2 3; do echo out$i; sleep 0.05; echo err$i >&2; sleep 0.05; done"]);
    let c = pod.start(&config).await?;
    ctx.cri.wait_exit(&c, 10).await?;
    let lines = logs::read(&pod.log(&config))?;
    let have: Vec<(&str, &str, &str)> =
        lines.iter().map(|l| (l.stream.as_str(), l.tag.as_str(), l.text.as_str())).collect();
    let want = [
        ("stdout", "F", "out1"),
        ("stderr", "F", "err1"),
        ("stdout", "F", "out2"),
        ("stderr", "F", "err2"),
        ("stdout", "F", "out3"),
        ("stderr", "F", "err3"),
    ];
    same!("lines", have, want);
    ensure!(lines.windows(2).all(|w| w[0].time <= w[1].time), "timestamps go back");
    Ok(())
}

async fn long_lines_are_split(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let config = ctx.container("c", &["sh", "-c", "head -c 50000 /dev/zero | tr '\\0' a; echo; echo short"]);
    let said = pod.run(&config).await?;
    same!("joined length", said.stdout.len(), 50_001 + 6);
    ensure!(said.stdout.ends_with("a\nshort\n"), "the end is lost");
    let lines = logs::read(&pod.log(&config))?;
    ensure!(
        lines.iter().any(|l| l.tag == "P") && lines.iter().all(|l| l.text.len() <= 16 << 10),
        "pieces of {:?}",
        lines.iter().map(|l| l.text.len()).collect::<Vec<_>>()
    );
    same!("full lines", lines.iter().filter(|l| l.tag == "F").count(), 2);
    Ok(())
}

async fn last_line_without_newline(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let config = ctx.container("c", &["printf", "a\\nb"]);
    pod.run(&config).await?;
    let lines = logs::read(&pod.log(&config))?;
    same!(
        "lines",
        lines.iter().map(|l| (l.tag.as_str(), l.text.as_str())).collect::<Vec<_>>(),
        [("F", "a"), ("P", "b")]
    );
    Ok(())
}

async fn odd_bytes(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let config = ctx.container("c", &["printf", "\\n\\000\\377x\\n  two  spaces \\n"]);
    let c = pod.start(&config).await?;
    ctx.cri.wait_exit(&c, 10).await?;
    let raw = fs::read(pod.log(&config))?;
    let has = |needle: &[u8]| raw.windows(needle.len()).any(|w| w == needle);
    ensure!(
        has(b" F \n") && has(b" F \0\xffx\n") && has(b" F   two  spaces \n"),
        "{:?}",
        String::from_utf8_lossy(&raw)
    );
    Ok(())
}

async fn reopen_loses_nothing(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let config = ctx.container(
        "c",
        &["sh", "-c", "i=0; while [ $i -lt 4000 ]; do echo line $i; i=$((i+1)); done; sleep 2; echo done"],
    );
    let c = pod.start(&config).await?;
    let log = pod.log(&config);
    let mut all = Vec::new();
    for k in 0..5 {
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
        let old = log.with_extension(k.to_string());
        fs::rename(&log, &old)?;
        ctx.cri.rt.clone().reopen_container_log(ReopenContainerLogRequest { container_id: c.clone() }).await?;
        ensure!(log.exists(), "after a reopen there is no {}", log.display());
        all.push(old);
    }
    ctx.cri.wait_exit(&c, 20).await?;
    all.push(log);
    let mut text = String::new();
    for f in all {
        text += &logs::stream(&logs::read(&f)?, "stdout");
    }
    let want: String = (0..4000).map(|i| format!("line {i}\n")).chain(["done\n".into()]).collect();
    ensure!(text == want, "{} bytes of {} in {} lines", text.len(), want.len(), text.lines().count());
    Ok(())
}

async fn reopen_needs_a_running_container(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let c = pod.start(&ctx.container("c", &["true"])).await?;
    ctx.cri.wait_exit(&c, 10).await?;
    let r = ctx.cri.rt.clone().reopen_container_log(ReopenContainerLogRequest { container_id: c }).await;
    ensure!(r.is_err(), "reopen of an ended container is accepted");
    Ok(())
}

async fn no_log_path_discards(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["sh", "-c", "head -c 1000000 /dev/zero; exit 4"]);
    config.log_path = String::new();
    let c = pod.start(&config).await?;
    same!("exit code", ctx.cri.wait_exit(&c, 10).await?.exit_code, 4);
    let mut sandbox = ctx.pod();
    sandbox.log_directory = String::new();
    let pod = ctx.up_as(sandbox).await?;
    let c = pod.start(&ctx.container("d", &["sh", "-c", "head -c 1000000 /dev/zero; exit 4"])).await?;
    same!("exit code", ctx.cri.wait_exit(&c, 10).await?.exit_code, 4);
    Ok(())
}

async fn path_outside_is_refused(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let dir = ctx.tmp()?;
    for path in
        ["../../escaped.log".to_owned(), "a/../../../escaped.log".into(), format!("{}/escaped.log", dir.display())]
    {
        let mut config = ctx.container(&format!("c{}", ctx.number()), &["echo", "x"]);
        config.log_path = path.clone();
        let done = match pod.create(&config).await {
            Ok(c) => ctx.cri.start(&c).await,
            Err(e) => Err(e),
        };
        // An absolute name may also be taken as relative to the directory; what counts is that nothing is written outside.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let outside = [ctx.dir.join("escaped.log"), dir.join("escaped.log")].iter().any(|p| p.exists())
            || ctx.dir.parent().is_some_and(|p| p.join("escaped.log").exists());
        ensure!(!outside, "log path {path:?} ({done:?}) wrote outside the pod's log directory");
    }
    Ok(())
}

async fn symlinked_directory_is_refused(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let target = ctx.tmp()?;
    std::os::unix::fs::symlink(&target, format!("{}/out", pod.config.log_directory))?;
    let mut config = ctx.container("c", &["echo", "x"]);
    config.log_path = "out/0.log".into();
    if let Ok(c) = pod.create(&config).await {
        let _ = ctx.cri.start(&c).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    ensure!(!target.join("0.log").exists(), "the log followed a symbolic link out of its directory");
    Ok(())
}

async fn file_is_private(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let config = ctx.container("c", &["echo", "x"]);
    pod.run(&config).await?;
    same!("mode", format!("{:o}", fs::metadata(pod.log(&config))?.permissions().mode() & 0o777), "640");
    Ok(())
}

async fn fast_writer_is_whole(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let config = ctx.container("c", &["sh", "-c", "yes 0123456789012345678901234567890123456789 | head -n 200000"]);
    let c = pod.start(&config).await?;
    ctx.cri.wait_exit(&c, 60).await?;
    // The exit is told when the log is whole: kubelet reads the termination message from its tail.
    same!("lines", logs::read(&pod.log(&config))?.len(), 200_000);
    Ok(())
}

async fn deleted_log_does_not_stop_the_container(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let config =
        ctx.container("c", &["sh", "-c", "i=0; while [ $i -lt 30 ]; do echo $i; sleep 0.1; i=$((i+1)); done; exit 6"]);
    let c = pod.start(&config).await?;
    logs::until(&pod.log(&config), 10, "a line", |l| !l.is_empty()).await?;
    fs::remove_dir_all(&pod.config.log_directory)?;
    same!("exit code", ctx.cri.wait_exit(&c, 10).await?.exit_code, 6);
    Ok(())
}

async fn tty_is_one_stream(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["sh", "-c", "tty; echo out; echo err >&2; echo $TERM"]);
    config.tty = true;
    let said = pod.run(&config).await?;
    same!("stderr", said.stderr, "");
    same!("stdout", said.stdout.replace('\r', ""), "/dev/pts/0\nout\nerr\nxterm\n");
    Ok(())
}
