//! The images that the conformance suite and our cases ask for, made here from Debian packages: nothing is pulled from
//! outside, so a run needs no public registry and no name on it can change.
//!
//! Sources: Debian's busybox compiled with a shell that looks at PATH before its own applets (upstream's does; masking
//! `/bin/ls` must show), two C programs of a line, and a Debian root file system with nginx by debootstrap. What was
//! built is kept in the cache; what was pushed is marked there by a hash of this recipe.

use crate::{
    fail::{Fail, Res},
    parts,
    push::{Layer, architecture, push},
    sh,
    tar::{Kind, Tar},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// busybox, the image of nearly all cases.
pub(crate) const BUSYBOX: &str = "e2e-test-images/busybox:1.29-2";
/// nginx on port 80, with procps.
pub(crate) const NGINX: &str = "e2e-test-images/nginx:1.14-2";
const PATH_ENV: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const CRI_TOOLS: &str = "k8s-staging-cri-tools";
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nbin:x:1:1:bin:/bin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUPS: &str = "root:x:0:\nbin:x:1:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// Makes and pushes everything to the registry at `host`, whose storage is `storage`; instant when that was done before.
pub(crate) async fn fill(host: &str, storage: &Path) -> Res {
    let recipe = crate::push::digest(include_bytes!("images.rs"));
    let mark = storage.join(format!("filled-{}", &recipe[7..19]));
    if mark.exists() {
        return Ok(());
    }
    println!("making the test images (once; kept in {})", storage.display());
    let work = parts::cache().join("images");
    fs::create_dir_all(&work)?;
    let bb = busybox(&work).await?;
    small(host, &work, &bb).await?;
    users(host, &bb).await?;
    nginx(host, &work, &bb).await?;
    fs::write(mark, "")?;
    Ok(())
}

fn config(more: Value) -> Value {
    let mut all = json!({"Env": [PATH_ENV]});
    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
        all.extend(more);
    }
    all
}

async fn small(host: &str, work: &Path, bb: &Path) -> Res {
    let base = Layer::gzip(&rootfs(bb, "", "").await?)?;
    let names =
        [BUSYBOX, "e2e-test-images/busybox:1.29-4", "e2e-test-images/busybox:1.36.1-1", "library/busybox:latest"];
    push(host, &names, std::slice::from_ref(&base), &config(json!({"Cmd": ["sh"]}))).await?;

    let pause = "#include <unistd.h>\n#include <signal.h>\n#include <sys/wait.h>\nstatic void end(int s){(void)s;_exit(0);}\n\
                 static void reap(int s){(void)s;while(waitpid(-1,0,WNOHANG)>0);}\n\
                 int main(){signal(SIGINT,end);signal(SIGTERM,end);signal(SIGCHLD,reap);for(;;)pause();}\n";
    let pause = Layer::gzip(Tar::default().file("pause", cc(work, "pause", pause).await?, 0o755))?;
    // Each version has an id of its own: the suite counts the tags of one.
    for v in ["3.6", "3.7", "3.8", "3.9", "3.10", "3.10.1", "3.10.2"] {
        let c = config(json!({"Entrypoint": ["/pause"], "User": "65535:65535", "Labels": {"version": v}}));
        push(host, &[&format!("pause:{v}")], std::slice::from_ref(&pause), &c).await?;
    }
    let nnp =
        "#include <stdio.h>\n#include <unistd.h>\nint main(){printf(\"Effective uid: %d\\n\",geteuid());return 0;}\n";
    let nnp = Layer::gzip(Tar::default().file("nnp", cc(work, "nnp", nnp).await?, 0o4755))?;
    push(
        host,
        &["e2e-test-images/nonewprivs:1.3"],
        &[base.clone(), nnp],
        &config(json!({"Entrypoint": ["/nnp"], "User": "1000"})),
    )
    .await?;

    let marked = |text: &str| Layer::gzip(Tar::default().file("mark", text, 0o644));
    for t in ["latest:latest", "tag:test", "tag:all", "digest:test", "1:latest", "2:latest", "3:latest"] {
        let user = if t.contains("all") || t.contains("test") && !t.contains("latest") { "1000" } else { "" };
        let name = format!("{CRI_TOOLS}/test-image-{t}");
        push(host, &[&name], &[base.clone(), marked(t)?], &config(json!({"Cmd": ["sh"], "User": user}))).await?;
    }
    let tags: Vec<String> = (1..=3).map(|i| format!("{CRI_TOOLS}/test-image-tags:{i}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    push(host, &tags, &[base, marked("tags")?], &config(json!({"Cmd": ["sh"]}))).await
}

async fn users(host: &str, bb: &Path) -> Res {
    let base = Layer::gzip(&rootfs(bb, "", "").await?)?;
    for (name, user) in
        [("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:users"), ("username-group", "www-data:100")]
    {
        let name = format!("{CRI_TOOLS}/test-image-user-{name}:latest");
        push(host, &[&name], std::slice::from_ref(&base), &config(json!({"Cmd": ["sh"], "User": user}))).await?;
    }
    let more = rootfs(
        bb,
        "default-user:x:1000:1000::/home/default-user:/bin/sh\n",
        "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
    );
    let name = format!("{CRI_TOOLS}/test-image-predefined-group:latest");
    push(host, &[&name], &[Layer::gzip(&more.await?)?], &config(json!({"Cmd": ["sh"], "User": "1000"}))).await
}

async fn nginx(host: &str, work: &Path, bb: &Path) -> Res {
    let root = work.join("debian-nginx");
    if !root.join(".done").exists() {
        remove(&root)?;
        let dir = root.to_string_lossy().into_owned();
        let args = ["--variant=minbase", "--include=nginx-light,procps,curl", "bookworm", &dir];
        sh::cmd("debootstrap", &args, 1500)
            .await
            .map_err(|e| Fail::Wrong(format!("the nginx image needs Debian's archive: {e}")))?;
        sh::script(
            &root,
            "rm -rf var/cache/apt/archives var/lib/apt/lists dev proc sys var/log/nginx/*.log; mkdir -p dev proc sys; \
             ln -s /dev/stdout var/log/nginx/access.log; ln -s /dev/stderr var/log/nginx/error.log; touch .done",
            60,
        )
        .await?;
    }
    let tar = work.join("debian-nginx.tar");
    sh::script(
        &root,
        &format!("tar --sort=name --numeric-owner --mtime=@1700000000 --exclude=./.done -cf {} .", tar.display()),
        120,
    )
    .await?;
    let base = Layer::gzip_bytes(&fs::read(&tar)?)?;
    fs::remove_file(tar)?;
    let run = ["nginx", "-g", "daemon off;"];
    let hostnet = format!("{CRI_TOOLS}/hostnet-nginx-{}:latest", architecture());
    let httpd = ["sh", "-c", "echo httpd; exec nginx -g 'daemon off;'"];
    for (names, port, cmd) in [
        (&[NGINX, "e2e-test-images/nginx:1.14-4", "e2e-test-images/nginx:1.15-4"][..], 80, run),
        (&["e2e-test-images/httpd:2.4.38-4", "e2e-test-images/httpd:2.4.39-4"][..], 80, httpd),
        (&[hostnet.as_str()][..], 12003, run),
    ] {
        let site = format!(
            "server {{ listen {port} default_server; listen [::]:{port} default_server; root /var/www/html; index index.html; location / {{ try_files $uri $uri/ =404; }} }}\n"
        );
        let page = "<html><head><title>Welcome to nginx!</title></head><body>Welcome to nginx!</body></html>\n";
        let mut tar = Tar::default();
        tar.file("usr/bin/grep", fs::read(bb)?, 0o755).file("etc/nginx/sites-enabled/default", site, 0o644).file(
            "var/www/html/index.html",
            page,
            0o644,
        );
        let c = config(json!({"Cmd": cmd, "ExposedPorts": {format!("{port}/tcp"): {}}}));
        push(host, names, &[base.clone(), Layer::gzip(&tar)?], &c).await?;
    }
    Ok(())
}

/// A root file system of busybox and its applets, with these lines added to passwd and group.
pub(crate) async fn rootfs(busybox: &Path, users: &str, groups: &str) -> Res<Tar> {
    let applets = sh::cmd(&busybox.to_string_lossy(), &["--list"], 10).await?;
    let mut tar = Tar::default();
    tar.dir("bin").file("bin/busybox", fs::read(busybox)?, 0o755);
    for a in applets.lines().filter(|a| *a != "busybox") {
        tar.add(&format!("bin/{a}"), Kind::Hardlink("bin/busybox"), 0o755, 0, 0);
    }
    for d in
        ["etc", "root", "home", "usr", "usr/bin", "usr/sbin", "var", "var/www", "var/run", "sbin", "sys", "proc", "dev"]
    {
        tar.dir(d);
    }
    tar.add("tmp", Kind::Dir, 0o1777, 0, 0)
        .file("etc/passwd", format!("{USERS}{users}"), 0o644)
        .file("etc/group", format!("{GROUPS}{groups}"), 0o644)
        .file("etc/shadow", "root:*:::::::\n", 0o640);
    Ok(tar)
}

async fn cc(work: &Path, name: &str, source: &str) -> Res<Vec<u8>> {
    let c = work.join(format!("{name}.c"));
    let out = work.join(name);
    fs::write(&c, source)?;
    sh::cmd("gcc", &["-static", "-O1", "-o", &out.to_string_lossy(), &c.to_string_lossy()], 60).await?;
    Ok(fs::read(out)?)
}

/// Builds Debian's busybox source, static, with a configuration close to upstream's.
async fn busybox(work: &Path) -> Res<PathBuf> {
    let out = work.join("busybox");
    if out.exists() {
        return Ok(out);
    }
    let src = work.join("busybox-src");
    remove(&src)?;
    fs::create_dir_all(src.join("lists/partial"))?;
    // The machine's own Debian sources, asked for source packages, in a list beside them: the machine's stays as it is.
    let script = r#"
        for f in /etc/apt/sources.list.d/*.sources; do [ -e "$f" ] && sed 's/^Types:.*/Types: deb-src/' "$f" && echo; done > src.sources || true
        for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do [ -e "$f" ] && sed -n 's/^deb /deb-src /p' "$f"; done > src.list || true
        LIST=src.sources; grep -q debian src.sources || LIST=src.list
        APT="-qq -o Dir::Etc::SourceList=$PWD/$LIST -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$PWD/lists -o APT::Sandbox::User=root"
        apt-get $APT update
        apt-get $APT source busybox >/dev/null
        cd busybox-*/
        cp debian/config/pkg/static .config
        for k in FEATURE_SH_STANDALONE FEATURE_PREFER_APPLETS FEATURE_SH_NOFORK; do sed -i "s/^CONFIG_$k=y/# CONFIG_$k is not set/" .config; done
        for k in PGREP PKILL IPCS NMETER FEATURE_DI_ENV_HACK; do sed -i "s/^# CONFIG_$k is not set/CONFIG_$k=y/" .config; done
        yes '' | make oldconfig >/dev/null 2>&1 || true
        make -j2 >build.log 2>&1 || { tail -n 20 build.log >&2; exit 1; }
        cp busybox ../../busybox.new
    "#;
    sh::script(&src, script, 900)
        .await
        .map_err(|e| Fail::Wrong(format!("busybox is built from Debian's source package: {e}")))?;
    fs::rename(work.join("busybox.new"), &out)?;
    remove(&src)?;
    Ok(out)
}

fn remove(dir: &Path) -> Res {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}
