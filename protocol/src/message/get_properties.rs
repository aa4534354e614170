//! GetProperties: a container's processes and statistics.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::JsonString;
use crate::json::{empty_is_none, is_zero, none_is_empty};

/// Asks for properties.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GetProperties {
    /// Which; none for the empty string.
    #[serde(deserialize_with = "empty_is_none", serialize_with = "none_is_empty")]
    pub query: Option<JsonString<PropertyQuery>>,
}

impl GetProperties {
    /// Asks for these.
    pub fn of(types: impl IntoIterator<Item = PropertyType>) -> Self {
        let property_types = types.into_iter().collect();
        Self { query: Some(JsonString(PropertyQuery { property_types, queries: None })) }
    }

    /// The types asked for.
    pub fn types(&self) -> &[PropertyType] {
        self.query.as_ref().map_or(&[], |query| &query.0.property_types)
    }
}

/// Which properties.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PropertyQuery {
    /// By name.
    #[serde(skip_serializing_if = "is_zero")]
    pub property_types: Vec<PropertyType>,
    /// Declared; not used on the bridge.
    #[serde(skip_serializing_if = "is_zero")]
    pub queries: Option<Map<String, Value>>,
}

/// The name of a property. An open set: guests pass over what they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PropertyType {
    /// One that a Linux guest answers.
    Known(KnownProperty),
    /// Any other.
    Other(String),
}

impl PropertyType {
    /// The processes.
    pub const PROCESS_LIST: Self = Self::Known(KnownProperty::ProcessList);
    /// The cgroup's figures.
    pub const STATISTICS: Self = Self::Known(KnownProperty::Statistics);
}

/// The properties that a Linux guest answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KnownProperty {
    /// The processes.
    ProcessList,
    /// The cgroup's figures.
    Statistics,
}

/// What GetProperties answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GetPropertiesResponse {
    /// Never the empty string: that ends a host's bridge.
    pub properties: JsonString<Properties>,
}

/// The properties: only those asked for. A Windows guest may answer many more, which are kept in
/// [`other`](Self::other).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Properties {
    /// Running and zombie processes, in no order.
    #[serde(skip_serializing_if = "is_zero")]
    pub process_list: Vec<ProcessDetails>,
    /// The cgroup's figures.
    #[serde(rename = "LCOWMetrics", skip_serializing_if = "is_zero")]
    pub metrics: Option<Box<ContainerMetrics>>,
    /// All else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProcessDetails {
    /// Its pid in the guest's root namespace.
    #[serde(skip_serializing_if = "is_zero")]
    pub process_id: u32,
    /// What a Windows guest tells besides.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        #[allow(missing_docs, reason = "the names are the kernel's own")]
        pub struct $name {
            $(#[serde(skip_serializing_if = "is_zero")] pub $field: $type,)*
        }
    )*};
}

metrics! {
    /// A container's statistics in the shape of cgroup v1 metrics, on v2 as well. Sizes are in
    /// bytes, times in nanoseconds; `u64::MAX` is "no limit".
    ContainerMetrics {
        hugetlb: Vec<HugetlbMetrics>,
        pids: Option<PidsMetrics>,
        cpu: Option<CpuMetrics>,
        memory: Option<MemoryMetrics>,
        blkio: Option<BlkioMetrics>,
        rdma: Option<BlkioMetrics>,
        cgroup_stats: Option<CgroupStats>,
        memory_oom_control: Option<MemoryOomControl>,
    }
    /// Huge pages of one size.
    HugetlbMetrics { usage: u64, max: u64, failcnt: u64, pagesize: String, }
    /// Processes and threads.
    PidsMetrics { current: u64, limit: u64, }
    /// Processor time.
    CpuMetrics { usage: Option<CpuUsage>, throttling: Option<CpuThrottling>, }
    /// Processor time used.
    CpuUsage { total: u64, kernel: u64, user: u64, per_cpu: Vec<u64>, }
    /// Processor time withheld.
    CpuThrottling { periods: u64, throttled_periods: u64, throttled_time: u64, }
    /// Memory.
    MemoryMetrics {
        cache: u64, rss: u64, rss_huge: u64, mapped_file: u64, dirty: u64, writeback: u64,
        pg_pg_in: u64, pg_pg_out: u64, pg_fault: u64, pg_maj_fault: u64,
        inactive_anon: u64, active_anon: u64, inactive_file: u64, active_file: u64,
        unevictable: u64, hierarchical_memory_limit: u64, hierarchical_swap_limit: u64,
        total_cache: u64, total_rss: u64, total_rss_huge: u64, total_mapped_file: u64,
        total_dirty: u64, total_writeback: u64, total_pg_pg_in: u64, total_pg_pg_out: u64,
        total_pg_fault: u64, total_pg_maj_fault: u64, total_inactive_anon: u64,
        total_active_anon: u64, total_inactive_file: u64, total_active_file: u64,
        total_unevictable: u64,
        usage: Option<MemoryEntry>, swap: Option<MemoryEntry>,
        kernel: Option<MemoryEntry>, kernel_tcp: Option<MemoryEntry>,
    }
    /// One kind of memory.
    MemoryEntry { limit: u64, usage: u64, max: u64, failcnt: u64, }
    /// Always empty: guests do not tell.
    BlkioMetrics {}
    /// Tasks by state.
    CgroupStats {
        nr_sleeping: u64, nr_running: u64, nr_stopped: u64, nr_uninterruptible: u64,
        nr_io_wait: u64,
    }
    /// What the out-of-memory killer did.
    MemoryOomControl { oom_kill_disable: u64, under_oom: u64, oom_kill: u64, }
}
