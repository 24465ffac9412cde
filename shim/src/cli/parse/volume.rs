//! Volumes: `source:destination[:options]`, with docker's words for the options.

use std::path::Path;

use crisp_cri_proto::v1;

/// A path of the host in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// As it was written: absolute, or beginning with `.` or `~`-free relative to where `crisp` runs.
    pub source: String,
    pub destination: String,
    pub readonly: bool,
    /// Read-only with all mounts below it.
    pub recursive: bool,
    pub propagation: v1::MountPropagation,
}

/// Reads one.
pub fn volume(text: &str) -> Result<Volume, String> {
    let wrong = |why: String| format!("{text:?}: {why}; write it like ./data:/data, /srv/www:/www:ro");
    let mut parts = text.split(':');
    let (source, destination, options) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(source), Some(destination), options, None) => (source, destination, options.unwrap_or("")),
        (_, None, ..) => return Err(wrong("the path in the container is missing".to_owned())),
        _ => return Err(wrong("there are too many ':'".to_owned())),
    };
    if !source.starts_with('/')
        && source != "."
        && source != ".."
        && !source.starts_with("./")
        && !source.starts_with("../")
    {
        return Err(wrong(format!(
            "{source:?} would be a named volume, which crisp has not; for a path begin with / or ./"
        )));
    }
    if !destination.starts_with('/') {
        return Err(wrong(format!("the path in the container, {destination:?}, does not begin with /")));
    }
    let mut volume = Volume {
        source: source.to_owned(),
        destination: destination.to_owned(),
        readonly: false,
        recursive: false,
        propagation: v1::MountPropagation::PropagationPrivate,
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "rw" => {}
            "ro" => volume.readonly = true,
            "rro" => (volume.readonly, volume.recursive) = (true, true),
            "private" | "rprivate" => {}
            "slave" | "rslave" => volume.propagation = v1::MountPropagation::PropagationHostToContainer,
            "shared" | "rshared" => volume.propagation = v1::MountPropagation::PropagationBidirectional,
            other => return Err(wrong(format!("{other:?} is none of ro, rw, rro, rprivate, rslave, rshared"))),
        }
    }
    Ok(volume)
}

impl Volume {
    /// For CreateContainer; `here` is where a relative source begins.
    pub fn mount(&self, here: &Path) -> v1::Mount {
        let path: std::path::PathBuf = here.join(&self.source).components().collect();
        v1::Mount {
            container_path: self.destination.clone(),
            host_path: path.to_string_lossy().into_owned(),
            readonly: self.readonly,
            recursive_read_only: self.recursive,
            propagation: self.propagation.into(),
            ..v1::Mount::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn volumes() {
        let plain = volume("/srv:/www").unwrap();
        assert_eq!((plain.source.as_str(), plain.destination.as_str(), plain.readonly), ("/srv", "/www", false));
        let all = volume("./a:/b:rro,rslave").unwrap();
        assert!(all.readonly && all.recursive);
        assert_eq!(all.propagation, v1::MountPropagation::PropagationHostToContainer);
        assert!(volume("/a:/b:ro").unwrap().readonly);
        assert!(volume("data:/data").unwrap_err().contains("named volume"));
        for text in ["", "/a", "/a:b", ":/b", "/a:/b:xx", "/a:/b:ro:rw"] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_relative_source_begins_where_the_command_does() {
        let path = |text: &str| volume(text).unwrap().mount(Path::new("/home/me")).host_path;
        assert_eq!(path("./x/./y:/y"), "/home/me/x/y");
        assert_eq!(path(".:/y"), "/home/me");
        assert_eq!(path("/srv:/y"), "/srv");
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[/:.,a-z]{0,30}") {
            let _ = volume(&text);
        }
    }
}
