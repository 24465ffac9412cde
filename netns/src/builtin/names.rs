//! Names in the kernel, derived from the instance and the pod's id alone.
//!
//! ```text
//! instance `crisp`     table `crisp-pods`        interfaces `crisp-<9>`   e.g. crisp-4f1c09ab2
//! instance `e2e-17`    table `e2e-17-pods`       interfaces `e<4>-<9>`    e.g. ek3x9-4f1c09ab2
//! ```
//! An interface name has at most 15 bytes (`IFNAMSIZ`). The prefix holds no `-` but its last byte, so the pattern
//! `<prefix>*` of one instance never matches an interface of another. The nine characters are the first ones of a
//! sandbox id (36 random bits, what people see in lists), or of a hash for ids of another form.

/// Digits of hashes: five bits each, all legal in names of interfaces and tables.
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// The names of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// The instance, as configured.
    pub(super) instance: String,
    /// The nftables table, in the `inet` family. No nft keyword has its form.
    pub(super) table: String,
    /// How every interface of the instance starts.
    pub(super) prefix: String,
    /// The comment on rules in other owners' chains.
    pub(super) comment: String,
    /// The metric of the instance's unreachable routes, which tells its claims from other instances'.
    pub(super) metric: u32,
}

impl Names {
    pub(super) fn new(instance: &str) -> Self {
        let hash = fnv(instance.as_bytes());
        let first = instance.bytes().next().filter(u8::is_ascii_alphabetic).map_or('n', char::from);
        let starts_well = instance.starts_with(first);
        let prefix = match instance.len() {
            1..=5 if instance.bytes().all(|b| b.is_ascii_alphanumeric()) => format!("{instance}-"),
            _ => format!("{first}{}-", digits(hash, 4)),
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let table = match instance.len() {
            1..=64 if starts_well && instance.bytes().all(legal) => format!("{instance}-pods"),
            _ => format!("{first}{}-pods", digits(hash, 12)),
        };
        // A metric of 0 means "none given"; the top bit keeps claims behind every real route.
        let metric = u32::try_from(hash & 0x7fff_ffff).unwrap_or(0) | 0x8000_0000;
        Self { instance: instance.to_owned(), comment: format!("{table} accepts pods"), table, prefix, metric }
    }

    /// The pod's interface on the host.
    pub(super) fn link(&self, id: &str) -> String {
        let sandbox_id = id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match id.get(..9) {
            Some(start) if sandbox_id => format!("{}{start}", self.prefix),
            _ => format!("{}{}", self.prefix, digits(fnv(id.as_bytes()), 9)),
        }
    }

    /// What `ip link` shows beside the interface: whose it is, in full.
    pub(super) fn alias(&self, id: &str) -> String {
        format!("{}/{id}", self.instance)
    }
}

/// Whether a pod's id can name a file and stand in a document for nft.
pub(super) fn valid_id(id: &str) -> bool {
    let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=64).contains(&id.len()) && id.bytes().all(byte) && !id.starts_with('.')
}

/// FNV-1a, 64 bits: ids are random already, so this only has to spread.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn digits(hash: u64, count: usize) -> String {
    // FNV's low bits depend on few input bits of the last bytes; fold the halves.
    let hash = hash ^ (hash >> 32);
    (0..count).map(|n| char::from(DIGITS[(hash >> (5 * n) & 31) as usize])).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_say_whose_they_are() {
        let names = Names::new("crisp");
        assert_eq!(names.table, "crisp-pods");
        let id = "4f1c09ab2e".to_owned() + &"0".repeat(54);
        assert_eq!(names.link(&id), "crisp-4f1c09ab2");
        assert_eq!(names.alias("web"), "crisp/web");
    }

    #[test]
    fn an_instance_that_starts_like_another_does_not_match_its_interfaces() {
        let [short, long] = [Names::new("a"), Names::new("a-b")];
        assert!(!long.link("x").starts_with(&short.prefix) && !short.link("x").starts_with(&long.prefix));
    }

    proptest! {
        #[test]
        fn every_name_is_legal(instance in "\\PC{0,80}", id in "\\PC{0,80}") {
            let names = Names::new(&instance);
            let link = names.link(&id);
            prop_assert!(link.len() <= 15 && link.is_ascii() && link.starts_with(&names.prefix));
            prop_assert_eq!(names.prefix.matches('-').count(), 1);
            prop_assert!(names.table.len() <= 80 && names.table.starts_with(|c: char| c.is_ascii_alphabetic()));
            prop_assert!(names.table.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        }

        #[test]
        fn instances_and_pods_do_not_meet(a in "[a-z0-9-]{1,12}", b in "[a-z0-9-]{1,12}", id in "[0-9a-f]{64}", other in "[0-9a-f]{64}") {
            prop_assume!(a != b && id[..9] != other[..9]);
            let (x, y) = (Names::new(&a), Names::new(&b));
            prop_assert_ne!(x.link(&id), y.link(&id));
            prop_assert_ne!(x.link(&id), x.link(&other));
            prop_assert_ne!(x.table, y.table);
        }
    }
}
