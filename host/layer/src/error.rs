//! What can go wrong, in the caller's words: which source, which entry, what about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why an image could not be made or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory of the source could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The archive as a whole could not be read.
    #[error("read archive {archive} near byte {offset}")]
    Archive {
        /// Name of the archive.
        archive: String,
        /// Bytes of the uncompressed archive consumed before the error.
        offset: u64,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// One entry of the source cannot be put into an image.
    #[error("take {entry:?} from {origin}")]
    Entry {
        /// Name of the archive, or path of the directory.
        origin: String,
        /// Name of the entry within it.
        entry: String,
        /// What is wrong with it.
        #[source]
        problem: Problem,
    },
    /// The image could not be written.
    #[error("write the image")]
    Write(#[source] io::Error),
    /// The image would exceed the limit of the options.
    #[error("write the image: it would exceed its limit of {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A finished image cannot be read.
    #[error("read the image {image}: {problem}")]
    Image {
        /// Name of the image.
        image: String,
        /// What is wrong with it, and where.
        problem: String,
    },
    /// The directory that an image is to be extracted to cannot be used.
    #[error("extract to {}: {reason}", path.display())]
    Target {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The entries of an image cannot be put where they are to go.
    #[error("extract {entry:?} to {target}")]
    Extract {
        /// The directory or archive.
        target: String,
        /// Name of the entry within the image.
        entry: String,
        /// What is wrong.
        #[source]
        problem: Problem,
    },
    /// An option or size is out of its range.
    #[error("make an image: {0}")]
    Invalid(String),
    /// The hash tree, or what it protects, is not what it should be.
    #[error("verify the image: {0}")]
    Verity(String),
    /// The path holds something known that cannot be used as it is.
    #[error("use {} as a root file system: it is {found}; {advice}", path.display())]
    Unsupported {
        /// The path.
        path: PathBuf,
        /// What was found.
        found: &'static str,
        /// What to do about it.
        advice: String,
    },
    /// The path holds nothing known.
    #[error(
        "{} is not a directory, a tar archive or an ext4/VHD image (starts with bytes {start})",
        path.display()
    )]
    Unrecognised {
        /// The path.
        path: PathBuf,
        /// Its first bytes in hexadecimal.
        start: String,
    },
}

impl Error {
    pub(crate) fn entry(origin: &str, path: &[u8], problem: Problem) -> Self {
        let entry = String::from_utf8_lossy(path).into_owned();
        Self::Entry { origin: origin.to_owned(), entry, problem }
    }
}

/// What is wrong with one entry of a source.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Problem {
    /// A name with `..` in it.
    #[error("the name leads out of the archive by \"..\"")]
    ParentEscape,
    /// An empty name, one with a NUL byte, of more than 4096 bytes, or 255 in a part.
    #[error("the name is empty, has a NUL byte, or is longer than 4096 bytes or 255 in a part")]
    BadName,
    /// A parent is a symbolic link.
    #[error("the name leads through the symbolic link {0:?}")]
    ThroughSymlink(String),
    /// A parent is a file or the like.
    #[error("its parent {0:?} is not a directory")]
    ParentNotDirectory(String),
    /// The top of the tree is not a directory.
    #[error("the top of the tree must be a directory")]
    RootNotDirectory,
    /// A hard link to something that was not there before.
    #[error("hard link to {0:?}, which does not come before it")]
    MissingLinkTarget(String),
    /// A hard link to a directory.
    #[error("hard link to the directory {0:?}")]
    LinkToDirectory(String),
    /// More names for one file than ext4 can count.
    #[error("more than 65000 hard links to one file")]
    TooManyLinks,
    /// A symbolic link that ext4 cannot hold.
    #[error("symbolic link of {0} bytes; 1 to 4095 are possible")]
    SymlinkLength(usize),
    /// A file that ext4 cannot hold.
    #[error("size of {size} bytes exceeds {limit}")]
    FileTooLarge {
        /// Size in bytes.
        size: u64,
        /// Largest size in bytes.
        limit: u64,
    },
    /// The contents end early.
    #[error("its contents end after {got} of {expected} bytes")]
    Truncated {
        /// Announced length in bytes.
        expected: u64,
        /// Length found in bytes.
        got: u64,
    },
    /// The file was changed while it was read.
    #[error("its size changed from {before} to {after} bytes while it was read")]
    Changed {
        /// Size at first, in bytes.
        before: u64,
        /// Size afterwards, in bytes.
        after: u64,
    },
    /// The extended attributes do not fit into the inode and one block.
    #[error("its extended attributes need more than one block of 4096 bytes")]
    XattrsTooLarge,
    /// An access control list that does not follow its format.
    #[error("the access control list {0:?} is malformed")]
    BadAcl(String),
    /// A device number beyond 12 bits of major and 20 bits of minor.
    #[error("device number {major}:{minor} is out of range")]
    BadDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A header field that does not parse.
    #[error("header field {field}")]
    Header {
        /// Name of the field.
        field: &'static str,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// An extended header that does not parse or is too large.
    #[error("malformed extended header: {0}")]
    ExtendedHeader(&'static str),
    /// A sparse map that does not parse.
    #[error("malformed sparse map: {0}")]
    SparseMap(&'static str),
    /// An entry of a type that has no place in a file system.
    #[error("unknown entry type {0:?}")]
    UnknownType(char),
    /// Rights that are not there.
    #[error("it takes root")]
    TakesRoot,
    /// Something of overlayfs that an OCI layer has no word for.
    #[error("its attribute {0} has no counterpart in an OCI layer")]
    OnlyOverlay(String),
    /// It could not be written.
    #[error("write it")]
    Write(#[source] io::Error),
    /// The contents could not be read.
    #[error("read its contents")]
    Read(#[source] io::Error),
}
