//! What a record looks like after each thing that can happen to it.

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pet {
    name: String,
    legs: u32,
}

impl Record for Pet {
    const KIND: &'static str = "pet";
    const VERSION: u32 = 2;

    fn upgrade(version: u32, mut data: serde_json::Value) -> Option<serde_json::Value> {
        (version == 1).then(|| {
            data["legs"] = 4.into();
            data
        })
    }
}

fn pet(legs: u32) -> Pet {
    Pet { name: "Rex".into(), legs }
}

#[test]
fn what_was_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pet.json");
    let disk = Disk::new();
    assert_eq!(disk.read::<Pet>(&path).unwrap(), None);
    disk.write(&path, &pet(4)).unwrap();
    disk.write_volatile(&path, &pet(3)).unwrap();
    assert_eq!(disk.read(&path).unwrap(), Some(pet(3)));
    disk.remove(&path).unwrap();
    disk.remove(&path).unwrap();
    assert_eq!(disk.read::<Pet>(&path).unwrap(), None);
}

#[test]
fn older_versions_are_upgraded_and_newer_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pet.json");
    let disk = Disk::new();
    fs::write(&path, br#"{"kind":"pet","version":1,"data":{"name":"Rex"}}"#).unwrap();
    assert_eq!(disk.read(&path).unwrap(), Some(pet(4)));
    fs::write(&path, br#"{"kind":"pet","version":3,"data":{}}"#).unwrap();
    let error = disk.read::<Pet>(&path).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::TooNew { found: 3, known: 2 }), "{error}");
}

#[test]
fn damage_is_told_from_absence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pet.json");
    for bytes in ["", "{", r#"{"kind":"car","version":2,"data":{}}"#, r#"{"kind":"pet","version":0,"data":{}}"#] {
        fs::write(&path, bytes).unwrap();
        let error = Disk::new().read::<Pet>(&path).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Damaged(_)), "{bytes}: {error}");
    }
}

#[test]
fn a_crash_at_any_effect_leaves_the_old_or_the_new_record() {
    for then in [Then::Fail, Then::Die] {
        for k in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("pet.json");
            Disk::new().write(&path, &pet(4)).unwrap();
            let seam = Arc::new(Countdown::new(k, then));
            let result = Disk::with_seam(seam.clone()).write(&path, &pet(3));
            assert_eq!(result.is_err(), seam.reached());
            let disk = Disk::new();
            let after = disk.read::<Pet>(&path).unwrap().unwrap();
            assert!(after == pet(3) || result.is_err() && after == pet(4));
            disk.sweep(dir.path()).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{k}");
            if !seam.reached() {
                assert!(k >= 4, "write, sync, rename and sync of the directory pass the seam");
                break;
            }
        }
    }
}

#[test]
fn a_half_written_file_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".tmp-1-1"), "").unwrap();
    fs::write(dir.path().join("a.json"), "").unwrap();
    assert_eq!(Disk::new().list(dir.path()).unwrap(), ["a.json"]);
    assert!(Disk::new().list(&dir.path().join("absent")).unwrap().is_empty());
}

/// Notes the effects.
#[derive(Debug, Default)]
struct Notes(std::sync::Mutex<Vec<Effect>>);

impl Seam for Notes {
    fn before(&self, effect: Effect, _: &Path) -> io::Result<()> {
        self.0.lock().unwrap().push(effect);
        Ok(())
    }
}

#[test]
fn a_volatile_record_takes_the_place_of_another_only_when_its_data_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pet.json");
    let notes = Arc::new(Notes::default());
    let disk = Disk::with_seam(notes.clone());
    disk.write_volatile(&path, &pet(4)).unwrap();
    assert_eq!(std::mem::take(&mut *notes.0.lock().unwrap()), [Effect::Write, Effect::Rename]);
    disk.write_volatile(&path, &pet(3)).unwrap();
    assert_eq!(std::mem::take(&mut *notes.0.lock().unwrap()), [Effect::Write, Effect::Sync, Effect::Rename]);
    disk.write_unflushed(&path, &pet(2)).unwrap();
    assert_eq!(*notes.0.lock().unwrap(), [Effect::Write, Effect::Rename], "this one waits for no disk");
    assert_eq!(Disk::new().read(&path).unwrap(), Some(pet(2)));
}
