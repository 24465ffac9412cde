//! What archives become. These make device nodes and owners, so they run as root.

mod below;
mod limits;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::AtFlags;
use tar_core::Header;

use super::tree::times;
use super::*;
use crate::merged;

/// Entries of an archive, written as ustar; long or odd things go into PAX records.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(mut self, path: &str, kind: u8, link: &str, content: &[u8], change: impl FnOnce(&mut Header)) -> Self {
        let mut header = Header::new_ustar();
        header.set_path(path.as_bytes()).unwrap();
        header.set_entry_type(tar_core::EntryType::from_byte(kind));
        header.as_mut_bytes()[156] = kind;
        header.set_link_name(link.as_bytes()).unwrap();
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 }).unwrap();
        header.set_uid(0).unwrap();
        header.set_gid(0).unwrap();
        header.set_mtime(1000).unwrap();
        header.set_size(content.len() as u64).unwrap();
        change(&mut header);
        header.set_checksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (rest..).find(|len| rest + len.to_string().len() == *len).unwrap();
            body.extend_from_slice(format!("{len} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.add("pax", b'x', "", &body, |_| {})
    }

    fn dir(self, path: &str) -> Self {
        self.add(path, b'5', "", b"", |_| {})
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.add(path, b'0', "", content.as_bytes(), |_| {})
    }

    fn link(self, path: &str, target: &str) -> Self {
        self.add(path, b'2', target, b"", |_| {})
    }

    fn hard(self, path: &str, target: &str) -> Self {
        self.add(path, b'1', target, b"", |_| {})
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

struct Pieces<'a>(std::slice::Chunks<'a, u8>);

impl Source for Pieces<'_> {
    fn next(&mut self, _: Vec<u8>) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.next().map(<[u8]>::to_vec))
    }
}

struct Layers(Vec<PathBuf>);

impl Below for Layers {
    fn layers(&self) -> Result<Vec<PathBuf>, Error> {
        Ok(self.0.clone())
    }
}

/// A directory that stays private to a test, and an unpacked layer in it.
struct Layer {
    dir: tempfile::TempDir,
    result: Result<Unpacked, Error>,
}

fn unpack_on(below: &[&Layer], archive: &[u8]) -> Layer {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("fs");
    fs::create_dir(&root).unwrap();
    let layers = Layers(below.iter().map(|layer| layer.dir.path().join("fs")).collect());
    // The umask is this thread's own.
    let result = std::thread::scope(|scope| {
        let run = || {
            crate::sys::own_umask().unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let root = rustix::fs::open(&root, flags, Mode::empty()).unwrap();
            unpack(&mut Pieces(archive.chunks(700)), root, &layers, Limits { entries: 100_000 })
        };
        scope.spawn(run).join().unwrap()
    });
    Layer { dir, result }
}

fn unpacked(archive: Archive) -> Layer {
    let layer = unpack_on(&[], &archive.end());
    layer.result.as_ref().unwrap();
    layer
}

fn refused(archive: Archive) -> String {
    unpack_on(&[], &archive.end()).result.unwrap_err().to_string()
}

impl Layer {
    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("fs").join(path)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn meta(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(path)).unwrap()
    }

    fn whiteout(&self, path: &str) -> bool {
        let meta = self.meta(path);
        meta.file_type().is_char_device() && meta.rdev() == 0
    }

    fn opaque(&self, path: &str) -> bool {
        let mut value = [0; 8];
        rustix::fs::getxattr(self.path(path), merged::OPAQUE, &mut value[..]).is_ok_and(|n| &value[..n] == b"y")
    }
}

#[test]
fn ordinary_entries() {
    let layer = unpacked(
        Archive::default()
            .add("./", b'5', "", b"", |h| h.set_mode(0o711).unwrap())
            .dir("bin/")
            .add("bin/su", b'0', "", b"#!", |h| {
                h.set_mode(0o4751).unwrap();
                h.set_uid(12).unwrap();
                h.set_gid(34).unwrap();
            })
            .hard("bin/sudo", "bin/su")
            .link("sh", "/bin/su")
            .add("dev/null", b'3', "", b"", |h| h.set_device(1, 3).unwrap())
            .add("pipe", b'6', "", b"", |h| h.set_mode(0o2600).unwrap())
            .file("empty", ""),
    );
    let su = layer.meta("bin/su");
    assert_eq!((su.mode(), su.uid(), su.gid(), su.mtime(), su.nlink()), (0o104751, 12, 34, 1000, 2));
    assert_eq!(su.ino(), layer.meta("bin/sudo").ino());
    assert_eq!(fs::read_link(layer.path("sh")).unwrap(), Path::new("/bin/su"));
    assert_eq!(layer.meta("sh").mtime(), 1000);
    assert_eq!(layer.meta("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(layer.meta("pipe").mode(), 0o012600);
    assert_eq!(layer.meta("").mode(), 0o40711);
    assert_eq!(layer.meta("bin").mtime(), 1000, "set after the entries in it were made");
    let result = layer.result.unwrap();
    assert!(result.root_listed);
    assert_eq!(result.inodes, 8, "root, bin, su, sh, dev, null, pipe, empty");
    assert_eq!(result.bytes, 4 * BLOCK, "three directories and one file with content");
}

#[test]
fn a_layer_is_bound_only_by_what_it_takes_from_below() {
    let free = unpacked(Archive::default().dir("a/").file("a/b", "")).result.unwrap();
    assert!(!free.bound && !free.root_listed);
    assert!(unpacked(Archive::default().file("a/b", "")).result.unwrap().bound, "a is implied");
}

#[test]
fn pax_and_sparse() {
    let long = "x".repeat(90);
    let path = format!("{long}/{long}/{long}");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = unpacked(
        Archive::default()
            .pax(&[
                ("path", path.as_bytes()),
                ("mtime", b"-1.5"),
                ("uid", b"3000000"),
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.user.note", b"hi"),
            ])
            .file("short", "text")
            .pax(&[("SCHILY.xattr.user.note", b"hi")])
            .link("link", "x")
            .pax(&[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.minor", b"1"),
                ("GNU.sparse.name", b"sparse"),
                ("GNU.sparse.size", b"1000000"),
                ("GNU.sparse.map", b"500000,3,900000,2"),
            ])
            .file("GNUSparseFile.0/sparse", "abcde"),
    );
    let meta = layer.meta(&path);
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.uid()), (-2, 500_000_000, 3_000_000));
    let mut value = [0; 64];
    let n = rustix::fs::getxattr(layer.path(&path), "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..n], capability, "set after the owner");
    assert!(rustix::fs::getxattr(layer.path(&path), "trusted.overlay.redirect", &mut value[..]).is_err());
    let sparse = fs::read(layer.path("sparse")).unwrap();
    assert_eq!(
        (sparse.len(), &sparse[500_000..500_004], &sparse[900_000..900_002]),
        (1_000_000, &b"abc\0"[..], &b"de"[..])
    );
    assert!(layer.meta("sparse").blocks() < 100);
}

#[test]
fn whiteouts() {
    let layer = unpacked(
        Archive::default()
            .file("a/.wh.gone", "")
            .file(".wh.first", "")
            .file("first/x", "x")
            .dir("last")
            .file("last/x", "x")
            .file(".wh.last", "")
            .file(".wh.dir", "")
            .dir("dir")
            .file(".wh.file", "")
            .file("file", "new")
            .file("kept", "new")
            .file(".wh.kept", "")
            .dir("o")
            .file("o/.wh..wh..opq", "")
            .file("p/q/.wh..wh..opq", "")
            .file("p/.wh..wh.plnk", "")
            .file(".wh.twice", "")
            .file(".wh.twice", ""),
    );
    assert!(layer.whiteout("a/gone") && layer.whiteout("twice"));
    for path in ["first", "last", "dir", "o", "p/q"] {
        assert!(layer.opaque(path), "{path}");
    }
    assert_eq!((layer.text("first/x"), layer.text("last/x")), ("x".into(), "x".into()));
    assert_eq!((layer.text("file"), layer.text("kept")), ("new".into(), "new".into()));
    assert!(!layer.opaque("p") && !layer.path("p/.wh..wh.plnk").exists());
    for name in [".wh.", ".wh..", ".wh..."] {
        assert!(refused(Archive::default().file(name, "")).contains("whiteout of nothing"), "{name}");
    }
}

#[test]
fn names_that_point_out_stay_in() {
    let layer = unpacked(
        Archive::default()
            .file("../../up", "1")
            .file("/abs", "2")
            .link("etc", "/")
            .file("etc/passwd", "3")
            .link("out", "../../../../../..")
            .file("out/x", "4")
            .link("run", "/var/../var/run")
            .file("run/pid", "5")
            .hard("hard", "run/pid"),
    );
    for (path, text) in [("up", "1"), ("abs", "2"), ("passwd", "3"), ("x", "4"), ("var/run/pid", "5"), ("hard", "5")] {
        assert_eq!(layer.text(path), text);
    }
    assert_eq!(fs::read_dir(layer.dir.path()).unwrap().count(), 1);
}

#[test]
fn the_target_of_a_link_is_never_written_through() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let name = victim.to_str().unwrap();
    let layer = unpacked(
        Archive::default()
            .link("l", name)
            .file("l", "mine")
            .link("m", name)
            .hard("n", "m")
            .link("d", outside.path().to_str().unwrap())
            .file("d/victim", "inside"),
    );
    assert_eq!(fs::read_to_string(&victim).unwrap(), "safe");
    assert_eq!(layer.text("l"), "mine");
    assert!(layer.meta("n").is_symlink());
    assert_eq!(layer.text(&name[1..]), "inside");
}

#[test]
fn later_entries_win() {
    let layer = unpacked(
        Archive::default()
            .file("f", "old")
            .hard("other", "f")
            .file("f", "new")
            .hard("f", "f")
            .dir("d")
            .file("d/x", "x")
            .file("d", "file now")
            .file("g", "file")
            .dir("g")
            .file("g/x", "dir now")
            .link("h", "g")
            .dir("h")
            .file("h/y", "own")
            .dir("m")
            .file("m/x", "kept")
            .add("m", b'5', "", b"", |h| h.set_mode(0o700).unwrap()),
    );
    assert_eq!((layer.text("f"), layer.text("other")), ("new".into(), "old".into()));
    assert_eq!(
        (layer.text("d"), layer.text("g/x"), layer.text("h/y")),
        ("file now".into(), "dir now".into(), "own".into())
    );
    assert!(!layer.path("g/y").exists());
    assert_eq!((layer.text("m/x"), layer.meta("m").mode()), ("kept".into(), 0o40700));
    let (_, inodes) = crate::usage::measure(&layer.path(""));
    assert_eq!(layer.result.unwrap().inodes, inodes);
}

#[test]
fn a_set_group_id_directory_does_not_leak_into_what_is_in_it() {
    let layer = unpacked(
        Archive::default()
            .add("mail", b'5', "", b"", |h| {
                h.set_mode(0o2775).unwrap();
                h.set_gid(8).unwrap();
            })
            .file("mail/f", "")
            .dir("mail/d"),
    );
    assert_eq!((layer.meta("mail").mode(), layer.meta("mail").gid()), (0o42775, 8));
    assert_eq!((layer.meta("mail/f").gid(), layer.meta("mail/d").gid(), layer.meta("mail/d").mode()), (0, 0, 0o40755));
}

/// Lists a tree with everything that counts.
fn listing(root: &Path) -> String {
    let find = Command::new("find")
        .args([".", "-printf", "%p %y %m %U %G %s %T@ %n %l\n"])
        .current_dir(root)
        .output()
        .unwrap();
    let mut lines: Vec<_> = String::from_utf8(find.stdout).unwrap().lines().map(str::to_owned).collect();
    // The size of a directory is the file system's affair.
    for line in lines.iter_mut().filter(|line| line.split(' ').nth(1) == Some("d")) {
        let mut words: Vec<_> = line.split(' ').collect();
        words.remove(5);
        *line = words.join(" ");
    }
    lines.sort();
    lines.join("\n")
}

/// Path, kind, mode, owner, time, size.
type Made<'a> = (Vec<&'a str>, u8, u32, u32, i64, usize);

#[test]
fn ordinary_archives_become_what_gnu_tar_makes_of_them() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    let names = || {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "long-name-that-fills-the-header-field"]), 1..5)
    };
    let entry = (names(), 0..5u8, 0o0u32..0o7777, 0..3u32, 0i64..2_000_000_000, 0..3000usize);
    let tree = prop::collection::vec(entry, 0..25);
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let check = |entries: Vec<Made<'_>>, format: &str| {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let mut files = Vec::new();
        for (parts, kind, mode, owner, time, size) in entries {
            let path = from.join(parts.join("/"));
            if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
                continue;
            }
            match kind {
                0 => fs::create_dir(&path).unwrap(),
                1 => symlink(parts.join("/"), &path).unwrap(),
                2 if !files.is_empty() => fs::hard_link(&files[size % files.len()], &path).unwrap(),
                3 => fs::File::create(&path).unwrap().set_len(size as u64 * 1000).unwrap(),
                _ => {
                    fs::write(&path, vec![b'x'; size]).unwrap();
                    files.push(path.clone());
                }
            }
            std::os::unix::fs::lchown(&path, Some(owner), Some(owner * 2)).unwrap();
            if kind != 1 {
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            }
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times((time, size as u32)), AtFlags::SYMLINK_NOFOLLOW)
                .unwrap();
        }
        let tar = |args: &[&str]| {
            let output = Command::new("tar").args(args).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
        let archive = tar(&["-C", from, "-S", "--numeric-owner", &format!("--format={format}"), "-cf", "-", "."]);
        let file = dir.path().join("archive");
        fs::write(&file, &archive).unwrap();
        tar(&["-C", to, "--numeric-owner", "-p", "-S", "-xf", file.to_str().unwrap()]);
        let layer = unpack_on(&[], &archive);
        let result = *layer.result.as_ref().unwrap();
        assert_eq!(listing(&layer.path("")), listing(Path::new(to)));
        assert_eq!(result.inodes, crate::usage::measure(&layer.path("")).1);
        let diff = Command::new("diff").args(["-r", "--no-dereference", to]).arg(layer.path("")).output().unwrap();
        assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    };
    for format in ["pax", "gnu"] {
        runner
            .run(&tree, |entries| {
                check(entries, format);
                Ok(())
            })
            .unwrap();
    }
}
