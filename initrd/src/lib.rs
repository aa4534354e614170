//! Builds the utility VM's boot image: kernel, modules, agent, reproducibly.
//!
//! A [`KernelPackage`] (a `.deb` or its unpacked tree; [`PackageCache`] gets Debian's) and an agent binary
//! go in; `vmlinuz`, optionally `vmlinux`, and `initrd` come out, with a table of what takes how
//! much room. Nothing of the building machine gets into the image: no dates, owners, umask or
//! paths, so equal inputs give equal bytes.
//!
//! ```no_run
//! use linkspan_initrd::{ImageBuilder, KernelPackage, Modules};
//! # fn main() -> Result<(), linkspan_initrd::Error> {
//! let kernel = KernelPackage::open("linux-image-6.1.0-56-cloud-amd64.deb".as_ref())?;
//! let image = ImageBuilder::new(&kernel, "linkspan-guest")
//!     .modules(Modules::default().with("share")?)
//!     .build("out".as_ref(), &mut |_| {})?;
//! println!("{}", image.sizes);
//! # Ok(())
//! # }
//! ```
//!
//! # What the guest finds
//!
//! | path                             | content                                                    |
//! |----------------------------------|------------------------------------------------------------|
//! | `/init`                          | our agent                                                  |
//! | `/bin/linkspan-guest`            | symlink to `/init`                                         |
//! | `/lib/modules/<release>/*.ko`    | kernel modules, uncompressed, in one flat directory        |
//! | `/etc/linkspan/modules/<group>`  | paths to load, in order, dependencies first, one a line    |
//! | `/etc/linkspan/agent`            | only with a [`ForeignAgent`]: its path, then one argument a line |
//! | `/etc/linkspan/vmbus`            | only if that agent is to find VMBus names: nothing         |
//! | `/dev/console`                   | 5:1, for the kernel opens it before anything is mounted    |
//!
//! Every group is complete by itself, so two groups may name the same module; a loader skips the
//! paths it has already loaded.

mod agent;
mod archive;
mod compression;
mod elf;
mod error;
mod fetch;
mod image;
mod kernel;
mod modules;
mod progress;
mod sizes;
mod tree;
mod vmlinux;

pub use agent::ForeignAgent;
pub use compression::Compression;
pub use elf::ModuleForm;
pub use error::Error;
pub use fetch::{Fetched, PackageCache};
pub use image::{BootFile, Image, ImageBuilder, source_date_epoch};
pub use kernel::KernelPackage;
pub use modules::{GROUPS, Group, Modules};
pub use progress::{Event, Step};
pub use sizes::{Category, SizeRow, SizeTable};
pub use tree::GuestPath;
