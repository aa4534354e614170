//! Where blobs come from.

use std::io::Read;

use crate::document::{Descriptor, MAX_DOCUMENT};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::{Digest, Progress};

/// A place that has blobs, from which they go into the store.
pub(crate) trait Source {
    /// Brings a blob into the store, where it is not yet.
    fn fetch(
        &self,
        store: &Store,
        blob: &Descriptor,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()>;
}

/// A document, which must be short.
pub(crate) fn document(
    source: &dyn Source,
    store: &Store,
    blob: &Descriptor,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<u8>> {
    if blob.size > MAX_DOCUMENT {
        let reason = format!("it has {} bytes; {MAX_DOCUMENT} are possible", blob.size);
        return Err(Error::document(format!("document {}", blob.digest), reason));
    }
    if !store.has(&blob.digest) {
        source.fetch(store, blob, progress)?;
    }
    store.read(&blob.digest)
}

/// Copies a blob into the store, where it gets its name if it is what it should be.
pub(crate) fn copy(
    store: &Store,
    reader: impl Read,
    blob: &Descriptor,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<()> {
    let mut writer = store.writer()?;
    let name = blob.digest.to_string();
    // One byte more shows that there is too much.
    writer.copy(reader.take(blob.size.saturating_add(1)), &mut |bytes| {
        progress(Progress { what: &name, bytes, total: Some(blob.size) });
    })?;
    if writer.written() != blob.size {
        let (digest, expected, found) = (blob.digest.clone(), blob.size, writer.written());
        return Err(Error::WrongSize { digest, expected, found });
    }
    writer.finish(Some(&blob.digest)).map(drop)
}

/// Of some bytes at hand.
pub(crate) fn put(store: &Store, media_type: &str, bytes: &[u8]) -> Result<Descriptor> {
    let mut writer = store.writer()?;
    writer.copy(bytes, &mut |_| {})?;
    let digest: Digest = writer.finish(None)?;
    Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
}
