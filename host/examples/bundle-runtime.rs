//! A container runtime in one file: runs an OCI bundle in a utility VM of its own.
//!
//! ```console
//! $ bundle-runtime target/linkspan/image BUNDLE [-- COMMAND...]
//! ```
//!
//! BUNDLE holds `config.json` and `rootfs`. Its process has this one's standard streams and passes
//! on its exit code. COMMAND is run in the container first, as a second process; so one sees what
//! all of the library's parts look like to a runtime: machine, container, processes, figures.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use linkspan_host::relay::{self, Ends};
use linkspan_host::{Child, Container, Layers, Result, Stdio, Stream, UtilityVm};
use tokio::sync::oneshot;

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(image), Some(bundle)) = (args.next(), args.next()) else {
        eprintln!("usage: bundle-runtime IMAGE BUNDLE [-- COMMAND...]");
        return ExitCode::from(2);
    };
    let command: Vec<String> = args.skip_while(|arg| arg == "--").collect();
    match run(Path::new(&image), &PathBuf::from(bundle), &command).await {
        Ok(code) => ExitCode::from((code & 0xff) as u8),
        Err(error) => {
            eprintln!("bundle-runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(image: &Path, bundle: &Path, command: &[String]) -> Result<u32> {
    let uvm = UtilityVm::builder("bundle-runtime").image(image).start().await?;
    let outcome = in_machine(&uvm, bundle, command).await;
    uvm.terminate().await;
    outcome
}

async fn in_machine(uvm: &UtilityVm, bundle: &Path, command: &[String]) -> Result<u32> {
    let container = uvm
        .container("bundle", Layers::of(bundle.join("rootfs")))
        .config(bundle.join("config.json"))?
        .create()
        .await?;
    let outcome = in_container(&container, command).await;
    container.delete().await?;
    outcome
}

async fn in_container(container: &Container, command: &[String]) -> Result<u32> {
    let mut init = container.start(Stdio::PIPED).await?;
    if let [program, args @ ..] = command {
        let output = container.command(program).args(args).output().await?;
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
        container.pause().await?;
        let figures = container.statistics().await?;
        let memory = figures.memory.and_then(|memory| memory.usage).unwrap_or_default();
        eprintln!("{} bytes of memory in use while it stands still", memory.usage);
        container.resume().await?;
    }
    let outputs = connect(&mut init);
    let status = init.handle().wait().await?;
    for output in outputs {
        // All of it has been written when the sender is gone.
        let _ = output.await;
    }
    Ok(status.code())
}

/// Connects a process with this one's standard streams; a thread for each.
fn connect(child: &mut Child) -> Vec<oneshot::Receiver<()>> {
    let socket = |stream: Option<Stream>| stream.map(Stream::into_fd);
    let (stdin, stdout) = (socket(child.stdin.take()), socket(child.stdout.take()));
    let stderr = socket(child.stderr.take());
    if let Some(stdin) = stdin {
        let copy = move || relay::input(std::io::stdin().as_fd(), &stdin, None);
        drop(relay::spawn("stdin", copy));
    }
    let out = |socket: OwnedFd| {
        relay::spawn("stdout", move || {
            relay::output(&socket, std::io::stdout().as_fd(), Ends::default())
        })
    };
    let err = |socket: OwnedFd| {
        relay::spawn("stderr", move || {
            relay::output(&socket, std::io::stderr().as_fd(), Ends::default())
        })
    };
    [stdout.map(out), stderr.map(err)].into_iter().flatten().flatten().collect()
}
