//! Host ports: `[ip:]host:container[/protocol]`.

use std::fmt;
use std::net::IpAddr;

use crisp_cri_proto::v1;

/// A port of the host that leads to one of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Which of the host's addresses; `None`: all.
    pub ip: Option<IpAddr>,
    pub host: u16,
    pub container: u16,
    pub protocol: v1::Protocol,
}

/// Reads one.
pub fn port(text: &str) -> Result<Port, String> {
    let wrong = |why: &str| format!("{text:?}: {why}; write it like 8080:80, 127.0.0.1:8080:80 or 53:53/udp");
    let (rest, protocol) = match text.rsplit_once('/') {
        None => (text, v1::Protocol::Tcp),
        Some((rest, name)) => match name.to_ascii_lowercase().as_str() {
            "tcp" => (rest, v1::Protocol::Tcp),
            "udp" => (rest, v1::Protocol::Udp),
            "sctp" => (rest, v1::Protocol::Sctp),
            _ => return Err(wrong("the protocol is tcp, udp or sctp")),
        },
    };
    let number = |part: &str| match part.parse::<u16>() {
        Ok(number @ 1..) if part.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
        _ if part.contains('-') => Err(wrong("ranges are not known here: give each port its own -p")),
        _ => Err(wrong(&format!("{part:?} is no port"))),
    };
    let Some((rest, container)) = rest.rsplit_once(':') else {
        return Err(wrong("the host's port is missing"));
    };
    let (ip, host) = match rest.rsplit_once(':') {
        None => (None, rest),
        Some((ip, host)) => (Some(ip), host),
    };
    let ip = match ip {
        None => None,
        Some(text) => {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            Some(bare.parse::<IpAddr>().map_err(|_| wrong(&format!("{text:?} is no address")))?)
        }
    };
    Ok(Port { ip, host: number(host)?, container: number(container)?, protocol })
}

impl Port {
    /// For RunPodSandbox.
    pub fn mapping(&self) -> v1::PortMapping {
        v1::PortMapping {
            protocol: self.protocol.into(),
            container_port: self.container.into(),
            host_port: self.host.into(),
            host_ip: self.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            None => {}
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
        }
        let protocol = self.protocol.as_str_name().to_ascii_lowercase();
        write!(f, "{}:{}", self.host, self.container)?;
        if self.protocol == v1::Protocol::Tcp { Ok(()) } else { write!(f, "/{protocol}") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports() {
        let tcp = |ip: Option<&str>, host, container| {
            let ip = ip.map(|ip| ip.parse().unwrap());
            Ok(Port { ip, host, container, protocol: v1::Protocol::Tcp })
        };
        assert_eq!(port("8080:80"), tcp(None, 8080, 80));
        assert_eq!(port("127.0.0.1:8080:80/TCP"), tcp(Some("127.0.0.1"), 8080, 80));
        assert_eq!(port("[::1]:8080:80"), tcp(Some("::1"), 8080, 80));
        assert_eq!(port("::1:8080:80"), tcp(Some("::1"), 8080, 80));
        assert_eq!(port("53:53/udp").unwrap().protocol, v1::Protocol::Udp);
        for text in
            ["", "80", ":80", "80:", "0:80", "80:70000", "x:80:80", "80:80/icmp", "80-90:80-90", "+8:80", "1:2:3:4x"]
        {
            assert!(port(text).unwrap_err().contains("8080:80"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(ip: Option<IpAddr>, host in 1_u16.., container in 1_u16.., udp: bool) {
            let protocol = if udp { v1::Protocol::Udp } else { v1::Protocol::Tcp };
            let made = Port { ip, host, container, protocol };
            prop_assert_eq!(port(&made.to_string()), Ok(made));
        }

        #[test]
        fn no_text_is_too_strange(text in "[0-9:/a-z\\[\\]-]{0,30}") {
            let _ = port(&text);
        }
    }
}
