//! Users, capabilities, seccomp, privileges, masked paths, limits, user namespaces.

use super::{Ctx, cases, pod_security, security};
use crate::fail::{Res, ensure, same, skip};
use crisp_cri_proto::v1::*;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
};

cases!("security":
    user_by_number, user_by_name, unknown_user_is_refused, group_without_user_is_refused, supplemental_groups_merge_and_strict,
    default_capabilities, add_and_drop_capabilities, unknown_capability_is_refused, privileged_needs_a_privileged_pod, privileged_sees_all,
    no_new_privs, read_only_root, masked_and_readonly_paths, no_paths_means_none, seccomp_default_and_unconfined, seccomp_localhost,
    seccomp_missing_profile_is_refused, devices, limits_reach_the_cgroup, oom_score, rlimits_are_not_the_servers, user_namespace,
    user_namespace_volume, unsafe_sysctl_is_refused,
);

async fn user_by_number(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let as_user = |u: i64, g: Option<i64>| {
        move |c: &mut ContainerConfig| {
            security(c).run_as_user = Some(Int64Value { value: u });
            security(c).run_as_group = g.map(|value| Int64Value { value });
        }
    };
    same!("not in passwd: group 0", pod.script("id -u; id -g", as_user(4321, None)).await?, "4321\n0\n");
    same!("in passwd: its group", pod.script("id -u; id -g", as_user(33, None)).await?, "33\n33\n");
    same!("with group", pod.script("id -u; id -g", as_user(33, Some(77))).await?, "33\n77\n");
    Ok(())
}

async fn user_by_name(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["sleep", "3600"]);
    security(&mut config).run_as_username = "www-data".into();
    let c = pod.start(&config).await?;
    same!("ids", ctx.cri.sh(&c, "id -u; id -g").await?, "33\n33\n");
    let user = ctx.cri.status(&c).await?.user.and_then(|u| u.linux).unwrap_or_default();
    same!("status", (user.uid, user.gid), (33, 33));
    Ok(())
}

async fn unknown_user_is_refused(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["true"]);
    security(&mut config).run_as_username = "nosuchuser".into();
    let error = match pod.create(&config).await {
        Ok(c) => ctx.cri.start(&c).await.err(),
        Err(e) => Some(e),
    };
    ensure!(error.as_ref().is_some_and(|e| e.message().contains("nosuchuser")), "{error:?}");
    Ok(())
}

async fn group_without_user_is_refused(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["true"]);
    security(&mut config).run_as_group = Some(Int64Value { value: 5 });
    ensure!(pod.create(&config).await.is_err(), "a group without a user is accepted");
    Ok(())
}

async fn supplemental_groups_merge_and_strict(ctx: &Ctx) -> Res {
    let image = ctx.image("k8s-staging-cri-tools/test-image-predefined-group:latest");
    ctx.cri.pull(&image).await?;
    let pod = ctx.up().await?;
    for (policy, want) in
        [(SupplementalGroupsPolicy::Merge, "1000 1234 50000\n"), (SupplementalGroupsPolicy::Strict, "1000 1234\n")]
    {
        let out = pod.script("id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ' | sed 's/ $//'; echo", |c| {
            c.image = Some(crate::client::spec(&image));
            security(c).run_as_user = Some(Int64Value { value: 1000 });
            security(c).supplemental_groups = vec![1234];
            security(c).supplemental_groups_policy = policy as i32;
        });
        same!(format!("{policy:?}"), out.await?, want);
    }
    pod.down().await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

const CAPS: &str = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | awk '{print $2}'";

async fn default_capabilities(ctx: &Ctx) -> Res {
    let out = ctx.up().await?.script(CAPS, |_| ()).await?;
    let caps: Vec<&str> = out.lines().collect();
    same!(
        "inheritable, permitted, effective, bounding, ambient",
        caps,
        ["0000000000000000", "00000000a80425fb", "00000000a80425fb", "00000000a80425fb", "0000000000000000"]
    );
    Ok(())
}

async fn add_and_drop_capabilities(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let bounding = async |add: &[&str], drop: &[&str]| -> Res<u64> {
        let s = |l: &[&str]| l.iter().map(|c| (*c).to_owned()).collect();
        let out = pod.script("grep CapBnd /proc/self/status | awk '{print $2}'", |c| {
            security(c).capabilities =
                Some(Capability { add_capabilities: s(add), drop_capabilities: s(drop), ..Default::default() });
        });
        Ok(u64::from_str_radix(out.await?.trim(), 16)?)
    };
    same!("drop ALL", bounding(&[], &["ALL"]).await?, 0);
    same!("drop all, add two, any case", bounding(&["net_admin", "CAP_SYS_TIME"], &["all"]).await?, 1 << 12 | 1 << 25);
    let all = bounding(&["ALL"], &["CHOWN"]).await?;
    ensure!(all & 1 == 0 && all.count_ones() >= 38, "add ALL, drop CHOWN: {all:x}");
    Ok(())
}

async fn unknown_capability_is_refused(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["true"]);
    security(&mut config).capabilities =
        Some(Capability { add_capabilities: vec!["CAP_NOT_ONE".into()], ..Default::default() });
    let done = match pod.create(&config).await {
        Ok(c) => ctx.cri.start(&c).await,
        Err(e) => Err(e),
    };
    ensure!(done.is_err(), "an unknown capability is accepted");
    Ok(())
}

async fn privileged_needs_a_privileged_pod(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["true"]);
    security(&mut config).privileged = true;
    ensure!(pod.create(&config).await.is_err(), "a privileged container in an ordinary pod");
    Ok(())
}

async fn privileged_sees_all(ctx: &Ctx) -> Res {
    let mut config = ctx.pod();
    pod_security(&mut config).privileged = true;
    let pod = ctx.up_as(config).await?;
    let out = pod.script("mount -t tmpfs x /mnt 2>/dev/null || { mkdir -p /mnt && mount -t tmpfs x /mnt; } && echo mounted; \
                          grep -c ' /sys sysfs rw' /proc/mounts; grep CapEff /proc/self/status; test -e /dev/kmsg -o -e /dev/vda && echo devices; grep Seccomp: /proc/self/status", |c| {
        security(c).privileged = true;
    });
    let out = out.await?;
    let own = fs::read_to_string("/proc/self/status")?;
    let all = own.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap_or_default();
    ensure!(
        out.starts_with("mounted\n1\n")
            && out.contains(&format!("CapEff:{all}"))
            && out.contains("devices")
            && out.contains("Seccomp:\t0"),
        "{out}"
    );
    Ok(())
}

async fn no_new_privs(ctx: &Ctx) -> Res {
    let image = ctx.image("e2e-test-images/nonewprivs:1.3");
    ctx.cri.pull(&image).await?;
    let pod = ctx.up().await?;
    for (set, uid) in [(false, "0"), (true, "1000")] {
        let out = pod.script("/nnp", |c| {
            c.image = Some(crate::client::spec(&image));
            security(c).no_new_privs = set;
        });
        same!(format!("no_new_privs {set}"), out.await?, format!("Effective uid: {uid}\n"));
    }
    pod.down().await?;
    ctx.cri.remove_image(&image).await?;
    Ok(())
}

async fn read_only_root(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let out = pod.script("for f in /x /etc/hosts /etc/hostname /etc/resolv.conf; do (echo x >> $f) 2>/dev/null && echo wrote $f; done; touch /dev/shm/ok && echo shm", |c| {
        security(c).readonly_rootfs = true;
    });
    same!("written", out.await?, "shm\n");
    Ok(())
}

async fn masked_and_readonly_paths(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let out = pod.script("cat /etc/passwd | wc -c; ls /var | wc -l; (echo x > /root/x) 2>/dev/null || echo ro", |c| {
        let s = security(c);
        s.masked_paths = vec!["/etc/passwd".into(), "/var".into(), "/not/there".into()];
        s.readonly_paths = vec!["/root".into(), "/not/there/either".into()];
    });
    same!(
        "masked file, masked directory, read-only",
        out.await?.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "ro"]
    );
    Ok(())
}

async fn no_paths_means_none(ctx: &Ctx) -> Res {
    // kubelet sends its list; procMount Unmasked arrives as an empty one.
    let out = ctx.up().await?.script("grep -cE ' /proc/(kcore|sys|bus) ' /proc/mounts || true", |_| ()).await?;
    same!("masks of the runtime's own", out.trim(), "0");
    Ok(())
}

async fn seccomp_default_and_unconfined(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let with = |t: security_profile::ProfileType| {
        move |c: &mut ContainerConfig| {
            security(c).seccomp = Some(SecurityProfile { profile_type: t as i32, localhost_ref: String::new() })
        }
    };
    let look = "grep Seccomp: /proc/self/status | awk '{print $2}'; unshare -U true 2>/dev/null && echo unshared || echo refused";
    same!(
        "RuntimeDefault",
        pod.script(look, with(security_profile::ProfileType::RuntimeDefault)).await?,
        "2\nrefused\n"
    );
    same!("Unconfined", pod.script(look, with(security_profile::ProfileType::Unconfined)).await?, "0\nunshared\n");
    same!("none", pod.script(look, |_| ()).await?, "0\nunshared\n");
    Ok(())
}

async fn seccomp_localhost(ctx: &Ctx) -> Res {
    let file = ctx.tmp()?.join("profile.json");
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
    fs::write(&file, profile)?;
    for prefix in ["", "localhost/"] {
        let reference = format!("{prefix}{}", file.display());
        let pod = ctx.up().await?;
        let out = pod.script("touch /x; chmod 600 /x 2>/dev/null && echo done || echo refused", |c| {
            security(c).seccomp = Some(SecurityProfile {
                profile_type: security_profile::ProfileType::Localhost as i32,
                localhost_ref: reference.clone(),
            });
        });
        same!(format!("profile {reference}"), out.await?, "refused\n");
    }
    Ok(())
}

async fn seccomp_missing_profile_is_refused(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    for reference in ["/no/such/profile.json", "", "relative.json"] {
        let mut config = ctx.container(&format!("c{}", ctx.number()), &["true"]);
        security(&mut config).seccomp = Some(SecurityProfile {
            profile_type: security_profile::ProfileType::Localhost as i32,
            localhost_ref: reference.into(),
        });
        ensure!(pod.create(&config).await.is_err(), "profile {reference:?} is accepted");
    }
    Ok(())
}

async fn devices(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let device = |host: &str, inside: &str, p: &str| Device {
        host_path: host.into(),
        container_path: inside.into(),
        permissions: p.into(),
    };
    // One that the default list does not allow anyway.
    let Some(host) = ["/dev/fuse", "/dev/loop-control", "/dev/hwrng", "/dev/kmsg"]
        .into_iter()
        .find(|d| std::path::Path::new(d).exists())
    else {
        return skip("no device to hand out");
    };
    let out = pod.script("(: < /dev/mine) 2>/dev/null && echo read; (: >> /dev/mine) 2>/dev/null && echo wrote || echo refused; ls /dev | grep -cE '^(mem|kmsg|vda)$' || true", |c| {
        c.devices = vec![device(host, "/dev/mine", "r")];
    });
    same!("read, write, others", out.await?.split_whitespace().collect::<Vec<_>>(), ["read", "refused", "0"]);
    let mut config = ctx.container("c", &["true"]);
    config.devices = vec![device("/dev/not-there", "", "rwm")];
    ensure!(pod.create(&config).await.is_err(), "a missing device is accepted");
    Ok(())
}

async fn limits_reach_the_cgroup(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    let mut config = ctx.container("c", &["sleep", "3600"]);
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".into(),
        ..Default::default()
    });
    let c = pod.start(&config).await?;
    let parent = &pod.config.linux.clone().unwrap_or_default().cgroup_parent;
    let find = |name: &str| crate::world::cgroups(&c).into_iter().map(|d| d.join(name)).find(|p| p.exists());
    let read = |v1: &str, v2: &str| {
        find(v1).or_else(|| find(v2)).and_then(|p| fs::read_to_string(p).ok()).unwrap_or_default().trim().to_owned()
    };
    ensure!(
        crate::world::cgroups(&c).iter().any(|p| p.to_string_lossy().contains(parent.as_str())),
        "its cgroup is not below {parent}"
    );
    same!("memory", read("memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    let quota = read("cpu.cfs_quota_us", "cpu.max");
    ensure!(quota == "50000" || quota == "50000 100000", "cpu quota {quota:?}");
    same!("cpuset", read("cpuset.cpus", "cpuset.cpus"), "0");
    Ok(())
}

async fn oom_score(ctx: &Ctx) -> Res {
    let pod = ctx.up().await?;
    for score in [0, 500, 1000] {
        let out = pod.script("cat /proc/self/oom_score_adj", |c| {
            c.linux.get_or_insert_default().resources.get_or_insert_default().oom_score_adj = score;
        });
        same!("oom_score_adj", out.await?.trim(), score.to_string());
    }
    // Lower than the server's own needs a capability that a server in a box may lack; it must clamp, not fail.
    pod.script("cat /proc/self/oom_score_adj", |c| {
        c.linux.get_or_insert_default().resources.get_or_insert_default().oom_score_adj = -997
    })
    .await?;
    Ok(())
}

async fn rlimits_are_not_the_servers(ctx: &Ctx) -> Res {
    let out = ctx.up().await?.script("ulimit -Sn; ulimit -Hn", |_| ()).await?;
    let limits: Vec<u64> = out.lines().map(|n| n.parse().unwrap_or(u64::MAX)).collect();
    // A server that may not raise the hard limit, which it has from us, cannot give more.
    let ours = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let sharp = limits == [1024, 524_288] || limits == [1024, ours.min(524_288)];
    let loose = ctx.kind != Some(crate::server::Kind::Crisp) && limits.iter().all(|n| *n >= 1024);
    ensure!(sharp || loose, "soft and hard limit of open files {limits:?}");
    Ok(())
}

pub(crate) fn userns() -> UserNamespace {
    let map = vec![IdMapping { host_id: 1_000_000, container_id: 0, length: 65536 }];
    UserNamespace { mode: NamespaceMode::Pod as i32, uids: map.clone(), gids: map }
}

/// A pod with a user namespace, or a skip where no handler has the feature.
pub(crate) async fn userns_pod(ctx: &Ctx) -> Res<super::Pod<'_>> {
    let status = ctx.cri.rt.clone().status(StatusRequest { verbose: false }).await?.into_inner();
    if !status.runtime_handlers.iter().any(|h| h.features.as_ref().is_some_and(|f| f.user_namespaces)) {
        return skip("no handler announces user namespaces");
    }
    let mut config = ctx.pod();
    super::pod_namespaces(&mut config).userns_options = Some(userns());
    ctx.up_as(config).await
}

pub(crate) fn in_userns(c: &mut ContainerConfig) {
    security(c).namespace_options.get_or_insert_default().userns_options = Some(userns());
}

async fn user_namespace(ctx: &Ctx) -> Res {
    let pod = userns_pod(ctx).await?;
    let out = pod.script("id -u; awk '{print $1,$2,$3}' /proc/self/uid_map; stat -c %u /bin/busybox /etc/hosts; ip addr show eth0 | grep -c 'inet '; ip link set lo up && echo mine", in_userns).await?;
    same!("id, map, owners, network", out, "0\n0 1000000 65536\n0\n0\n1\nmine\n");
    let mut other = ctx.container("other", &["true"]);
    security(&mut other).namespace_options.get_or_insert_default().userns_options =
        Some(UserNamespace { uids: vec![IdMapping { host_id: 7, container_id: 0, length: 1 }], ..userns() });
    ensure!(pod.create(&other).await.is_err(), "a container with another mapping than its pod's");
    Ok(())
}

async fn user_namespace_volume(ctx: &Ctx) -> Res {
    let pod = userns_pod(ctx).await?;
    let dir = ctx.tmp()?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    fs::write(dir.join("f"), "x")?;
    chown(dir.join("f"), Some(12), Some(34))?;
    let map = userns();
    let out = pod.script("stat -c '%u %g' /v/f; echo x > /v/g", |c| {
        in_userns(c);
        c.mounts = vec![Mount {
            host_path: dir.to_string_lossy().into(),
            container_path: "/v".into(),
            uid_mappings: map.uids.clone(),
            gid_mappings: map.gids.clone(),
            ..Default::default()
        }];
    });
    same!("owner seen inside", out.await?, "12 34\n");
    same!("owner of a new file on the host", fs::metadata(dir.join("g"))?.uid(), 0);
    Ok(())
}

async fn unsafe_sysctl_is_refused(ctx: &Ctx) -> Res {
    let before = fs::read_to_string("/proc/sys/vm/swappiness")?;
    let mut config = ctx.pod();
    config.linux.get_or_insert_default().sysctls.insert("vm.swappiness".into(), "3".into());
    let done = async {
        let pod = ctx.up_as(config).await?;
        pod.sleeper().await
    };
    let refused = done.await.is_err();
    same!("the node's value", fs::read_to_string("/proc/sys/vm/swappiness")?, before);
    if ctx.kind != Some(crate::server::Kind::Containerd) {
        ensure!(refused, "a sysctl of the node is accepted");
    }
    Ok(())
}
