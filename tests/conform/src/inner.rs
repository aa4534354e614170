//! Sockets within this process: what a simulated peer dials.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyperv_socket::Stream;
use tokio::sync::{Notify, mpsc};

use crate::target::InnerPort;

/// Ports that somebody listens on. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Network(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    ports: Mutex<HashMap<u32, mpsc::UnboundedSender<Stream>>>,
    changed: Notify,
}

impl PartialEq for Network {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Network {}

impl Network {
    fn ports(&self) -> MutexGuard<'_, HashMap<u32, mpsc::UnboundedSender<Stream>>> {
        self.0.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self, port: u32) -> (mpsc::UnboundedReceiver<Stream>, InnerPort) {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.ports().insert(port, sender);
        self.0.changed.notify_waiters();
        (receiver, InnerPort { network: self.clone(), port })
    }

    pub(crate) fn close(&self, port: u32) {
        let mut ports = self.ports();
        // A successor on the same port is left alone: its channel is open.
        if ports.get(&port).is_some_and(mpsc::UnboundedSender::is_closed) {
            ports.remove(&port);
        }
    }

    /// Dials a port.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody listens there.
    pub fn dial(&self, port: u32) -> io::Result<Stream> {
        let (ours, theirs) = Stream::pair()?;
        let refused = || {
            let text = format!("nobody listens on port {port:#x}");
            io::Error::new(io::ErrorKind::ConnectionRefused, text)
        };
        let sender = self.ports().get(&port).cloned().ok_or_else(refused)?;
        sender.send(theirs).map_err(|_| refused())?;
        Ok(ours)
    }

    /// Dials a port until somebody listens there.
    ///
    /// # Errors
    /// When there are no sockets to be had.
    pub async fn dial_until_heard(&self, port: u32) -> io::Result<Stream> {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            match self.dial(port) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => changed.await,
                outcome => return outcome,
            }
        }
    }
}
