//! Limits and weights: CRI `LinuxContainerResources` to `linux.resources`.
//!
//! Zero means "not set" in the CRI. What the node has no controller for is left out, as the whole field does: a pod that
//! works elsewhere works here, only less sharply limited. Turning shares into the weight of cgroup v2 is the runtime's.

use super::SpecError;
use super::oci::{self, Cpu, HugepageLimit, Memory};
use crate::cgroup::Version;
use crate::host::HostFacts;
use crate::model::Resources;

/// The kernel's default of `cpu.cfs_period_us`, for a quota that came without one.
const DEFAULT_PERIOD: i64 = 100_000;

/// Everything but the device rules.
///
/// # Errors
/// A value outside its range, pages that the node has not, or `unified` entries on a node without cgroup v2.
pub fn build(resources: &Resources, host: &HostFacts) -> Result<oci::Resources, SpecError> {
    let cgroups = &host.cgroups;
    let Resources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit,
        memory_swap_limit,
        oom_score_adj: _, // of the process, not of its cgroup
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
    } = resources;
    let mut built = oci::Resources::default();
    if cgroups.has("cpu") {
        built.cpu = cpu(*cpu_period, *cpu_quota, *cpu_shares)?;
    }
    if cgroups.has("cpuset") {
        built.cpu.cpus.clone_from(cpuset_cpus);
        built.cpu.mems.clone_from(cpuset_mems);
    }
    if cgroups.has("memory") {
        built.memory = memory(*memory_limit, *memory_swap_limit, cgroups.swap)?;
    }
    if cgroups.has("hugetlb") {
        built.hugepage_limits = hugepages(hugepage_limits, &host.huge_pages)?;
    }
    if !unified.is_empty() {
        if cgroups.version != Version::V2 {
            return Err(SpecError::unsupported("linux.resources.unified", "the node has no cgroup v2"));
        }
        if let Some(name) = unified.keys().find(|name| !is_cgroup_file(name)) {
            return Err(SpecError::invalid("linux.resources.unified", format!("{name:?} is no file of a cgroup")));
        }
        built.unified.clone_from(unified);
    }
    Ok(built)
}

fn cpu(period: i64, quota: i64, shares: i64) -> Result<Cpu, SpecError> {
    let unsigned = |field, value: i64| {
        let problem = || SpecError::invalid(field, format!("{value} is negative"));
        u64::try_from(value).map_err(|_| problem()).map(|value| Some(value).filter(|value| *value != 0))
    };
    if quota < -1 {
        return Err(SpecError::invalid("linux.resources.cpu_quota", format!("{quota} is less than -1 (no limit)")));
    }
    let period = if quota > 0 && period == 0 { DEFAULT_PERIOD } else { period };
    Ok(Cpu {
        shares: unsigned("linux.resources.cpu_shares", shares)?,
        quota: Some(quota).filter(|quota| *quota != 0),
        period: unsigned("linux.resources.cpu_period", period)?,
        ..Default::default()
    })
}

/// A limit without a word on swap means "no swap beyond it": both limits are equal, which is none at all on v2.
fn memory(limit: i64, swap: i64, has_swap: bool) -> Result<Memory, SpecError> {
    for (field, value) in
        [("linux.resources.memory_limit_in_bytes", limit), ("linux.resources.memory_swap_limit_in_bytes", swap)]
    {
        if value < -1 {
            return Err(SpecError::invalid(field, format!("{value} is less than -1 (no limit)")));
        }
    }
    if limit > 0 && swap > 0 && swap < limit {
        let problem = format!("{swap} is memory and swap together, and less than the memory limit of {limit}");
        return Err(SpecError::invalid("linux.resources.memory_swap_limit_in_bytes", problem));
    }
    let swap = if swap == 0 { limit } else { swap };
    let set = |value: i64| Some(value).filter(|value| *value != 0);
    Ok(Memory { limit: set(limit), swap: set(swap).filter(|_| has_swap) })
}

/// kubelet names every size that the node has, most with a limit of none. A size that it has not needs no such limit.
fn hugepages(limits: &[(String, u64)], sizes: &[String]) -> Result<Vec<HugepageLimit>, SpecError> {
    let mut built = Vec::new();
    for (page_size, limit) in limits {
        if sizes.contains(page_size) {
            built.push(HugepageLimit { page_size: page_size.clone(), limit: *limit });
        } else if *limit > 0 {
            let problem = format!("{page_size:?} is none of this node's page sizes ({})", sizes.join(", "));
            return Err(SpecError::invalid("linux.resources.hugepage_limits", problem));
        }
    }
    Ok(built)
}

/// `memory.high`: no separator, nothing that a path would read otherwise.
fn is_cgroup_file(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_' || byte == b'-';
    name.contains('.') && !name.starts_with('.') && !name.contains("..") && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(version: Version, controllers: &[&str], swap: bool) -> HostFacts {
        let mut host = crate::spec::tests::host(version);
        host.cgroups.all[0].controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        host.cgroups.swap = swap;
        host
    }

    const ALL: &[&str] = &["cpu", "cpuset", "memory", "hugetlb"];

    fn on_v2(resources: &Resources) -> Result<oci::Resources, SpecError> {
        build(resources, &node(Version::V2, ALL, true))
    }

    #[test]
    fn nothing_asked_for_is_nothing_set() {
        let built = on_v2(&Resources::default()).unwrap();
        assert_eq!(serde_json::to_string(&built).unwrap(), "{}");
    }

    #[test]
    fn a_quota_has_a_period() {
        let cpu = |cpu_quota, cpu_period| {
            on_v2(&Resources { cpu_quota, cpu_period, cpu_shares: 512, ..Default::default() }).unwrap().cpu
        };
        assert_eq!((cpu(50_000, 0).quota, cpu(50_000, 0).period), (Some(50_000), Some(100_000)));
        assert_eq!((cpu(-1, 0).quota, cpu(-1, 0).period), (Some(-1), None));
        assert_eq!((cpu(0, 20_000).quota, cpu(0, 20_000).period), (None, Some(20_000)));
        assert_eq!(cpu(0, 0).shares, Some(512), "not turned into a weight here");
    }

    #[test]
    fn a_memory_limit_allows_no_swap_beyond_it() {
        let memory = |memory_limit, memory_swap_limit, swap| {
            let resources = Resources { memory_limit, memory_swap_limit, ..Default::default() };
            build(&resources, &node(Version::V2, ALL, swap)).unwrap().memory
        };
        let of = |limit, swap| Memory { limit, swap };
        assert_eq!(memory(100, 0, true), of(Some(100), Some(100)));
        assert_eq!(memory(100, 0, false), of(Some(100), None), "no swap controller: only memory is limited");
        assert_eq!(memory(100, 200, true), of(Some(100), Some(200)));
        assert_eq!(memory(100, -1, true), of(Some(100), Some(-1)));
        assert_eq!(memory(0, 0, true), of(None, None));
    }

    #[test]
    fn values_without_meaning_are_refused_by_name() {
        for (resources, text) in [
            (Resources { cpu_shares: -1, ..Default::default() }, "linux.resources.cpu_shares: -1 is negative"),
            (Resources { cpu_quota: -2, ..Default::default() }, "linux.resources.cpu_quota: -2 is less than -1"),
            (Resources { memory_limit: -5, ..Default::default() }, "memory_limit_in_bytes: -5"),
            (Resources { memory_limit: 9, memory_swap_limit: 8, ..Default::default() }, "less than the memory limit"),
            (Resources { hugepage_limits: vec![("2Mi".into(), 1)], ..Default::default() }, "page sizes (2MB)"),
            (Resources { unified: [("../x".into(), "1".into())].into(), ..Default::default() }, "no file of a cgroup"),
        ] {
            let error = on_v2(&resources).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn what_has_no_controller_is_left_out() {
        let resources = Resources {
            cpu_shares: 2,
            cpuset_cpus: "0".into(),
            memory_limit: 1 << 20,
            hugepage_limits: vec![("2MB".into(), 0), ("1GB".into(), 0)],
            ..Default::default()
        };
        assert_eq!(build(&resources, &node(Version::V1, &[], false)).unwrap(), oci::Resources::default());
        let built = on_v2(&resources).unwrap();
        assert_eq!(built.hugepage_limits, [HugepageLimit { page_size: "2MB".into(), limit: 0 }]);
        assert_eq!(built.cpu.cpus, "0");
    }

    #[test]
    fn unified_needs_cgroup_v2() {
        let resources = Resources { unified: [("memory.high".into(), "1".into())].into(), ..Default::default() };
        assert_eq!(on_v2(&resources).unwrap().unified, resources.unified);
        let error = build(&resources, &node(Version::Hybrid, ALL, false)).unwrap_err();
        assert!(matches!(error, SpecError::Unsupported { what: "linux.resources.unified", .. }));
    }
}
