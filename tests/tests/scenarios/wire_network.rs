//! Network namespaces and their adapters, by hand.
//!
//! One end of a veth pair stands for an adapter, found by its MAC; the other stays in the utility
//! VM's own namespace and is what lies beyond.

use std::time::Duration;

use linkspan_protocol::{HResult, MessageType};
use linkspan_tests::raw::{Connection, document, with_connection};
use linkspan_tests::{Backend, unique};
use serde_json::{Value, json};

use super::wire_frames::conversations;

conversations!(
    adapters_of_a_namespace_are_the_sandboxes_and_free_after_it,
    an_adapter_comes_to_a_running_pod_and_goes_again,
    a_gateway_outside_the_subnet_is_reached_and_not_impersonated,
    both_families_and_a_smaller_mtu,
    an_interface_that_appears_late_is_waited_for,
    what_is_no_adapter_is_refused_and_leaves_nothing,
    without_addresses_a_server_is_asked,
    a_pod_in_the_machines_network_has_its_adapters_there,
    a_failed_creation_gives_its_adapters_back,
    every_container_can_speak_with_itself,
);

const KIND: &str = "io.kubernetes.cri.container-type";
const POD: &str = "io.kubernetes.cri.sandbox-id";

/// An adapter to be.
pub(crate) struct Adapter {
    /// Its end in the utility VM.
    peer: String,
    name: String,
    mac: String,
    /// As the host calls it.
    id: String,
}

impl Adapter {
    fn new() -> Self {
        let number: u32 = unique("").trim_start_matches('-').parse().expect("a number");
        Self {
            peer: format!("peer{number}"),
            name: format!("nic{number}"),
            mac: format!("02-00-00-AA-{:02X}-{:02X}", number >> 8 & 0xff, number & 0xff),
            id: format!("11111111-2222-3333-4444-{number:012x}"),
        }
    }

    /// The one of the recorded conversations.
    pub(crate) fn recorded() -> Self {
        Self {
            mac: "00-15-5D-00-00-01".to_owned(),
            id: "11111111-2222-3333-4444-555555555555".to_owned(),
            ..Self::new()
        }
    }

    /// Plugs it in; `peer` is the address of its other end.
    pub(crate) async fn plug(&self, connection: &mut Connection<'_>, peer: &str) {
        let Self { peer: end, name, mac, .. } = self;
        let mac = mac.replace('-', ":");
        // The module may still be on its way.
        let script = format!(
            "for i in 1 2 3 4 5 6 7 8 9 10; do ip link add name {name} address {mac} type veth peer && break; \
             sleep 0.5; done; \
             p=$(ip -o link | sed -n 's/.* {name}@\\([^:]*\\):.*/\\1/p'); ip link set $p name {end}; \
             ip addr add {peer} dev {end}; ip link set {end} up; ip -o link | grep -c {name}@{end}"
        );
        assert_eq!(outside(connection, &script).await, "1", "{name} is plugged in");
    }

    async fn unplug(&self, connection: &mut Connection<'_>) {
        outside(connection, &format!("ip link del {}", self.peer)).await;
    }

    fn settings(&self, namespace: &str, address: &str, prefix: u8, gateway: &str) -> Value {
        json!({
            "NamespaceID": namespace, "ID": self.id, "MacAddress": self.mac,
            "IPConfigs": [{"IPAddress": address, "PrefixLength": prefix}],
            "Routes": [{"NextHop": gateway, "DestinationPrefix": "0.0.0.0/0"}],
        })
    }

    fn removal(&self, namespace: &str) -> Value {
        json!({"NamespaceID": namespace, "ID": self.id})
    }
}

fn namespace() -> String {
    let number: u32 = unique("").trim_start_matches('-').parse().expect("a number");
    format!("AAAAAAAA-bbbb-cccc-dddd-{number:012x}")
}

fn sandbox(id: &str, namespace: &str) -> Value {
    let mut document = document(id, &["sleep", "100000"]);
    let spec = &mut document["OciSpecification"];
    spec["annotations"] = json!({KIND: "sandbox"});
    spec["windows"] = json!({"network": {"networkNamespace": namespace.to_lowercase()}});
    document
}

fn workload(id: &str, pod: &str) -> Value {
    let mut document = document(id, &["sleep", "100000"]);
    document["OciSpecification"]["hostname"] = json!("");
    document["OciSpecification"]["annotations"] = json!({KIND: "container", POD: pod});
    document
}

/// What a shell prints in the utility VM, all programs being busybox's.
async fn outside(connection: &mut Connection<'_>, script: &str) -> String {
    let script = format!(
        "for c in ip sed grep sleep cat rm udhcpd; do alias $c=\"/bin/busybox $c\"; done\n{script}"
    );
    let finished = connection.external(&["/bin/busybox", "sh", "-c", &script]).await;
    finished.stdout.trim_end().to_owned()
}

async fn adapters_of_a_namespace_are_the_sandboxes_and_free_after_it(
    connection: &mut Connection<'_>,
) {
    connection.negotiate().await;
    let (pod, id, namespace) = (&unique("pod"), &unique("work"), &namespace());
    let adapter = Adapter::new();
    adapter.plug(connection, "10.77.0.1/24").await;
    let mut settings = adapter.settings(namespace, "10.77.0.2", 24, "10.77.0.1");
    settings["DNSSuffix"] = json!("lab.test, Lab.Test");
    settings["DNSServerList"] = json!("10.77.0.1,10.77.0.9");
    connection.modify("Add", "Network", settings).await.expect_success();
    // Twice: neither the record nor the adapter is used up by a container.
    for _ in 0..2 {
        let sandbox_pid = connection.start_from(pod, sandbox(pod, namespace)).await;
        let pid = connection.start_from(id, workload(id, pod)).await;
        let here = outside(connection, &format!("ip -o link | grep -c {}@", adapter.name)).await;
        assert_eq!(here, "0", "it has left the utility VM's namespace");
        for container in [pod, id] {
            let addresses = connection.shell(container, "ip -o -4 addr").await;
            let expected =
                format!("{}    inet 10.77.0.2/24 brd 10.77.0.255 scope global", adapter.name);
            assert!(addresses.contains(&expected), "{addresses}");
            let routes = connection.shell(container, "ip route").await;
            assert!(routes.contains("default via 10.77.0.1 dev"), "{routes}");
        }
        let names = connection.shell(id, "cat /etc/resolv.conf").await;
        assert_eq!(names, "search lab.test\nnameserver 10.77.0.1\nnameserver 10.77.0.9");
        let ping = connection.shell(id, "ping -c 1 -W 10 10.77.0.1 >/dev/null; echo $?").await;
        assert_eq!(ping, "0");
        let other = &unique("pod");
        connection.combine(other).await;
        let answer = connection.create_from(other, sandbox(other, namespace)).await;
        assert!(answer.result() != 0 && answer.body.to_string().contains(pod), "{}", answer.body);
        connection.end(id, pid).await;
        connection.end(pod, sandbox_pid).await;
        let back = format!("ip -o link | grep -c {}@", adapter.name);
        assert_eq!(outside(connection, &back).await, "1", "it is back");
    }
    connection.modify("Remove", "Network", adapter.removal(namespace)).await.expect_success();
    connection.combine(pod).await;
    let answer = connection.create_from(pod, sandbox(pod, namespace)).await;
    answer.expect_fault(HResult::ELEMENT_NOT_FOUND);
    adapter.unplug(connection).await;
}

async fn an_adapter_comes_to_a_running_pod_and_goes_again(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, id, namespace) = (&unique("pod"), &unique("work"), &namespace());
    let adapters = [Adapter::new(), Adapter::new(), Adapter::new()];
    for (number, adapter) in adapters.iter().enumerate() {
        adapter.plug(connection, &format!("10.78.{number}.1/24")).await;
    }
    let settings = |number: usize| {
        let (address, gateway) = (format!("10.78.{number}.2"), format!("10.78.{number}.1"));
        let mut settings = adapters[number].settings(namespace, &address, 24, &gateway);
        settings["PolicyBasedRouting"] = json!(true);
        settings["DNSServerList"] = json!(gateway);
        settings
    };
    connection.modify("Add", "Network", settings(0)).await.expect_success();
    let sandbox_pid = connection.start_from(pod, sandbox(pod, namespace)).await;
    let pid = connection.start_from(id, workload(id, pod)).await;
    let first = connection.shell(id, "ip -o -4 addr; ip route show table main").await;
    for number in [1, 2] {
        connection.modify("Add", "Network", settings(number)).await.expect_success();
    }
    let after = connection.shell(id, "ip -o -4 addr; ip route show table main").await;
    for line in first.lines() {
        assert!(after.contains(line.trim_end()), "{line} has gone: {after}");
    }
    let rules = connection.shell(id, "ip rule").await;
    assert!(rules.contains("5:\tfrom 10.78.1.2 lookup 101"), "{rules}");
    assert!(rules.contains("5:\tfrom 10.78.2.2 lookup 102"), "{rules}");
    assert!(!rules.contains("10.78.0.2"), "{rules}");
    let table = connection.shell(id, "ip route show table 101").await;
    assert!(table.contains("default via 10.78.1.1") && table.contains("metric 500"), "{table}");
    for number in 0..3 {
        let ping =
            format!("ping -c 1 -W 10 -I 10.78.{number}.2 10.78.{number}.1 >/dev/null; echo $?");
        assert_eq!(connection.shell(id, &ping).await, "0", "adapter {number}");
    }
    let names = connection.shell(id, "cat /etc/resolv.conf").await;
    assert_eq!(names, "nameserver 10.78.0.1\nnameserver 10.78.1.1\nnameserver 10.78.2.1");

    connection.modify("Remove", "Network", adapters[1].removal(namespace)).await.expect_success();
    let left = connection.shell(id, "ip -o -4 addr; ip rule; cat /etc/resolv.conf").await;
    assert!(!left.contains("10.78.1."), "{left}");
    assert!(left.contains("10.78.0.2/24") && left.contains("10.78.2.2/24"), "{left}");
    let back = format!(
        "ip -o addr | grep -c '{}.*10.78.1.2'; ip -o link | grep -c {0}@",
        adapters[1].name
    );
    assert_eq!(outside(connection, &back).await, "0\n1", "it is back, without its address");
    // One that the host has taken away under a running pod is removed all the same.
    adapters[2].unplug(connection).await;
    connection.modify("Remove", "Network", adapters[2].removal(namespace)).await.expect_success();
    connection.end(id, pid).await;
    connection.end(pod, sandbox_pid).await;
    connection.modify("Remove", "Network", adapters[0].removal(namespace)).await.expect_success();
    adapters[0].unplug(connection).await;
    adapters[1].unplug(connection).await;
}

async fn a_gateway_outside_the_subnet_is_reached_and_not_impersonated(
    connection: &mut Connection<'_>,
) {
    connection.negotiate().await;
    let (pod, namespace, adapter) = (&unique("pod"), &namespace(), Adapter::new());
    adapter.plug(connection, "10.79.9.1/16").await;
    let settings = adapter.settings(namespace, "10.79.0.2", 32, "10.79.9.1");
    connection.modify("Add", "Network", settings).await.expect_success();
    let pid = connection.start_from(pod, sandbox(pod, namespace)).await;
    let addresses = connection.shell(pod, "ip -o -4 addr").await;
    assert!(addresses.contains("10.79.0.2") && !addresses.contains("10.79.9.1"), "{addresses}");
    let routes = connection.shell(pod, "ip route").await;
    assert!(routes.contains("default via 10.79.9.1"), "{routes}");
    let ping = connection.shell(pod, "ping -c 1 -W 10 10.79.9.1 >/dev/null; echo $?").await;
    assert_eq!(ping, "0");
    connection.end(pod, pid).await;
    connection.modify("Remove", "Network", adapter.removal(namespace)).await.expect_success();
    adapter.unplug(connection).await;
}

async fn both_families_and_a_smaller_mtu(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (id, namespace, adapter) = (&unique("alone"), &namespace(), Adapter::new());
    adapter.plug(connection, "10.80.0.1/24").await;
    outside(connection, &format!("ip addr add fd80::1/64 dev {}", adapter.peer)).await;
    let mut settings = adapter.settings(namespace, "10.80.0.2", 24, "10.80.0.1");
    settings["EncapOverhead"] = json!(50);
    settings["IPConfigs"]
        .as_array_mut()
        .unwrap()
        .push(json!({"IPAddress": "fd80::2", "PrefixLength": 64}));
    settings["Routes"] = json!([
        {"NextHop": "10.80.0.1", "DestinationPrefix": "0.0.0.0/0", "Metric": 7},
        {"NextHop": "0.0.0.0", "DestinationPrefix": "0.0.0.0/0"},
        {"NextHop": "fd80::1", "DestinationPrefix": "::/0"},
        {"NextHop": "10.80.0.1", "DestinationPrefix": "192.168.7.9/24"},
    ]);
    connection.modify("Add", "Network", settings).await.expect_success();
    // A standalone container has a namespace as well.
    let mut document = document(id, &["sleep", "100000"]);
    document["OciSpecification"]["windows"] =
        json!({"network": {"networkNamespace": namespace.as_str()}});
    let pid = connection.start_from(id, document).await;
    let text = connection.shell(id, "ip link; ip -6 addr; ip route; ip -6 route").await;
    for part in [
        "mtu 1450",
        "inet6 fd80::2/64 scope global",
        "default via 10.80.0.1",
        "metric 7",
        "192.168.7.0/24 via 10.80.0.1",
        "default via fd80::1",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(
        !text.contains("fd80::2/64 scope global tentative"),
        "the address can be used at once: {text}"
    );
    // The other end's address is first looked for on the link, which takes it a while.
    let ping = "for try in 1 2 3 4 5 6 7 8; do ping -6 -c 1 -W 2 fd80::1 >/dev/null && break; done";
    assert_eq!(connection.shell(id, &format!("{ping}; echo $?")).await, "0");
    connection.end(id, pid).await;
    connection.modify("Remove", "Network", adapter.removal(namespace)).await.expect_success();
    adapter.unplug(connection).await;
}

async fn an_interface_that_appears_late_is_waited_for(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (namespace, adapter) = (&namespace(), Adapter::new());
    let settings = adapter.settings(namespace, "10.81.0.2", 24, "10.81.0.1");
    let add = connection.post_modify("Add", "Network", settings.clone()).await;
    assert!(connection.stays_silent_on(add, Duration::from_millis(300)).await);
    adapter.plug(connection, "10.81.0.1/24").await;
    connection.response_to(add).await.expect_success();
    adapter.unplug(connection).await;
    connection.modify("Remove", "Network", adapter.removal(namespace)).await.expect_success();
    // One that never comes is said so, and can be added later.
    let answer = connection.modify("Add", "Network", settings.clone()).await;
    answer.expect_fault(HResult::FAIL);
    assert!(answer.body.to_string().contains(&adapter.mac), "{}", answer.body);
    adapter.plug(connection, "10.81.0.1/24").await;
    connection.modify("Add", "Network", settings).await.expect_success();
    connection.modify("Remove", "Network", adapter.removal(namespace)).await.expect_success();
    adapter.unplug(connection).await;
}

async fn what_is_no_adapter_is_refused_and_leaves_nothing(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (namespace, adapter) = (&namespace(), Adapter::new());
    adapter.plug(connection, "10.82.0.1/24").await;
    let good = adapter.settings(namespace, "10.82.0.2", 24, "10.82.0.1");
    connection.modify("Remove", "Network", good.clone()).await.expect_success();
    for (key, value, named) in [
        ("IPConfigs", json!([{"IPAddress": "10.82.0", "PrefixLength": 24}]), "10.82.0/24"),
        ("Routes", json!([{"NextHop": "10.82.0.1", "DestinationPrefix": "all"}]), "all"),
        ("MacAddress", json!("zz"), "zz"),
        ("DNSSuffix", json!("a,b,c,d,e,f,g"), "domains"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let answer = connection.modify("Add", "Network", bad).await;
        answer.expect_fault(HResult::FAIL);
        assert!(answer.body.to_string().contains(named), "{}", answer.body);
    }
    connection.modify("Add", "Network", good.clone()).await.expect_success();
    let mut again = good.clone();
    again["ID"] = json!(adapter.id.to_uppercase());
    again["NamespaceID"] = json!(namespace.to_lowercase());
    connection.modify("Add", "Network", again.clone()).await.expect_fault(HResult::FAIL);
    connection.modify("Remove", "Network", again).await.expect_success();
    connection.modify("Remove", "Network", good).await.expect_success();
    adapter.unplug(connection).await;
}

async fn without_addresses_a_server_is_asked(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, namespace, adapter) = (&unique("pod"), &namespace(), Adapter::new());
    adapter.plug(connection, "10.83.0.1/24").await;
    let place = format!("/run/gcs/{pod}-dhcp");
    let script = format!(
        "echo 'interface {}\nstart 10.83.0.50\nend 10.83.0.50\nlease_file {place}.leases\n\
         pidfile {place}.pid\noption subnet 255.255.255.0\noption router 10.83.0.1\n\
         option dns 10.83.0.7' > {place}; echo > {place}.leases; exec /bin/busybox udhcpd -f {place}",
        adapter.peer
    );
    let ([port], [_listener]) = connection.host().listen();
    let server = connection.start_external(&["/bin/busybox", "sh", "-c", &script], port).await;
    let settings = json!({
        "NamespaceID": namespace, "ID": adapter.id, "MacAddress": adapter.mac,
    });
    connection.modify("Add", "Network", settings).await.expect_success();
    let pid = connection.start_from(pod, sandbox(pod, namespace)).await;
    let text = connection.shell(pod, "ip -o -4 addr; ip route").await;
    assert!(text.contains("10.83.0.50/24") && text.contains("default via 10.83.0.1"), "{text}");
    let names = outside(connection, &format!("cat /run/gcs/c/{pod}/resolv.conf")).await;
    assert_eq!(names, "nameserver 10.83.0.7");
    connection.end(pod, pid).await;
    outside(connection, &format!("kill {server}; rm -f {place} {place}.leases {place}.pid")).await;
    connection.modify("Remove", "Network", adapter.removal(namespace)).await.expect_success();
    adapter.unplug(connection).await;
}

async fn a_pod_in_the_machines_network_has_its_adapters_there(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, id, namespace) = (&unique("pod"), &unique("work"), &namespace());
    let adapters = [Adapter::new(), Adapter::new()];
    for (number, adapter) in adapters.iter().enumerate() {
        // Addresses of its own, for both ends are in one namespace.
        adapter.plug(connection, &format!("10.84.{number}.1/32")).await;
    }
    let settings = |number: usize| {
        let mut settings =
            adapters[number].settings(namespace, &format!("10.84.{number}.2"), 32, "0.0.0.0");
        settings["Routes"] = json!([]);
        settings
    };
    connection.modify("Add", "Network", settings(0)).await.expect_success();
    let mut document = sandbox(pod, namespace);
    let annotations = &mut document["OciSpecification"]["annotations"];
    annotations["io.microsoft.virtualmachine.lcow.hostnetwork"] = json!("true");
    let sandbox_pid = connection.start_from(pod, document).await;
    let pid = connection.start_from(id, workload(id, pod)).await;
    connection.modify("Add", "Network", settings(1)).await.expect_success();
    let all = connection.shell(id, "ip -o -4 addr").await;
    assert_eq!(all, outside(connection, "ip -o -4 addr").await, "it is one network");
    assert!(all.contains("10.84.0.2") && all.contains("10.84.1.2"), "{all}");
    connection.end(id, pid).await;
    connection.end(pod, sandbox_pid).await;
    let left = outside(connection, "ip -o -4 addr").await;
    assert!(!left.contains("10.84.0.2") && !left.contains("10.84.1.2"), "{left}");
    for adapter in adapters {
        connection.modify("Remove", "Network", adapter.removal(namespace)).await.expect_success();
        adapter.unplug(connection).await;
    }
}

async fn a_failed_creation_gives_its_adapters_back(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let (pod, namespace) = (&unique("pod"), &namespace());
    let adapters = [Adapter::new(), Adapter::new()];
    adapters[0].plug(connection, "10.85.0.1/24").await;
    adapters[1].plug(connection, "10.85.1.1/24").await;
    let first = adapters[0].settings(namespace, "10.85.0.2", 24, "10.85.0.1");
    connection.modify("Add", "Network", first).await.expect_success();
    // The same address cannot be given twice to one gateway: the second route is there already.
    let second = adapters[1].settings(namespace, "10.85.1.2", 24, "10.85.0.1");
    connection.modify("Add", "Network", second.clone()).await.expect_success();
    connection.combine(pod).await;
    let answer = connection.create_from(pod, sandbox(pod, namespace)).await;
    answer.expect_fault(HResult::FAIL);
    assert!(answer.body.to_string().contains(&adapters[1].id), "{}", answer.body);
    for adapter in &adapters {
        let back = format!("ip -o link | grep -c {}@", adapter.name);
        assert_eq!(outside(connection, &back).await, "1", "{} is back", adapter.name);
    }
    connection.modify("Remove", "Network", second).await.expect_success();
    // The id and the namespace are free for another try.
    connection.create_from(pod, sandbox(pod, namespace)).await.expect_success();
    let pid = connection.start(pod).await;
    assert!(connection.shell(pod, "ip -o -4 addr").await.contains("10.85.0.2/24"));
    connection.end(pod, pid).await;
    connection.modify("Remove", "Network", adapters[0].removal(namespace)).await.expect_success();
    for adapter in &adapters {
        adapter.unplug(connection).await;
    }
}

async fn every_container_can_speak_with_itself(connection: &mut Connection<'_>) {
    connection.negotiate().await;
    let ids = [unique("alone"), unique("alone")];
    // Two containers that name no namespace do not share one.
    let mut pids = Vec::new();
    for id in &ids {
        pids.push(connection.start_from(id, document(id, &["sleep", "100000"])).await);
    }
    for (id, pid) in ids.iter().zip(pids) {
        assert_eq!(
            connection.shell(id, "ping -c 1 -W 10 127.0.0.1 >/dev/null; echo $?").await,
            "0"
        );
        connection.end(id, pid).await;
    }
    let unknown =
        connection.call(MessageType::DUMP_STACKS, linkspan_protocol::UVM_ID, json!({})).await;
    let stacks = unknown.body["GuestStacks"].as_str().unwrap_or_default();
    assert!(!stacks.contains(&ids[0]), "{stacks}");
}
