//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// The directory of its file system that is mounted here.
    pub root: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// Options of the mount: `ro`, `nosuid`, …
    pub options: Vec<String>,
    /// Shares its mounts with a peer group.
    pub shared: bool,
    /// Takes over the mounts of another group.
    pub slave: bool,
    /// File system type.
    pub fs_type: String,
    /// Options of the file system.
    pub super_options: Vec<String>,
}

/// All mounts of a mount namespace, in the order of the kernel: of two at one place the later lies on top.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable(Vec<MountPoint>);

impl MountTable {
    /// Reads the text. Lines that are none of the format are left out: a mount there is then simply not known.
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|byte| *byte == b'\n').filter_map(line).collect())
    }

    /// The mounts of this process.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn read() -> std::io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &MountPoint> {
        self.0.iter()
    }

    /// The mount that holds `path`, which is absolute and free of symbolic links.
    pub fn holding(&self, path: &Path) -> Option<&MountPoint> {
        let mut best: Option<&MountPoint> = None;
        for mount in self.iter().filter(|mount| path.starts_with(&mount.mountpoint)) {
            // The longest path, and of equal ones the last.
            if best.is_none_or(|best| mount.mountpoint.starts_with(&best.mountpoint)) {
                best = Some(mount);
            }
        }
        best
    }
}

fn line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = path(fields.nth(3)?);
    let mountpoint = path(fields.next()?);
    let options = list(fields.next()?);
    let (mut shared, mut slave) = (false, false);
    loop {
        match fields.next()? {
            b"-" => break,
            tag if tag.starts_with(b"shared:") => shared = true,
            tag if tag.starts_with(b"master:") => slave = true,
            _ => {}
        }
    }
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let super_options = list(fields.nth(1)?);
    Some(MountPoint { root, mountpoint, options, shared, slave, fs_type, super_options })
}

fn list(field: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(field).split(',').map(str::to_owned).collect()
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (b'\\', Some(byte)) = (first, tail.get(..3).and_then(octal)) {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok()?;
    u8::from_str_radix(text, 8).ok().filter(|_| digits.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
31 27 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec - tmpfs tmpfs rw,mode=755
50 27 0:50 / /mnt/a\\040b rw shared:7 master:3 - tmpfs none rw
51 27 0:51 /sub /srv rw,nosuid master:1 propagate_from:2 - ext4 /dev/vdb rw
52 51 0:52 / /srv rw - tmpfs over rw
garbage
";

    #[test]
    fn reads_every_field_that_matters() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.iter().count(), 5);
        let srv = table.iter().find(|mount| mount.root == Path::new("/sub")).unwrap();
        assert_eq!((srv.shared, srv.slave, srv.fs_type.as_str()), (false, true, "ext4"));
        assert_eq!(srv.options, ["rw", "nosuid"]);
        assert_eq!(table.iter().nth(2).unwrap().mountpoint, Path::new("/mnt/a b"));
    }

    #[test]
    fn the_nearest_and_topmost_mount_holds_a_path() {
        let table = MountTable::parse(TABLE);
        let fs = |path: &str| table.holding(Path::new(path)).map(|mount| mount.mountpoint.to_str().unwrap().to_owned());
        assert_eq!(fs("/etc/hosts").as_deref(), Some("/"));
        assert_eq!(fs("/mnt/a b/c").as_deref(), Some("/mnt/a b"));
        assert_eq!(fs("/srvx").as_deref(), Some("/"), "only whole components count");
        assert_eq!(table.holding(Path::new("/srv/x")).unwrap().fs_type, "tmpfs", "of two at one place the later one");
        assert_eq!(MountTable::default().holding(Path::new("/")), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(text: Vec<u8>) {
            MountTable::parse(&text);
        }
    }
}
