//! The GCS bridge protocol (version 4), without IO.
//!
//! A *host* drives a *guest agent* over one stream, the bridge. Each frame on it is a
//! [16-byte header](frame) and one JSON document:
//!
//! ```text
//! host                                                guest
//!   NegotiateProtocol {min 4, max 4}  ── request ──>    [`Server`] answers this one by itself
//!                       <── response ──  {version 4, capabilities}
//!   ModifySettings, Create, Start,    ── requests ─>    answered in any order, one response each,
//!   ExecuteProcess, WaitForProcess …  <─ responses ─    matched by id
//!                     <── notification ──  a container has exited (id 0, no answer)
//! ```
//!
//! Bytes of a process's stdio never travel on the bridge: they have [ports](port) of their own.
//!
//! The crate has three layers, each usable without the one above:
//!
//! * [`frame`]: bytes to frames and back, lengths bounded before they size anything;
//! * [`message`], [`resource`], [`Fault`]: what the documents mean, typed once for both ends;
//! * [`Client`] and [`Server`]: the two ends' state machines. They own no socket and no clock:
//!   `handle_*` takes what happened, `poll_*` gives what to do, `now` is an argument.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use linkspan_protocol::{message::*, Client, ClientEvent, Server, ServerOptions};
//!
//! let now = Instant::now();
//! let (mut host, mut guest) = (Client::default(), Server::new(ServerOptions::default()));
//!
//! let call = host.call(ContainerId::none(), &NegotiateProtocol::exactly(4), None);
//! guest.handle_input(&host.poll_transmit().unwrap()).unwrap();
//! host.handle_input(&guest.poll_transmit().unwrap(), now).unwrap();
//!
//! let Some(ClientEvent::Answered { call: answered, outcome }) = host.poll_event() else { panic!() };
//! assert_eq!(call, answered);
//! let reply = outcome.unwrap().decode::<NegotiateProtocol>().unwrap();
//! assert_eq!(reply.version, 4);
//! ```
//!
//! The contract is the behaviour of hcsshim (commit `7c9ff7f4`); where that and a written
//! description differ, the code is right.

#![forbid(unsafe_code)]

pub mod client;
mod fault;
pub mod frame;
mod hresult;
mod json;
pub mod message;
mod message_type;
pub mod port;
pub mod resource;
pub mod server;

pub use client::{CallError, CallId, Client, ClientEvent, Reply};
pub use fault::{ErrorRecord, Fault};
pub use hresult::HResult;
pub use json::{DecodeError, JsonString};
pub use message_type::{Kind, MessageType};
pub use server::{Incoming, Server, ServerOptions, Ticket};

/// The only protocol version there is.
pub const VERSION: u32 = 4;

/// The id that addresses the utility VM itself.
pub const UVM_ID: &str = "00000000-0000-0000-0000-000000000000";
