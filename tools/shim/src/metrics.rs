//! A container's figures, in the messages of cgroup v1 that containerd takes on any host.

use containerd_shim_protos::cgroups::metrics as proto;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageFull};
use linkspan_host::protocol::message::{ContainerMetrics, MemoryEntry, MemoryMetrics};

use crate::error::Error;

/// The figures as an answer to Stats.
pub(crate) fn answer(metrics: &ContainerMetrics) -> Result<Any, Error> {
    let message = message(metrics);
    let value =
        message.write_to_bytes().map_err(|error| Error::input("metrics", error.to_string()))?;
    let type_url = proto::Metrics::descriptor().full_name().to_owned();
    Ok(Any { type_url, value, ..Any::default() })
}

fn message(metrics: &ContainerMetrics) -> proto::Metrics {
    let mut message = proto::Metrics::new();
    for pages in &metrics.hugetlb {
        message.hugetlb.push(proto::HugetlbStat {
            usage: pages.usage,
            max: pages.max,
            failcnt: pages.failcnt,
            pagesize: pages.pagesize.clone(),
            ..Default::default()
        });
    }
    message.pids = metrics
        .pids
        .as_ref()
        .map(|pids| proto::PidsStat {
            current: pids.current,
            // containerd writes "no limit" as 0.
            limit: if pids.limit == u64::MAX { 0 } else { pids.limit },
            ..Default::default()
        })
        .into();
    message.cpu = metrics
        .cpu
        .as_ref()
        .map(|cpu| proto::CPUStat {
            usage: cpu
                .usage
                .as_ref()
                .map(|usage| proto::CPUUsage {
                    total: usage.total,
                    kernel: usage.kernel,
                    user: usage.user,
                    per_cpu: usage.per_cpu.clone(),
                    ..Default::default()
                })
                .into(),
            throttling: cpu
                .throttling
                .as_ref()
                .map(|throttling| proto::Throttle {
                    periods: throttling.periods,
                    throttled_periods: throttling.throttled_periods,
                    throttled_time: throttling.throttled_time,
                    ..Default::default()
                })
                .into(),
            ..Default::default()
        })
        .into();
    message.memory = metrics.memory.as_ref().map(memory).into();
    message.blkio = Some(proto::BlkIOStat::new()).into();
    message.memory_oom_control = metrics
        .memory_oom_control
        .as_ref()
        .map(|control| proto::MemoryOomControl {
            oom_kill_disable: control.oom_kill_disable,
            under_oom: control.under_oom,
            oom_kill: control.oom_kill,
            ..Default::default()
        })
        .into();
    message
}

fn memory(memory: &MemoryMetrics) -> proto::MemoryStat {
    macro_rules! same {
        ($($field:ident)*) => {
            proto::MemoryStat {
                $($field: memory.$field,)*
                usage: memory.usage.as_ref().map(entry).into(),
                swap: memory.swap.as_ref().map(entry).into(),
                kernel: memory.kernel.as_ref().map(entry).into(),
                kernel_tcp: memory.kernel_tcp.as_ref().map(entry).into(),
                ..Default::default()
            }
        };
    }
    same! {
        cache rss rss_huge mapped_file dirty writeback pg_pg_in pg_pg_out pg_fault pg_maj_fault
        inactive_anon active_anon inactive_file active_file unevictable
        hierarchical_memory_limit hierarchical_swap_limit
        total_cache total_rss total_rss_huge total_mapped_file total_dirty total_writeback
        total_pg_pg_in total_pg_pg_out total_pg_fault total_pg_maj_fault
        total_inactive_anon total_active_anon total_inactive_file total_active_file
        total_unevictable
    }
}

fn entry(entry: &MemoryEntry) -> proto::MemoryEntry {
    proto::MemoryEntry {
        limit: entry.limit,
        usage: entry.usage,
        max: entry.max,
        failcnt: entry.failcnt,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_host::protocol::message::{CpuMetrics, CpuUsage, PidsMetrics};

    #[test]
    fn figures_arrive_under_containerds_name() {
        let metrics = ContainerMetrics {
            pids: Some(PidsMetrics { current: 3, limit: u64::MAX }),
            cpu: Some(CpuMetrics {
                usage: Some(CpuUsage { total: 7, ..CpuUsage::default() }),
                throttling: None,
            }),
            memory: Some(MemoryMetrics {
                rss: 4096,
                usage: Some(MemoryEntry { usage: 9, ..MemoryEntry::default() }),
                ..MemoryMetrics::default()
            }),
            ..ContainerMetrics::default()
        };
        let any = answer(&metrics).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let read = proto::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((read.pids.current, read.pids.limit), (3, 0));
        assert_eq!((read.cpu.usage.total, read.memory.rss, read.memory.usage.usage), (7, 4096, 9));
    }
}
