//! Captures: of the simulated guest as it is checked, and of the reference agent as it was
//! recorded.

use std::io::Write;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyperv_socket::Stream;
use linkspan_conform::capture::{self, Direction, Packet, PacketKind, Writer};
use linkspan_conform::environment::Environment;
use linkspan_conform::guest::STATEMENTS;
use linkspan_conform::hindsight::{self, Judgement};
use linkspan_conform::inner::Network;
use linkspan_conform::record::{Host, Recorder};
use linkspan_conform::replay;
use linkspan_conform::run::{self, Plan};
use linkspan_conform::session::Session;
use linkspan_conform::simulated::{Guest, Way};
use linkspan_conform::statement::Profile;
use linkspan_conform::target::{Listen, Target};
use linkspan_conform::wire::frame;
use linkspan_protocol::{MessageType, port};
use serde_json::Value;
use tokio::task::{LocalSet, spawn_local};

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), future)
}

/// A run of the harness over a recorder.
fn recorded(only: &[u32]) -> Vec<u8> {
    block_on(async {
        let (inside, outside) = (Network::default(), Network::default());
        let bytes = Shared::default();
        let (guest_side, host_side) = (Listen::Inner(inside.clone()), Host::Inner(outside.clone()));
        let recorder = spawn_local(Recorder::run(guest_side, host_side, bytes.clone()));
        let environment =
            Environment { layer: Some("/simulated".to_owned()), ..Environment::default() };
        let target = Target::listen(Listen::Inner(outside));
        let mut session = Session::new(target, environment, Profile::Hardened);
        session.target.open().await.expect("listen within the process");
        let guest = spawn_local(Rc::clone(&Guest::new(Way::Inner(inside), None)).run());
        let plan = Plan { only: only.to_vec(), ..Plan::default() };
        let report = run::guest(&mut session, STATEMENTS, &plan, |_| {}).await;
        assert_eq!(report.deviations(), [0; 0], "{}", report.table());
        guest.abort();
        recorder.abort();
        let written = bytes.0.lock().unwrap();
        written.clone()
    })
}

#[test]
fn a_recorder_changes_nothing_and_has_messages_and_streams() {
    let packets = capture::read(&recorded(&[19, 20, 31, 51, 59, 60, 61, 62])[..]).unwrap();
    assert_eq!(capture::violations(&packets), []);
    let lines: Vec<String> =
        packets.iter().map(|packet| capture::line(packet, packets[0].at)).collect();
    for text in [
        "bridge #1 NegotiateProtocol id",
        "ExecuteProcess response",
        "\"the init\\n\"",
        "connected",
    ] {
        assert!(lines.iter().any(|line| line.contains(text)), "no {text:?} in {lines:#?}");
    }
    // All of a stream is there, and in order.
    let said = |port: u32| -> Vec<u8> {
        let of_it = packets.iter().filter(|p| {
            p.port == port && p.kind == PacketKind::Data && p.direction == Direction::ToHost
        });
        of_it.flat_map(|packet| packet.bytes.clone()).collect()
    };
    let longest = (0..20).map(|n| said(port::FIRST_STDIO + n)).max_by_key(Vec::len).unwrap();
    let numbers: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(longest == numbers.as_bytes(), "{} bytes, not {}", longest.len(), numbers.len());
}

#[test]
fn a_recorded_host_can_be_played_to_another_guest() {
    let packets = capture::read(&recorded(&[20, 29, 31, 33])[..]).unwrap();
    let bridge: Vec<Packet> =
        packets.into_iter().filter(|packet| packet.port == port::BRIDGE).collect();
    block_on(async {
        let network = Network::default();
        let mut listener = Listen::Inner(network.clone()).bind(port::BRIDGE).await.unwrap();
        let guest = spawn_local(Rc::clone(&Guest::new(Way::Inner(network), None)).run());
        let stream = listener.accept().await.unwrap();
        let patience = Duration::from_secs(10);
        let same = replay::play(&bridge, Direction::ToGuest, stream, patience).await.unwrap();
        assert_eq!(same, []);
        guest.abort();
        // A peer that ends early is told.
        let (ours, theirs) = Stream::pair().unwrap();
        drop(theirs);
        let other = replay::play(&bridge, Direction::ToGuest, ours, patience).await;
        assert!(other.is_err() || !other.unwrap().is_empty());
    });
}

const GOLDEN: [(&str, &str); 10] = [
    ("negotiate", include_str!("../../../protocol/tests/golden/01-negotiate.jsonl")),
    ("range", include_str!("../../../protocol/tests/golden/01b-negotiate-range.jsonl")),
    ("modify", include_str!("../../../protocol/tests/golden/02-modify.jsonl")),
    ("lifecycle", include_str!("../../../protocol/tests/golden/03-lifecycle.jsonl")),
    ("cut", include_str!("../../../protocol/tests/golden/06-malformed-header-cut.jsonl")),
    ("no body", include_str!("../../../protocol/tests/golden/06-malformed-size-16-no-body.jsonl")),
    (
        "bigger",
        include_str!("../../../protocol/tests/golden/06-malformed-size-bigger-then-close.jsonl"),
    ),
    ("shutdown", include_str!("../../../protocol/tests/golden/08-uvm-shutdown.jsonl")),
    ("vpmem", include_str!("../../../protocol/tests/golden/09-vpmem.jsonl")),
    ("network", include_str!("../../../protocol/tests/golden/10-network-pod.jsonl")),
];

fn packets_of(text: &str) -> Vec<Packet> {
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let mut connection = 0;
    lines
        .filter_map(|line| {
            // What was noted of connections.
            let note = line["note"].as_str().unwrap_or_default();
            if note.contains("dialled again") || note == "negotiate 1..9" {
                connection += 1;
            }
            if let Some(hex) = line.get("raw_frame_hex").and_then(Value::as_str) {
                let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
                return Some(Packet {
                    at: Duration::from_secs_f64(line["t"].as_f64()?),
                    direction: Direction::ToGuest,
                    kind: PacketKind::Frame,
                    port: port::BRIDGE,
                    connection,
                    bytes: (0..hex.len()).step_by(2).map(digit).collect(),
                });
            }
            let number = line.get("type")?.as_str()?.trim_start_matches("0x").to_owned();
            let payload = match (line.get("body"), line.get("raw").and_then(Value::as_str)) {
                (Some(body), _) => body.to_string().into_bytes(),
                (None, raw) => raw?.as_bytes().to_vec(),
            };
            let direction = match line["dir"].as_str()? {
                "h2g" => Direction::ToGuest,
                _ => Direction::ToHost,
            };
            let message_type = MessageType(u32::from_str_radix(&number, 16).ok()?);
            Some(Packet {
                at: Duration::from_secs_f64(line["t"].as_f64()?),
                direction,
                kind: PacketKind::Frame,
                port: port::BRIDGE,
                connection,
                bytes: frame(message_type, line["id"].as_u64()?, &payload),
            })
        })
        .collect()
}

#[test]
fn the_recorded_reference_agent_keeps_the_rules_of_frames() {
    let mut frames = 0;
    for (name, text) in GOLDEN {
        let packets = packets_of(text);
        frames += packets.len();
        assert_eq!(capture::violations(&packets), [], "{name}");
    }
    assert!(frames > 300, "only {frames}");
}

/// What the recordings say of the reference agent, all of them together.
fn hindsight() -> Judgement {
    let mut all = Judgement::new();
    for (_, text) in GOLDEN {
        for (statement, judged) in hindsight::judge(&packets_of(text)) {
            let known = all.entry(statement).or_default();
            known.held += judged.held;
            known.broken.extend(judged.broken);
        }
    }
    all
}

#[test]
fn the_recorded_reference_agent_is_judged_as_it_is_known() {
    let judgement = hindsight();
    let broken: Vec<_> = judgement.iter().filter(|(_, judged)| !judged.broken.is_empty()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(judgement.len() >= 50, "only {:?}", judgement.keys());
    let kept = include_str!("../../../docs/conformance-reference.md");
    let table = hindsight::markdown(&judgement);
    assert!(kept.contains(&table), "docs/conformance-reference.md is out of date:\n{table}");
}

#[test]
fn a_deviation_in_a_recording_is_told_by_its_statement() {
    let text = |at: usize| GOLDEN[at].1;
    for (text, from, to, statement) in [
        (text(0), "\"Version\": 4, \"Capabilities\"", "\"Version\": 3, \"Capabilities\"", 20),
        (text(0), "\"RuntimeOsType\": \"Linux\"", "\"RuntimeOsType\": \"Plan 9\"", 25),
        (text(0), "\"Result\": -1070137076", "\"Result\": -1070137075", 22),
        (text(9), "\"Type\": \"ForcedExit\"", "\"Type\": \"GracefulExit\"", 86),
        (text(9), "\"Operation\": \"None\"", "\"Operation\": \"Start\"", 85),
        (text(9), "\"SelectedProtocolVersion\": 0", "\"SelectedProtocolVersion\": 4", 39),
    ] {
        assert!(text.contains(from), "{from}");
        let judgement = hindsight::judge(&packets_of(&text.replace(from, to)));
        let broken: Vec<u32> = judgement
            .iter()
            .filter(|(_, judged)| !judged.broken.is_empty())
            .map(|(statement, _)| *statement)
            .collect();
        assert!(broken.contains(&statement), "{statement}: {broken:?}");
    }
}

#[test]
fn a_defect_in_a_recording_is_told() {
    let (_, text) = GOLDEN[0];
    for (from, to, statement) in [
        ("\"Line\": 4294967295", "\"Line\": 4294967296", 34),
        (
            "\"Result\": 0, \"ActivityId\"",
            "\"ErrorMessage\": \"\", \"Result\": 0, \"ActivityId\"",
            18,
        ),
        ("\"ModuleName\": \"gcs\", ", "", 33),
        ("\"Result\": -2147467263, \"ActivityId\"", "\"Result\": 2147500033, \"ActivityId\"", 36),
    ] {
        assert!(text.contains(from), "{from}");
        let told = capture::violations(&packets_of(&text.replace(from, to)));
        assert!(told.iter().any(|(id, _)| *id == statement), "{statement}: {told:?}");
        assert!(told.iter().all(|(id, _)| [statement, 33].contains(id)), "{statement}: {told:?}");
    }
}

#[test]
fn tshark_shows_messages_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture.pcapng");
    let mut writer = Writer::new(std::fs::File::create(&path).unwrap()).unwrap();
    packets_of(GOLDEN[3].1).iter().for_each(|packet| writer.write(packet).unwrap());
    let packets = capture::read(&recorded(&[51])[..]).unwrap();
    packets.iter().for_each(|packet| writer.write(packet).unwrap());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/wireshark/linkspan.lua");
    let output = Command::new("tshark")
        .args(["-X", &format!("lua_script:{script}"), "-r"])
        .arg(&path)
        .env("HOME", directory.path())
        .output()
        .expect("run tshark; `cargo xtask setup` installs it");
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !complaint.contains("Lua: "), "{complaint}");
    for shown in [
        "NegotiateProtocol id 1",
        "ExecuteProcess response id",
        "Notification id 0",
        "stdio 0x40000001 9 bytes",
    ] {
        assert!(text.contains(shown), "no {shown:?} in {text}");
    }
}
