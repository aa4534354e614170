//! The recorded conversations of the reference agent, held with ours: the same requests, the same
//! results and shapes.
//!
//! What is different has to be in docs/recorded.md with the reason, and what is there has to be
//! different.

mod compare;
mod play;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use linkspan_host::vmm::{Disk, ScsiAddress};
use linkspan_tests::raw::RawHost;
use linkspan_tests::{Backend, layer_image, machine};

use super::wire_network::Adapter;

/// A test of a recording, on each of the backends that have the devices for it.
macro_rules! recordings {
    ($($backend:ident => $(($test:ident, $name:literal)),* $(,)?);* $(;)?) => {
        $(mod $backend {
            $(#[test]
            fn $test() {
                super::hold($name, super::backend(stringify!($backend)));
            })*
        })*
    };
}

recordings!(
    loopback =>
        (negotiation, "01-negotiate"),
        (a_range_of_versions, "01b-negotiate-range"),
        (containers_and_processes, "03-lifecycle"),
        (a_header_that_is_cut, "06-malformed-header-cut"),
        (no_body, "06-malformed-size-16-no-body"),
        (a_body_that_is_cut, "06-malformed-size-bigger-then-close"),
        (the_end_of_the_machine, "08-uvm-shutdown"),
        (a_pod_with_a_network, "10-network-pod");
    qemu =>
        (negotiation, "01-negotiate"),
        (a_range_of_versions, "01b-negotiate-range"),
        (resources, "02-modify"),
        (containers_and_processes, "03-lifecycle"),
        (a_header_that_is_cut, "06-malformed-header-cut"),
        (no_body, "06-malformed-size-16-no-body"),
        (a_body_that_is_cut, "06-malformed-size-bigger-then-close"),
        (the_end_of_the_machine, "08-uvm-shutdown"),
        (persistent_memory, "09-vpmem"),
        (a_pod_with_a_network, "10-network-pod");
);

fn backend(name: &str) -> Backend {
    if name == "qemu" { Backend::Qemu } else { Backend::Loopback }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Plays a recording's host to our agent.
fn hold(name: &str, backend: Backend) {
    let path = root().join(format!("protocol/tests/golden/{name}.jsonl"));
    let recording = std::fs::read_to_string(&path).expect("read a recording");
    let found = linkspan_tests::block_on(async {
        let mut host = prepare(name, backend).await;
        play::play(&mut host, &recording).await
    });
    // On loopback the statistics are those of whatever cgroups this machine has.
    let comparable = |what: &String| backend == Backend::Qemu || !what.contains("LCOWMetrics");
    let set = |all: Vec<String>| all.into_iter().filter(comparable).collect::<BTreeSet<_>>();
    let (found, known) = (set(found), set(known(name)));
    let new: Vec<_> = found.difference(&known).collect();
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "not in docs/recorded.md: {new:#?}; gone: {gone:#?}"
    );
}

/// A machine with what the recorded one had.
async fn prepare(name: &str, backend: Backend) -> RawHost {
    let machine = machine("recorded", backend);
    let machine = if name == "09-vpmem" { machine.pmem(1) } else { machine };
    let (mut host, []) = RawHost::boot(machine, []).await;
    let layer = std::fs::File::open(layer_image()).expect("open the layer image");
    let size = layer.metadata().expect("look at the layer image").len();
    let layer = Disk { file: layer, size, read_only: true };
    if name == "09-vpmem" {
        host.vmm().attach_pmem(0, padded(layer)).await.expect("attach the layer");
        return host;
    }
    let file = tempfile::tempfile().expect("make an unnamed file");
    linkspan_layer::scratch::format(&file, 1 << 30, &Default::default()).expect("make a scratch");
    let scratch = Disk { file, size: 1 << 30, read_only: false };
    for (lun, disk) in [(0, layer), (1, scratch)] {
        let address = ScsiAddress { controller: 0, lun };
        host.vmm().attach_disk(address, disk).await.expect("attach a disk");
    }
    if name == "10-network-pod" {
        let mut connection = host.connect().await;
        connection.negotiate().await;
        Adapter::recorded().plug(&mut connection, "10.0.0.1/24").await;
    }
    host
}

/// As long as a piece of persistent memory has to be, and the recorded one was.
fn padded(disk: Disk) -> Disk {
    let mut file = tempfile::tempfile().expect("make an unnamed file");
    std::io::copy(&mut &disk.file, &mut file).expect("copy the layer");
    let size = disk.size.next_multiple_of(2 << 20).max(8 << 20);
    file.set_len(size).expect("fill it up");
    Disk { file, size, ..disk }
}

/// The differences of a recording that docs/recorded.md knows: rows of its tables of the form
/// `| 12 | difference | why |` below a heading with the recording's name.
fn known(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs/recorded.md")).expect("read the table");
    let section = text.split("\n## ").find_map(|section| section.strip_prefix(name));
    let rows = section.unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| "));
    rows.filter_map(|row| {
        let mut cells = row.split(" | ");
        let line: u32 = cells.next()?.parse().ok()?;
        let (difference, why) = (cells.next()?, cells.next()?);
        assert!(!why.trim_end_matches('|').trim().is_empty(), "no reason: {row}");
        Some(format!("{line} | {difference}"))
    })
    .collect()
}
