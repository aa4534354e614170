//! `AF_VSOCK` and hybrid-vsock Unix sockets on Linux.

mod buffer;
mod connect;
mod listener;
mod register;
mod stream;

pub use connect::connect;
pub(crate) use connect::connect_unix;
pub use listener::Listener;
pub use stream::Stream;
