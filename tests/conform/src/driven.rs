//! A host on Linkspan's own library that takes a container through its whole life: how the library
//! is judged, and an example of how to drive a host of one's own. It can be given one [`Defect`].
//!
//! The program `driven-host` is this: `linkspan conform host --spawn -- driven-host`.

mod defect;
mod machine;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use linkspan_host::{Child, Error, Layers, ProcessSpec, Result, Stdio, Stream, UtilityVm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use defect::{BROKEN, Defect};

use crate::host::EXIT_LINE;
use machine::Sockets;

/// What a process is given, and has to give back.
const TEXT: &[u8] = b"through the guest and back\n";

/// Listens at the Unix sockets `<sockets>_P`, and takes a container through its life with whatever
/// guest comes. Prints the exits that it is told of.
///
/// # Errors
/// The first operation that fails.
pub async fn live(sockets: PathBuf, defect: Option<Defect>) -> Result<()> {
    let machine = Arc::new(Sockets::new(sockets, defect));
    let builder = UtilityVm::builder("driven").boot_timeout(Duration::from_secs(20));
    let uvm = builder.user_network([]).attach(machine).await?;
    let io = |what: &str, source| Error::Io { what: what.to_owned(), source };
    let layer = tempfile::tempdir().map_err(|error| io("make a layer", error))?;
    std::fs::write(layer.path().join("file"), "x").map_err(|error| io("make a layer", error))?;
    let outcome = life(&uvm, layer.path()).await;
    // A library that is at its end tells why by its bridge.
    uvm.terminate().await;
    outcome
}

async fn life(uvm: &UtilityVm, layer: &Path) -> Result<()> {
    let can = uvm.capabilities().guest_defined_capabilities;
    let container = uvm
        .container("driven", Layers::of(layer).scratch_mib(64))
        .process(ProcessSpec::new(["sleep", "1000"]))
        .network(can.namespace_add_request_supported)
        .create()
        .await?;
    let mut init = container.start(Stdio::OUTPUT).await?;
    let outputs = [init.stdout.take(), init.stderr.take()];
    let outputs = outputs.map(|output| tokio::spawn(drain(output)));

    copy(container.command("cat").spawn().await?).await?;
    let cat = container.command("cat").spawn().await?;
    cat.handle().kill().await?;
    ended(cat).await?;
    let (processes, statistics) = tokio::join!(container.processes(), container.statistics());
    processes?;
    statistics?;
    let external = uvm.command("/bin/true").stdio(Stdio::NULL).spawn().await?;
    ended(external).await?;
    match uvm.dump_stacks().await {
        // A guest that has none.
        Err(Error::Option { .. }) => {}
        stacks => drop(stacks?),
    }

    match container.shut_down().await {
        Err(Error::TimedOut { .. }) => container.terminate().await?,
        outcome => outcome?,
    }
    for output in outputs {
        output.await.map_err(|error| Error::Vmm(error.into()))??;
    }
    ended(init).await?;
    container.exited().await?;
    container.delete().await
}

/// Gives a process its input, and takes its output.
async fn copy(mut cat: Child) -> Result<()> {
    let io = |source| Error::Io { what: "copy through a process".to_owned(), source };
    if let Some(stdin) = &mut cat.stdin {
        stdin.write_all(TEXT).await.map_err(io)?;
    }
    match ended(cat).await? == TEXT {
        true => Ok(()),
        false => Err(io(std::io::ErrorKind::InvalidData.into())),
    }
}

/// Ends a process's input, waits for it, and says how it ended. Gives what it has written.
async fn ended(child: Child) -> Result<Vec<u8>> {
    let pid = child.pid();
    let output = child.wait_with_output().await?;
    println!("{EXIT_LINE}{pid} {}", output.status.code());
    Ok(output.stdout)
}

async fn drain(output: Option<Stream>) -> Result<()> {
    let Some(mut output) = output else { return Ok(()) };
    let read = output.read_to_end(&mut Vec::new()).await;
    read.map(drop).map_err(|source| Error::Io { what: "read an output".to_owned(), source })
}
