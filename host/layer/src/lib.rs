//! Layer images: read-only ext4 or EROFS from directories and tar streams, dm-verity trees, empty
//! scratch disks, VHD footers.
//!
//! A utility VM gets its file systems as disks. This crate makes those disks in one pass, without
//! privileges and without other programs: file contents go from the source straight to the image,
//! and only names and attributes are kept in memory until the end.
//!
//! - [`detect`] says what a path holds: a directory, an archive, a finished image.
//! - [`build_image`] turns a directory or an archive into an image; [`LayerBuilder`] is the same
//!   in steps, for sources that are no files.
//! - [`extract_to_directory`] and [`extract_to_tar`] take a finished image apart, and [`diff()`]
//!   says in what two layers differ, both without mounting anything.
//! - [`scratch::format`] makes an empty writable file system.
//! - [`verity`] appends and checks hash trees.
//! - [`vhd`] appends and reads the footer of a fixed VHD.
//!
//! The same source and options give the same bytes: nothing depends on the clock or on chance.
//!
//! Without the feature `convert` there is [`scratch`] and nothing else, for the guest agent.

// What an empty file system has no use for.
#![cfg_attr(not(feature = "convert"), allow(dead_code))]

#[cfg(feature = "convert")]
mod archive;
#[cfg(feature = "convert")]
mod builder;
#[cfg(feature = "convert")]
mod collect;
#[cfg(feature = "convert")]
mod compression;
#[cfg(feature = "convert")]
mod copy;
#[cfg(feature = "convert")]
mod descent;
#[cfg(feature = "convert")]
mod detect;
#[cfg(feature = "convert")]
mod diff;
#[cfg(feature = "convert")]
mod erofs;
mod error;
mod ext4;
#[cfg(feature = "convert")]
mod extract;
mod fingerprint;
#[cfg(feature = "convert")]
mod finished;
mod options;
#[cfg(feature = "convert")]
mod pax;
pub mod scratch;
#[cfg(feature = "convert")]
mod sparse;
#[cfg(feature = "convert")]
mod tar_stream;
mod tree;
pub mod verity;
pub mod vhd;
#[cfg(feature = "convert")]
mod walk;

#[cfg(feature = "convert")]
pub use builder::{LayerBuilder, build_image};
#[cfg(feature = "convert")]
pub use compression::{Compression, decompress};
#[cfg(feature = "convert")]
pub use detect::{Kind, detect, file_system_size};
#[cfg(feature = "convert")]
pub use diff::{Aspect, Change, DiffOptions, Difference, Field, diff};
pub use error::{Error, Problem};
#[cfg(feature = "convert")]
pub use extract::{ExtractOptions, Extracted, Whiteouts, extract_to_directory, extract_to_tar};
pub use options::{Format, Options, Progress, Summary};
