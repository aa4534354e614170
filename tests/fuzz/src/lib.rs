//! What no peer would send, and no tool would write: the fuzz targets, each a function of bytes.
//!
//! | target      | what is tried                                                      |
//! |-------------|--------------------------------------------------------------------|
//! | `decoder`   | frames, cut anywhere                                               |
//! | `server`    | the guest's end of the bridge, against any host                    |
//! | `client`    | the host's end, against any guest                                  |
//! | `documents` | every request's document                                           |
//! | `answers`   | every response's document, and notifications                       |
//! | `handshake` | the first line on a hybrid-vsock socket, on both sides             |
//! | `archive`   | tar archives, compressed or not, on their way to ext4 and EROFS    |
//! | `disk`      | disk images: ext4, EROFS, VHD footers, hash trees                  |
//! | `image`     | container images: index, manifest and configuration               |
//!
//! `cargo xtask fuzz` runs them under libFuzzer. The program `smoke` runs the same functions on
//! their seeds and on mutations of them, and needs nothing but a stable compiler.

pub mod answers;
pub mod archive;
pub mod client;
pub mod decoder;
pub mod disk;
pub mod documents;
pub mod handshake;
pub mod image;
pub mod script;
pub mod server;

/// A target's name, and what tries an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("answers", answers::run),
    ("archive", archive::run),
    ("client", client::run),
    ("decoder", decoder::run),
    ("disk", disk::run),
    ("documents", documents::run),
    ("handshake", handshake::run),
    ("image", image::run),
    ("server", server::run),
];
