//! Which configuration serves.

use std::fs;

use super::*;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: &str) -> &Self {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        // Old enough to be settled.
        let old = std::time::SystemTime::now() - Duration::from_secs(60);
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        self
    }

    fn load(&self) -> Found {
        load(self.0.path())
    }

    fn name(&self) -> String {
        self.load().conflist.unwrap().name
    }

    /// The reason for which the only file is refused.
    fn reason(&self) -> String {
        let found = self.load();
        assert!(found.conflist.is_none());
        found.refused[0].1.clone()
    }
}

const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;

fn types(found: &Found) -> Vec<&str> {
    found.conflist.as_ref().unwrap().plugins.iter().map(|plugin| plugin["type"].as_str().unwrap()).collect()
}

#[test]
fn nothing_there_is_nothing_found() {
    let found = load(Path::new("/nonexistent/cni"));
    assert!(!found.any());
    assert!(found.complaint(Path::new("/etc/cni/net.d")).contains("/etc/cni/net.d"));
    let dir = Dir::new();
    dir.put("README", "x").put(".hidden.conflist", LIST).put("10-a.conflist.bak", LIST);
    fs::create_dir(dir.0.path().join("00-dir.conf")).unwrap();
    assert!(!dir.load().any());
}

#[test]
fn the_first_valid_file_in_lexical_order_serves_and_bad_ones_before_it_are_told() {
    let dir = Dir::new();
    dir.put("30-c.conflist", &LIST.replace("pods", "third"));
    assert_eq!(dir.name(), "third");
    dir.put("20-b.conf", r#"{"name": "second", "type": "ptp"}"#);
    assert_eq!(dir.name(), "second");
    dir.put("10-a.conflist", "{");
    let found = dir.load();
    assert_eq!(found.conflist.unwrap().name, "second");
    assert_eq!(found.refused.len(), 1);
    assert!(found.refused[0].0.ends_with("10-a.conflist"));
}

#[test]
fn a_single_plugin_is_a_list_of_one() {
    let dir = Dir::new();
    dir.put("10-a.json", r#"{"cniVersion": "0.3.1", "name": "old", "type": "ptp", "mtu": 1400}"#);
    let list = dir.load().conflist.unwrap();
    assert_eq!((list.name.as_str(), list.versions), ("old", vec!["0.3.1".parse().unwrap()]));
    assert_eq!(list.plugins[0]["mtu"], 1400);
    dir.put("10-a.json", LIST);
    assert_eq!(types(&dir.load()), ["bridge", "portmap"], "a list in a .json file");
}

#[test]
fn plugins_in_the_networks_folder_are_appended() {
    let dir = Dir::new();
    dir.put("10-a.conflist", LIST);
    dir.put("pods/20-b.conf", r#"{"type": "tuning"}"#).put("pods/10-a.conf", r#"{"type": "firewall"}"#);
    dir.put("pods/30.conflist", r#"{"type": "no"}"#).put("other/10.conf", r#"{"type": "no"}"#);
    assert_eq!(types(&dir.load()), ["bridge", "portmap", "firewall", "tuning"]);
    dir.put("10-a.conflist", r#"{"name": "pods", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "bridge"}]}"#);
    assert_eq!(types(&dir.load()), ["bridge"]);
    dir.put("10-a.conflist", r#"{"name": "pods"}"#);
    assert_eq!(types(&dir.load()), ["firewall", "tuning"]);
    dir.put("pods/10-a.conf", "{}");
    assert!(dir.reason().contains("10-a.conf"), "{}", dir.reason());
}

#[test]
fn versions_that_both_know_are_kept() {
    let dir = Dir::new();
    let versions = |text: &str| {
        dir.put("10.conflist", &format!(r#"{{{text}, "name": "n", "plugins": [{{"type": "t"}}]}}"#));
        dir.load().conflist.map(|list| list.versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(versions(r#""x": 1"#).unwrap(), "0.1.0");
    assert_eq!(versions(r#""cniVersion": "1.1.0""#).unwrap(), "1.1.0");
    let several = r#""cniVersion": "0.4.0", "cniVersions": ["1.1.0", "9.0.0", "0.3.1", "1.1.0"]"#;
    assert_eq!(versions(several).unwrap(), "0.3.1 0.4.0 1.1.0");
    assert_eq!(versions(r#""cniVersion": "2.0.0""#), None);
    assert_eq!(versions(r#""cniVersions": ["2.0.0"]"#), None);
    assert_eq!(versions(r#""cniVersions": [1]"#), None);
}

#[test]
fn flags_may_be_texts() {
    let dir = Dir::new();
    dir.put("1.conflist", r#"{"name": "n", "disableCheck": true, "disableGC": "True", "plugins": [{"type": "t"}]}"#);
    let list = dir.load().conflist.unwrap();
    assert!(list.disable_check && list.disable_gc);
}

#[test]
fn what_is_refused_is_told_with_the_reason() {
    let dir = Dir::new();
    for (text, reason) in [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        (r#"{"plugins": [{"type": "t"}]}"#, "no name"),
        (r#"{"name": 7, "plugins": [{"type": "t"}]}"#, "name is not a text"),
        (r#"{"name": "../x", "plugins": [{"type": "t"}]}"#, "not a network's name"),
        (r#"{"name": "n"}"#, "no plugins"),
        (r#"{"name": "n", "plugins": []}"#, "no plugins"),
        (r#"{"name": "n", "plugins": {}}"#, "not a list"),
        (r#"{"name": "n", "plugins": [1]}"#, "not an object"),
        (r#"{"name": "n", "plugins": [{}]}"#, "no type"),
        (r#"{"name": "n", "plugins": [{"type": "../sh"}]}"#, "not a file name"),
        (r#"{"name": "n", "loadOnlyInlinedPlugins": true}"#, "no plugins"),
        (r#"{"name": "n", "disableGC": 3, "plugins": [{"type": "t"}]}"#, "neither true nor false"),
    ] {
        dir.put("10.conflist", text);
        assert!(dir.reason().contains(reason), "{text}: {}", dir.reason());
    }
    dir.put("10.conflist", &format!("{LIST}{}", " ".repeat(1 << 20)));
    assert!(dir.reason().contains("longer than"));
    assert!(dir.load().complaint(dir.0.path()).contains("10.conflist"));
}

#[test]
fn a_file_that_is_being_written_is_waited_for() {
    let dir = Dir::new();
    dir.put("20-b.conflist", &LIST.replace("pods", "second"));
    let path = dir.0.path().join("10-a.conflist");
    fs::write(&path, &LIST[..20]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(60));
            fs::write(&path, LIST).unwrap();
        });
        assert_eq!(dir.name(), "pods");
    });
}
