//! Pulls from a real registry, and what can be done with the image then. Runs as root, needs Debian's docker-registry.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Build, Place, Registry, Tar, eventually, in_namespace, pull};
use crisp_store::digest::Digest;
use crisp_store::media::Platform;
use crisp_store::{Error, LayerState, Limits, Options, Progress, ProgressEvent, PullRequest, Removed, Store};
use serde_json::json;

fn base() -> Tar {
    Tar::default()
        .dir("etc/")
        .file("etc/passwd", "root:x:0:0\n")
        .dir("data")
        .file("data/seed", "first")
        .file("gone", "x")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_mounted_and_read() {
    let registry = Registry::start().await;
    let top = Tar::default().file("data/more", "second").file(".wh.gone", "").hard("etc/passwd-", "etc/passwd").end();
    let zstd = zstd::encode_all(&top[..], 3).unwrap();
    let plain = Tar::default().add("./", tar_core::EntryType::Directory, "", b"", 0o711).file("plain", "plain").end();
    let build = Build {
        config: Some(json!({"Env": ["PATH=/bin"], "Entrypoint": ["/e"], "User": "12", "Volumes": {"/data": {}}})),
        ..Build::default()
    };
    let build = build
        .layer(base())
        .blob(zstd, &top, "application/vnd.oci.image.layer.v1.tar+zstd")
        // The media type lies; docker's own types are as good.
        .blob(plain.clone(), &plain, "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let name = registry.push("app:v1", &build).await;
    let place = Place::new();
    let store = place.open();
    let image = pull(&store, &name).await.unwrap();

    assert_eq!(image.id, Digest::sha256(&build.config()));
    assert_eq!((image.tags.as_slice(), image.repo_digests.len()), (&[name.clone()][..], 1));
    assert_eq!((image.config.user.as_str(), image.config.volumes.as_slice()), ("12", &["/data".to_owned()][..]));
    assert_eq!(image.created, "2026-01-02T03:04:05Z");
    assert!(image.size > build.layers.iter().map(|layer| layer.blob.len() as u64).sum());

    let snapshot = store.prepare("one", &image).unwrap();
    assert_eq!(snapshot.lowers.len(), 3);
    assert_eq!(snapshot.read_file("/etc/passwd", 100).unwrap().unwrap(), b"root:x:0:0\n");
    assert_eq!(snapshot.read_file("gone", 100).unwrap(), None);
    assert!(snapshot.read_file("etc/passwd", 4).unwrap_err().to_string().contains("larger than 4 bytes"));
    let volume = place.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    assert!(snapshot.copy_out("/data", &volume).unwrap());
    assert_eq!(fs::read_to_string(volume.join("more")).unwrap(), "second");
    assert!(!snapshot.copy_out("/absent", &volume).unwrap());
    assert_eq!(fs::metadata(&snapshot.upper).unwrap().mode() & 0o7777, 0o711, "the root's mode, as a layer lists it");
    let mount = format!(
        "mount -t overlay -o volatile,lowerdir={},upperdir={},workdir={} overlay /mnt; cd /mnt; cat data/* plain; \
         stat -c %h etc/passwd; stat -c %a .; ls; echo w > data/w",
        snapshot.lowers.join(":"),
        snapshot.upper.display(),
        snapshot.work.display()
    );
    let seen = in_namespace(&snapshot.layers_dir, &mount);
    assert_eq!(seen, "secondfirstplain2\n711\ndata\netc\nplain\n");
    assert_eq!(snapshot.read_file("data/w", 10).unwrap().unwrap(), b"w\n");

    let view = store.view("volume", &image).unwrap();
    let mount = format!(
        "mount -t overlay -o ro,lowerdir={} overlay /mnt; cat /mnt/data/more; stat -c %a /mnt",
        view.lowers.join(":")
    );
    assert_eq!(in_namespace(&view.layers_dir, &mount), "second711\n");
    assert_eq!(store.snapshots(), ["one", "volume"]);
    assert!(store.snapshot("volume").is_none() && store.snapshot("one").is_some());

    let fresh = store.prepare("one", &image).unwrap();
    assert_eq!(fresh.read_file("data/w", 10).unwrap(), None, "each time a fresh upper directory");
    let (images, _) = store.usage();
    assert!(images.bytes >= image.unpacked && images.inodes > 8);
    for id in ["one", "volume", "one", "never"] {
        store.remove_snapshot(id).unwrap();
    }
    assert!(store.snapshots().is_empty());
    assert!(matches!(store.remove_snapshot("../x"), Err(Error::SnapshotId(_))));
    eventually("the trash is emptied", || place.list("trash").is_empty()).await;
    assert!(place.list("tmp").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_present_image_costs_one_request() {
    let registry = Registry::start().await;
    let name = registry.push("app:v1", &Build::default().layer(base())).await;
    let place = Place::new();
    let store = place.open();
    let first = pull(&store, &name).await.unwrap();
    let before = registry.requests("HEAD", "/v2/app/manifests") + registry.requests("GET", "/v2/app");
    let again = pull(&store, &name).await.unwrap();
    assert_eq!(first.id, again.id);
    eventually("the registry logs one request more", || {
        registry.requests("HEAD", "/v2/app/manifests") + registry.requests("GET", "/v2/app") == before + 1
    })
    .await;
    drop(registry);
    assert!(matches!(pull(&store, &name).await, Err(Error::Registry { .. })), "the registry decides, each time");
}

struct Events(Mutex<Vec<ProgressEvent>>);

impl Progress for Events {
    fn event(&self, event: ProgressEvent) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(event);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_the_same_time_share_their_downloads() {
    let registry = Registry::start().await;
    let big = Build::default().layer(base()).layer(Tar::default().noise("noise", 20 << 20, 1));
    let name = registry.push("app:v1", &big).await;
    let other = registry.push("other:v1", &big.clone().layer(Tar::default().file("own", "own"))).await;
    let place = Place::new();
    let store = place.open();
    let events = Arc::new(Events(Mutex::default()));
    let mut pulls = tokio::task::JoinSet::new();
    for i in 0..8 {
        let (store, name, events) =
            (store.clone(), if i % 2 == 0 { name.clone() } else { other.clone() }, events.clone());
        pulls.spawn(async move {
            let progress: Option<Arc<dyn Progress>> = if i == 7 { Some(events) } else { None };
            let reference = name.parse().unwrap();
            store.pull(PullRequest { reference, credentials: None, platform: None, progress }).await.unwrap()
        });
    }
    pulls.join_all().await;
    let blobs = registry.requests("GET", &format!("/blobs/{}", Digest::sha256(&big.layers[1].blob)));
    assert_eq!(blobs, 1);
    assert_eq!(store.images().len(), 2);
    assert_eq!(place.list("layers").len(), 3, "shared by both images");
    let events = events.0.lock().unwrap();
    assert_eq!(events.first(), Some(&ProgressEvent::Resolving));
    assert_eq!(events.last(), Some(&ProgressEvent::Done));
    let ends = |event: &&ProgressEvent| {
        matches!(event, ProgressEvent::Layer { state: LayerState::Done | LayerState::Present, .. })
    };
    assert_eq!(events.iter().filter(ends).count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_takes_nothing_from_the_others() {
    let registry = Registry::start().await;
    let build = Build::default().layer(Tar::default().noise("noise", 30 << 20, 2));
    let name = registry.push("app:v1", &build).await;
    let place = Place::new();
    let store = place.open();
    let leader = tokio::spawn({
        let (store, name) = (store.clone(), name.clone());
        async move { pull(&store, &name).await.map(drop) }
    });
    eventually("the download starts", || !place.list("tmp").is_empty()).await;
    let follower = tokio::spawn({
        let (store, name) = (store.clone(), name.clone());
        async move { pull(&store, &name).await.map(drop) }
    });
    leader.abort();
    follower.await.unwrap().unwrap();
    let blob = format!("/blobs/{}", Digest::sha256(&build.layers[0].blob));
    assert_eq!(registry.requests("GET", &blob), 1, "the download went on");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_move_and_images_go() {
    let registry = Registry::start().await;
    let place = Place::new();
    let store = place.open();
    let old = Build::default().layer(base()).layer(Tar::default().file("v", "1"));
    let new = Build::default().layer(base()).layer(Tar::default().file("v", "2"));
    let name = registry.push("app:latest", &old).await;
    drop(pull(&store, &name).await.unwrap());
    let alias = registry.push("app:also", &old).await;
    let first_id = {
        let first = pull(&store, &alias).await.unwrap();
        assert_eq!(first.tags, [alias.clone(), name.clone()]);
        first.id.clone()
    };
    registry.push("app:latest", &new).await;
    let second = pull(&store, &name).await.unwrap();
    assert_ne!(first_id, second.id);
    assert_eq!(store.find(&name).unwrap().id, second.id);
    let first = store.find(first_id.hex()).unwrap();
    assert_eq!((first.tags.as_slice(), first.repo_digests.len()), (&[alias.clone()][..], 1));

    let by_digest =
        pull(&store, &format!("{alias}@{}", first.repo_digests[0].split_once('@').unwrap().1)).await.unwrap();
    assert_eq!(
        (by_digest.id.clone(), by_digest.tags.clone()),
        (first.id.clone(), vec![alias.clone()]),
        "a digest adds no tag"
    );

    let snapshot = store.prepare("c", &second).unwrap();
    drop(second);
    assert_eq!(store.remove(&name).unwrap(), Digest::sha256(&new.config()));
    assert!(matches!(store.find(&name), Err(Error::NotFound(_))));
    assert_eq!(snapshot.read_file("v", 9).unwrap().unwrap(), b"2", "a snapshot keeps its layers");
    drop(snapshot);
    store.remove_snapshot("c").unwrap();
    eventually("its layer goes", || place.list("layers").len() == 2).await;

    drop((first, by_digest));
    let third = registry.push("app:third", &old).await;
    pull(&store, &third).await.unwrap();
    assert_eq!(store.untag(&third).unwrap(), Removed::Untagged(third.clone()));
    assert!(matches!(store.untag(&third), Err(Error::NotFound(_))));
    assert_eq!(store.untag(&alias).unwrap(), Removed::Image(Digest::sha256(&old.config())));
    assert!(store.images().is_empty());
    eventually("everything goes", || {
        ["layers", "blobs", "images", "trash", "tmp"].iter().all(|part| place.list(part).is_empty())
    })
    .await;
    let (images, _) = store.usage();
    assert_eq!((images.bytes, images.inodes), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_are_found_out_and_leave_nothing() {
    let registry = Registry::start().await;
    let place = Place::new();
    let store = place.open_with(Options {
        limits: Limits { layer_bytes: 40 << 20, entries: 100, ..Limits::default() },
        ..Options::default()
    });
    let many = (0..101).fold(Tar::default(), |tar, i| tar.file(&format!("f{i}"), ""));
    let cut = base().end();
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, bytes).unwrap();
        gzip.finish().unwrap()
    };
    let whole = gzip(&cut);
    let rubbish = b"no tar at all, whatever it says".repeat(40);
    let oci = "application/vnd.oci.image.layer.v1.tar+gzip";
    let wrong = Digest::sha256(b"something else");
    let cases = [
        (
            Build { diff_ids: Some(vec![wrong.clone()]), ..Build::default().layer(base()) },
            format!("its image says {wrong}"),
        ),
        (
            Build { diff_ids: Some(vec![]), ..Build::default().layer(base()) },
            "its manifest has 1 layers, its configuration 0".into(),
        ),
        (Build { platform: Some(("linux", "riscv64")), ..Build::default().layer(base()) }, "riscv64".into()),
        (Build::default().layer(many), "more than 100 entries".into()),
        (
            Build::default().layer(Tar::default().add(
                "zeros",
                tar_core::EntryType::Regular,
                "",
                &vec![0; 41 << 20],
                0o644,
            )),
            "larger than 41943040 bytes".into(),
        ),
        (Build::default().blob(whole[..whole.len() / 2].to_vec(), &cut, oci), "cannot decompress".into()),
        (Build::default().blob(gzip(&cut[..700]), &cut[..700], oci), "cut off".into()),
        (Build::default().blob(rubbish.clone(), &rubbish, oci), "not a tar archive".into()),
        (Build::default().blob(b"BZh91AY".to_vec(), b"", oci), "compressed with bzip2".into()),
        (Build::default().layer(Tar::default().hard("h", "absent")), "\"h\": it is a hard link to \"absent\"".into()),
        (
            (0..300).fold(Build::default(), |build, i| build.layer(Tar::default().file("f", &i.to_string()))),
            "it has 300 layers, at most 256".into(),
        ),
    ];
    for (i, (build, why)) in cases.iter().enumerate() {
        let name = registry.push(&format!("bad:v{i}"), build).await;
        let error = pull(&store, &name).await.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(&name), "{error:?} should say {why:?}");
    }
    eventually("everything goes", || {
        ["tmp", "trash", "layers", "images", "blobs"].iter().all(|part| place.list(part).is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_layers_and_one_of_them_twice() {
    let registry = Registry::start().await;
    let same = Tar::default().dir("d").file("d/same", "same");
    let mut build = Build::default().layer(same.clone());
    for i in 0..126 {
        build = build.layer(Tar::default().dir("d").file(&format!("d/{i}"), "").file("d/same", &i.to_string()));
    }
    let name = registry.push("deep:v1", &build.layer(same)).await;
    let place = Place::new();
    let store = place.open();
    let image = pull(&store, &name).await.unwrap();
    assert_eq!((image.layers.len(), place.list("layers").len()), (128, 127));
    let snapshot = store.prepare("c", &image).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        snapshot.lowers.join(":"),
        snapshot.upper.display(),
        snapshot.work.display()
    );
    assert!(options.len() < 4000, "old kernels take one page: {}", options.len());
    let script = format!("mount -t overlay -o {options} overlay /mnt; ls /mnt/d | wc -l; cat /mnt/d/same");
    assert_eq!(in_namespace(&snapshot.layers_dir, &script), "127\nsame");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_need_those_below_wait_for_them() {
    let registry = Registry::start().await;
    // One place at a time: a layer that waits must not keep it from the layer that it waits for.
    let place = Place::new();
    let store = place.open_with(Options { layers_at_once: 1, ..Options::default() });
    let mut build = Build::default().layer(
        Tar::default()
            .noise("first", 8 << 20, 3)
            .add("srv", tar_core::EntryType::Directory, "", b"", 0o750)
            .file("srv/a", "a"),
    );
    for i in 0..6 {
        build = build.layer(Tar::default().hard(&format!("srv/link{i}"), "srv/a").file(&format!("srv/{i}"), ""));
    }
    let name = registry.push("bound:v1", &build).await;
    let image = tokio::time::timeout(Duration::from_secs(30), pull(&store, &name)).await.unwrap().unwrap();
    let snapshot = store.prepare("c", &image).unwrap();
    for i in 0..6 {
        assert_eq!(snapshot.read_file(&format!("srv/link{i}"), 9).unwrap().unwrap(), b"a");
    }
    for lower in &snapshot.lowers {
        let srv = fs::metadata(snapshot.layers_dir.join(lower).join("srv")).unwrap();
        assert_eq!(srv.mode() & 0o7777, 0o750, "implied directories are as the one below");
    }
    // On another base the same layers are others.
    let other = Build {
        layers: build.layers.iter().cloned().enumerate().filter(|(i, _)| *i != 3).map(|(_, layer)| layer).collect(),
        ..Build::default()
    };
    let other = registry.push("bound:v2", &other).await;
    pull(&store, &other).await.unwrap();
    assert_eq!(place.list("layers").len(), 7 + 3, "the first three and those above the gap anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_nobody_waits_for_ends_and_its_files_go() {
    let registry = Registry::start().await;
    let name = registry.push("app:v1", &Build::default().layer(Tar::default().noise("noise", 40 << 20, 4))).await;
    let place = Place::new();
    let store = place.open_with(Options { linger: Duration::ZERO, ..Options::default() });
    let alone = tokio::spawn({
        let (store, name) = (store.clone(), name.clone());
        async move { pull(&store, &name).await.map(drop) }
    });
    eventually("the download starts", || !place.list("tmp").is_empty()).await;
    alone.abort();
    eventually("its files go", || place.list("tmp").is_empty() && place.list("trash").is_empty()).await;
    assert!(place.list("layers").is_empty(), "it was not finished");
    pull(&store, &name).await.unwrap();
}

/// A pull that has got as far as asking for a layer.
async fn begun(place: &Place, store: &Store, name: String) -> tokio::task::JoinHandle<crisp_store::Result<()>> {
    let store = store.clone();
    let pull = tokio::spawn(async move { pull(&store, &name).await.map(drop) });
    eventually("it asks", || !place.list("tmp").is_empty()).await;
    pull
}

#[tokio::test(flavor = "multi_thread")]
async fn if_the_leader_fails_a_follower_goes_on() {
    let (broken, whole) = (Registry::start().await, Registry::start().await);
    let build = Build::default().layer(Tar::default().noise("noise", 20 << 20, 5));
    let first = broken.push("app:v1", &build).await;
    let second = whole.push("app:v1", &build).await;
    broken.spoil_blob(&Digest::sha256(&build.layers[0].blob));
    let place = Place::new();
    let store = place.open();
    let leader = begun(&place, &store, first).await;
    let follower = pull(&store, &second).await;
    let error = leader.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("the blob is not what its descriptor says"), "{error}");
    assert_eq!(follower.unwrap().tags, [second]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_waits_for_those_below_outlives_anothers_failure() {
    let (broken, whole) = (Registry::start().await, Registry::start().await);
    let low = Build::default().layer(Tar::default().noise("noise", 20 << 20, 6));
    let both = low.clone().layer(Tar::default().hard("link", "noise"));
    let first = broken.push("app:v1", &low).await;
    let second = whole.push("app:v1", &both).await;
    let blob = Digest::sha256(&low.layers[0].blob);
    broken.spoil_blob(&blob);
    let place = Place::new();
    let store = place.open();
    let leader = begun(&place, &store, first).await;
    let follower = pull(&store, &second).await;
    leader.await.unwrap().unwrap_err();
    assert_eq!(follower.unwrap().tags, [second]);
    assert_eq!(whole.requests("GET", &format!("/blobs/{blob}")), 1, "one try of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_layers_of_a_call_share_its_one_failure() {
    let registry = Registry::start().await;
    let mut build = Build::default().layer(Tar::default().noise("noise", 1 << 20, 8));
    for i in 0..5 {
        build = build.layer(Tar::default().hard(&format!("link{i}"), "noise"));
    }
    let name = registry.push("app:v1", &build).await;
    let blob = Digest::sha256(&build.layers[0].blob);
    registry.spoil_blob(&blob);
    let place = Place::new();
    let error = pull(&place.open(), &name).await.unwrap_err().to_string();
    assert!(error.contains("the blob is not what its descriptor says") && error.contains(blob.as_str()), "{error}");
    eventually("the rest ends", || place.list("tmp").is_empty()).await;
    assert_eq!(registry.requests("GET", &format!("/blobs/{blob}")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_the_same_layers_in_other_orders_come_at_once() {
    let registry = Registry::start().await;
    // Each is bound to what is below it, by the directory that is not listed.
    let layers: Vec<_> =
        (0..3).map(|i| Build::default().layer(Tar::default().file(&format!("d/{i}"), "")).layers.remove(0)).collect();
    let place = Place::new();
    let store = place.open_with(Options { layers_at_once: 1, ..Options::default() });
    let mut pulls = tokio::task::JoinSet::new();
    for start in 0..3 {
        let layers = (0..3).map(|i| layers[(start + i) % 3].clone()).collect();
        let name = registry.push(&format!("app:v{start}"), &Build { layers, ..Build::default() }).await;
        for _ in 0..2 {
            let (store, name) = (store.clone(), name.clone());
            pulls.spawn(async move { pull(&store, &name).await.map(drop) });
        }
    }
    let all = tokio::time::timeout(Duration::from_secs(30), pulls.join_all()).await.expect("nobody waits in a circle");
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!((store.images().len(), place.list("layers").len()), (3, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_indexes_that_lead_to_one_image_the_last_few_are_kept() {
    let registry = Registry::start().await;
    let (digest, size) = registry.manifest(&registry.push("app:v1", &Build::default().layer(base())).await).await;
    let place = Place::new();
    let store = place.open();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let entry = json!({"mediaType": common::OCI_MANIFEST, "digest": digest, "size": size,
        "platform": {"os": "linux", "architecture": "amd64"}});
    let mut last = None;
    for night in 0..12 {
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [entry],
            "annotations": {"night": night.to_string()}});
        let digest = registry.push_manifest("app", "nightly", media_type, index.to_string().into_bytes()).await;
        pull(&store, &format!("{}/app:nightly", registry.host)).await.unwrap();
        last = Some(digest);
    }
    let image = store.images().remove(0);
    let last = format!("{}/app@{}", registry.host, last.unwrap());
    assert!(image.repo_digests.len() == 8 && image.repo_digests.contains(&last), "{:?}", image.repo_digests);
    assert_eq!(place.list("blobs").len(), 8 + 2, "indexes, the manifest and the configuration");
    store.flush().await;
    drop((image, store));
    assert_eq!(place.open().images().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_the_image_for_this_machine() {
    let registry = Registry::start().await;
    let build = |platform| Build { platform: Some(("linux", platform)), ..Build::default().layer(base()) };
    let mut manifests = Vec::new();
    for platform in ["amd64", "riscv64"] {
        let build = build(platform);
        let name = registry.push(&format!("app:{platform}"), &build).await;
        let (digest, size) = registry.manifest(&name).await;
        let platform = json!({"os": "linux", "architecture": platform});
        manifests
            .push(json!({"mediaType": common::OCI_MANIFEST, "digest": digest, "size": size, "platform": platform}));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).to_string();
    let digest = registry.push_manifest("app", "all", media_type, index.into_bytes()).await;
    let place = Place::new();
    let store = place.open();
    let name = format!("{}/app:all", registry.host);
    let ask = |platform: Option<Platform>| {
        let (reference, store) = (name.parse().unwrap(), store.clone());
        async move { store.pull(PullRequest { reference, credentials: None, platform, progress: None }).await.unwrap() }
    };
    let here = ask(None).await;
    assert_eq!(here.id, Digest::sha256(&build("amd64").config()));
    assert_eq!(here.repo_digests, [format!("{}/app@{digest}", registry.host)]);
    let requests = || registry.requests("GET", "/v2/app");
    let before = requests();
    let other = ask(Some(Platform::new("linux", "riscv64", None))).await;
    assert_eq!((other.platform.architecture.as_str(), other.tags.as_slice()), ("riscv64", &[name.clone()][..]));
    assert!(requests() > before);
    let before = requests();
    assert_eq!(ask(None).await.id, here.id, "the index is known, for each platform");
    assert_eq!(requests(), before);
    assert_eq!(store.find(&name).unwrap().id, here.id, "the tag is where it was asked for last");
}
