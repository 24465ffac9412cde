//! Text for logs from messages that carry secrets.

use std::fmt;

use crate::v1::AuthConfig;

/// Shows whom the credentials are of and which kinds are there, never a secret: the fields marked `debug_redact`.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Taken apart completely, so that a new field can't be forgotten here.
        let Self { username, password, auth, server_address, identity_token, registry_token } = self;
        f.debug_struct("AuthConfig")
            .field("username", username)
            .field("password", &Secret(password))
            .field("auth", &Secret(auth))
            .field("server_address", server_address)
            .field("identity_token", &Secret(identity_token))
            .field("registry_token", &Secret(registry_token))
            .finish()
    }
}

/// Tells only whether there is a value, not even its length.
struct Secret<'a>(&'a str);

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "unset" } else { "<redacted>" })
    }
}

#[cfg(test)]
mod tests {
    use crate::v1::{AuthConfig, PullImageRequest};

    fn credentials() -> AuthConfig {
        AuthConfig {
            username: "anna".into(),
            password: "S3CRET-password".into(),
            auth: "S3CRET-auth".into(),
            server_address: "registry.example".into(),
            identity_token: "S3CRET-identity".into(),
            registry_token: String::new(),
        }
    }

    #[test]
    fn debug_shows_kinds_of_credentials_and_no_secret() {
        assert_eq!(
            format!("{:?}", credentials()),
            r#"AuthConfig { username: "anna", password: <redacted>, auth: <redacted>, "#.to_owned()
                + r#"server_address: "registry.example", identity_token: <redacted>, registry_token: unset }"#
        );
    }

    #[test]
    fn a_whole_pull_request_shows_no_secret_either() {
        let mut auth = credentials();
        auth.registry_token = "S3CRET-registry".into();
        let request = PullImageRequest { auth: Some(auth), ..Default::default() };
        for text in [format!("{request:?}"), format!("{request:#?}")] {
            assert!(text.contains("anna") && !text.contains("S3CRET"), "{text}");
        }
    }
}
