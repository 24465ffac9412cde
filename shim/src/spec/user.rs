//! Who a process runs as: what was asked for, the image's word, and the image's `/etc/passwd` and `/etc/group`.
//!
//! ```text
//! run_as_user ─► run_as_username ─► the image's USER ─► root        (the first that is there)
//! group:  run_as_group ─► the image's `user:group` ─► that of the passwd entry ─► 0
//! ```
//!
//! Numbers need no entry, names do. Both files are an image's: any bytes, of any size.

use std::collections::BTreeSet;

use crate::model::{GroupsPolicy, ResolvedUser, RunAs};

/// A larger file is refused: 64 bytes an entry make a hundred thousand users.
pub const MAX_FILE: usize = 8 << 20;
/// Kernel: `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65_536;
/// Kubernetes and the runtimes know ids up to here.
const MAX_ID: u32 = i32::MAX as u32;

/// Why it is not known who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such entry.
    #[error("no user named {0:?} in the image's /etc/passwd")]
    NoSuchUser(String),
    /// No such entry.
    #[error("no group named {0:?} in the image's /etc/group")]
    NoSuchGroup(String),
    /// Not an id.
    #[error("{what} {id} is not within 0..={MAX_ID}")]
    OutOfRange {
        /// User or group.
        what: &'static str,
        /// As it was given.
        id: String,
    },
    /// Kubernetes asks for a user with each group.
    #[error("run_as_group is set without run_as_user and run_as_username")]
    GroupWithoutUser,
    /// More than the kernel takes.
    #[error("{0} supplementary groups, more than {MAX_GROUPS}")]
    TooManyGroups(usize),
    /// A file beyond [`MAX_FILE`].
    #[error("the image's {file} takes {size} bytes, more than {MAX_FILE}")]
    TooLarge {
        /// Which.
        file: &'static str,
        /// Its size.
        size: usize,
    },
}

/// Finds out. `passwd` and `group` are the image's files, empty where it has none.
///
/// # Errors
/// See [`UserError`].
pub fn resolve(run_as: &RunAs, image_user: &str, passwd: &[u8], group: &[u8]) -> Result<ResolvedUser, UserError> {
    for (file, text) in [("/etc/passwd", passwd), ("/etc/group", group)] {
        if text.len() > MAX_FILE {
            return Err(UserError::TooLarge { file, size: text.len() });
        }
    }
    let RunAs { uid, gid, username, groups, policy } = run_as;
    let of_container = match (uid, username.is_empty()) {
        (Some(uid), _) => Some(Who::Id(id("user", *uid)?)),
        (None, false) => Some(Who::of(username)?),
        (None, true) => None,
    };
    if of_container.is_none() && gid.is_some() {
        return Err(UserError::GroupWithoutUser);
    }
    let (image_user, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let (who, named_group) = match of_container {
        Some(who) => (who, ""),
        None if image_user.is_empty() => (Who::Id(0), image_group),
        None => (Who::of(image_user)?, image_group),
    };
    let entry = passwd_entries(passwd).find(|entry| who.is(entry.name, entry.uid));
    let uid = match (&who, &entry) {
        (_, Some(entry)) => entry.uid,
        (Who::Id(uid) | Who::NumberOrName(uid, _), None) => *uid,
        (Who::Name(name), None) => return Err(UserError::NoSuchUser(name.clone())),
    };
    let primary = match gid {
        Some(gid) => id("group", *gid)?,
        None if !named_group.is_empty() => group_id(named_group, group)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    // A process that drops its primary group must not gain by it: it is a supplementary one, too (CVE-2022-36109).
    let mut all: BTreeSet<u32> = groups.iter().map(|gid| id("group", *gid)).collect::<Result<_, _>>()?;
    all.insert(primary);
    if let (GroupsPolicy::Merge, Some(entry)) = (policy, entry) {
        all.extend(group_entries(group).filter(|group| group.has(entry.name)).map(|group| group.gid));
    }
    if all.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups(all.len()));
    }
    Ok(ResolvedUser { uid, gid: primary, groups: all.into_iter().collect() })
}

/// A user, as it was named.
enum Who {
    Id(u32),
    Name(String),
    /// Digits: a name if there is such an entry, else a number (as in Docker's USER).
    NumberOrName(u32, String),
}

impl Who {
    fn of(text: &str) -> Result<Self, UserError> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Name(text.to_owned()));
        }
        let out_of_range = || UserError::OutOfRange { what: "user", id: text.to_owned() };
        let id = text.parse().ok().filter(|id| *id <= MAX_ID).ok_or_else(out_of_range)?;
        Ok(Self::NumberOrName(id, text.to_owned()))
    }

    fn is(&self, name: &[u8], uid: u32) -> bool {
        match self {
            Self::Id(id) => *id == uid,
            Self::Name(wanted) => wanted.as_bytes() == name,
            Self::NumberOrName(id, wanted) => *id == uid || wanted.as_bytes() == name,
        }
    }
}

fn id(what: &'static str, id: i64) -> Result<u32, UserError> {
    let out_of_range = || UserError::OutOfRange { what, id: id.to_string() };
    u32::try_from(id).ok().filter(|id| *id <= MAX_ID).ok_or_else(out_of_range)
}

fn group_id(named: &str, group: &[u8]) -> Result<u32, UserError> {
    if let Some(entry) = group_entries(group).find(|entry| entry.name == named.as_bytes()) {
        return Ok(entry.gid);
    }
    if !named.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UserError::NoSuchGroup(named.to_owned()));
    }
    let out_of_range = || UserError::OutOfRange { what: "group", id: named.to_owned() };
    named.parse().ok().filter(|id| *id <= MAX_ID).ok_or_else(out_of_range)
}

/// A line of passwd(5).
struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
}

/// A line of group(5).
struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl GroupEntry<'_> {
    fn has(&self, member: &[u8]) -> bool {
        self.members.split(|byte| *byte == b',').any(|name| name == member)
    }
}

/// Lines that are none (comments, NIS, rubbish) are left out.
fn passwd_entries(text: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(text).filter_map(|fields| match fields {
        [name, _, uid, gid] => Some(PasswdEntry { name, uid: number(uid)?, gid: number(gid)? }),
    })
}

fn group_entries(text: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(text).filter_map(|[name, _, gid, members]| Some(GroupEntry { name, gid: number(gid)?, members }))
}

/// The first four fields of each line.
fn lines(text: &[u8]) -> impl Iterator<Item = [&[u8]; 4]> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.trim_ascii();
        let mut fields = line.split(|byte| *byte == b':');
        let first = [fields.next()?, fields.next()?, fields.next()?, fields.next().unwrap_or_default()];
        (!first[0].is_empty()).then_some(first)
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok().filter(|id| *id <= MAX_ID)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\n+nis\n\nbroken:x:many:1::\n\
        app:x:1000:2000:App:/app:/bin/sh\r\n42:x:7:8::/:/bin/sh\nshort:x:5:6\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:app,root\nstaff:x:50:app\nbad:x:-1:app\nnone:x:60\napps:x:2000:\n";

    fn of(run_as: &RunAs, image: &str) -> Result<ResolvedUser, UserError> {
        resolve(run_as, image, PASSWD, GROUP)
    }

    fn image(user: &str) -> Result<(u32, u32), UserError> {
        of(&RunAs::default(), user).map(|user| (user.uid, user.gid))
    }

    #[test]
    fn the_user_of_an_image_takes_every_form() {
        for (user, ids) in [
            ("", (0, 0)),
            ("root", (0, 0)),
            ("app", (1000, 2000)),
            ("app:wheel", (1000, 10)),
            ("app:7", (1000, 7)),
            ("app:", (1000, 2000)),
            ("1000", (1000, 2000)),
            ("1000:0", (1000, 0)),
            ("4711", (4711, 0)),
            ("4711:staff", (4711, 50)),
            (":staff", (0, 50)),
            ("42", (7, 8)),
            ("short", (5, 6)),
        ] {
            assert_eq!(image(user).unwrap(), ids, "{user}");
        }
    }

    #[test]
    fn names_need_an_entry_and_numbers_a_range() {
        assert_eq!(image("ghost").unwrap_err(), UserError::NoSuchUser("ghost".into()));
        assert_eq!(image("broken").unwrap_err(), UserError::NoSuchUser("broken".into()));
        assert_eq!(image("app:ghosts").unwrap_err(), UserError::NoSuchGroup("ghosts".into()));
        for user in ["2147483648", "99999999999999999999", "0:4294967295"] {
            assert!(matches!(image(user), Err(UserError::OutOfRange { .. })), "{user}");
        }
        let negative = RunAs { uid: Some(-1), ..Default::default() };
        assert!(matches!(of(&negative, ""), Err(UserError::OutOfRange { what: "user", .. })));
    }

    #[test]
    fn what_the_container_asks_for_beats_the_image() {
        let user = of(&RunAs { uid: Some(1000), ..Default::default() }, "root:staff").unwrap();
        assert_eq!((user.uid, user.gid), (1000, 2000), "the image's group belongs to the image's user");
        let user = of(&RunAs { uid: Some(5000), username: "app".into(), ..Default::default() }, "app").unwrap();
        assert_eq!((user.uid, user.gid), (5000, 0));
        let user = of(&RunAs { username: "app".into(), gid: Some(9), ..Default::default() }, "").unwrap();
        assert_eq!((user.uid, user.gid), (1000, 9));
        let group_alone = RunAs { gid: Some(9), ..Default::default() };
        assert_eq!(of(&group_alone, "app").unwrap_err(), UserError::GroupWithoutUser);
    }

    #[test]
    fn groups_are_merged_with_the_memberships_unless_strict() {
        let groups = |policy, gid| {
            let run_as = RunAs { uid: Some(1000), gid, groups: vec![99, 10, 99], policy, ..Default::default() };
            of(&run_as, "").unwrap().groups
        };
        assert_eq!(groups(GroupsPolicy::Merge, None), [10, 50, 99, 2000]);
        assert_eq!(groups(GroupsPolicy::Strict, None), [10, 99, 2000]);
        assert_eq!(groups(GroupsPolicy::Strict, Some(7)), [7, 10, 99]);
        let nobody = RunAs { uid: Some(4711), ..Default::default() };
        assert_eq!(of(&nobody, "").unwrap().groups, [0], "without an entry there are no memberships");
    }

    #[test]
    fn an_image_without_files_has_numbers_only() {
        let user = |run_as: &RunAs, image| resolve(run_as, image, b"", b"").map(|user| (user.uid, user.gid));
        assert_eq!(user(&RunAs { uid: Some(12), ..Default::default() }, "").unwrap(), (12, 0));
        assert_eq!(user(&RunAs::default(), "12:13").unwrap(), (12, 13));
        assert!(matches!(user(&RunAs::default(), "root"), Err(UserError::NoSuchUser(_))));
    }

    #[test]
    fn files_and_lists_have_an_end() {
        let big = vec![b'\n'; MAX_FILE + 1];
        let error = resolve(&RunAs::default(), "", &big, b"").unwrap_err();
        assert!(matches!(error, UserError::TooLarge { file: "/etc/passwd", .. }));
        let many: String = (0..=MAX_GROUPS).map(|gid| format!("g:x:{gid}:root\n")).collect();
        let error = resolve(&RunAs::default(), "root", PASSWD, many.as_bytes()).unwrap_err();
        assert!(matches!(error, UserError::TooManyGroups(_)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_trouble(passwd: Vec<u8>, group: Vec<u8>, user in "[a-z0-9:]{0,8}") {
            let _ = resolve(&RunAs::default(), &user, &passwd, &group);
        }

        #[test]
        fn a_line_among_rubbish_is_found(before in "[^:\n]{0,40}", uid in 0..=MAX_ID, gid in 0..=MAX_ID, after: String) {
            let passwd = format!("{before}\nwanted:x:{uid}:{gid}:::\n{after}");
            let user = resolve(&RunAs { username: "wanted".into(), ..Default::default() }, "", passwd.as_bytes(), b"");
            let user = user.unwrap();
            prop_assert_eq!((user.uid, user.gid), (uid, gid));
        }

        #[test]
        fn groups_are_sorted_and_single(groups in proptest::collection::vec(0_i64..100, 0..20)) {
            let run_as = RunAs { uid: Some(1), groups, ..Default::default() };
            let user = resolve(&run_as, "", b"", b"").unwrap();
            prop_assert!(user.groups.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(user.groups.contains(&user.gid));
        }
    }
}
