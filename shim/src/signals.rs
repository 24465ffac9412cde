//! Signals by name.

/// Linux's first and last real-time signal, as images and the CRI count them (signal(7), glibc).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// `15`, `TERM`, `SIGTERM`, `sigterm`, `RTMIN+3`, `SIGRTMAX-1`.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(at + 1).ok();
    }
    let number = match name {
        "CLD" => libc::SIGCHLD,
        "IOT" => libc::SIGABRT,
        "POLL" => libc::SIGIO,
        "RTMIN" => RTMIN,
        "RTMAX" => RTMAX,
        _ => match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
            (Some(up), _) => RTMIN.checked_add(up.parse().ok()?)?,
            (_, Some(down)) => RTMAX.checked_sub(down.parse().ok()?)?,
            _ => return None,
        },
    };
    (1..=RTMAX).contains(&number).then_some(number)
}

/// The name with `SIG`, if it has one here.
pub fn name(number: i32) -> Option<String> {
    match number {
        1..=31 => NAMES.get(usize::try_from(number).ok()? - 1).map(|name| format!("SIG{name}")),
        RTMIN => Some("SIGRTMIN".to_owned()),
        RTMAX => Some("SIGRTMAX".to_owned()),
        35..=49 => Some(format!("SIGRTMIN+{}", number - RTMIN)),
        50..=63 => Some(format!("SIGRTMAX-{}", RTMAX - number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_by_number_name_and_distance() {
        for (text, number) in
            [("15", 15), ("TERM", 15), ("sigquit", 3), ("SIGSYS", 31), ("RTMIN+3", 37), ("SIGRTMAX-14", 50), ("IOT", 6)]
        {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "SIGNO", "RTMIN+99", "RTMAX--1", "RTMIN+-40"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_name_leads_back_to_its_number() {
        for number in (1..=31).chain(RTMIN..=RTMAX) {
            assert_eq!(parse(&name(number).unwrap()), Some(number));
        }
    }
}
