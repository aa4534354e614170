//! Layer images: read-only ext4 from directories and tar streams, empty scratch disks, VHD footers.
//!
//! A utility VM gets its file systems as disks. This crate makes those disks in one pass, without
//! privileges and without other programs: file contents go from the source straight to the image,
//! and only names and attributes are kept in memory until the end.
//!
//! - [`detect`] says what a path holds: a directory, an archive, a finished image.
//! - [`build_image`] turns a directory or an archive into an image; [`LayerBuilder`] is the same
//!   in steps, for sources that are no files.
//! - [`scratch::format`] makes an empty writable file system.
//! - [`vhd`] appends and reads the footer of a fixed VHD.
//!
//! The same source and options give the same bytes: nothing depends on the clock or on chance.

mod archive;
mod builder;
mod compression;
mod copy;
mod detect;
mod error;
mod ext4;
mod options;
mod pax;
pub mod scratch;
mod sparse;
mod tar_stream;
mod tree;
pub mod vhd;
mod walk;

pub use builder::{LayerBuilder, build_image};
pub use compression::Compression;
pub use detect::{Kind, detect};
pub use error::{Error, Problem};
pub use options::{Options, Progress, Summary};
