//! `WWW-Authenticate`: what a registry asks for (RFC 9110, section 11.6.1; docker's token authentication).
//!
//! ```text
//!   Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull"
//!   Basic realm="registry"
//! ```
//!
//! One header may hold several challenges, separated by the same comma that separates parameters. The parser takes what
//! it understands and skips the rest; it never fails.

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case.
    pub(super) scheme: String,
    /// Names in lower case; the first of several wins.
    parameters: Vec<(String, String)>,
}

/// Most challenges that are read from one answer.
const MAX_CHALLENGES: usize = 8;
/// Most parameters of one challenge.
const MAX_PARAMETERS: usize = 16;

impl Challenge {
    /// A parameter's value, by its name in lower case.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// All challenges in the values of the header.
pub(super) fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for value in values {
        Parser { rest: value }.challenges(&mut challenges);
    }
    challenges
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn challenges(&mut self, into: &mut Vec<Challenge>) {
        // Parameters before any scheme belong to nobody.
        let mut open = false;
        loop {
            self.skip(|b| matches!(b, b',' | b' ' | b'\t'));
            if self.rest.is_empty() {
                return;
            }
            let word = self.token();
            if word.is_empty() {
                self.rest = &self.rest[self.rest.chars().next().map_or(0, char::len_utf8)..];
                continue;
            }
            let spaced = self.rest.starts_with([' ', '\t']);
            self.skip(|b| matches!(b, b' ' | b'\t'));
            // `name = value`; a scheme is followed by a space and a name, or by nothing. token68 (`Negotiate abc==`) has
            // its equals signs at the end.
            let is_parameter = self.rest.starts_with('=') && !self.rest[1..].trim_start().starts_with(['=', ',']);
            if is_parameter {
                self.rest = self.rest[1..].trim_start_matches([' ', '\t']);
                let value = self.value();
                if open
                    && let Some(challenge) = into.last_mut()
                    && challenge.parameters.len() < MAX_PARAMETERS
                {
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                }
            } else if self.rest.starts_with('=') {
                self.skip(|b| b == b'=');
            } else if spaced || self.rest.is_empty() || self.rest.starts_with(',') {
                open = into.len() < MAX_CHALLENGES;
                if open {
                    into.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                }
            }
        }
    }

    fn value(&mut self) -> String {
        let Some(quoted) = self.rest.strip_prefix('"') else {
            // Wider than a token: registries write URLs and scopes without quotes.
            let end = self.rest.find([',', ' ', '\t']).unwrap_or(self.rest.len());
            let (value, rest) = self.rest.split_at(end);
            self.rest = rest;
            return value.to_owned();
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return value;
                }
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                c => value.push(c),
            }
        }
        // No closing quote: the rest is the value.
        self.rest = "";
        value
    }

    fn token(&mut self) -> &'a str {
        let end = self.rest.bytes().position(|b| !is_token(b)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn skip(&mut self, unwanted: impl Fn(u8) -> bool) {
        let end = self.rest.bytes().position(|b| !unwanted(b)).unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }
}

/// `tchar`, and the two further characters of token68.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/:".contains(&b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> Challenge {
        let mut all = parse([text]);
        assert_eq!(all.len(), 1, "{text}: {all:?}");
        all.remove(0)
    }

    #[test]
    fn reads_what_registries_send() {
        let hub = one(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
        );
        assert_eq!(hub.scheme, "bearer");
        assert_eq!(hub.get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(hub.get("service"), Some("registry.docker.io"));
        assert_eq!(hub.get("scope"), Some("repository:library/busybox:pull"));
        assert_eq!(hub.get("error"), None);
        assert_eq!(one("Basic realm=\"a \\\"b\\\", c\"").get("realm"), Some("a \"b\", c"));
        assert_eq!(one("BASIC").scheme, "basic");
        assert_eq!(
            one("bearer realm=https://a.example/t?x=1 , service=\"b\"").get("realm"),
            Some("https://a.example/t?x=1")
        );
        assert_eq!(
            one("Bearer realm = \"r\" , scope=\"repository:a:pull,push\"").get("scope"),
            Some("repository:a:pull,push")
        );
    }

    #[test]
    fn tells_several_challenges_apart() {
        let both = [r#"Negotiate YII==, Bearer realm="r",service="s", Basic realm="b""#];
        let found: Vec<_> =
            parse(both).into_iter().map(|c| (c.scheme.clone(), c.get("realm").map(str::to_owned))).collect();
        let wanted = [("negotiate", None), ("bearer", Some("r")), ("basic", Some("b"))];
        assert_eq!(found, wanted.map(|(scheme, realm)| (scheme.to_owned(), realm.map(str::to_owned))));
        assert_eq!(parse(["Basic realm=\"x\"", "Bearer realm=\"y\""]).len(), 2);
    }

    #[test]
    fn rubbish_yields_nothing_harmful() {
        for text in
            ["", ",,,", "=", "\"", "a=b", "Bearer realm=\"open", "\u{e9}\u{e9}", "Bearer =x", "Bearer realm=", "a/b=="]
        {
            let _ = parse([text]);
        }
        assert_eq!(one("Bearer realm=\"open").get("realm"), Some("open"));
        assert_eq!(parse(["realm=\"x\""]), []);
        assert!(parse(["a b, ".repeat(1000).as_str()]).len() <= MAX_CHALLENGES);
    }

    proptest! {
        #[test]
        fn never_panics_and_stays_bounded(text in "\\PC{0,200}|[a-z=\", \\\\]{0,100}") {
            let all = parse([text.as_str()]);
            prop_assert!(all.len() <= MAX_CHALLENGES);
            for challenge in all {
                prop_assert!(challenge.parameters.len() <= MAX_PARAMETERS);
                prop_assert!(!challenge.scheme.is_empty());
            }
        }

        #[test]
        fn what_is_quoted_by_the_rules_is_read_back(realm in "\\PC{0,40}", scope in "[a-z:/,]{0,20}") {
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            let challenge = one(&format!("Bearer realm=\"{quoted}\",scope=\"{scope}\""));
            prop_assert_eq!(challenge.get("realm"), Some(realm.as_str()));
            prop_assert_eq!(challenge.get("scope"), Some(scope.as_str()));
        }
    }
}
