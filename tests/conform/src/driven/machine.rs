//! A machine that is nothing but its sockets: whoever dials them is its guest.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyperv_socket::{Listener, Local, Stream};
use linkspan_host::vmm::{Accept, Disk, PortListener, ScsiAddress, VmExit, Vmm};
use linkspan_host::{Error, Result};
use linkspan_protocol::port;
use tokio::sync::{mpsc, watch};

use super::Defect;
use super::wire::Wire;

#[derive(Debug)]
pub(super) struct Sockets {
    base: PathBuf,
    wire: Option<Arc<Wire>>,
    ended: watch::Sender<bool>,
}

impl Sockets {
    pub(super) fn new(base: PathBuf, defect: Option<Defect>) -> Self {
        let wire = defect.map(|defect| Arc::new(Wire::new(defect)));
        Self { base, wire, ended: watch::Sender::new(false) }
    }
}

/// Takes connections to a port.
struct Accepting {
    local: Local,
    port: u32,
    accept: Accept,
    wire: Option<Arc<Wire>>,
    incoming: mpsc::UnboundedSender<Stream>,
}

impl Accepting {
    async fn run(self, listener: Option<Listener>) {
        let defect = self.wire.as_ref().map(|wire| wire.defect);
        let listener = match listener {
            Some(listener) => listener,
            None => {
                tokio::time::sleep(Duration::from_millis(150)).await;
                let Ok(listener) = Listener::bind(&self.local, self.port) else { return };
                listener
            }
        };
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            if !kept.is_empty() {
                kept.push(stream);
                continue;
            }
            let stream = match &self.wire {
                Some(wire) => match wire.carry(self.port, stream) {
                    Ok(stream) => stream,
                    Err(_) => return,
                },
                None => stream,
            };
            if self.incoming.send(stream).is_err() {
                return;
            }
            match (self.accept, defect) {
                (Accept::Once, Some(Defect::KeepsListening)) => {
                    // From here on, connections are taken for nothing.
                    let Ok((one, other)) = Stream::pair() else { return };
                    kept.extend([one, other]);
                }
                (Accept::Once, _) => return,
                (Accept::Many, _) => {}
            }
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[async_trait]
impl Vmm for Sockets {
    fn backend(&self) -> &'static str {
        "sockets"
    }

    fn describe(&self) -> String {
        format!("sockets {}", self.base.display())
    }

    async fn listen(&self, port: u32, accept: Accept) -> Result<PortListener> {
        let local = Local::HybridHost { path: self.base.clone() };
        let defect = self.wire.as_ref().map(|wire| wire.defect);
        let place = match defect {
            Some(Defect::OtherPorts) if port > port::BRIDGE => port + 0x100,
            _ => port,
        };
        let (incoming, receiver) = mpsc::unbounded_channel();
        let accepting = Accepting { local, port: place, accept, wire: self.wire.clone(), incoming };
        let listener = match defect {
            Some(Defect::ListensLate) if port > port::BRIDGE => None,
            _ => {
                let what = || format!("listen on port {place}");
                let bound = Listener::bind(&accepting.local, place);
                Some(bound.map_err(|source| Error::Io { what: what(), source })?)
            }
        };
        let task = tokio::spawn(accepting.run(listener));
        // A broken host need not let go of a port when its owner does.
        match (defect, accept) {
            (Some(Defect::KeepsListening), Accept::Once) => {
                Ok(PortListener::new(port, receiver, ()))
            }
            _ => Ok(PortListener::new(port, receiver, AbortOnDrop(task))),
        }
    }

    async fn attach_disk(&self, _address: ScsiAddress, _disk: Disk) -> Result<()> {
        Ok(())
    }

    async fn detach_disk(&self, _address: ScsiAddress) -> Result<()> {
        Ok(())
    }

    async fn exited(&self) -> VmExit {
        // The sender is this machine's own.
        let _ = self.ended.subscribe().wait_for(|&ended| ended).await;
        VmExit { clean: true, reason: "it was ended".to_owned() }
    }

    async fn terminate(&self) {
        self.ended.send_replace(true);
    }

    fn boot_phase(&self) -> String {
        "a guest is waited for".to_owned()
    }

    fn console_tail(&self) -> String {
        String::new()
    }
}
