//! `serve`: a server's life, from its socket to the end of its utility VM.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use rustix::process::setsid;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::arguments::Arguments;
use crate::bundle::Bundle;
use crate::error::Error;
use crate::options::Options;
use crate::shim::Shim;
use crate::start::READY;
use crate::{log, print_bytes, sandbox, service};

/// How long containerd has for its first request. One whose start it did not accept never comes.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// How long the last events and answers may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// Serves until nobody needs it any more. What keeps it from that is said on standard output.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(Error::io("start a runtime"))?;
    let outcome = runtime.block_on(serve(arguments));
    if let Err(error) = &outcome {
        let _ = print_bytes(format!("{error}\n").as_bytes());
    }
    // A thread that copies for a client that is gone is not waited for.
    runtime.shutdown_background();
    outcome
}

async fn serve(arguments: &Arguments) -> Result<(), Error> {
    // Alone already where somebody runs it by hand.
    let _ = setsid();
    let bundle = Bundle::at(std::env::current_dir().map_err(Error::io("find the bundle"))?);
    let options = Options::read(handed_on()?.as_ref())?;
    log::to_containerd(bundle.path(), arguments.debug || options.debug);
    survive_longer_than_others();
    let shim = Arc::new(Shim::new(arguments, options, &bundle)?);
    let listener = listen(&arguments.socket)?;
    let mut server = Server::new()
        .add_listener(listener.into())
        .register_service(service::task(&shim))
        .register_service(sandbox::sandbox(&shim));
    server.start().await?;
    ready()?;
    info!(namespace = arguments.namespace, id = arguments.id, "serving");

    let (mut terminated, mut interrupted) = (
        signal(SignalKind::terminate()).map_err(Error::io("wait for signals"))?,
        signal(SignalKind::interrupt()).map_err(Error::io("wait for signals"))?,
    );
    let unwanted = async {
        if tokio::time::timeout(FIRST_REQUEST, shim.asked.notified()).await.is_err() {
            return;
        }
        std::future::pending().await
    };
    tokio::select! {
        () = shim.ending.notified() => {}
        () = unwanted => info!("nobody has asked for anything"),
        _ = terminated.recv() => info!("told to end"),
        _ = interrupted.recv() => info!("told to end"),
    }
    // Whoever looks for a server from here on is to start another.
    let _ = fs::remove_file(&arguments.socket);
    shim.machine.end().await;
    let _ = tokio::time::timeout(FAREWELL, shim.events.flushed()).await;
    let _ = tokio::time::timeout(FAREWELL, server.shutdown()).await;
    info!("ended");
    Ok(())
}

/// The options, as `start` had them from containerd.
fn handed_on() -> Result<Option<Any>, Error> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(Error::io("read options"))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let any = Any::parse_from_bytes(&bytes);
    any.map(Some).map_err(|error| Error::input("options", error.to_string()))
}

/// A socket that nobody but root reaches, in the place of one that a lost server has left.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let what = || format!("listen at {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(Error::io(what()))?;
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(directory, mode).map_err(Error::io(what()))?;
    }
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(Error::io(what())(error));
            }
            fs::remove_file(path).map_err(Error::io(what()))?;
            UnixListener::bind(path)
        }
        bound => bound,
    };
    bound.map_err(Error::io(what()))
}

/// Says that it can be reached, and lets go of whoever has started it.
fn ready() -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    written.map_err(Error::io("say that the server is ready"))?;
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(Error::io("open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(Error::io("let go of standard input"))?;
    rustix::stdio::dup2_stdout(&null).map_err(Error::io("let go of standard output"))
}

/// When memory runs out, a container is to go rather than what holds it, and that rather than
/// containerd.
fn survive_longer_than_others() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score {
        let _ = fs::write(FILE, (score + 1).min(1000).to_string());
    }
}
