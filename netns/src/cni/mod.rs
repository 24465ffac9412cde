//! CNI: the pod network as a chain of plugins that the administrator configured.
//!
//! ```text
//! <root>/cni/
//! ├── <id>.json           the configuration and arguments of an ADD, written before its first plugin runs and flushed
//! │                       meanwhile; as long as it is there, DEL is to be run with exactly these
//! ├── <id>.result.json    the result of ADD, for DEL and CHECK
//! └── pod-ranges.json     the node's pod CIDRs, for plugins that declare `ipRanges`
//! <state>/cni/            locks (`journal`): what a full disk must not stand in the way of
//! ├── <id>.lock           held by the operation on the pod, and by the plugin that runs
//! └── .lock               GC against ADD and DEL
//!
//!            ADD                                        DEL
//!  lock ► record ► plugins in order ► result      lock ► plugins in reverse ► forget
//!            │           │ fails
//!            │           └──► DEL ► forget, or keep the record until `detach`
//!            └ killed from here on: the record leads to DEL
//! ```

mod args;
mod chain;
mod conflist;
mod error;
mod journal;
mod plugin;
mod record;
mod result;
mod version;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use error::Error;

use self::chain::{Runner, kind};
use self::conflist::{Conflist, Found};
use self::error::state;
pub(crate) use self::error::whole;
use self::journal::{Hold, Lock};
use self::record::{Record, Records};
use self::version::Version;
use crate::{Attachment, Kind, Pod, Status, Subnet, durable, netdir};

/// A STATUS round is good for so long: kubelet asks every few seconds, and each plugin is a process.
const STATUS_AGE: Duration = Duration::from_secs(4);
/// A plugin has at most this long to tell its status, and to collect what no pod has: meanwhile all ADD and DEL wait.
const NETWORK_DEADLINE: Duration = Duration::from_secs(10);

/// How [`Cni`] is opened.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) conf_dir: PathBuf,
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// `<root>/cni`.
    pub(crate) dir: PathBuf,
    /// `<state>/cni`.
    pub(crate) lock_dir: PathBuf,
    pub(crate) plugin_timeout: Duration,
}

/// The CNI networks of one instance.
#[derive(Debug)]
pub(crate) struct Cni {
    conf_dir: PathBuf,
    runner: Runner,
    records: Records,
    lock_dir: PathBuf,
    pod_ranges: Mutex<Vec<Subnet>>,
    last_status: Mutex<Option<Asked>>,
}

/// A STATUS round: when, for which configuration, and its outcome.
#[derive(Debug)]
struct Asked {
    at: Instant,
    list: Conflist,
    verdict: Result<(), String>,
}

impl Cni {
    pub(crate) fn open(options: Options) -> Result<Self, Error> {
        let records = Records::open(options.dir)?;
        std::fs::create_dir_all(&options.lock_dir).map_err(state("make directory", &options.lock_dir))?;
        let ranges = std::fs::read(records.path(POD_RANGES)).unwrap_or_default();
        Ok(Self {
            conf_dir: options.conf_dir,
            runner: Runner::new(options.bin_dirs, options.plugin_timeout),
            records,
            lock_dir: options.lock_dir,
            pod_ranges: Mutex::new(serde_json::from_slice(&ranges).unwrap_or_default()),
            last_status: Mutex::new(None),
        })
    }

    /// Whether a configuration was put in place, valid or not.
    pub(crate) fn configured(&self) -> bool {
        conflist::load(&self.conf_dir).any()
    }

    fn load(&self) -> Result<Conflist, Error> {
        let found = conflist::load(&self.conf_dir);
        for (path, reason) in &found.refused {
            tracing::warn!(path = %path.display(), reason, "CNI configuration refused");
        }
        let Found { conflist: Some(list), .. } = found else {
            return Err(Error::NoConfig(found.complaint(&self.conf_dir)));
        };
        Ok(list)
    }

    /// Keeps the node's pod CIDRs, given by the kubelet, for plugins that declare `ipRanges`.
    pub(crate) fn set_pod_ranges(&self, ranges: &[Subnet]) -> Result<(), Error> {
        let path = self.records.path(POD_RANGES);
        let mut kept = self.pod_ranges.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *kept != ranges {
            durable::write(&path, json!(ranges).to_string().as_bytes()).map_err(state("write", &path))?;
            *kept = ranges.to_vec();
        }
        Ok(())
    }

    fn lock_all(&self, hold: Hold) -> Result<Lock, Error> {
        Lock::take(&self.lock_dir.join(".lock"), hold, self.runner.deadline)
    }

    fn lock_pod(&self, id: &str) -> Result<Lock, Error> {
        crate::pin::check_id(id).map_err(|_| Error::Argument { what: "pod id", value: id.to_owned() })?;
        Lock::take(&self.lock_dir.join(format!("{id}.lock")), Hold::Alone, self.runner.deadline)
    }

    /// ADD. On an error all that was done is undone, or [`Error::NotUndone`] says that it is not and the record is kept.
    pub(crate) fn attach(&self, pod: &Pod<'_>) -> Result<Attachment, Error> {
        let args = args::cni_args(pod)?;
        if !File::open(pod.netns).is_ok_and(netdir::is_namespace) {
            return Err(Error::Argument { what: "network namespace", value: pod.netns.display().to_string() });
        }
        let _all = self.lock_all(Hold::Together)?;
        let lock = self.lock_pod(pod.id)?;
        // An ADD that nobody saw the end of. Twice without a DEL between is not allowed (section 2, ADD).
        self.del(pod.id, None, &lock)?;
        let list = self.load()?;
        let ranges = self.pod_ranges.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let record = Record {
            args,
            capabilities: args::capabilities(pod, &ranges),
            ..Record::new(&list, self.runner.version(&list), pod.netns)
        };
        self.records.begin(pod.id, &record)?;
        // The flush takes as long as a plugin. A power cut in between takes the pod's namespace, too; what could be left
        // is an address that a plugin keeps on disk, and GC collects.
        let (flushed, added) = std::thread::scope(|scope| {
            let flush = scope.spawn(|| self.records.flush(pod.id));
            let added = self.runner.add(pod.id, &record, &lock);
            (flush.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), added)
        });
        let kept = added.and_then(|(result, value)| {
            flushed?;
            self.records.keep_result(pod.id, &value)?;
            Ok((result, value))
        });
        match kept {
            Ok((result, value)) => {
                let kind = Kind::Cni { network: record.network };
                Ok(Attachment { kind, ips: result.addresses(), raw: Some(value) })
            }
            Err(add) => match self.del(pod.id, None, &lock) {
                Ok(()) => {
                    lock.remove()?;
                    Err(add)
                }
                Err(undo) => Err(Error::NotUndone { add: Box::new(add), undo: Box::new(undo) }),
            },
        }
    }

    /// DEL of whatever was begun for the pod. Well when nothing was. `result` is what the caller knows of ADD's.
    pub(crate) fn detach(&self, id: &str, result: Option<&Value>) -> Result<(), Error> {
        let _all = self.lock_all(Hold::Together)?;
        let lock = self.lock_pod(id)?;
        self.del(id, result, &lock)?;
        lock.remove()
    }

    fn del(&self, id: &str, result: Option<&Value>, lock: &Lock) -> Result<(), Error> {
        let Some(record) = self.records.load(id)? else { return Ok(()) };
        let kept = self.records.load_result(id);
        self.runner.del(id, &record, kept.as_ref().or(result), lock)?;
        self.records.forget(id)
    }

    /// CHECK with what ADD was made with.
    pub(crate) fn check(&self, id: &str, attachment: &Attachment) -> Result<(), Error> {
        let lock = self.lock_pod(id)?;
        let Some(record) = self.records.load(id)? else {
            lock.remove()?;
            return Err(Error::NoConfig(format!("nothing is known of pod {id}'s CNI attachment")));
        };
        let kept = self.records.load_result(id);
        let result = kept.as_ref().or(attachment.raw.as_ref());
        self.runner.check(id, &record, result.unwrap_or(&Value::Null), &lock)
    }

    /// Whether ADD would be served, as far as configuration, programs and the plugins' own STATUS tell.
    pub(crate) fn status(&self) -> Status {
        let found = conflist::load(&self.conf_dir);
        let refused: BTreeMap<String, &String> =
            found.refused.iter().map(|(path, reason)| (path.display().to_string(), reason)).collect();
        let mut details = BTreeMap::from([("network.refused".to_owned(), json!(refused))]);
        let verdict = match &found.conflist {
            None => Err(found.complaint(&self.conf_dir)),
            Some(list) => {
                let plugins: Vec<&str> = list.plugins.iter().map(kind).collect();
                details.insert("network.name".to_owned(), json!(list.name));
                details.insert("network.config".to_owned(), json!(list.path));
                details.insert("network.plugins".to_owned(), json!(plugins));
                self.ask(list)
            }
        };
        let (ready, message) = verdict.map_or_else(|message| (false, message), |()| (true, String::new()));
        let reason = if ready { "" } else { "NetworkPluginNotReady" }.to_owned();
        Status { ready, reason, message, details }
    }

    /// STATUS, at most once in a while; callers at the same time share a round. A failure is asked for once more, so that
    /// a plugin that hiccups does not make the node flap.
    fn ask(&self, list: &Conflist) -> Result<(), String> {
        let mut last = self.last_status.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(asked) = &*last
            && asked.at.elapsed() < STATUS_AGE
            && asked.list == *list
        {
            return asked.verdict.clone();
        }
        let runner = self.runner.at_most(NETWORK_DEADLINE);
        let version = runner.version(list);
        let round = || runner.status(list, version).map_err(|error| whole(&error));
        let verdict = round().or_else(|_| round());
        // Looking for programs is cheap: without STATUS nothing is kept.
        *last =
            version.has_status().then(|| Asked { at: Instant::now(), list: list.clone(), verdict: verdict.clone() });
        verdict
    }

    /// DEL for all pods that `lives` does not know, then GC by plugins that know it.
    pub(crate) fn gc(&self, lives: &dyn Fn(&str) -> bool) -> Result<(), Error> {
        let mut errors = Vec::new();
        // All ids first: what is attached from now on has its record, and is asked for after that.
        let mut ids = self.records.ids()?;
        for entry in std::fs::read_dir(&self.lock_dir).map_err(state("read", &self.lock_dir))?.flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.strip_suffix(".lock")).map(str::to_owned);
            ids.extend(id.filter(|id| crate::pin::check_id(id).is_ok()));
        }
        let list = match self.load() {
            Ok(list) => Some(list),
            Err(Error::NoConfig(_)) => None,
            Err(error) => {
                errors.push(error);
                None
            }
        };
        let collecting = list.map(|list| (self.runner.version(&list), list));
        let collecting = collecting.filter(|(version, list)| !list.disable_gc && version.has_status());
        for id in ids {
            let done = match (lives(&id), &collecting) {
                (false, _) => self.detach(&id, None),
                // A plugin of a server that died must have ended before GC.
                (true, Some(_)) => self.lock_pod(&id).map(drop),
                (true, None) => Ok(()),
            };
            errors.extend(done.err());
        }
        if let Some((version, list)) = collecting {
            errors.extend(self.collect(&list, version).unwrap_or_else(|error| vec![error]));
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::Several(errors)) }
    }

    fn collect(&self, list: &Conflist, version: Version) -> Result<Vec<Error>, Error> {
        let lock = self.lock_all(Hold::Alone)?;
        let mut valid = Vec::new();
        for id in self.records.ids()? {
            // An attachment whose DEL failed is valid, too: DEL still needs what GC would take.
            if let Some(record) = self.records.load(&id)?
                && record.network == list.name
            {
                valid.push(json!({"containerID": id, "ifname": record.ifname}));
            }
        }
        // To a plugin, none would mean that all of the network may go: also what another runtime has there.
        if valid.is_empty() {
            return Ok(Vec::new());
        }
        tracing::debug!(network = list.name, valid = valid.len(), "CNI GC");
        Ok(self.runner.at_most(NETWORK_DEADLINE).gc(list, version, &valid, &lock))
    }
}

/// File of the node's pod CIDRs. Its '-' keeps it apart from the records.
const POD_RANGES: &str = "pod-ranges.json";
