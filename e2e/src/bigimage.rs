//! A realistic image for measuring pulls: seven layers of Debian packages, about 1 GB unpacked, as gzip and as zstd.

use crate::{
    fail::{Fail, Res},
    parts,
    push::{Layer, push},
    sh,
};
use serde_json::json;
use std::{fs, path::Path};

/// The gzip one; `zstd` is its other tag.
pub(crate) const GZIP: &str = "bench/debian-dev:1";
pub(crate) const ZSTD: &str = "bench/debian-dev:zstd";

/// What each layer over the base system holds, in the words of a shell.
const SETS: &[(&str, &str)] = &[
    (
        "py",
        "python3 python3.11 libpython3.11-stdlib python3.11-minimal libpython3.11-minimal python3-pip python3-setuptools",
    ),
    (
        "gcc",
        "gcc-12 cpp-12 g++-12 binutils-$(uname -m | tr _ -)-linux-gnu libgcc-12-dev libc6-dev linux-libc-dev libstdc++-12-dev",
    ),
    ("perl", "perl-modules-5.36 libperl5.36 perl git vim-runtime"),
    ("llvm", "libllvm14 clang-14 libclang-common-14-dev libclang-cpp14"),
    ("java", "openjdk-17-jre-headless"),
    ("misc", "tzdata locales iso-codes fonts-dejavu-core docutils-common"),
];

/// Makes and pushes it; instant when that was done before.
pub(crate) async fn fill(host: &str, storage: &Path) -> Res {
    if storage.join("docker/registry/v2/repositories/bench/debian-dev/_manifests/tags/zstd").exists() {
        return Ok(());
    }
    println!("making the image for pulls (once; kept in {})", storage.display());
    let work = parts::cache().join("images/big");
    fs::create_dir_all(&work)?;
    let offline = |e: Fail| Fail::Wrong(format!("the image for pulls needs Debian's archive: {e}"));
    if !work.join("0.tar").exists() {
        sh::script(&work, "rm -rf base; debootstrap --variant=minbase bookworm base >/dev/null; tar --sort=name --numeric-owner --mtime=@1700000000 -C base -cf 0.new .; mv 0.new 0.tar; rm -rf base", 1500)
            .await
            .map_err(offline)?;
    }
    for (i, (name, packages)) in SETS.iter().enumerate() {
        let n = i + 1;
        if !work.join(format!("{n}.tar")).exists() {
            let script = format!(
                "rm -rf {name} debs; mkdir -m 777 debs; mkdir {name}; cd debs; apt-get download -qq {packages} >/dev/null 2>&1; for d in *.deb; do dpkg -x $d ../{name}; done; cd ..; \
                 tar --sort=name --numeric-owner --mtime=@1700000000 -C {name} -cf {n}.new .; mv {n}.new {n}.tar; rm -rf {name} debs"
            );
            sh::script(&work, &script, 900).await.map_err(offline)?;
        }
    }
    for (name, zstd) in [(GZIP, false), (ZSTD, true)] {
        let mut layers = Vec::new();
        for i in 0..=SETS.len() {
            let tar = fs::read(work.join(format!("{i}.tar")))?;
            layers.push(if zstd { Layer::zstd_bytes(&tar)? } else { Layer::gzip_bytes(&tar)? });
        }
        push(host, &[name], &layers, &json!({"Cmd": ["/bin/bash"]})).await?;
    }
    fs::remove_dir_all(&work)?;
    Ok(())
}
