//! Credentials for one pull.

use std::io::{self, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::api::v1::Credentials;
use crate::cli::error::{CliError, Result};

/// `USER:PASSWORD`; with `USER` alone the password is asked for, or is the first line of what is not a terminal.
pub fn credentials(text: &str) -> Result<Credentials> {
    let (username, password) = match text.split_once(':') {
        Some((username, password)) => (username, password.to_owned()),
        None if text.is_empty() => ("", String::new()),
        None => (text, ask(text).map_err(|error| CliError::new(format!("read the password: {error}")))?),
    };
    if username.is_empty() {
        return Err(CliError::new("--creds: the user is missing; write USER:PASSWORD, or USER to be asked"));
    }
    Ok(Credentials { username: username.to_owned(), password })
}

fn ask(user: &str) -> io::Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let mut line = String::new();
        stdin.read_line(&mut line)?;
        return Ok(line.trim_end_matches(['\n', '\r']).to_owned());
    }
    eprint!("Password of {user}: ");
    io::stderr().flush()?;
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    // Keys are read one by one, Ctrl-C too: a signal would leave the terminal silent.
    silent.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let typed = keys(&mut stdin.lock());
    tcsetattr(&stdin, OptionalActions::Flush, &before)?;
    eprintln!();
    typed
}

fn keys(input: &mut impl Read) -> io::Result<String> {
    let mut typed = Vec::new();
    let mut key = [0];
    loop {
        if input.read(&mut key)? == 0 {
            break;
        }
        match key[0] {
            b'\n' | b'\r' | 0x04 => break,
            0x03 => return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")),
            0x7f | 0x08 => {
                typed.pop();
            }
            byte => typed.push(byte),
        }
    }
    String::from_utf8(typed).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_colon_ends_the_user() {
        let read = credentials("me:a:b").unwrap();
        assert_eq!((read.username.as_str(), read.password.as_str()), ("me", "a:b"));
        assert!(credentials("").is_err() && credentials(":x").is_err());
    }

    #[test]
    fn keys_make_a_password() {
        let typed = |bytes: &[u8]| keys(&mut &bytes[..]).map_err(|error| error.kind());
        assert_eq!(typed(b"abx\x7fc\nrest"), Ok("abc".into()));
        assert_eq!(typed(b"ab\x03"), Err(io::ErrorKind::Interrupted));
    }
}
