//! What depends on the environment of the process: proxies and credential helpers. Each case runs in a child.

use std::{os::unix::fs::PermissionsExt, process::Command};

use crisp_store::registry::{Registry, RegistryOptions};

use crate::{
    options, reference,
    server::{Reply, Server},
    simple,
};

/// Runs one ignored test of this program with an environment of its own.
fn child(test: &str, environment: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_proxy_from_the_environment_is_used_but_not_for_loopback() {
    let (repository, _) = simple();
    let repository = repository.shared();
    let copy = repository.clone();
    // A plain HTTP proxy is sent the whole URL.
    let proxy = Server::start(move |request| {
        let path = request.target.strip_prefix("http://reg.example").unwrap_or("/elsewhere").to_owned();
        copy.answer(&crate::server::Request { target: path, ..request.clone() })
    });
    let direct = Server::start(move |request| repository.answer(request));
    let dir = tempfile::tempdir().unwrap();
    crate::options_with_hosts(dir.path(), "reg.example", "server = \"http://reg.example\"");
    child(
        "process::child_heads_two_images",
        &[
            ("HTTP_PROXY", &format!("http://{}", proxy.host)),
            ("NO_PROXY", ""),
            ("TEST_CONFIG", dir.path().to_str().unwrap()),
            ("TEST_IMAGES", &format!("reg.example/a:1 {}/a:1", direct.host)),
        ],
    );
    let targets: Vec<String> = proxy.seen().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["http://reg.example/v2/a/manifests/1"]);
    assert_eq!(direct.seen().len(), 1);
}

#[test]
fn a_credential_helper_is_asked_for_the_host_and_sees_little_of_the_environment() {
    let (repository, _) = simple();
    let server = Server::start(move |request| match request.header("authorization") {
        Some("Basic aGVscGVyOnB3") => repository.answer(request),
        _ => Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\""),
    });
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("docker-credential-crisptest");
    let script = format!(
        "#!/bin/sh\nread -r host || true\n[ \"$1\" = get ] && [ \"$host\" = '{}' ] && [ -z \"$NOTIFY_SOCKET\" ] || exit 1\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"helper\",\"Secret\":\"pw\"}}'\n",
        server.host
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.path().join("config.json");
    let text = serde_json::json!({"credHelpers": {(server.host.clone()): "crisptest"}});
    std::fs::write(&config, text.to_string()).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    child(
        "process::child_heads_two_images",
        &[
            ("PATH", &path),
            ("NOTIFY_SOCKET", "/nowhere"),
            ("TEST_DOCKER_CONFIG", config.to_str().unwrap()),
            ("TEST_IMAGES", &format!("{}/a:1", server.host)),
        ],
    );
}

#[tokio::test]
#[ignore = "runs as a child of the tests above"]
async fn child_heads_two_images() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let docker_config = Some(variable("TEST_DOCKER_CONFIG")).filter(|path| !path.is_empty()).map(Into::into);
    let options = RegistryOptions { config_path: variable("TEST_CONFIG").into(), docker_config, ..options() };
    let registry = Registry::new(options).unwrap();
    for image in variable("TEST_IMAGES").split(' ') {
        registry.session(&reference(image), None).head().await.unwrap();
    }
}
