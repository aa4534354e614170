//! Who listens on which host port.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

/// The port that means "any" and can be nobody's.
pub(crate) const PORT_ANY: u32 = u32::MAX;

/// How many connections a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// The first; from then on the port is refused.
    Once,
    /// All, until [`Device::unlisten`](crate::Device::unlisten).
    Many,
}

/// A connection of the guest's: one end of a connected pair of Unix stream sockets, in blocking mode.
#[derive(Debug)]
pub struct GuestStream {
    /// The stream. Its end of file, half-close and back pressure are the guest's.
    pub stream: UnixStream,
    /// The guest's port.
    pub guest_port: u32,
    /// The host port the guest connected to.
    pub host_port: u32,
}

pub(crate) type Handler = Arc<dyn Fn(GuestStream) -> bool + Send + Sync>;

struct Listener {
    accept: Accept,
    handler: Handler,
}

/// The ports listened on.
#[derive(Default)]
pub(crate) struct Registry {
    listeners: Mutex<HashMap<u32, Listener>>,
}

impl Registry {
    /// Adds a listener; `false` when the port has one already.
    pub(crate) fn add(&self, port: u32, accept: Accept, handler: Handler) -> bool {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        match listeners.entry(port) {
            Entry::Vacant(vacant) if port != PORT_ANY => {
                vacant.insert(Listener { accept, handler });
                true
            }
            _ => false,
        }
    }

    /// Removes a listener; `false` when there is none.
    pub(crate) fn remove(&self, port: u32) -> bool {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(&port).is_some()
    }

    /// The handler for a connection to `port`, which counts as taken by it.
    pub(crate) fn take(&self, port: u32) -> Option<Handler> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let listener = listeners.get(&port)?;
        let handler = Arc::clone(&listener.handler);
        if listener.accept == Accept::Once {
            listeners.remove(&port);
        }
        Some(handler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler() -> Handler {
        Arc::new(|_| true)
    }

    #[test]
    fn a_once_listener_is_gone_after_one_connection_and_a_many_listener_stays() {
        let registry = Registry::default();
        assert!(registry.add(1, Accept::Once, handler()));
        assert!(registry.add(2, Accept::Many, handler()));
        assert!(registry.take(1).is_some() && registry.take(2).is_some());
        assert!(registry.take(1).is_none() && registry.take(2).is_some());
        assert!(registry.add(1, Accept::Once, handler()));
    }

    #[test]
    fn a_port_has_one_listener_and_the_any_port_none() {
        let registry = Registry::default();
        assert!(registry.add(7, Accept::Many, handler()));
        assert!(!registry.add(7, Accept::Many, handler()));
        assert!(!registry.add(PORT_ANY, Accept::Many, handler()));
        assert!(registry.remove(7) && !registry.remove(7));
    }
}
