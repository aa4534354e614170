//! What can go wrong while building, said so that the reader knows which input to change.

use std::{io, path::PathBuf};

/// Why a boot image could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory of the building machine could not be read.
    #[error("cannot read {what} {path:?}")]
    Read {
        /// What the path was given as: `agent`, `kernel package`, …
        what: &'static str,
        /// The path as given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An output could not be written.
    #[error("cannot write {path:?}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Neither a `.deb` nor a directory.
    #[error("kernel package {path:?} is not a Debian package: {reason}")]
    NotADeb {
        /// The path as given.
        path: PathBuf,
        /// What was found instead.
        reason: String,
    },
    /// The package's archive is damaged.
    #[error("cannot unpack {member} of kernel package {path:?}")]
    Unpack {
        /// The path as given.
        path: PathBuf,
        /// The archive member, `data.tar.xz` for instance.
        member: String,
        /// The decoder's reason.
        source: io::Error,
    },
    /// No kernel in the package; Debian's meta packages have none.
    #[error(
        "kernel package {path:?} has no boot/vmlinuz-*; a meta package holds no kernel, give the \
         linux-image-<release> package it depends on"
    )]
    NoKernel {
        /// The path as given.
        path: PathBuf,
    },
    /// More than one kernel: which one is meant cannot be told.
    #[error("kernel package {path:?} has several kernels: {}", releases.join(", "))]
    SeveralKernels {
        /// The path as given.
        path: PathBuf,
        /// The releases found.
        releases: Vec<String>,
    },
    /// A group name that is not in [`GROUPS`](crate::GROUPS).
    #[error("unknown module group {name:?}; there are {known}")]
    UnknownGroup {
        /// The name as given.
        name: String,
        /// The groups that exist, separated by commas.
        known: String,
    },
    /// The kernel has the module neither as a file nor built in.
    #[error(
        "kernel {release} has no module {module:?}, wanted by {wanted_by}, and it is not built in"
    )]
    NoModule {
        /// The kernel release.
        release: String,
        /// The module's name.
        module: String,
        /// The group or the module that asked for it.
        wanted_by: String,
    },
    /// Modules that need each other cannot be put into an order.
    #[error("kernel {release}: module {module:?} needs itself through {through:?}")]
    ModuleCycle {
        /// The kernel release.
        release: String,
        /// The module met twice.
        module: String,
        /// The module that led back to it.
        through: String,
    },
    /// A module file that is not what its name says.
    #[error("cannot read kernel module {module:?}: {reason}")]
    BadModule {
        /// The module's path in the package.
        module: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel image holds no uncompressed kernel that can be taken out.
    #[error("cannot take vmlinux out of kernel {release}: {reason}")]
    NoVmlinux {
        /// The kernel release.
        release: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A path in the guest that is not absolute and plain.
    #[error("guest path {path:?} {reason}")]
    GuestPath {
        /// The path as given.
        path: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Two things want the same place in the guest.
    #[error("guest path {path} is given twice: {first} and {second}")]
    DuplicatePath {
        /// The place.
        path: String,
        /// What was there first.
        first: String,
        /// What came second.
        second: String,
    },
    /// A file lies where a directory is needed.
    #[error("guest path {path} needs {parent} to be a directory, but it is {found}")]
    NotADirectory {
        /// The path that was to be added.
        path: String,
        /// Its ancestor that is in the way.
        parent: String,
        /// What lies there.
        found: String,
    },
    /// An `--add` that is not `FILE:GUESTPATH`.
    #[error("file to add {value:?} is not FILE:GUESTPATH")]
    BadAddition {
        /// The value as given.
        value: String,
    },
    /// Only regular files can be added.
    #[error("{what} {path:?} is not a regular file")]
    NotAFile {
        /// What the path was given as.
        what: &'static str,
        /// The path as given.
        path: PathBuf,
    },
    /// The agent is not a program for this guest.
    #[error("{what} {path:?} is not an x86-64 Linux executable: {reason}")]
    NotExecutable {
        /// `agent` or `foreign agent`.
        what: &'static str,
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A dynamically linked program whose loader is not in the image.
    #[error(
        "{what} {path:?} needs the interpreter {interpreter}, which is not in the image: link it \
         statically, or add the interpreter and its libraries with --add FILE:GUESTPATH"
    )]
    NeedsInterpreter {
        /// `agent` or `foreign agent`.
        what: &'static str,
        /// The path as given.
        path: PathBuf,
        /// The interpreter it names.
        interpreter: String,
    },
    /// An agent argument that cannot be written as one line.
    #[error("argument {argument:?} of the foreign agent has a line break or NUL in it")]
    BadArgument {
        /// The argument as given.
        argument: String,
    },
    /// A compression that does not exist.
    #[error("{field} {value:?} {reason}")]
    BadSetting {
        /// The setting's name.
        field: &'static str,
        /// The value as given.
        value: String,
        /// What it may be.
        reason: &'static str,
    },
    /// Something is larger than the archive format can say.
    #[error("{path} has {bytes} bytes, more than a cpio entry can hold (4294967295)")]
    TooLarge {
        /// The guest path.
        path: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// Compressing failed.
    #[error("cannot compress the initrd with {compression}")]
    Compress {
        /// The compression chosen.
        compression: String,
        /// The encoder's reason.
        source: io::Error,
    },
    /// apt could not be run.
    #[error(
        "cannot run {program}; on a machine without apt, give the kernel with --kernel-package"
    )]
    NoApt {
        /// The program.
        program: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// apt ran and failed.
    #[error("{command} failed ({status}): {stderr}; {advice}")]
    Apt {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines it wrote.
        stderr: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// apt knows no such kernel.
    #[error(
        "apt knows no kernel behind package {package:?} ({reason}): run `apt-get update`, or give \
         the kernel with --kernel-package"
    )]
    UnknownPackage {
        /// The package asked for.
        package: String,
        /// What was missing in apt's answer.
        reason: String,
    },
    /// The downloaded file is not the one apt announced.
    #[error(
        "package {path:?} has SHA-256 {actual}, but apt's lists say {expected}: run `apt-get \
         update` and try again"
    )]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// What it has.
        actual: String,
        /// What it should have.
        expected: String,
    },
    /// No place for the cache.
    #[error("cannot tell where the cache is: neither XDG_CACHE_HOME nor HOME is set")]
    NoCacheDirectory,
}

impl Error {
    pub(crate) fn read(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { what, path, source }
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path, source }
    }
}
