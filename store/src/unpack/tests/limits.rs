//! What is refused, and what may cost how much.

use super::*;

#[test]
fn a_deep_tree_needs_no_more_fds() {
    let path = ["d"; 256].join("/");
    let layer = unpacked(Archive::default().pax(&[("path", path.as_bytes())]).file("x", "deep"));
    assert_eq!(layer.result.as_ref().unwrap().inodes, 257);
}

#[test]
fn a_tree_that_is_too_deep_is_refused_however_it_is_named() {
    let (half, whole) = (["d"; 130].join("/"), ["d"; 257].join("/"));
    let pax = |archive: Archive, path: &str| archive.pax(&[("path", path.as_bytes())]);
    let listed = (1..=257).fold(Archive::default(), |archive, n| pax(archive, &["d"; 257][..n].join("/")).dir("x"));
    let over_a_link = pax(Archive::default(), &format!("{half}/x"))
        .file("x", "")
        .pax(&[("linkpath", half.as_bytes())])
        .link("l", "x");
    for archive in
        [pax(Archive::default(), &whole).file("x", ""), listed, pax(over_a_link, &format!("l/{half}")).dir("x")]
    {
        let error = refused(archive);
        assert!(error.contains("more than 256 directories deep"), "{error}");
    }
}

#[test]
fn implied_directories_count_as_entries() {
    let path = ["d"; 20].join("/");
    let archive = Archive::default().file(&path, "").end();
    let dir = tempfile::tempdir().unwrap();
    let root = || rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let limited = |entries| unpack(&mut Pieces(archive.chunks(512)), root(), &Layers(Vec::new()), Limits { entries });
    assert!(matches!(limited(19), Err(Error::TooMany(19))));
}

#[test]
fn memory_for_directories_is_bounded_and_what_goes_gives_it_back() {
    let value = vec![b'v'; 60 << 10];
    let records: Vec<_> = (0..4).map(|i| (format!("SCHILY.xattr.user.x{i}"), &value[..])).collect();
    let records: Vec<_> = records.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let big = |archive: Archive, i: usize| archive.pax(&records).dir(&format!("d{i}"));
    // None of them reaches the disk: attributes are set last.
    let error = refused((0..600).fold(Archive::default(), big));
    assert!(error.contains("take too much memory"), "{error}");
    let replaced = (0..600).fold(Archive::default(), |archive, i| big(archive, i).file(&format!("d{i}"), ""));
    unpacked(replaced);
    let error = refused(Archive::default().pax(&[("SCHILY.xattr.user.x", &[0; 65537])]).file("f", ""));
    assert!(error.contains("user.x is larger than 65536 bytes"), "{error}");
}

#[test]
fn too_many_entries_are_refused() {
    let mut archive = Archive::default();
    for i in 0..20 {
        archive = archive.file(&format!("f{i}"), "");
    }
    let archive = archive.end();
    let dir = tempfile::tempdir().unwrap();
    let root = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let result = unpack(&mut Pieces(archive.chunks(512)), root, &Layers(Vec::new()), Limits { entries: 19 });
    assert!(matches!(result, Err(Error::TooMany(19))));
}

#[test]
fn bad_archives_are_refused_by_name() {
    for (archive, why) in [
        (Archive::default().file("f", "").file("f/x", ""), "\"f/x\": cannot enter its directory"),
        (Archive::default().link("a", "b").link("b", "a").file("a/x", ""), "\"a/x\": cannot enter"),
        (Archive::default().file("./", ""), "root of a layer must be a directory"),
        (Archive::default().hard("d", ""), "link without a proper target"),
        (Archive::default().link("d", ""), "link without a proper target"),
        (Archive::default().hard("d", "."), "hard link to the root"),
        (Archive::default().add("v", b'V', "", b"", |_| {}), "type 'V'"),
        (Archive::default().pax(&[("size", b"many")]).file("f", "abc"), "size is no number"),
        (Archive::default().pax(&[("path", b"a\0b")]).file("f", "abc"), "zero byte"),
        (Archive::default().pax(&[("uid", b"99999999999")]).file("f", "abc"), "out of range"),
        (Archive::default().pax(&[("path", &[b'x'; 5000])]).file("f", "abc"), "path exceeds limit"),
        (
            Archive::default()
                .pax(&[("GNU.sparse.name", b"s"), ("GNU.sparse.size", b"4"), ("GNU.sparse.map", b"3,2")])
                .file("s", "ab"),
            "map of holes",
        ),
    ] {
        let error = refused(archive);
        assert!(error.contains(why), "{error:?} should say {why:?}");
    }
    let whole = Archive::default().file("f", "abc").end();
    for cut in [100, 512, 514] {
        assert!(matches!(unpack_on(&[], &whole[..cut]).result, Err(Error::CutOff)), "{cut}");
    }
    for end in [1024, 1536] {
        unpack_on(&[], &whole[..end]).result.unwrap();
    }
    assert!(matches!(unpack_on(&[], &[b'x'; 1024]).result, Err(Error::Tar(_))));
}

#[test]
fn an_attribute_that_does_not_fit_is_no_full_disk() {
    let archive = Archive::default().pax(&[("SCHILY.xattr.user.big", &[b'v'; 65536])]).file("f", "");
    match unpack_on(&[], &archive.end()).result {
        // Some file systems have room for it.
        Ok(_) => {}
        Err(error) => assert!(error.to_string().contains("user.big is too large for the file system"), "{error}"),
    }
}
