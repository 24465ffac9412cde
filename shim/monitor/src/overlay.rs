//! Mounts an overlay from the layers in the working directory, by the newest way that the kernel has.
//!
//! From 6.8 on each lower is its own `lowerdir+` (no limit but the kernel's 500). Before that all of them share the one page of
//! options of mount(2), which is why they are relative and their names short; 128 fit. Upper and work directory are
//! named by descriptor: short, and no character needs an escape.

use std::ffi::CString;
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, mount,
};

use crate::mounts::{MountError, attach, on};

/// Mounts `lowers` (topmost first, relative to the working directory) at `target`; without `upper` (and work directory) read-only.
pub(crate) fn mount_overlay(
    lowers: &[PathBuf],
    upper: Option<(&PathBuf, &PathBuf)>,
    volatile: bool,
    target: &Path,
) -> Result<(), MountError> {
    let dirs = match upper {
        Some((upper, work)) => vec![("upperdir", descriptor(upper)?), ("workdir", descriptor(work)?)],
        None => Vec::new(),
    };
    let wanted = Wanted { lowers, dirs, volatile };
    let refused = |message: String| MountError::Overlay { path: target.to_owned(), message };
    match wanted.by_parts() {
        Ok(tree) => attach(tree.as_fd(), target),
        // Before 6.8 the kernel says so at once, before 6.5 only at the end.
        Err((Errno::INVAL, first)) => {
            wanted.by_page(target).map_err(|second| refused(format!("{first}; with mount(2): {second}")))
        }
        Err((_, message)) => Err(refused(message)),
    }
}

struct Wanted<'a> {
    lowers: &'a [PathBuf],
    dirs: Vec<(&'static str, OwnedFd)>,
    volatile: bool,
}

impl Wanted<'_> {
    /// A detached mount; or the error, with the kernel's own words.
    fn by_parts(&self) -> Result<OwnedFd, (Errno, String)> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| (e, format!("open: {e}")))?;
        for lower in self.lowers {
            let set = fsconfig_set_string(&context, "lowerdir+", lower);
            set.map_err(|e| (e, explain(&context, format!("layer {}: {e}", lower.display()))))?;
        }
        let finish = || {
            for (key, dir) in &self.dirs {
                fsconfig_set_string(&context, *key, name_of(dir))?;
            }
            if self.volatile {
                fsconfig_set_flag(&context, "volatile")?;
            }
            fsconfig_create(&context)?;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        };
        finish().map_err(|e: Errno| (e, explain(&context, e.to_string())))
    }

    fn by_page(&self, target: &Path) -> Result<(), String> {
        let options = self.options()?;
        if options.len() >= rustix::param::page_size() {
            return Err("too many layers for this kernel: their names do not fit into one page".to_owned());
        }
        let options = CString::new(options).map_err(|e| e.to_string())?;
        mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str()).map_err(|e| e.to_string())
    }

    fn options(&self) -> Result<String, String> {
        let mut options = String::from("lowerdir=");
        for (index, lower) in self.lowers.iter().enumerate() {
            let name = lower.to_str().filter(|l| !l.contains([':', ',', '\\']));
            options.push_str(if index > 0 { ":" } else { "" });
            options
                .push_str(name.ok_or_else(|| format!("layer {}: the kernel takes its name for two", lower.display()))?);
        }
        for (key, dir) in &self.dirs {
            let _ = write!(options, ",{key}={}", name_of(dir));
        }
        options.push_str(if self.volatile { ",volatile" } else { "" });
        Ok(options)
    }
}

fn descriptor(path: &Path) -> Result<OwnedFd, MountError> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(on("open", path))
}

fn name_of(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

/// Adds the kernel's own words, where it left some in the context: lines that begin with `e `.
fn explain(context: &OwnedFd, mut message: String) -> String {
    let mut line = [0; 512];
    while let Ok(n @ 1..) = rustix::io::read(context, &mut line) {
        if let Some(text) = String::from_utf8_lossy(&line[..n]).strip_prefix("e ") {
            let _ = write!(message, ": {}", text.trim());
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(lowers: &[PathBuf]) -> Wanted<'_> {
        Wanted { lowers, dirs: Vec::new(), volatile: false }
    }

    #[test]
    fn names_that_would_be_taken_apart_are_refused() {
        assert_eq!(wanted(&["a/fs".into(), "b/fs".into()]).options().unwrap(), "lowerdir=a/fs:b/fs");
        for name in ["a:b", "a,b", "a\\b"] {
            assert!(wanted(&[name.into()]).options().is_err());
        }
        let many: Vec<PathBuf> = (0..400).map(|n| format!("layer{n:08}/fs").into()).collect();
        assert!(wanted(&many).by_page(Path::new("/nonexistent")).unwrap_err().contains("too many layers"));
    }

    /// What kernels before 6.8 get, here too: as root, in a mount namespace of its own.
    #[test]
    fn all_layers_fit_into_one_page_of_options() {
        let mut inner = std::process::Command::new("unshare");
        inner.args(["-m", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
        inner.args(["--exact", "overlay::tests::inner_one_page", "--ignored", "--nocapture"]);
        let output = inner.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    #[ignore = "run by all_layers_fit_into_one_page_of_options"]
    fn inner_one_page() {
        let dir = tempfile::tempdir().unwrap();
        let lowers: Vec<PathBuf> = (0..128).map(|n| format!("abcdef{n:06}/fs").into()).collect();
        for (n, lower) in lowers.iter().enumerate() {
            std::fs::create_dir_all(dir.path().join(lower)).unwrap();
            std::fs::write(dir.path().join(lower).join(n.to_string()), "").unwrap();
        }
        for name in ["upper", "work", "root"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::env::set_current_dir(dir.path()).unwrap();
        let root = dir.path().join("root");
        let dirs = ["upper", "work"].map(|n| descriptor(&dir.path().join(n)).unwrap());
        let dirs = ["upperdir", "workdir"].into_iter().zip(dirs).collect();
        Wanted { lowers: &lowers, dirs, volatile: true }.by_page(&root).unwrap();
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 128);
        std::fs::write(root.join("new"), "").unwrap();
        assert!(dir.path().join("upper/new").exists());
        std::env::set_current_dir("/").unwrap();
        rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
