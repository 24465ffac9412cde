//! The result of a plugin: read in any version, written in any version.
//!
//! What a version does not know is lost on the way to it (0.2 has one address for each IP version, and no interfaces), as
//! the specification's reference implementation does it. A result that already has the wanted version is never rewritten.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::version::{Shape, Version};

/// The interface that the chain makes in the pod.
pub(crate) const IFNAME: &str = "eth0";

/// A result, as far as this runtime looks into it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct CniResult {
    interfaces: Vec<Value>,
    ips: Vec<Ip>,
    routes: Vec<Value>,
    dns: Option<Value>,
}

#[derive(Debug, Clone, PartialEq)]
struct Ip {
    address: IpAddr,
    prefix: String,
    /// All that the entry holds besides its version.
    entry: Map<String, Value>,
}

/// Lists of Go programs are null when they are empty.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    interfaces: Option<Vec<Value>>,
    ips: Option<Vec<Map<String, Value>>>,
    ip4: Option<Map<String, Value>>,
    ip6: Option<Map<String, Value>>,
    routes: Option<Vec<Value>>,
    dns: Option<Value>,
}

impl CniResult {
    /// Reads what a plugin wrote; `asked` is the version that it was asked in, and that counts when it names none.
    /// The error is a reason.
    pub(crate) fn read(text: &[u8], asked: Version) -> Result<(Self, Value), String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
        let raw = Raw::deserialize(&value).map_err(|error| format!("not a result: {error}"))?;
        let version = match raw.version.as_deref() {
            None | Some("") => asked,
            Some(version) => version.parse()?,
        };
        let mut result = Self {
            interfaces: raw.interfaces.unwrap_or_default(),
            ips: Vec::new(),
            routes: raw.routes.unwrap_or_default(),
            dns: raw.dns,
        };
        let entries = match version.shape() {
            Shape::Pair => raw.ip4.into_iter().chain(raw.ip6).collect(),
            Shape::Versioned | Shape::Plain => raw.ips.unwrap_or_default(),
        };
        for mut entry in entries {
            if version.shape() == Shape::Pair {
                if let Some(address) = entry.remove("ip") {
                    entry.insert("address".to_owned(), address);
                }
                if let Some(Value::Array(routes)) = entry.remove("routes") {
                    result.routes.extend(routes);
                }
            }
            entry.remove("version");
            result.ips.push(Ip::new(entry)?);
        }
        // Handed to the next plugin as it is, unless that was asked in another version.
        let mut value = if version == asked { value } else { result.write(asked) };
        if let Value::Object(fields) = &mut value {
            fields.insert("cniVersion".to_owned(), asked.to_string().into());
        }
        Ok((result, value))
    }

    /// The result in the shape of a version.
    pub(crate) fn write(&self, version: Version) -> Value {
        let mut value = json!({"cniVersion": version.to_string()});
        match version.shape() {
            Shape::Pair => {
                for (key, is_v4) in [("ip4", true), ("ip6", false)] {
                    let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == is_v4) else { continue };
                    let routes: Vec<&Value> =
                        self.routes.iter().filter(|route| destination_is_v4(route) == Some(is_v4)).collect();
                    value[key] = json!({"ip": ip.prefix});
                    if let Some(gateway) = ip.entry.get("gateway") {
                        value[key]["gateway"] = gateway.clone();
                    }
                    if !routes.is_empty() {
                        value[key]["routes"] = json!(routes);
                    }
                }
            }
            shape => {
                value["interfaces"] = self.interfaces.clone().into();
                value["ips"] = self.ips.iter().map(|ip| ip.write(shape)).collect();
                value["routes"] = self.routes.clone().into();
            }
        }
        if let Some(dns) = &self.dns {
            value["dns"] = dns.clone();
        }
        value
    }

    /// The pod's addresses, in the result's order: those of [`IFNAME`], or of no interface that is named; where there
    /// are none, those of any interface inside the pod.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let pick = |wanted: &dyn Fn(Option<&Value>) -> bool| {
            let mut picked: Vec<IpAddr> = Vec::new();
            for ip in &self.ips {
                let interface = ip.entry.get("interface").and_then(Value::as_u64);
                let interface = interface.and_then(|index| self.interfaces.get(usize::try_from(index).ok()?));
                if wanted(interface) && !picked.contains(&ip.address) {
                    picked.push(ip.address);
                }
            }
            picked
        };
        let text = |interface: &Value, key: &str| interface.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        let in_pod = |interface: &Value| !text(interface, "sandbox").is_empty();
        let main =
            pick(&|interface| interface.is_none_or(|interface| in_pod(interface) && text(interface, "name") == IFNAME));
        if main.is_empty() { pick(&|interface| interface.is_some_and(in_pod)) } else { main }
    }
}

impl Ip {
    fn new(entry: Map<String, Value>) -> Result<Self, String> {
        let prefix = entry.get("address").and_then(Value::as_str).unwrap_or("").to_owned();
        let (address, length) = prefix.split_once('/').ok_or_else(|| format!("address {prefix:?} has no prefix"))?;
        let address: IpAddr = address.parse().map_err(|_| format!("{prefix:?} is no IP address"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        match length.parse::<u8>() {
            Ok(length) if length <= longest => Ok(Self { address, prefix, entry }),
            _ => Err(format!("address {prefix:?} has no valid prefix")),
        }
    }

    fn write(&self, shape: Shape) -> Value {
        let mut entry = self.entry.clone();
        if shape == Shape::Versioned {
            entry.insert("version".to_owned(), if self.address.is_ipv4() { "4" } else { "6" }.into());
        }
        entry.into()
    }
}

fn destination_is_v4(route: &Value) -> Option<bool> {
    let address = route.get("dst")?.as_str()?.split('/').next()?;
    address.parse::<IpAddr>().ok().map(|address| address.is_ipv4())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POD: &str = r#"{
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": "00:11:22:33:44:55"},
            {"name": "veth3243", "mac": "55:44:33:22:11:11"},
            {"name": "eth0", "mac": "99:88:77:66:55:44", "mtu": 1450, "sandbox": "/run/netns/blue"},
            {"name": "eth1", "sandbox": "/run/netns/blue"}],
        "ips": [
            {"address": "192.0.2.1/24", "interface": 0},
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2},
            {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 2},
            {"address": "10.9.0.5/16", "interface": 3}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
        "dns": {"nameservers": ["10.1.0.1"]}}"#;

    fn read(text: &str, asked: &str) -> (CniResult, Value) {
        CniResult::read(text.as_bytes(), asked.parse().unwrap()).unwrap()
    }

    fn ips(result: &CniResult) -> Vec<String> {
        result.addresses().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_pods_addresses_are_those_of_its_main_interface_in_order() {
        let (result, value) = read(POD, "1.1.0");
        assert_eq!(ips(&result), ["10.1.0.5", "fd00::5"]);
        assert_eq!(value, serde_json::from_str::<Value>(POD).unwrap(), "handed on unchanged");
    }

    #[test]
    fn addresses_without_an_interface_are_the_pods() {
        let (result, _) = read(r#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.1.0.5/16"}]}"#, "0.3.1");
        assert_eq!(ips(&result), ["10.1.0.5"]);
        let named =
            r#"{"interfaces":[{"name":"net1","sandbox":"/x"}],"ips":[{"address":"10.1.0.5/16","interface":0}]}"#;
        assert_eq!(ips(&read(named, "1.0.0").0), ["10.1.0.5"], "another name in the pod");
        assert!(ips(&read(r#"{"interfaces":null,"ips":null}"#, "1.0.0").0).is_empty());
    }

    #[test]
    fn old_results_are_read() {
        let text = r#"{"ip4":{"ip":"10.1.0.5/16","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]},
                       "ip6":{"ip":"fd00::5/64"},"dns":{"nameservers":["10.1.0.1"]}}"#;
        let (result, value) = read(text, "0.2.0");
        assert_eq!(ips(&result), ["10.1.0.5", "fd00::5"]);
        assert_eq!(value["cniVersion"], "0.2.0");
        let new = result.write(Version::NEWEST);
        assert_eq!(new["ips"][0], json!({"address": "10.1.0.5/16", "gateway": "10.1.0.1"}));
        assert_eq!(new["routes"], json!([{"dst": "0.0.0.0/0"}]));
        assert_eq!(result.write("0.2.0".parse().unwrap())["ip4"]["routes"], json!([{"dst": "0.0.0.0/0"}]));
    }

    #[test]
    fn a_result_in_another_version_than_asked_is_converted() {
        let (_, value) = read(POD, "0.4.0");
        assert_eq!(value["cniVersion"], "0.4.0");
        assert_eq!(value["ips"][1]["version"], "4");
        assert_eq!(value["ips"][2]["version"], "6");
        let (result, value) = read(&value.to_string().replace("0.4.0", "0.3.1"), "1.1.0");
        assert_eq!(value["ips"][1], json!({"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2}));
        assert_eq!(ips(&result), ["10.1.0.5", "fd00::5"]);
        let (_, value) = read(POD, "0.2.0");
        assert_eq!(value["ip4"]["ip"], "192.0.2.1/24", "the first of its version");
        assert_eq!(value["ip6"]["routes"], json!([{"dst": "::/0", "gw": "fd00::1"}]));
    }

    #[test]
    fn rubbish_is_named() {
        for (text, reason) in [
            ("", "not JSON"),
            ("hello", "not JSON"),
            ("[]", "not a result"),
            (r#"{"cniVersion":"7.0.0"}"#, "not spoken"),
            (r#"{"ips":[{"address":"10.1.0.5"}]}"#, "no prefix"),
            (r#"{"ips":[{"address":"pod/24"}]}"#, "no IP address"),
            (r#"{"ips":[{"address":"10.1.0.5/33"}]}"#, "no valid prefix"),
            (r#"{"ips":[{}]}"#, "no prefix"),
        ] {
            let error = CniResult::read(text.as_bytes(), Version::NEWEST).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = CniResult::read(&bytes, Version::NEWEST);
        }

        #[test]
        fn an_index_out_of_range_harms_nobody(index in any::<i64>()) {
            let text = json!({"ips": [{"address": "10.1.0.5/16", "interface": index}]}).to_string();
            let (result, _) = CniResult::read(text.as_bytes(), Version::NEWEST).unwrap();
            prop_assert_eq!(result.addresses().len(), 1);
        }
    }
}
