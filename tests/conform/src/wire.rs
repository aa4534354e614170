//! Frames and documents by hand.

use linkspan_protocol::frame::encode;
use linkspan_protocol::{HResult, MessageType};
use serde_json::{Value, json};

/// The bytes of a frame.
pub fn frame(message_type: MessageType, id: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = encode::<std::convert::Infallible>(&mut bytes, message_type, id, |out| {
        out.extend_from_slice(payload);
        Ok(())
    });
    written.unwrap_or_else(|never| match never {});
    bytes
}

/// The number that stands for a code in JSON: signed.
pub fn hresult(code: HResult) -> i64 {
    i64::from(code.0)
}

/// The `Settings` of an ExecuteProcess: which ports, and what else.
pub fn pipes(stdin: Option<u32>, stdout: Option<u32>, stderr: Option<u32>, more: Value) -> Value {
    let mut parameters = json!({
        "CreateStdInPipe": stdin.is_some(),
        "CreateStdOutPipe": stdout.is_some(),
        "CreateStdErrPipe": stderr.is_some(),
    });
    if let (Some(parameters), Value::Object(more)) = (parameters.as_object_mut(), more) {
        parameters.extend(more);
    }
    json!({"Settings": {
        "ProcessParameters": parameters.to_string(),
        "VsockStdioRelaySettings": {
            "StdIn": stdin.unwrap_or(0), "StdOut": stdout.unwrap_or(0), "StdErr": stderr.unwrap_or(0),
        },
    }})
}

/// An OCI process.
pub fn process(args: &[&str]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"],
        "cwd": "/",
    })
}

/// The document of a plain container.
pub fn document(id: &str, args: &[&str]) -> Value {
    let mount = |destination: &str, kind: &str| json!({"destination": destination, "type": kind, "source": kind});
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({"type": kind}));
    json!({
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "OciBundlePath": format!("/run/gcs/c/{id}"),
        "ScratchDirPath": format!("/run/gcs/scratch/{id}"),
        "OciSpecification": {
            "ociVersion": "1.1.0",
            "hostname": id,
            "root": {"path": format!("/run/gcs/c/{id}/rootfs")},
            "process": process(args),
            "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/dev/pts", "devpts")],
            "linux": {"namespaces": namespaces},
            "windows": {"network": {"networkNamespace": namespace_of(id)}},
        },
    })
}

/// A network namespace for each container, as hosts have it: the reference agent gives all that name
/// none the same, and takes only one of them.
fn namespace_of(id: &str) -> String {
    let mix = |sum: u64, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let number = id.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
    format!("636f6e66-6f72-6d00-{:04x}-{:012x}", number >> 48, number & 0xffff_ffff_ffff)
}
