//! The one escape that configuration files and protocol frames share: `key=value`, where no value holds a separator.
//!
//! `\` → `\\`, newline → `\n`, tab → `\t`. All other bytes stand for themselves, whatever their encoding.

/// Appends `value` to `out`, escaped.
pub fn escape(value: &[u8], out: &mut Vec<u8>) {
    for &byte in value {
        match byte {
            b'\\' => out.extend_from_slice(br"\\"),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\t' => out.extend_from_slice(br"\t"),
            _ => out.push(byte),
        }
    }
}

/// The inverse of [`escape`]; `None` for a backslash that starts no known escape.
pub fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next()? {
                b'\\' => b'\\',
                b'n' => b'\n',
                b't' => b'\t',
                _ => return None,
            },
            _ => byte,
        });
    }
    Some(out)
}

/// Appends `key=value` and `end`.
pub fn push_pair(key: &str, value: &[u8], end: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    escape(value, out);
    out.push(end);
}

/// Splits `key=value` and unescapes the value; `None` if there is no `=`, the key is not UTF-8 or the escape is broken.
pub fn pair(field: &[u8]) -> Option<(&str, Vec<u8>)> {
    let at = field.iter().position(|&b| b == b'=')?;
    Some((std::str::from_utf8(&field[..at]).ok()?, unescape(&field[at + 1..])?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_escaped_comes_back_and_holds_no_separator(value: Vec<u8>) {
            let mut out = Vec::new();
            escape(&value, &mut out);
            prop_assert!(!out.contains(&b'\n') && !out.contains(&b'\t'));
            prop_assert_eq!(unescape(&out), Some(value));
        }

        #[test]
        fn any_bytes_are_read_without_harm(text: Vec<u8>) {
            if let Some(value) = unescape(&text) {
                prop_assert!(value.len() <= text.len());
            }
            let _ = pair(&text);
        }
    }
}
