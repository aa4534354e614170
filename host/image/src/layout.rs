//! OCI image layouts in directories.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::blob::{self, Source};
use crate::document::{Descriptor, Index, MAX_DOCUMENT, parse};
use crate::error::{At, Error, Result};
use crate::store::Store;
use crate::{Digest, Progress};

/// Blobs in `blobs/sha256` of a directory.
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn is_one(path: &Path) -> bool {
        path.join("oci-layout").is_file() && path.join("index.json").is_file()
    }

    pub(crate) fn open(root: &Path) -> Result<(Self, Index)> {
        let path = root.join("index.json");
        let mut bytes = Vec::new();
        let file = File::open(&path).at("open", &path)?;
        file.take(MAX_DOCUMENT).read_to_end(&mut bytes).at("read", &path)?;
        let index = parse(&path.display().to_string(), &bytes)?;
        Ok((Self { root: root.to_owned() }, index))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }
}

impl Source for Layout {
    fn fetch(
        &self,
        store: &Store,
        blob: &Descriptor,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let path = self.blob(&blob.digest);
        // It may be a link to anywhere; what it leads to must be a file, and hash to its name.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("read", &path);
            }
            _ => return Err(Error::MissingBlob(blob.digest.clone())),
        }
        blob::copy(store, File::open(&path).at("open", &path)?, blob, progress)
    }
}
