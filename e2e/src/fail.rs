//! How a case says that it failed or does not apply: one sentence for people.

use std::fmt;

/// Why a case did not pass.
#[derive(Debug)]
pub(crate) enum Fail {
    /// The behaviour is not as pinned.
    Wrong(String),
    /// The case does not apply here; the reason is shown.
    Skip(String),
}

/// What a case or a helper returns.
pub(crate) type Res<T = ()> = Result<T, Fail>;

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(m) | Self::Skip(m) => f.write_str(m),
        }
    }
}

impl<E: std::error::Error> From<E> for Fail {
    fn from(e: E) -> Self {
        let mut text = e.to_string();
        let mut source = e.source();
        while let Some(s) = source {
            let more = s.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = s.source();
        }
        Self::Wrong(text)
    }
}

/// A failure with this text.
pub(crate) fn wrong<T>(text: impl Into<String>) -> Res<T> {
    Err(Fail::Wrong(text.into()))
}

/// A skip with this reason.
pub(crate) fn skip<T>(reason: impl Into<String>) -> Res<T> {
    Err(Fail::Skip(reason.into()))
}

/// Fails with the formatted text unless the condition holds.
macro_rules! ensure {
    ($cond:expr, $($fmt:tt)+) => {
        if !$cond {
            return Err($crate::fail::Fail::Wrong(format!($($fmt)+)));
        }
    };
}

/// Fails unless both are equal, and shows both.
macro_rules! same {
    ($what:expr, $have:expr, $want:expr) => {{
        // A match, not a let: temporaries of the expressions live until its end.
        match (&$have, &$want) {
            (have, want) => {
                if *have != *want {
                    return Err($crate::fail::Fail::Wrong(format!("{}: {have:?} instead of {want:?}", $what)));
                }
            }
        }
    }};
}

pub(crate) use {ensure, same};
