//! Container images: from an archive or a registry into a content store, and from there to layers
//! that a utility VM can mount.
//!
//! - [`Store`] keeps blobs by their digests; none is there that was not verified. It is an OCI
//!   image layout on disk, with the finished layers beside it.
//! - [`import`] takes an OCI image layout, an `oci-archive`, what `docker save` writes, or a plain
//!   root file system as tar.
//! - [`Registry::pull`] fetches from a registry, and goes on where it was interrupted.
//! - [`Image`] knows the layers of an image and what it says about its process.
//!
//! All of this blocks; nothing is held in memory but documents of a few megabytes.

mod archive;
mod blob;
mod credentials;
mod digest;
mod document;
mod error;
mod image;
mod import;
mod layout;
mod platform;
mod registry;
mod store;

pub use credentials::Credentials;
pub use digest::Digest;
pub use document::ProcessDefaults;
pub use error::Error;
pub use image::{Image, LayerForm, LayerImage};
pub use import::{import, is_image};
pub use oci_spec::distribution::Reference;
pub use platform::Platform;
pub use registry::{Registry, RegistryOptions};
pub use store::{Store, Stored};

/// How far a transfer or conversion has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Digest of the blob, or what it is for.
    pub what: &'a str,
    /// Bytes so far.
    pub bytes: u64,
    /// How many there will be, where that is known.
    pub total: Option<u64>,
}
