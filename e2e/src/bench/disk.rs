//! A file system of one's own, made a moment before: ext4 does not use inodes again for minutes after they were freed, and
//! looks for others at a cost that would be what is measured.

use crate::{fail::Res, sh, world};
use std::{fs, path::PathBuf};

/// An ext4 file system in a file, mounted until it is dropped.
#[derive(Debug)]
pub(super) struct Disk {
    file: PathBuf,
    /// Where it is mounted.
    pub(super) mount: PathBuf,
}

impl Disk {
    /// Makes and mounts one below `dir`, 8 GiB at most.
    pub(super) async fn fresh(dir: &std::path::Path, name: &str) -> Res<Self> {
        let disk = Self { file: dir.join(format!("{name}.img")), mount: dir.join(name) };
        fs::File::create(&disk.file)?.set_len(8 << 30)?;
        fs::create_dir_all(&disk.mount)?;
        let (file, mount) = (disk.file.to_string_lossy(), disk.mount.to_string_lossy());
        sh::cmd("mkfs.ext4", &["-q", "-F", &file], 60).await?;
        sh::cmd("mount", &["-o", "loop", &file, &mount], 60).await?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        world::unmount_below(&self.mount);
        let _ = fs::remove_file(&self.file);
    }
}
