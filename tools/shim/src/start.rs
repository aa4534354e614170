//! `start`: sees to a server for a container, and tells containerd where it is.
//!
//! ```text
//! containerd ── start ── serve    says "ready", or why not; listens at <hash of what it is for>
//!     └──── address ────┘
//! ```
//!
//! A workload of a pod gets the server of the pod. Standard error stays silent unless it fails, for
//! containerd 1.6 reads the address from both.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use sha2::{Digest, Sha256};

use crate::arguments::Arguments;
use crate::bootstrap::Bootstrap;
use crate::bundle::Bundle;
use crate::error::Error;
use crate::options::Options;
use crate::print_bytes;

/// Where servers listen unless containerd says otherwise.
const SOCKETS: &str = "/run/linkspan/s";

/// What a server says once it can be reached.
pub(crate) const READY: &str = "ready";

pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    let bootstrap = Bootstrap::read(arguments)?;
    // What is wrong with the options is said before anything is started.
    Options::read(bootstrap.options.as_ref())?;
    let bundle = match &arguments.bundle {
        Some(path) => Bundle::at(path),
        None => Bundle::at(std::env::current_dir().map_err(Error::io("find the bundle"))?),
    };
    let group = bundle.group(&arguments.id)?;
    let directory = bootstrap.socket_directory.clone().unwrap_or_else(|| SOCKETS.into());
    let socket = socket(&directory, arguments, &group);
    let address = format!("unix://{}", socket.display());
    let answer = bootstrap.form.answer(&address)?;

    if UnixStream::connect(&socket).is_ok() {
        bundle.note_server(&address, None)?;
        return print_bytes(&answer);
    }
    if group != arguments.id {
        let what = "sandbox with a running server";
        return Err(Error::NotFound { what, id: group });
    }
    let mut server = Server::start(arguments, &bundle, &socket, bootstrap.options.as_ref())?;
    bundle.note_server(&address, Some(server.child.id()))?;
    print_bytes(&answer)?;
    server.wanted = true;
    Ok(())
}

/// The socket of a group's server. Its name says nothing and has a fixed length: the path of a
/// socket has to be short.
fn socket(directory: &Path, arguments: &Arguments, group: &str) -> PathBuf {
    let Arguments { address, namespace, .. } = arguments;
    let digest = Sha256::digest(format!("{address}/{namespace}/{group}"));
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(&name[..40])
}

/// A server that has been started; it ends with this unless it is wanted.
struct Server {
    child: Child,
    wanted: bool,
}

impl Server {
    fn start(
        arguments: &Arguments,
        bundle: &Bundle,
        socket: &Path,
        options: Option<&Any>,
    ) -> Result<Self, Error> {
        let program = std::env::current_exe().map_err(Error::io("find this program"))?;
        let mut command = Command::new(program);
        command
            .args(["-namespace", &arguments.namespace, "-id", &arguments.id])
            .args(["-address", &arguments.address, "-publish-binary"])
            .arg(&arguments.publish_binary)
            .arg("-socket")
            .arg(socket);
        if arguments.debug {
            command.arg("-debug");
        }
        command
            .arg("serve")
            .current_dir(bundle.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let child = command.spawn().map_err(Error::io("start the server"))?;
        let mut server = Self { child, wanted: false };
        if let (Some(mut stdin), Some(options)) = (server.child.stdin.take(), options) {
            let bytes = options.write_to_bytes().unwrap_or_default();
            stdin.write_all(&bytes).map_err(Error::io("hand the options to the server"))?;
        }
        let stdout = server.child.stdout.take();
        let said =
            stdout.map_or_else(|| Ok(String::new()), |stdout| answer(BufReader::new(stdout)));
        match said.map_err(Error::io("hear from the server"))?.trim_end() {
            READY => Ok(server),
            "" => Err(Error::Machine("the server ended at once".to_owned())),
            reason => Err(Error::Machine(reason.to_owned())),
        }
    }
}

/// What a server says: one word when it is ready, which is all, or else to its end why not.
fn answer(mut stdout: impl BufRead) -> io::Result<String> {
    let mut said = String::new();
    stdout.read_line(&mut said)?;
    if said.trim_end() != READY {
        stdout.read_to_string(&mut said)?;
    }
    Ok(said)
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.wanted {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_server_says_of_why_not_is_heard() {
        let said = "no boot image\nin /a\nin /b\n";
        assert_eq!(answer(said.as_bytes()).unwrap(), said);
        // A server that is ready keeps its output: more is not waited for.
        let (mut server, here) = UnixStream::pair().unwrap();
        writeln!(server, "{READY}").unwrap();
        assert_eq!(answer(BufReader::new(here)).unwrap().trim_end(), READY);
    }

    #[test]
    fn sockets_differ_by_containerd_namespace_and_group_and_are_short() {
        let arguments = |line: &str| Arguments::parse(line.split(' ').map(str::to_owned)).unwrap();
        let of = |line: &str, group: &str| {
            let path = socket(Path::new(SOCKETS), &arguments(line), group);
            assert!(path.as_os_str().len() < 100);
            path
        };
        let first = of("-namespace a -id x -address /1 start", "x");
        assert_eq!(first, of("-namespace a -id y -address /1 start", "x"));
        assert_ne!(first, of("-namespace a -id x -address /1 start", "z"));
        assert_ne!(first, of("-namespace b -id x -address /1 start", "x"));
        assert_ne!(first, of("-namespace a -id x -address /2 start", "x"));
    }
}
