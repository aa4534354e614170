//! What can go wrong, with the image, blob or field it is about.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::Digest;

/// Why an image could not be taken in, found or prepared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory.
    #[error("{what} {}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// Content that does not hash to its name.
    #[error("blob {expected} is not what its name says: it hashes to {found}")]
    WrongDigest {
        /// The name.
        expected: Digest,
        /// The hash of what came.
        found: Digest,
    },
    /// Content of another length than its descriptor says.
    #[error("blob {digest} has {found} bytes instead of {expected}")]
    WrongSize {
        /// Its digest.
        digest: Digest,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// A blob that a document names, and that is not there.
    #[error("blob {0} is missing")]
    MissingBlob(Digest),
    /// A digest of another form than `sha256:` and 64 hexadecimal digits.
    #[error("digest {0:?} is not sha256: and 64 hexadecimal digits")]
    BadDigest(String),
    /// The name of an image.
    #[error("{name:?} is no name of an image: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A JSON document that does not parse, or lies.
    #[error("{what}: {reason}")]
    Document {
        /// Which.
        what: String,
        /// Field and value.
        reason: String,
    },
    /// No image for the platform.
    #[error("{image} is not there for {wanted}; it is for {found}")]
    NoPlatform {
        /// The image.
        image: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// Something that is no image.
    #[error("{}: {reason}", path.display())]
    NotAnImage {
        /// The path.
        path: PathBuf,
        /// Why not, and what could be done.
        reason: String,
    },
    /// No image of that name in the store.
    #[error("there is no image {0:?} in the store; `linkspan image list` shows those there are")]
    Unknown(String),
    /// The registry did not answer, or not with what was asked for.
    #[error("{what} from {registry}: {reason}")]
    Registry {
        /// What was asked for.
        what: String,
        /// Host of the registry.
        registry: String,
        /// Its answer.
        reason: String,
    },
    /// A layer could not be converted.
    #[error("make a file system of layer {layer}")]
    Layer {
        /// Its digest.
        layer: Digest,
        /// The cause.
        #[source]
        cause: linkspan_layer::Error,
    },
}

impl Error {
    pub(crate) fn document(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Document { what: what.into(), reason: reason.into() }
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Adds to an error of the operating system what was done to which file.
pub(crate) trait At<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|cause| Error::File { what, path: path.into(), cause: cause.into() })
    }
}
