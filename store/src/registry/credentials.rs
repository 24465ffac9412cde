//! Credentials as the CRI carries them (`AuthConfig`), and what a registry is shown of them.

use std::fmt;

use base64::{Engine, engine::general_purpose};

use super::{Error, hosts::same_registry};

/// What the caller of a pull gives (CRI `AuthConfig`); empty fields are absent ones.
///
/// Precedence: `registry_token`, `identity_token`, `username` and `password`, `auth`. They belong to `server_address`,
/// or else to the registry of the image; no other host is shown them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password of that user.
    pub password: String,
    /// `base64(username:password)`; may end with NUL bytes.
    pub auth: String,
    /// The host, or URL, that they are for.
    pub server_address: String,
    /// A refresh token, to be exchanged at the registry's token server.
    pub identity_token: String,
    /// A bearer token, sent as it is.
    pub registry_token: String,
}

/// Credentials in the form that authentication works with.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// HTTP Basic, at the registry or at its token server.
    Basic { username: String, password: String },
    /// OAuth2 refresh token.
    Identity(String),
    /// Bearer token.
    Token(String),
}

impl Credentials {
    /// The secret in them; nothing when all fields are empty.
    pub(super) fn secret(&self, registry: &str) -> Result<Option<Secret>, Error> {
        let bad = |reason: &str| Error::Credentials { registry: registry.to_owned(), reason: reason.to_owned() };
        let is_header_safe = |token: &str| token.bytes().all(|b| b.is_ascii_graphic());
        if !self.registry_token.is_empty() {
            if !is_header_safe(&self.registry_token) {
                return Err(bad("registry_token has characters that no HTTP header may have"));
            }
            return Ok(Some(Secret::Token(self.registry_token.clone())));
        }
        if !self.identity_token.is_empty() {
            return Ok(Some(Secret::Identity(self.identity_token.clone())));
        }
        if !self.username.is_empty() || !self.password.is_empty() {
            return Secret::basic(&self.username, &self.password)
                .ok_or_else(|| bad("the user name has a colon"))
                .map(Some);
        }
        if !self.auth.is_empty() {
            return decode_auth(&self.auth).map(Some).ok_or_else(|| bad("auth is not base64 of username:password"));
        }
        Ok(None)
    }

    /// Whether they may be shown to `registry`, when they came with an image of `image_registry`.
    pub(super) fn belong_to(&self, registry: &str, image_registry: &str) -> bool {
        let owner = if self.server_address.is_empty() { image_registry } else { &self.server_address };
        same_registry(owner, registry)
    }
}

impl Secret {
    /// Basic credentials; credential helpers return an identity token under the user name `<token>`.
    pub(super) fn basic(username: &str, password: &str) -> Option<Self> {
        match username {
            "<token>" => Some(Self::Identity(password.to_owned())),
            _ if username.contains(':') => None,
            _ => Some(Self::Basic { username: username.to_owned(), password: password.to_owned() }),
        }
    }
}

/// `base64(username:password)`, padded or not, either alphabet. NULs at the end are dropped.
pub(super) fn decode_auth(auth: &str) -> Option<Secret> {
    let auth = auth.trim_matches(|c: char| c.is_whitespace() || c == '\0').trim_end_matches('=');
    let bytes = general_purpose::STANDARD_NO_PAD
        .decode(auth)
        .or_else(|_| general_purpose::URL_SAFE_NO_PAD.decode(auth))
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Secret::basic(username, password.trim_end_matches('\0'))
}

impl fmt::Debug for Credentials {
    /// Says which fields are set, and the host and user they are for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |text: &str| if text.is_empty() { "" } else { "(set)" };
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &set(&self.password))
            .field("auth", &set(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &set(&self.identity_token))
            .field("registry_token", &set(&self.registry_token))
            .finish()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username:?}, …)"),
            Self::Identity(_) => f.write_str("Identity(…)"),
            Self::Token(_) => f.write_str("Token(…)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn basic(username: &str, password: &str) -> Secret {
        Secret::Basic { username: username.into(), password: password.into() }
    }

    #[test]
    fn user_and_password_beat_auth() {
        let auth = general_purpose::STANDARD.encode("a:b");
        let both = Credentials { username: "u".into(), password: "p".into(), auth: auth.clone(), ..Default::default() };
        assert_eq!(both.secret("r").unwrap(), Some(basic("u", "p")));
        let only = Credentials { auth, ..Default::default() };
        assert_eq!(only.secret("r").unwrap(), Some(basic("a", "b")));
        assert_eq!(Credentials::default().secret("r").unwrap(), None);
    }

    #[test]
    fn auth_may_end_with_nul_bytes() {
        for raw in ["u:p\0\0", "u:p"] {
            for auth in [general_purpose::STANDARD.encode(raw), general_purpose::STANDARD_NO_PAD.encode(raw) + "\0"] {
                assert_eq!(decode_auth(&auth), Some(basic("u", "p")));
            }
        }
        for bad in ["", "!!", "dXA="] {
            assert_eq!(decode_auth(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_server_address_names_the_only_host_that_sees_them() {
        let mut given = Credentials { username: "u".into(), ..Default::default() };
        assert!(given.belong_to("registry-1.docker.io", "docker.io"));
        assert!(!given.belong_to("mirror.example", "docker.io"));
        given.server_address = "https://mirror.example/v2/".into();
        assert!(given.belong_to("mirror.example", "docker.io"));
        assert!(!given.belong_to("registry-1.docker.io", "docker.io"));
        given.server_address = "https://index.docker.io/v1/".into();
        assert!(given.belong_to("registry-1.docker.io", "docker.io"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = "hunter2";
        let all = Credentials {
            username: "u".into(),
            password: secret.into(),
            auth: secret.into(),
            server_address: "host".into(),
            identity_token: secret.into(),
            registry_token: secret.into(),
        };
        assert!(!format!("{all:?}").contains(secret));
        for part in [basic("u", secret), Secret::Identity(secret.into()), Secret::Token(secret.into())] {
            assert!(!format!("{part:?}").contains(secret));
        }
    }

    #[test]
    fn a_token_that_would_break_the_header_is_refused() {
        let bad = Credentials { registry_token: "a\r\nb".into(), ..Default::default() };
        assert!(matches!(bad.secret("r"), Err(Error::Credentials { .. })));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(user in "[^:\0<]{1,20}", password in "[^\0]{0,20}", padded: bool) {
            let raw = format!("{user}:{password}");
            let auth = if padded { general_purpose::STANDARD.encode(raw) } else { general_purpose::URL_SAFE_NO_PAD.encode(raw) };
            prop_assert_eq!(decode_auth(&auth), Some(basic(&user, &password)));
        }
    }
}
