//! The process behind a named utility VM: it holds it, and answers the clients.
//!
//! | module       | what it holds                                   |
//! |--------------|-------------------------------------------------|
//! | `containers` | the containers, from reservation to removal     |
//! | `connection` | one client                                      |
//! | `log`        | what detached containers have written of late   |

mod connection;
mod containers;
mod log;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use linkspan_host::vmm::{VmExit, Vmm};
use linkspan_host::{Machine, UtilityVm};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use self::containers::Containers;
use crate::children;
use crate::control::{Channel, Uvm};
use crate::error::{Context, Error, Report};
use crate::options::VmOptions;
use crate::registry::{Held, Registry};
use crate::signals::Signals;

/// How long those who asked for the end have to take the answer.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a monitor is to hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) name: String,
    /// Resolved.
    pub(crate) options: VmOptions,
    /// Where a foreign host's sockets are; absolute.
    pub(crate) export_vsock: Option<PathBuf>,
}

/// What a monitor tells whoever started it, once.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Startup {
    Ready(Box<Uvm>),
    Failed(Report),
}

/// Holds a utility VM until it ends or is to end. `ready` is called when it is up, and may
/// refuse, for nobody may want it any more.
pub(crate) async fn hold(
    config: Config,
    signals: &mut Signals,
    ready: impl FnOnce(Uvm) -> Result<(), Error>,
    held: Held,
) -> Result<(), Error> {
    let guest = children::boot(signals, Guest::start(&config)).await?;
    let outcome = serve(config, signals, ready, held, &guest).await;
    guest.terminate().await;
    outcome
}

/// Takes the place of a name.
pub(crate) fn place(name: &str) -> Result<Held, Error> {
    Registry::open()?.hold(name)
}

async fn serve(
    config: Config,
    signals: &mut Signals,
    ready: impl FnOnce(Uvm) -> Result<(), Error>,
    held: Held,
    guest: &Guest,
) -> Result<(), Error> {
    let socket = held.place.socket();
    let listener =
        UnixListener::bind(&socket).context(|| format!("listen at {}", socket.display()))?;
    let (ended, _) = watch::channel(false);
    let (stop, mut stopping) = mpsc::channel(1);
    let monitor = Arc::new(Monitor {
        containers: Containers::new(config.name.clone(), guest.own()),
        guest: guest.clone(),
        config,
        directory: held.place.directory.clone(),
        started: (SystemTime::now(), Instant::now()),
        stop,
        ended,
    });
    let about = monitor.about();
    let state = serde_json::to_vec_pretty(&about).map_err(std::io::Error::from);
    held.place.write_state(&state.context(|| "write JSON".into())?)?;
    info!(machine = about.machine, "utility VM is up");
    ready(about)?;

    let (attending, mut attended) = mpsc::channel::<()>(1);
    let force = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if is_trusted(peer.uid()) => {
                        let (monitor, attending) = (Arc::clone(&monitor), attending.clone());
                        tokio::spawn(async move {
                            connection::attend(&monitor, Channel::new(stream)).await;
                            drop(attending);
                        });
                    }
                    peer => warn!(?peer, "client refused"),
                },
                Err(error) => {
                    warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            force = stopping.recv() => break force.unwrap_or(true),
            signal = signals.ending() => {
                info!(signal, "told to end");
                break false;
            }
            exit = guest.exited() => {
                warn!(reason = exit.reason, "the utility VM has ended");
                break true;
            }
        }
    };
    drop(listener);
    if !force {
        // A further signal means at once.
        tokio::select! {
            () = monitor.containers.stop_all() => {}
            _ = signals.ending() => {}
        }
    }
    guest.terminate().await;
    drop(held);
    monitor.ended.send_replace(true);
    drop(attending);
    if tokio::time::timeout(FAREWELL, attended.recv()).await.is_err() {
        debug!("a client is still there");
    }
    Ok(())
}

/// What the clients ask.
struct Monitor {
    config: Config,
    directory: PathBuf,
    started: (SystemTime, Instant),
    guest: Guest,
    containers: Containers,
    /// Takes whether the end is to come at once.
    stop: mpsc::Sender<bool>,
    ended: watch::Sender<bool>,
}

impl Monitor {
    fn about(&self) -> Uvm {
        let capabilities = self.guest.own().map(|uvm| uvm.capabilities());
        Uvm {
            name: self.config.name.clone(),
            pid: std::process::id(),
            machine: self.guest.vmm().describe(),
            started_ms: since_1970(self.started.0),
            age_ms: milliseconds(self.started.1.elapsed()),
            containers: self.containers.len(),
            export_vsock: self.config.export_vsock.clone(),
            options: self.config.options.clone(),
            capabilities: capabilities.and_then(|it| serde_json::to_value(it).ok()),
            directory: self.directory.clone(),
        }
    }
}

/// A utility VM whose bridge is ours, or a foreign host's.
#[derive(Clone)]
enum Guest {
    Own(UtilityVm),
    Foreign(Arc<Machine>),
}

impl Guest {
    async fn start(config: &Config) -> Result<Self, Error> {
        let builder = config.options.builder(&config.name);
        Ok(match &config.export_vsock {
            Some(path) => Self::Foreign(Arc::new(builder.start_exported(path).await?)),
            None => Self::Own(builder.start().await?),
        })
    }

    fn own(&self) -> Option<UtilityVm> {
        match self {
            Self::Own(uvm) => Some(uvm.clone()),
            Self::Foreign(_) => None,
        }
    }

    fn vmm(&self) -> &dyn Vmm {
        match self {
            Self::Own(uvm) => uvm.vmm(),
            Self::Foreign(machine) => machine.vmm(),
        }
    }

    async fn exited(&self) -> VmExit {
        self.vmm().exited().await
    }

    async fn terminate(&self) {
        match self {
            Self::Own(uvm) => uvm.terminate().await,
            Self::Foreign(machine) => machine.terminate().await,
        }
    }
}

/// Root, and whoever runs this.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn since_1970(time: SystemTime) -> u64 {
    milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
