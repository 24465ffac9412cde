//! Plugins that misbehave: shell scripts.

use std::os::unix::fs::PermissionsExt;

use super::*;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("odd");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn run(&self, input: &str, deadline: Duration) -> Result<String, Error> {
        let path = self.dir.path().join("input");
        std::fs::write(&path, input).unwrap();
        let environment = [("CNI_CONTAINERID", "a1".to_owned())];
        let call = Call { plugin: "odd", verb: Verb::Add, environment: &environment, deadline };
        let dirs = [PathBuf::from("/nonexistent"), self.dir.path().to_owned()];
        run(&call, &dirs, File::open(path).unwrap()).map(|output| String::from_utf8(output).unwrap())
    }
}

const LONG: Duration = Duration::from_secs(20);

fn odd(script: &str) -> Result<String, Error> {
    Bench::new(script).run("{}", LONG)
}

#[test]
fn it_reads_its_configuration_and_sees_nothing_but_its_own_environment() {
    let bench =
        Bench::new("cat; env | cut -d= -f1 | grep -v -e '^_$' -e '^PWD$' -e '^SHLVL$' | sort | tr '\\n' ' '; pwd");
    let output = bench.run("{\"name\": 1}", LONG).unwrap();
    assert_eq!(output, "{\"name\": 1}CNI_COMMAND CNI_CONTAINERID CNI_PATH PATH /\n");
}

#[test]
fn an_error_of_the_specifications_form_is_understood() {
    let error = odd(r#"echo noise >&2; echo '{"cniVersion":"1.0.0","code":11,"msg":"no","details":"later"}'; exit 1"#);
    match error.unwrap_err() {
        Error::Plugin { plugin, verb, code, msg, details, stderr } => {
            assert_eq!((plugin.as_str(), verb, code), ("odd", "ADD", 11));
            assert_eq!((msg.as_str(), details.as_str(), stderr.as_str()), ("no", "later", "noise\n"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_failure_tells_its_status_and_what_was_written() {
    let message = odd("echo panic: oh >&2; exit 3").unwrap_err().to_string();
    assert_eq!(message, "CNI plugin odd ADD: exit status 3: panic: oh");
    let message = odd("echo half; kill -SEGV $$").unwrap_err().to_string();
    assert!(message.contains("signal 11: half"), "{message}");
}

#[test]
fn too_much_output_is_cut_off() {
    let begin = Instant::now();
    let error = odd("while :; do echo 0123456789012345678901234567890123456789; done").unwrap_err();
    assert!(matches!(error, Error::Rubbish { .. }), "{error}");
    assert!(begin.elapsed() < LONG);
    let written = odd("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 1").unwrap_err();
    let Error::Died { output, .. } = written else { panic!("{written:?}") };
    assert!(output.ends_with("end") && output.len() <= 1024);
}

#[test]
fn a_large_result_arrives_whole() {
    assert_eq!(odd("head -c 1000000 /dev/zero | tr '\\0' x").unwrap().len(), 1_000_000);
}

#[test]
fn a_plugin_that_hangs_is_killed_with_all_it_started() {
    let bench = Bench::new("sleep 1000 & echo $! >\"${0%/*}/child\"; echo stuck >&2; wait");
    let begin = Instant::now();
    let error = bench.run("{}", Duration::from_millis(300)).unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(error.to_string().contains("300ms") && error.to_string().contains("stuck"), "{error}");
    let child = std::fs::read_to_string(bench.dir.path().join("child")).unwrap();
    // Killed, and a zombie at most until somebody reaps it.
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z")
    };
    for _ in 0..100 {
        if !alive() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the child is alive");
}

#[test]
fn a_daemon_that_keeps_the_streams_open_holds_nobody() {
    let bench = Bench::new("setsid sleep 5 & echo done");
    let begin = Instant::now();
    assert_eq!(bench.run("{}", LONG).unwrap(), "done\n");
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_plugin_that_is_not_there_tells_where_it_was_searched() {
    let bench = Bench::new("");
    std::fs::remove_file(bench.dir.path().join("odd")).unwrap();
    let message = bench.run("{}", LONG).unwrap_err().to_string();
    assert!(message.starts_with("CNI plugin odd is not in /nonexistent, /"), "{message}");
    std::fs::write(bench.dir.path().join("odd"), "#!/bin/sh").unwrap();
    let error = bench.run("{}", LONG).unwrap_err();
    assert!(
        matches!(&error, Error::Run { source, .. } if source.kind() == io::ErrorKind::PermissionDenied),
        "{error:?}"
    );
}
