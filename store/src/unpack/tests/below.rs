//! What a layer takes from those below, and hides of them.

use super::*;

#[test]
fn what_is_implied_comes_from_below() {
    let base = unpacked(
        Archive::default()
            .add("srv", b'5', "", b"", |h| {
                h.set_mode(0o2750).unwrap();
                h.set_uid(7).unwrap();
            })
            .add("srv/www", b'5', "", b"", |h| h.set_gid(9).unwrap())
            .file("srv/page", "page")
            .dir("hidden")
            .add("hidden/d", b'5', "", b"", |h| h.set_uid(7).unwrap())
            .link("alias", "srv"),
    );
    let archive = Archive::default()
        .file("srv/www/new", "")
        .file("nowhere/new", "")
        .hard("copy", "srv/page")
        .hard("copy2", "alias/page")
        .file(".wh.hidden", "")
        .file("hidden/d/new", "");
    let layer = unpack_on(&[&base], &archive.end());
    assert!(layer.result.as_ref().unwrap().bound);
    let srv = layer.meta("srv");
    assert_eq!((srv.mode(), srv.uid(), srv.mtime()), (0o42750, 7, 1000));
    assert_eq!((layer.meta("srv/www").gid(), layer.meta("srv/www/new").gid()), (9, 0));
    assert_eq!((layer.meta("nowhere").mode(), layer.meta("nowhere").uid()), (0o40755, 0));
    assert_eq!(layer.meta("hidden/d").uid(), 0, "below is hidden");
    for copy in ["copy", "copy2"] {
        assert_eq!((layer.text(copy), layer.meta(copy).ino()), ("page".into(), base.meta("srv/page").ino()));
    }
    for (archive, why) in [
        (Archive::default().hard("h", "absent"), "neither in this layer nor below"),
        (Archive::default().hard("h", "srv"), "hard link to the directory"),
        (Archive::default().file("srv/.wh.page", "").hard("h", "srv/page"), "neither in this layer nor below"),
        (Archive::default().file("srv/.wh..wh..opq", "").hard("h", "hidden/absent"), "neither in this layer nor below"),
    ] {
        let error = unpack_on(&[&base], &archive.end()).result.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_mark_that_hides_what_is_below_counts_from_where_it_stands() {
    let base = unpacked(Archive::default().dir("d").file("d/f", "low"));
    let link = |archive: Archive| unpack_on(&[&base], &archive.hard("h", "d/f").end()).result.map(drop);
    for archive in [
        Archive::default().dir("d").file("d/.wh..wh..opq", ""),
        Archive::default().file(".wh.d", "").dir("d"),
        Archive::default().file(".wh.d", "").file("d/other", ""),
        Archive::default().file("d", "now a file"),
        Archive::default().link("d", "e"),
    ] {
        let error = link(archive).unwrap_err().to_string();
        assert!(error.contains("neither in this layer nor below"), "{error}");
    }
    link(Archive::default()).unwrap();
}

#[test]
fn a_path_over_a_link_below_becomes_a_directory_like_the_one_that_the_link_leads_to() {
    let base = unpacked(
        Archive::default()
            .dir("var")
            .link("var/run", "/run")
            .add("run", b'5', "", b"", |h| {
                h.set_mode(0o2750).unwrap();
                h.set_uid(7).unwrap();
            })
            .add("run/sub", b'5', "", b"", |h| h.set_uid(8).unwrap())
            .file("run/old", "old")
            .link("circle", "circle")
            .link("nowhere", "/absent")
            .link("hidden", "/run"),
    );
    let archive = Archive::default()
        .file("var/run/pid", "1")
        .file("var/run/sub/x", "")
        .hard("var/run/new", "var/run/old")
        .file("circle/x", "")
        .file("nowhere/x", "")
        .file(".wh.hidden", "")
        .file("hidden/x", "");
    let layer = unpack_on(&[&base], &archive.end());
    layer.result.as_ref().unwrap();
    let run = layer.meta("var/run");
    assert_eq!((run.mode(), run.uid(), run.mtime()), (0o42750, 7, 1000));
    assert_eq!(layer.meta("var/run/sub").uid(), 8);
    assert_eq!(layer.meta("var/run/new").ino(), base.meta("run/old").ino());
    for plain in ["circle", "nowhere", "hidden"] {
        assert_eq!((layer.meta(plain).mode(), layer.meta(plain).uid()), (0o40755, 0), "{plain}");
    }
    assert!(!layer.path("run").exists(), "nothing is written through the link");
}
