//! Environment: `-e KEY=VALUE`, `-e KEY` (from crisp's own), `--env-file`.

use std::path::Path;

/// `KEY=VALUE`; `KEY` alone takes the value that `outer` has, or nothing when it has none, as docker does.
pub fn variable(text: &str, outer: impl Fn(&str) -> Option<String>) -> Result<Option<(String, String)>, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, outer(text)),
    };
    if key.is_empty() || key.contains('\0') || key.trim() != key {
        return Err(format!("{text:?} is no variable: write it like KEY=VALUE, or KEY to pass on your own"));
    }
    Ok(value.map(|value| (key.to_owned(), value)))
}

/// A line a variable; empty lines and those that begin with `#` say nothing. Values are taken as they are, quotes too.
pub fn file(path: &Path, outer: impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>, String> {
    let at = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("--env-file {at}: {error}"))?;
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let read = variable(line, &outer).map_err(|error| format!("--env-file {at}, line {}: {error}", number + 1))?;
        variables.extend(read);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outer(key: &str) -> Option<String> {
        (key == "HOME").then(|| "/root".to_owned())
    }

    #[test]
    fn variables() {
        let pair = |key: &str, value: &str| Ok(Some((key.to_owned(), value.to_owned())));
        assert_eq!(variable("A=b=c", outer), pair("A", "b=c"));
        assert_eq!(variable("A=", outer), pair("A", ""));
        assert_eq!(variable("HOME", outer), pair("HOME", "/root"));
        assert_eq!(variable("NOT_SET", outer), Ok(None));
        for text in ["", "=x", " A=b"] {
            assert!(variable(text, outer).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_has_comments_and_a_mistake_has_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "# all of it\n\nA=1\n  B=\"x y\"\nHOME\n").unwrap();
        let read = file(&path, outer).unwrap();
        let read: Vec<(&str, &str)> = read.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(read, [("A", "1"), ("B", "\"x y\""), ("HOME", "/root")]);
        std::fs::write(&path, "A=1\n=2\n").unwrap();
        assert!(file(&path, outer).unwrap_err().contains("line 2"));
        assert!(file(&dir.path().join("none"), outer).unwrap_err().contains("none"));
    }
}
