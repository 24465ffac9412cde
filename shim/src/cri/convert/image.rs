//! Images.

use crisp_cri_proto::v1;
use crisp_store::registry::Credentials;
use crisp_store::{Image, Usage};

use crate::error::{Error, Result};
use crate::sys;

/// The name or id that a request is about.
pub fn image_name(spec: Option<v1::ImageSpec>) -> Result<String> {
    // The user's own words and a container's reference are for status, the annotations for runtimes with several stores.
    let Some(v1::ImageSpec { image, annotations: _, user_specified_image: _, runtime_handler: _, image_ref: _ }) = spec
    else {
        return Err(Error::Invalid("image is missing".to_owned()));
    };
    if image.is_empty() {
        return Err(Error::Invalid("image.image is empty: name an image".to_owned()));
    }
    Ok(image)
}

/// The caller's credentials, if it gave any.
pub fn credentials(auth: Option<v1::AuthConfig>) -> Option<Credentials> {
    let v1::AuthConfig { username, password, auth, server_address, identity_token, registry_token } = auth?;
    let empty = [&username, &password, &auth, &identity_token, &registry_token].iter().all(|text| text.is_empty());
    (!empty).then_some(Credentials { username, password, auth, server_address, identity_token, registry_token })
}

pub fn image(image: &Image) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        spec: None,
        pinned: image.pinned,
    }
}

pub fn fs_usage(usage: &Usage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: sys::now(),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: usage.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
        inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
    }
}
