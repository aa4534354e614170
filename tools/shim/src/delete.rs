//! `delete`: removes what is left of a container whose server containerd has lost.
//!
//! The machine and all that it had open has gone with its server. What may be left is a server that
//! does not answer, its socket, and mounts in the bundle.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::arguments::Arguments;
use crate::bundle::Bundle;
use crate::error::Error;
use crate::{mounts, print_bytes, timestamp};

/// What containerd is told of a container that nobody has seen end.
const KILLED: u32 = 128 + 9;

/// How long a killed server may take to end.
const LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    let bundle = match &arguments.bundle {
        Some(path) => Bundle::at(path),
        None => Bundle::at(std::env::current_dir().map_err(Error::io("find the bundle"))?),
    };
    // The server of a pod is not the one of its workloads to end.
    if let Some(pid) = bundle.server_pid() {
        end_server(pid, &arguments.id);
    }
    let address = bundle.address();
    let socket = address.as_deref().and_then(|address| address.strip_prefix("unix://"));
    if let Some(socket) = socket
        && UnixStream::connect(socket).is_err()
    {
        let _ = fs::remove_file(socket);
    }
    mounts::take_down(&bundle);
    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: timestamp::field(Some(SystemTime::now())),
        ..DeleteResponse::default()
    };
    let bytes =
        response.write_to_bytes().map_err(|error| Error::input("answer", error.to_string()))?;
    print_bytes(&bytes)
}

/// Ends a server, if the number is still its own.
fn end_server(pid: i32, id: &str) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    // From here on the number cannot come to mean another process.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if !is_server_of(pid, id) {
        return;
    }
    if pidfd_send_signal(&handle, Signal::KILL).is_ok() {
        let limit = Timespec::try_from(LIMIT).ok();
        let _ = poll(&mut [PollFd::new(&handle, PollFlags::IN)], limit.as_ref());
    }
}

fn is_server_of(pid: Pid, id: &str) -> bool {
    let process = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
    let ours = words.first().is_some_and(|name| name.ends_with(b"containerd-shim-linkspan-v1"));
    ours && words.contains(&b"serve".as_slice())
        && words.windows(2).any(|pair| pair == [b"-id".as_slice(), id.as_bytes()])
}
