//! Whatever a host can say arrives as it was said: client to server, through the bytes.

use std::collections::BTreeMap;

use linkspan_protocol::message::*;
use linkspan_protocol::resource::*;
use linkspan_protocol::{Client, JsonString, Server, ServerOptions, VERSION};
use proptest::prelude::*;
use serde_json::{Value, json};

fn text() -> impl Strategy<Value = String> {
    // Quotes, controls, what Go escapes, and what takes more than one UTF-16 unit.
    prop_oneof![Just(String::new()), "[a-z0-9/_.-]{1,40}", "[\\PC\"\\\\<>&\n\u{0}😀]{0,20}"]
}

fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    let inner = leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(text(), inner, 0..4).prop_map(|map| json!(map)),
        ]
    });
    prop::collection::btree_map(text(), inner, 0..5).prop_map(|map| json!(map))
}

fn resource() -> impl Strategy<Value = Resource> {
    prop_oneof![
        (text(), any::<u8>(), any::<u8>(), any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
            |(mount_path, lun, controller, partition, read_only, block_dev)| MappedVirtualDisk {
                mount_path,
                lun,
                controller,
                partition,
                read_only,
                block_dev,
                ..MappedVirtualDisk::default()
            }
            .into()
        ),
        (text(), prop::collection::vec(text(), 0..5), text()).prop_map(
            |(root, layers, scratch)| {
                let layers =
                    layers.into_iter().map(|path| Layer { path, ..Layer::default() }).collect();
                CombinedLayers {
                    container_root_path: root,
                    layers,
                    scratch_path: scratch,
                    ..CombinedLayers::default()
                }
                .into()
            }
        ),
        (text(), text(), any::<u16>(), any::<u8>(), any::<bool>()).prop_map(
            |(namespace_id, address, metric, prefix_length, enable_low_metric)| Network {
                namespace_id,
                ip_configs: vec![IpConfig { ip_address: address.clone(), prefix_length }],
                routes: vec![Route { next_hop: address, metric, ..Route::default() }],
                enable_low_metric,
                ..Network::default()
            }
            .into()
        ),
        document().prop_map(|linux| {
            let linux = Some(linux);
            ContainerConstraints { linux, ..ContainerConstraints::default() }.into()
        }),
        Just(Resource::PodCgroupMemoryLimit),
    ]
}

fn modify() -> impl Strategy<Value = ModifyType> {
    prop_oneof![
        Just(ModifyType::Add),
        Just(ModifyType::Remove),
        Just(ModifyType::Update),
        Just(ModifyType::PreAdd),
        "[A-Z][a-z]{1,8}".prop_map(ModifyType::from),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        document().prop_map(|config| {
            let container_config = JsonString(config);
            Request::Create(Create { container_config, ..Create::default() })
        }),
        (any::<u32>(), any::<u32>()).prop_map(|(process_id, timeout_in_ms)| {
            Request::WaitForProcess(WaitForProcess { process_id, timeout_in_ms })
        }),
        (any::<u32>(), any::<u16>(), any::<u16>()).prop_map(|(process_id, height, width)| {
            Request::ResizeConsole(ResizeConsole { process_id, height, width })
        }),
        (any::<u32>(), any::<i32>()).prop_map(|(process_id, signal)| {
            let options = Some(SignalOptions::Linux { signal });
            Request::SignalProcess(SignalProcess { process_id, options })
        }),
        (
            prop::collection::vec(text(), 0..4),
            prop::collection::btree_map(text(), text(), 0..4),
            prop::option::of(document()),
            any::<[bool; 4]>(),
            any::<[u32; 3]>(),
        )
            .prop_map(|(command_args, environment, oci_process, flags, ports)| {
                let process_parameters = JsonString(ProcessParameters {
                    command_args,
                    environment: environment as BTreeMap<_, _>,
                    oci_process,
                    create_std_in_pipe: flags[0],
                    create_std_out_pipe: flags[1],
                    create_std_err_pipe: flags[2],
                    emulate_console: flags[3],
                    ..ProcessParameters::default()
                });
                let stdio = VsockStdio {
                    stdin: ports[0],
                    stdout: ports[1],
                    stderr: ports[2],
                    ..VsockStdio::default()
                };
                Request::ExecuteProcess(ExecuteProcess {
                    settings: ExecuteProcessSettings {
                        process_parameters,
                        stdio_relay_settings: None,
                        vsock_stdio_relay_settings: Some(stdio),
                    },
                })
            }),
        (modify(), resource()).prop_map(|(modify, resource)| Request::ModifySettings(
            ModifySettings::new(modify, resource)
        )),
    ]
}

fn send(client: &mut Client, container: &str, request: &Request) -> Vec<u8> {
    let id = ContainerId::from(container);
    match request {
        Request::Create(body) => client.call(id, body, None),
        Request::WaitForProcess(body) => client.call(id, body, None),
        Request::ResizeConsole(body) => client.call(id, body, None),
        Request::SignalProcess(body) => client.call(id, body, None),
        Request::ExecuteProcess(body) => client.call(id, body, None),
        Request::ModifySettings(body) => client.call(id, body, None),
        other => panic!("{other:?} is not generated"),
    };
    client.poll_transmit().expect("one frame")
}

proptest! {
    #[test]
    fn a_request_arrives_as_it_was_sent(
        container in text(),
        requests in prop::collection::vec(request(), 1..6),
        cut in 1usize..200,
    ) {
        let (mut client, mut server) = (Client::default(), Server::new(ServerOptions::default()));
        client.call(ContainerId::none(), &NegotiateProtocol::exactly(VERSION), None);
        server.handle_input(&client.poll_transmit().unwrap()).unwrap();

        let stream: Vec<u8> =
            requests.iter().flat_map(|request| send(&mut client, &container, request)).collect();
        for piece in stream.chunks(cut) {
            server.handle_input(piece).unwrap();
        }
        for sent in &requests {
            let incoming = server.poll_request().expect("as many as were sent");
            prop_assert_eq!(incoming.envelope.container_id.as_str(), container.as_str());
            prop_assert_eq!(&incoming.request, sent);
            server.respond(incoming.ticket, Ok(Empty {}));
        }
        prop_assert!(server.poll_request().is_none());
    }
}
