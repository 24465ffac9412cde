//! A small ustar writer that also writes what no honest tool would: absolute names, `..`, wrong sizes.

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind<'a> {
    File(&'a [u8]),
    Dir,
    Symlink(&'a str),
    Hardlink(&'a str),
    Char(u32, u32),
    Fifo,
}

/// One tar in the making.
#[derive(Default, Debug)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    /// Adds an entry exactly as named.
    pub(crate) fn add(&mut self, path: &str, kind: Kind<'_>, mode: u32, uid: u32, gid: u32) -> &mut Self {
        let (flag, link, data) = match kind {
            Kind::File(d) => (b'0', "", d),
            Kind::Hardlink(t) => (b'1', t, &[][..]),
            Kind::Symlink(t) => (b'2', t, &[][..]),
            Kind::Char(..) => (b'3', "", &[][..]),
            Kind::Dir => (b'5', "", &[][..]),
            Kind::Fifo => (b'6', "", &[][..]),
        };
        let mut h = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
        let (prefix, name) = split(path);
        put(0, name.as_bytes());
        put(345, prefix.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, format!("{uid:07o}\0").as_bytes());
        put(116, format!("{gid:07o}\0").as_bytes());
        put(124, format!("{:011o}\0", data.len()).as_bytes());
        put(136, format!("{:011o}\0", 1_700_000_000).as_bytes());
        put(156, &[flag]);
        put(157, &link.as_bytes()[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        if let Kind::Char(major, minor) = kind {
            put(329, format!("{major:07o}\0").as_bytes());
            put(337, format!("{minor:07o}\0").as_bytes());
        }
        put(148, b"        ");
        let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
        h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&h);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A root-owned file.
    pub(crate) fn file(&mut self, path: &str, data: impl AsRef<[u8]>, mode: u32) -> &mut Self {
        self.add(path, Kind::File(data.as_ref()), mode, 0, 0)
    }

    /// A root-owned directory.
    pub(crate) fn dir(&mut self, path: &str) -> &mut Self {
        self.add(path, Kind::Dir, 0o755, 0, 0)
    }

    /// The finished archive.
    pub(crate) fn end(&self) -> Vec<u8> {
        let mut all = self.0.clone();
        all.resize(all.len() + 1024, 0);
        all
    }
}

/// ustar's two name fields: the last 100 bytes, and up to 155 before a slash.
fn split(path: &str) -> (&str, &str) {
    if path.len() <= 100 {
        return ("", path);
    }
    let cut = path.char_indices().find(|(i, c)| *c == '/' && path.len() - i - 1 <= 100).map_or(0, |(i, _)| i);
    (&path[..cut.min(155)], &path[cut + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gnu_tar_reads_what_is_written() {
        let mut tar = Tar::default();
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        tar.dir("bin")
            .file("bin/x", b"hello", 0o755)
            .add("bin/y", Kind::Symlink("x"), 0o777, 0, 0)
            .file(&long, b"", 0o644);
        let path = std::env::temp_dir().join(format!("crisp-e2e-tar-{}", std::process::id()));
        std::fs::write(&path, tar.end()).unwrap();
        let out = std::process::Command::new("tar").arg("tvf").arg(&path).output().unwrap();
        std::fs::remove_file(&path).unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("bin/y -> x") && text.contains(&long), "{text}");
    }
}
