//! Running `nft`, and where need be `iptables-legacy`. Input and output go through memory files: nothing blocks on a pipe,
//! and a program that hangs is killed after a time.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, MemfdFlags, access, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Error;

/// Longer than any transaction takes.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Most of what is read of a program's output: a host with tens of thousands of foreign rules fits.
const OUTPUT_LIMIT: u64 = 16 << 20;
/// Most of what is kept of an error's text.
const ERROR_LIMIT: u64 = 600;

/// Finds a program in PATH, and where administrators' programs lie when PATH leaves them out.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let dirs = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).chain(usual);
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok())
}

/// Runs a program in an environment of its own and gives what it printed.
///
/// # Errors
/// It could not be run, hung, or failed; its own words are kept.
pub(super) fn run(program: &Path, args: &[&str], input: &str) -> Result<Vec<u8>, Error> {
    let command = || format!("{} {}", program.display(), args.join(" ")).trim_end().to_owned();
    let ran = || -> io::Result<(ExitStatus, File, File)> {
        let mut stdin = File::from(memfd_create("stdin", MemfdFlags::CLOEXEC)?);
        stdin.write_all(input.as_bytes())?;
        stdin.seek(SeekFrom::Start(0))?;
        let stdout = File::from(memfd_create("stdout", MemfdFlags::CLOEXEC)?);
        let stderr = File::from(memfd_create("stderr", MemfdFlags::CLOEXEC)?);
        let mut child = Command::new(program)
            .args(args)
            .env_clear()
            .envs([("LC_ALL", "C"), ("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")])
            .stdin(stdin)
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()?;
        let limit = Timespec { tv_sec: TIME_LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        let ended = pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
            rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)))
        });
        if !matches!(ended, Ok(1)) {
            child.kill()?;
            child.wait()?;
            return Err(ended.map_or_else(io::Error::from, |_| io::ErrorKind::TimedOut.into()));
        }
        Ok((child.wait()?, stdout, stderr))
    };
    let (status, mut stdout, stderr) = ran().map_err(|source| Error::Program { command: command(), source })?;
    if !status.success() {
        let text = read(stderr, ERROR_LIMIT).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        return Err(Error::Refused { command: command(), status, text });
    }
    stdout.seek(SeekFrom::Start(0)).map_err(|source| Error::Program { command: command(), source })?;
    read(stdout, OUTPUT_LIMIT).map_err(|source| Error::Program { command: command(), source })
}

fn read(mut file: File, limit: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_documents_in_and_words_out() {
        let shell = find("sh").unwrap();
        let long = "x".repeat(300_000);
        assert_eq!(run(&shell, &["-c", "cat"], &long).unwrap().len(), long.len());
        assert_eq!(run(&shell, &["-c", "echo $HOME$LC_ALL"], "").unwrap(), b"C\n");
        let error = run(&shell, &["-c", "echo no such table >&2; exit 3"], "").unwrap_err().to_string();
        assert!(error.contains("no such table") && error.contains('3'), "{error}");
        assert!(matches!(run(Path::new("/nonexistent/nft"), &[], ""), Err(Error::Program { .. })));
        assert_eq!(find("no-such-program-at-all"), None);
    }
}
