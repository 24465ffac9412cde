//! A network's plugins, one after the other (CNI specification, section 3).

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::conflist::Conflist;
use super::error::Error;
use super::journal::Lock;
use super::plugin::{self, Call, Verb};
use super::record::Record;
use super::result::CniResult;
use super::version::Version;
use crate::netdir;

/// How plugins are run.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    bin_dirs: Vec<PathBuf>,
    pub(crate) deadline: Duration,
    /// What programs said to VERSION, as long as they are the same.
    spoken: Arc<Mutex<HashMap<Program, Vec<Version>>>>,
}

/// A program, and when it was installed.
type Program = (PathBuf, Option<SystemTime>);

impl Runner {
    pub(crate) fn new(bin_dirs: Vec<PathBuf>, deadline: Duration) -> Self {
        Self { bin_dirs, deadline, spoken: Arc::default() }
    }

    /// The same with less patience.
    pub(crate) fn at_most(&self, deadline: Duration) -> Self {
        Self { deadline: self.deadline.min(deadline), ..self.clone() }
    }

    /// ADD, in order, each with the result of the one before. On an error some of them ran: run DEL.
    pub(crate) fn add(&self, id: &str, record: &Record, lock: &Lock) -> Result<(CniResult, Value), Error> {
        let mut last = None;
        for plugin in &record.plugins {
            let before = last.as_ref().map(|(_, value)| value).filter(|_| record.version.chains());
            let output = self.on_pod(Verb::Add, id, record, plugin, before, lock)?;
            let read = CniResult::read(&output, record.version);
            last = Some(read.map_err(|reason| Error::Rubbish {
                plugin: kind(plugin).to_owned(),
                verb: Verb::Add.as_str(),
                reason,
            })?);
        }
        let (result, value) = last.ok_or_else(|| Error::NoConfig(format!("{} has no plugins", record.network)))?;
        if result.addresses().is_empty() {
            return Err(Error::NoAddress { network: record.network.clone() });
        }
        Ok((result, value))
    }

    /// DEL, in reverse order, each with the result of ADD where there is one.
    pub(crate) fn del(&self, id: &str, record: &Record, result: Option<&Value>, lock: &Lock) -> Result<(), Error> {
        let result = result.filter(|_| record.version.checks());
        for plugin in record.plugins.iter().rev() {
            self.on_pod(Verb::Del, id, record, plugin, result, lock)?;
        }
        Ok(())
    }

    /// CHECK, in order, each with the result of ADD. Well where the version or the configuration has none.
    pub(crate) fn check(&self, id: &str, record: &Record, result: &Value, lock: &Lock) -> Result<(), Error> {
        if !record.version.checks() || record.disable_check {
            return Ok(());
        }
        for plugin in &record.plugins {
            self.on_pod(Verb::Check, id, record, plugin, Some(result), lock)?;
        }
        Ok(())
    }

    fn on_pod(
        &self,
        verb: Verb,
        id: &str,
        record: &Record,
        plugin: &Map<String, Value>,
        before: Option<&Value>,
        lock: &Lock,
    ) -> Result<Vec<u8>, Error> {
        let mut request = request(plugin, &record.network, record.version);
        request.remove("capabilities");
        let given = runtime_config(plugin, &record.capabilities);
        if !given.is_empty() {
            request.insert("runtimeConfig".to_owned(), given.into());
        }
        request.extend(before.map(|result| ("prevResult".to_owned(), result.clone())));
        // DEL may come when the namespace is gone (section 2, DEL: optional). A path that leads to something else, such as
        // the file that a pin left, makes plugins fail where no path does not.
        let there = verb != Verb::Del || File::open(&record.netns).is_ok_and(netdir::is_namespace);
        let netns = if there { record.netns.to_string_lossy().into_owned() } else { String::new() };
        let environment = [
            ("CNI_CONTAINERID", id.to_owned()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", record.ifname.clone()),
            ("CNI_ARGS", record.args.clone()),
        ];
        let call = Call { plugin: kind(plugin), verb, environment: &environment, deadline: self.deadline };
        plugin::run(&call, &self.bin_dirs, lock.hand_over(Value::Object(request).to_string().as_bytes())?)
    }

    /// STATUS of every plugin; the first that is not ready is the answer. Nothing is run where the version has no STATUS.
    pub(crate) fn status(&self, list: &Conflist, version: Version) -> Result<(), Error> {
        for plugin in &list.plugins {
            plugin::find(kind(plugin), &self.bin_dirs)?;
        }
        if !version.has_status() {
            return Ok(());
        }
        for plugin in &list.plugins {
            let request = Value::Object(request(plugin, &list.name, version)).to_string();
            self.on_network(Verb::Status, plugin, memory(request.as_bytes())?)?;
        }
        Ok(())
    }

    /// GC of every plugin, all of them even if some fail, with the attachments that are still valid.
    pub(crate) fn gc(&self, list: &Conflist, version: Version, valid: &[Value], lock: &Lock) -> Vec<Error> {
        let collect = |plugin: &Map<String, Value>| {
            let mut request = request(plugin, &list.name, version);
            // The second is how early plugins of 1.1 spelled it.
            for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                request.insert(key.to_owned(), valid.to_vec().into());
            }
            self.on_network(Verb::Gc, plugin, lock.hand_over(Value::Object(request).to_string().as_bytes())?)
        };
        list.plugins.iter().filter_map(|plugin| collect(plugin).err()).collect()
    }

    fn on_network(&self, verb: Verb, plugin: &Map<String, Value>, input: File) -> Result<Vec<u8>, Error> {
        let call = Call { plugin: kind(plugin), verb, environment: &[], deadline: self.deadline };
        plugin::run(&call, &self.bin_dirs, input)
    }

    /// The version to speak: the highest of the configuration's. Where there are several, the plugins are asked, too.
    pub(crate) fn version(&self, list: &Conflist) -> Version {
        let highest = list.versions.last().copied().unwrap_or(Version::OLDEST);
        if list.versions.len() < 2 {
            return highest;
        }
        let mut common = list.versions.clone();
        for plugin in &list.plugins {
            match self.versions(kind(plugin)) {
                Ok(spoken) => common.retain(|version| spoken.contains(version)),
                Err(error) => tracing::warn!(%error, "CNI plugin does not tell its versions"),
            }
        }
        common.last().copied().unwrap_or(highest)
    }

    /// VERSION: what a plugin speaks. The plugins of 0.1.0 do not know the question.
    fn versions(&self, plugin: &str) -> Result<Vec<Version>, Error> {
        let path = plugin::find(plugin, &self.bin_dirs)?;
        let installed = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
        let program = (path, installed);
        let known = || self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spoken) = known().get(&program) {
            return Ok(spoken.clone());
        }
        let spoken = self.ask_versions(plugin)?;
        known().insert(program, spoken.clone());
        Ok(spoken)
    }

    fn ask_versions(&self, plugin: &str) -> Result<Vec<Version>, Error> {
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(rename = "supportedVersions", default)]
            supported: Vec<String>,
        }
        let question = json!({"cniVersion": Version::NEWEST}).to_string();
        // Some plugins want all variables to be there, whatever is asked.
        let nothing = "dummy".to_owned();
        let environment = [
            ("CNI_CONTAINERID", nothing.clone()),
            ("CNI_NETNS", nothing.clone()),
            ("CNI_IFNAME", nothing.clone()),
            ("CNI_ARGS", String::new()),
        ];
        let call = Call { plugin, verb: Verb::Version, environment: &environment, deadline: self.deadline };
        match plugin::run(&call, &self.bin_dirs, memory(question.as_bytes())?) {
            Ok(output) => match serde_json::from_slice::<Answer>(&output) {
                Ok(answer) => Ok(answer.supported.iter().filter_map(|version| version.parse().ok()).collect()),
                Err(error) => {
                    let verb = Verb::Version.as_str();
                    Err(Error::Rubbish { plugin: plugin.to_owned(), verb, reason: error.to_string() })
                }
            },
            Err(Error::Plugin { .. }) => Ok(vec![Version::OLDEST]),
            Err(error) => Err(error),
        }
    }
}

/// Section 3, "Deriving request configuration from plugin configuration".
fn request(plugin: &Map<String, Value>, network: &str, version: Version) -> Map<String, Value> {
    let mut request = plugin.clone();
    request.retain(|key, _| !key.starts_with("cni.dev/") && key != "runtimeConfig" && key != "prevResult");
    request.insert("name".to_owned(), network.into());
    request.insert("cniVersion".to_owned(), version.to_string().into());
    request
}

/// The arguments among `given` that the plugin declares.
fn runtime_config(plugin: &Map<String, Value>, given: &Map<String, Value>) -> Map<String, Value> {
    let Some(Value::Object(declared)) = plugin.get("capabilities") else { return Map::new() };
    let declared = declared.iter().filter(|(_, wanted)| **wanted == Value::Bool(true));
    declared.filter_map(|(name, _)| Some((name.clone(), given.get(name)?.clone()))).collect()
}

/// A plugin's type; the loader has made sure that there is one.
pub(crate) fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// A text as an open file without a name.
fn memory(text: &[u8]) -> Result<File, Error> {
    use std::io::{Seek, Write};
    let make = || -> std::io::Result<File> {
        let mut file = File::from(rustix::fs::memfd_create("cni", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.write_all(text)?;
        file.rewind()?;
        Ok(file)
    };
    make().map_err(super::error::state("write the request to", "memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_request_is_the_plugins_configuration_with_what_the_runtime_adds() {
        let plugin = object(json!({
            "type": "bridge", "name": "other", "cniVersion": "0.1.0", "mine": {"kept": [1, null]},
            "prevResult": {}, "runtimeConfig": {}, "cni.dev/x": 1, "args": {"cni": {}},
        }));
        assert_eq!(
            Value::Object(request(&plugin, "pods", Version::NEWEST)),
            json!({"type": "bridge", "name": "pods", "cniVersion": "1.1.0", "mine": {"kept": [1, null]}, "args": {"cni": {}}})
        );
    }

    #[test]
    fn only_declared_capabilities_are_given() {
        let given = object(json!({"portMappings": [1], "mac": "x", "dns": {}}));
        let plugin =
            object(json!({"capabilities": {"portMappings": true, "mac": false, "dns": "true", "aliases": true}}));
        assert_eq!(Value::Object(runtime_config(&plugin, &given)), json!({"portMappings": [1]}));
        assert!(runtime_config(&object(json!({"capabilities": [1]})), &given).is_empty());
    }
}
