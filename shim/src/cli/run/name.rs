//! Names of pods that `crisp run` makes.

use std::collections::HashSet;

const HOW: [&str; 48] = [
    "amber", "bold", "brave", "brisk", "bright", "calm", "clear", "clever", "coral", "crisp", "dapper", "eager",
    "early", "fair", "fresh", "gentle", "glad", "golden", "grand", "happy", "hardy", "honest", "jolly", "keen", "kind",
    "light", "lively", "loyal", "lucky", "mellow", "merry", "mild", "neat", "nimble", "noble", "plain", "proud",
    "quick", "quiet", "ready", "silver", "smart", "snug", "steady", "sunny", "swift", "warm", "wise",
];
const WHO: [&str; 48] = [
    "acorn", "apple", "badger", "beaver", "birch", "bison", "cedar", "cherry", "clover", "crane", "dolphin", "eagle",
    "elm", "falcon", "fern", "finch", "fox", "heron", "ibis", "ivy", "jay", "kiwi", "lark", "lemon", "linden", "lynx",
    "maple", "marten", "mint", "moose", "oak", "olive", "otter", "owl", "pear", "pine", "plum", "puffin", "quail",
    "raven", "robin", "sage", "seal", "swan", "tern", "thyme", "willow", "wren",
];

/// A name as `--name` takes it: it is the host name, too, and part of paths.
pub fn checked(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if text.len() <= 63 && text.chars().all(inner) && ends(text.chars().next()) && ends(text.chars().last()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is no name: use up to 63 lower-case letters, digits, '-', '_' and '.', a letter or digit at both ends"
    ))
}

/// A name that is not taken; `random` gives numbers.
pub fn made_up(taken: &HashSet<&str>, mut random: impl FnMut() -> usize) -> String {
    for tries in 0..1000 {
        let mut name = format!("{}-{}", HOW[random() % HOW.len()], WHO[random() % WHO.len()]);
        if tries >= 20 {
            name = format!("{name}-{}", random() % 10_000);
        }
        if !taken.contains(name.as_str()) {
            return name;
        }
    }
    // All of a thousand taken: no two pods have the same uid, so names may repeat.
    format!("{}-{}", HOW[random() % HOW.len()], random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for text in ["web", "a", "web-1", "0.x_y"] {
            assert_eq!(checked(text).as_deref(), Ok(text));
        }
        for text in ["", "-a", "a-", "Web", "a/b", "a b", &"x".repeat(64), ".."] {
            assert!(checked(text).is_err(), "{text}");
        }
    }

    #[test]
    fn made_up_names_are_free_and_well_formed() {
        let mut number = 0;
        let mut random = || {
            number += 1;
            number / 40
        };
        let taken = HashSet::from(["amber-acorn"]);
        let name = made_up(&taken, &mut random);
        assert!(name != "amber-acorn" && checked(&name).is_ok(), "{name}");
        assert!(HOW.iter().chain(&WHO).all(|word| checked(word).is_ok()));
    }
}
