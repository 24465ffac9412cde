//! What is left after a crash at any point, a reboot, a power cut, a full disk. Runs as root, needs Debian's
//! docker-registry, loop devices and mkfs.ext4.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{Build, Place, Registry, Tar, eventually, list, open, pull};
use crisp_store::durable::{Countdown, Disk, Effect, Seam, Then};
use crisp_store::{Options, Store};

fn image(seed: u64, bytes: usize) -> Build {
    Build::default()
        .layer(Tar::default().dir("etc").file("etc/passwd", "root:x:0:0\n").noise("noise", bytes, seed))
        .layer(Tar::default().file("etc/own", &seed.to_string()).noise("more", bytes / 2, seed + 100))
}

/// Everything that the store says it has is there and whole.
fn check(store: &Store, root: &Path) {
    for image in store.images() {
        let id = format!("check-{}", &image.id.hex()[..12]);
        let snapshot = store.prepare(&id, &image).unwrap();
        assert_eq!(snapshot.read_file("etc/passwd", 100).unwrap().unwrap(), b"root:x:0:0\n");
        assert!(snapshot.read_file("etc/own", 100).unwrap().is_some());
        for lower in &snapshot.lowers {
            assert!(snapshot.layers_dir.join(lower).is_dir());
        }
        assert!(!image.repo_digests.is_empty());
        store.remove_snapshot(&id).unwrap();
    }
    for id in store.snapshots() {
        // Without its layers it waits to be removed.
        let Some(snapshot) = store.snapshot(&id) else { continue };
        assert!(snapshot.upper.is_dir() && snapshot.work.is_dir());
        assert_eq!(snapshot.read_file("etc/passwd", 100).unwrap().unwrap(), b"root:x:0:0\n");
    }
    assert_eq!(list(&root.join("snapshots")), store.snapshots());
}

/// Removes everything; nothing may be left then. `name` is pulled first, so that there is something to remove.
async fn clear(store: &Store, root: &Path, name: &str) {
    drop(pull(store, name).await.unwrap());
    for id in store.snapshots() {
        store.remove_snapshot(&id).unwrap();
    }
    for image in store.images() {
        let id = image.id.to_string();
        drop(image);
        store.remove(&id).unwrap();
    }
    let parts = ["layers", "images", "blobs", "snapshots", "tmp", "trash"];
    eventually("everything goes", || parts.iter().all(|part| list(&root.join(part)).is_empty())).await;
}

/// Every verb once. Ends at the first that fails, as a caller would.
async fn story(root: &Path, disk: Disk, first: &str, second: &str) -> crisp_store::Result<()> {
    let store = open(root, Options { disk, ..Options::default() })?;
    let image = pull(&store, first).await?;
    store.prepare("one", &image)?;
    store.prepare("two", &image)?;
    store.prepare("two", &image)?;
    let other = pull(&store, second).await?;
    store.flush().await;
    store.remove_snapshot("two")?;
    store.untag(second)?;
    drop(other);
    pull(&store, second).await?;
    store.remove(first)?;
    store.flush().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_effect_on_the_disk_loses_and_leaks_nothing() {
    let registry = Registry::start().await;
    let first = registry.push("one:v1", &image(1, 5000)).await;
    let second = registry.push("two:v1", &image(2, 5000)).await;
    for then in [Then::Die, Then::Fail] {
        // A few at a time: each waits for the disk most of the time.
        let mut running = tokio::task::JoinSet::new();
        let (mut next, mut effects) = (0, None);
        while effects.is_none() || !running.is_empty() {
            while effects.is_none() && running.len() < 6 {
                let (first, second, k) = (first.clone(), second.clone(), next);
                running.spawn(async move { crash_at(k, then, &first, &second).await.then_some(k) });
                next += 1;
            }
            let ended: Option<u32> = running.join_next().await.unwrap().unwrap();
            effects = effects.or(ended);
        }
        assert!(effects.unwrap() > 50, "the story has only {effects:?} effects?");
    }
}

/// True if the story has no more than `k` effects.
async fn crash_at(k: u32, then: Then, first: &str, second: &str) -> bool {
    let place = Place::new();
    let seam = Arc::new(Countdown::new(k, then));
    if let Err(error) = story(&place.root(), Disk::with_seam(seam.clone()), first, second).await {
        assert!(seam.reached(), "{k}: {error}");
    }
    let store = place.open();
    check(&store, &place.root());
    clear(&store, &place.root(), first).await;
    !seam.reached()
}

/// The program that is killed.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_pulls_until_it_is_killed() {
    let Some(root) = std::env::var_os("CRISP_TEST_ROOT") else { return };
    let names = std::env::var("CRISP_TEST_NAMES").unwrap();
    let store = open(Path::new(&root), Options::default()).unwrap();
    loop {
        for (i, name) in names.split(' ').enumerate() {
            let image = pull(&store, name).await.unwrap();
            store.prepare(&format!("c{i}"), &image).unwrap();
            drop(image);
            store.remove_snapshot(&format!("c{i}")).unwrap();
            store.remove(name).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_any_instruction_loses_and_leaks_nothing() {
    let registry = Registry::start().await;
    let first = registry.push("one:v1", &image(1, 3 << 20)).await;
    let second = registry.push("two:v1", &image(2, 1 << 20)).await;
    let place = Place::new();
    for round in 0..15 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_pulls_until_it_is_killed"])
            .env("CRISP_TEST_ROOT", place.root())
            .env("CRISP_TEST_NAMES", format!("{first} {second}"))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(120 + round * 37)).await;
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        let store = place.open();
        check(&store, &place.root());
        if round % 5 == 4 {
            clear(&store, &place.root(), &first).await;
        }
    }
}

/// Lets no flush succeed.
#[derive(Debug)]
struct NoFlush;

impl Seam for NoFlush {
    fn before(&self, effect: Effect, _: &Path) -> io::Result<()> {
        match effect {
            Effect::Sync => Err(io::Error::other("the test does not let it flush")),
            _ => Ok(()),
        }
    }
}

fn booted(boot: &str, disk: Disk) -> Options {
    Options { boot_id: Some(boot.into()), disk, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_flushed_counts_only_in_its_boot() {
    let registry = Registry::start().await;
    let name = registry.push("one:v1", &image(1, 5000)).await;
    let place = Place::new();
    let images = |boot: &str, disk: Disk| {
        let store = place.open_with(booted(boot, disk));
        (store.images().len(), store.snapshots().len())
    };
    let unflushed = || Disk::with_seam(Arc::new(NoFlush));
    let store = place.open_with(booted("a", unflushed()));
    let image = pull(&store, &name).await.unwrap();
    store.prepare("c", &image).unwrap();
    store.flush().await;
    drop((image, store));
    assert_eq!(images("a", unflushed()), (1, 1), "a restart of the program keeps it");
    assert_eq!(images("b", unflushed()), (0, 1), "a reboot does not; the container's own files stay");

    let store = place.open_with(booted("b", Disk::new()));
    assert!(store.snapshot("c").is_none(), "its layers are gone");
    store.remove_snapshot("c").unwrap();
    drop(pull(&store, &name).await.unwrap());
    store.flush().await;
    drop(store);
    assert_eq!(images("c", Disk::new()), (1, 0), "what was flushed stays");
    // Flushed in the background too, without being told.
    let other = registry.push("two:v1", &image_of_other()).await;
    let store = place.open_with(booted("c", Disk::new()));
    drop(pull(&store, &other).await.unwrap());
    let durable = || {
        let layers = list(&place.root().join("layers"));
        layers.iter().all(|layer| {
            let record = fs::read_to_string(place.root().join("layers").join(layer).join("record.json")).unwrap();
            record.contains("\"durable\":true")
        })
    };
    eventually("the flush", durable).await;
}

/// Lets no flush succeed until it is told to.
#[derive(Debug, Default)]
struct LateFlush(std::sync::atomic::AtomicBool);

impl Seam for LateFlush {
    fn before(&self, effect: Effect, path: &Path) -> io::Result<()> {
        if self.0.load(std::sync::atomic::Ordering::Acquire) { Ok(()) } else { NoFlush.before(effect, path) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_failed_is_tried_again_with_the_next_pull() {
    let registry = Registry::start().await;
    let name = registry.push("one:v1", &image(1, 5000)).await;
    let place = Place::new();
    let seam = Arc::new(LateFlush::default());
    let store = place.open_with(booted("a", Disk::with_seam(seam.clone())));
    drop(pull(&store, &name).await.unwrap());
    store.flush().await;
    seam.0.store(true, std::sync::atomic::Ordering::Release);
    drop(pull(&store, &name).await.unwrap());
    store.flush().await;
    drop(store);
    assert_eq!(place.open_with(booted("b", Disk::new())).images().len(), 1, "it survives a reboot");
}

fn image_of_other() -> Build {
    image(7, 5000)
}

/// Runs one of the tests below in a mount namespace of its own, which takes its mounts along when it ends.
fn alone(test: &str, host: &str, dir: &Path) {
    let output = Command::new("unshare")
        .arg("-m")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("CRISP_TEST_DIR", dir)
        .env("CRISP_TEST_HOST", host)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn alone_in() -> Option<(PathBuf, String)> {
    Some((std::env::var_os("CRISP_TEST_DIR")?.into(), std::env::var("CRISP_TEST_HOST").ok()?))
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_leaves_whole_images_or_none() {
    let registry = Registry::start().await;
    registry.push("one:v1", &image(1, 3 << 20)).await;
    let dir = tempfile::tempdir().unwrap();
    alone("child_whose_power_is_cut", &registry.host, dir.path());
}

/// A copy of the block device's file, made while the file system is mounted, holds what reached the device.
#[tokio::test(flavor = "multi_thread")]
async fn child_whose_power_is_cut() {
    let Some((dir, host)) = alone_in() else { return };
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (device, before, after) = (path("device"), path("before"), path("after"));
    fs::File::create(&device).unwrap().set_len(256 << 20).unwrap();
    run("mkfs.ext4", &["-q", &device]);
    for mount in ["running", "before-mount", "after-mount"] {
        fs::create_dir(dir.join(mount)).unwrap();
    }
    let running = path("running");
    // No commit of the journal but those that somebody asks for.
    run("mount", &["-o", "loop,commit=300", &device, &running]);
    let name = format!("{host}/one:v1");
    let root = Path::new(&running).join("store");
    let store = open(&root, booted("a", Disk::with_seam(Arc::new(NoFlush)))).unwrap();
    drop(pull(&store, &name).await.unwrap());
    store.flush().await;
    run("cp", &["--sparse=always", &device, &before]);
    drop(store);
    let store = open(&root, booted("a", Disk::new())).unwrap();
    store.flush().await;
    run("cp", &["--sparse=always", &device, &after]);
    for (device, images) in [(before, 0), (after, 1)] {
        let mount = format!("{device}-mount");
        run("mount", &["-o", "loop", &device, &mount]);
        let root = Path::new(&mount).join("store");
        if images == 0 && !root.exists() {
            continue;
        }
        let store = open(&root, booted("b", Disk::new())).unwrap();
        assert_eq!(store.images().len(), images, "{device}");
        check(&store, &root);
        if images == 1 {
            run(
                "diff",
                &["-r", "--no-dereference", &format!("{running}/store/layers"), &format!("{mount}/store/layers")],
            );
        }
        drop(pull(&store, &name).await.unwrap());
        check(&store, &root);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_clear_error_and_leaves_nothing() {
    let registry = Registry::start().await;
    registry.push("large:v1", &image(1, 12 << 20)).await;
    registry.push("small:v1", &image(2, 1 << 20)).await;
    let dir = tempfile::tempdir().unwrap();
    alone("child_with_a_small_disk", &registry.host, dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn child_with_a_small_disk() {
    let Some((dir, host)) = alone_in() else { return };
    run("mount", &["-t", "tmpfs", "-o", "size=8m", "tmpfs", dir.to_str().unwrap()]);
    let root = dir.join("store");
    let store = open(&root, Options::default()).unwrap();
    for _ in 0..3 {
        let error = pull(&store, &format!("{host}/large:v1")).await.unwrap_err();
        assert!(error.is_no_space(), "{error}");
        assert!(error.to_string().contains("large:v1") && error.to_string().contains("No space left"), "{error}");
        eventually("the rest goes", || list(&root.join("tmp")).is_empty() && list(&root.join("trash")).is_empty())
            .await;
    }
    drop(pull(&store, &format!("{host}/small:v1")).await.unwrap());
    check(&store, &root);
    clear(&store, &root, &format!("{host}/small:v1")).await;
}

type Damage = fn(&Path);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_dropped_and_the_rest_stays() {
    let registry = Registry::start().await;
    let names = [registry.push("one:v1", &image(1, 5000)).await, registry.push("two:v1", &image(2, 5000)).await];
    let damage: [(&str, Damage); 6] = [
        ("a layer is gone", |root| fs::remove_dir_all(layer_of(root, "1")).unwrap()),
        ("a layer's record is empty", |root| fs::write(layer_of(root, "1").join("record.json"), "").unwrap()),
        ("an image's record is cut off", |root| cut(&record_of(root, "one"), 100)),
        ("a blob is empty", |root| cut(&blob_of(root), 0)),
        ("a blob is gone", |root| fs::remove_file(blob_of(root)).unwrap()),
        ("a record is under another name", |root| {
            let name = format!("sha256:{}.json", "0".repeat(64));
            fs::rename(record_of(root, "one"), root.join("images").join(name)).unwrap();
        }),
    ];
    for (what, damage) in damage {
        let place = Place::new();
        let store = place.open();
        for name in &names {
            let image = pull(&store, name).await.unwrap();
            store.prepare(&name.replace([':', '/'], "-"), &image).unwrap();
        }
        store.flush().await;
        drop(store);
        damage(&place.root());
        let store = place.open();
        let left: Vec<_> = store.images().iter().flat_map(|image| image.tags.clone()).collect();
        assert_eq!(left, names[1..], "{what}");
        assert_eq!(store.snapshots().len(), 2, "{what}: it may be the container's only copy");
        check(&store, &place.root());
        clear(&store, &place.root(), &names[0]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_now_is_not_dropped() {
    let registry = Registry::start().await;
    let name = registry.push("one:v1", &image(1, 5000)).await;
    let place = Place::new();
    let root = place.root();
    let store = place.open();
    store.prepare("c", &pull(&store, &name).await.unwrap()).unwrap();
    store.flush().await;
    drop(store);
    drop(place.open());
    let records =
        [layer_of(&root, "1").join("record.json"), root.join("snapshots/c/record.json"), record_of(&root, "one")];
    let blob = blob_of(&root);
    for path in records.iter().chain([&blob]) {
        let bytes = fs::read(path).unwrap();
        if path != &blob {
            fs::write(path, String::from_utf8(bytes.clone()).unwrap().replace("\"version\":1", "\"version\":9"))
                .unwrap();
            let error = open(&root, Options::default()).unwrap_err().to_string();
            assert!(error.contains("version 9 is newer") && error.contains(path.to_str().unwrap()), "{error}");
        }
        // A read that fails: this is EISDIR.
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
        let error = open(&root, Options::default()).unwrap_err().to_string();
        assert!(error.contains("cannot read it") && error.contains(path.to_str().unwrap()), "{error}");
        fs::remove_dir(path).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let store = place.open();
    assert_eq!((store.images().len(), store.snapshots().len(), place.list("layers").len()), (1, 1, 2));
    check(&store, &root);
}

/// The layer that only the image with this seed has.
fn layer_of(root: &Path, seed: &str) -> PathBuf {
    let layers = list(&root.join("layers")).into_iter().map(|layer| root.join("layers").join(layer));
    layers.into_iter().find(|layer| fs::read_to_string(layer.join("fs/etc/own")).is_ok_and(|own| own == seed)).unwrap()
}

fn record_of(root: &Path, name: &str) -> PathBuf {
    let records = list(&root.join("images")).into_iter().map(|record| root.join("images").join(record));
    records.into_iter().find(|record| fs::read_to_string(record).unwrap().contains(&format!("/{name}:"))).unwrap()
}

/// The configuration of the first image.
fn blob_of(root: &Path) -> PathBuf {
    let record = record_of(root, "one");
    root.join("blobs").join(record.file_stem().unwrap())
}

fn cut(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}
