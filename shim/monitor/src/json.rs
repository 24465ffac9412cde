//! As much JSON as the monitor needs: flat objects of strings, integers and booleans, written and read.
//!
//! Read: exit records and the log lines of OCI runtimes (`{"level":"error","msg":"…"}`), which are foreign bytes: nested
//! values are skipped to a bounded depth, anything malformed ends the reading.

/// Nesting that is skipped over; what is deeper is refused.
const MAX_DEPTH: usize = 32;

/// A value of a flat object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A string, unescaped; broken UTF-16 escapes become U+FFFD.
    Text(String),
    /// A number that is an integer in range.
    Integer(i64),
    /// `true` or `false`.
    Bool(bool),
    /// Anything else: null, fractions, arrays, objects.
    Other,
}

/// Appends `value` as a JSON string with its quotes.
pub fn push_string(value: &str, out: &mut String) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.push_str("\\u00");
                out.push(char::from(HEX[c as usize >> 4]));
                out.push(char::from(HEX[c as usize & 15]));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Calls `each` for every member of the object that `text` is; `None` if it is not exactly one object.
pub fn members(text: &[u8], mut each: impl FnMut(&str, Value)) -> Option<()> {
    let mut reader = Reader { text, at: 0 };
    reader.expect(b'{')?;
    if !reader.take(b'}') {
        loop {
            let key = reader.string()?;
            reader.expect(b':')?;
            let value = reader.value(0)?;
            each(&key, value);
            if reader.take(b'}') {
                break;
            }
            reader.expect(b',')?;
        }
    }
    reader.space();
    (reader.at == text.len()).then_some(())
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.take(byte).then_some(())
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.space();
        match *self.text.get(self.at)? {
            b'"' => Some(Value::Text(self.string()?)),
            b'{' => self.skip(b'}', true, depth),
            b'[' => self.skip(b']', false, depth),
            _ => self.word(),
        }
    }

    fn skip(&mut self, close: u8, keyed: bool, depth: usize) -> Option<Value> {
        self.at += 1;
        if !self.take(close) {
            loop {
                if keyed {
                    self.string()?;
                    self.expect(b':')?;
                }
                self.value(depth + 1)?;
                if self.take(close) {
                    break;
                }
                self.expect(b',')?;
            }
        }
        Some(Value::Other)
    }

    fn word(&mut self) -> Option<Value> {
        let start = self.at;
        while matches!(self.text.get(self.at), Some(b'a'..=b'z' | b'0'..=b'9' | b'-' | b'+' | b'.' | b'E')) {
            self.at += 1;
        }
        match &self.text[start..self.at] {
            b"true" => Some(Value::Bool(true)),
            b"false" => Some(Value::Bool(false)),
            b"null" => Some(Value::Other),
            word => {
                let word = std::str::from_utf8(word).ok()?;
                word.bytes().any(|b| b.is_ascii_digit()).then(|| word.parse().map_or(Value::Other, Value::Integer))
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        self.expect(b'"')?;
        let mut out = Vec::new();
        loop {
            let byte = *self.text.get(self.at)?;
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    let c = self.escaped()?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                _ => out.push(byte),
            }
        }
        Some(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    fn escaped(&mut self) -> Option<char> {
        let byte = *self.text.get(self.at)?;
        self.at += 1;
        Some(match byte {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'"' | b'\\' | b'/' => char::from(byte),
            b'u' => {
                let first = self.hex()?;
                if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with(b"\\u") {
                    self.at += 2;
                    let second = self.hex()?;
                    let low = second.wrapping_sub(0xdc00);
                    if low < 0x400 { char::from_u32(0x10000 + ((first - 0xd800) << 10) + low)? } else { '\u{fffd}' }
                } else {
                    char::from_u32(first).unwrap_or('\u{fffd}')
                }
            }
            _ => return None,
        })
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |n, &d| Some(n << 4 | char::from(d).to_digit(16)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Option<Vec<(String, Value)>> {
        let mut all = Vec::new();
        members(text.as_bytes(), |k, v| all.push((k.to_owned(), v)))?;
        Some(all)
    }

    #[test]
    fn a_log_line_of_runc_is_read() {
        let line = r#"{"level":"error","msg":"runc create failed: \"no\" such \u2026 \ud83d\ude00","time":"2026-01-01T00:00:00Z","n":{"a":[1,-2.5,null]},"ok":true,"i":-7}"#;
        let all = read(line).unwrap();
        assert_eq!(all[1], ("msg".into(), Value::Text("runc create failed: \"no\" such … 😀".into())));
        assert_eq!(all[3], ("n".into(), Value::Other));
        assert_eq!(all[4], ("ok".into(), Value::Bool(true)));
        assert_eq!(all[5], ("i".into(), Value::Integer(-7)));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        for text in
            ["", "{", "[]", "{}x", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\":\"\\x\"}", "{\"a\":\"\\ud8", &deep]
        {
            assert_eq!(read(text), None, "{:.20}", text);
        }
    }

    proptest! {
        #[test]
        fn strings_come_back(key: String, value: String) {
            let mut text = String::from("{");
            push_string(&key, &mut text);
            text.push(':');
            push_string(&value, &mut text);
            text.push('}');
            prop_assert_eq!(read(&text), Some(vec![(key, Value::Text(value))]));
        }

        #[test]
        fn any_bytes_are_read_without_harm(text: Vec<u8>) {
            let _ = members(&text, |_, _| ());
        }
    }
}
