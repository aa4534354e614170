//! Puts the entries of a source into an image, whatever the source is.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use crate::archive;
use crate::collect::{Collected, Collector, Contents};
use crate::copy::{self, ByteSource, CopyError};
use crate::detect::{Kind, detect};
use crate::erofs;
use crate::error::Error;
use crate::ext4::finish::{self, Failure, Finished};
use crate::ext4::stream::BlockStream;
use crate::ext4::{BLOCK_U64, superblock};
use crate::options::{Format, Options, Progress, Summary};
use crate::sparse::SparseMap;
use crate::tree::{Attributes, Place};
use crate::verity::{self, Hasher, Verity};
use crate::walk;

const MAX_SIZE: u64 = u32::MAX as u64 * BLOCK_U64;

/// Makes one image. Sources are added one over the other: in a later one, an entry replaces an
/// earlier one of the same name.
pub struct LayerBuilder<'a> {
    collector: Collector<'a, Blocks<'a>>,
    out: &'a File,
    data_start: u32,
    options: Options,
}

/// Contents on their way into the image.
struct Blocks<'a> {
    stream: BlockStream<'a>,
    /// Unless it is to be ext4.
    erofs: Option<erofs::Writer>,
}

impl Contents for Blocks<'_> {
    fn take(
        &mut self,
        source: &mut dyn ByteSource,
        map: &SparseMap,
        attributes: &Attributes,
        tick: &mut dyn FnMut(u64),
    ) -> Result<Place, CopyError> {
        let extents = copy::copy(source, map, &mut self.stream, tick)?;
        Ok(match &mut self.erofs {
            None => Place::Extents(extents),
            Some(writer) => {
                Place::Inode(writer.file(&mut self.stream, map.size, &extents, attributes)?)
            }
        })
    }
}

impl<'a> LayerBuilder<'a> {
    /// Begins an image in `out`, which is emptied. It may be a file without a name.
    ///
    /// # Errors
    ///
    /// The file cannot be written, or an option is out of range.
    pub fn new(out: &'a File, options: Options) -> Result<Self, Error> {
        let invalid = |text: &str| Err(Error::Invalid(text.to_owned()));
        if options.max_size > MAX_SIZE {
            return invalid("the largest size is 16 TiB");
        }
        let multiple = options.size_multiple;
        if multiple == 0 || !multiple.is_multiple_of(BLOCK_U64) || multiple > 1 << 30 {
            return invalid("the size must be a multiple of 4096 bytes up to 1 GiB");
        }
        if let Some(verity) = &options.verity {
            verity::check_options(verity)?;
        }
        out.set_len(0).map_err(Error::Write)?;
        let hasher = options.verity.as_ref().map(|verity| Hasher::new(out, &verity.salt));
        let hasher = hasher.transpose().map_err(Error::Write)?;
        let limit = (options.max_size / BLOCK_U64) as u32;
        let descriptors = superblock::descriptor_blocks(superblock::full_groups(limit));
        let (data_start, erofs) = match options.format {
            Format::Ext4 => (1 + descriptors, None),
            Format::Erofs => (erofs::DATA_START, Some(erofs::Writer::new())),
        };
        let stream = BlockStream::ahead(out, data_start, limit, hasher).map_err(Error::Write)?;
        let collector = Collector::new(Blocks { stream, erofs }, options.whiteouts);
        Ok(Self { collector, out, data_start, options })
    }

    /// Calls `report` now and then, and after every source.
    #[must_use]
    pub fn on_progress(mut self, report: impl FnMut(Progress) + 'a) -> Self {
        self.collector.on_progress(report);
        self
    }

    /// Adds the entries of a tar stream, plain or compressed. `name` is for error messages.
    ///
    /// # Errors
    ///
    /// [`Error::Archive`] if the stream breaks off or is damaged, [`Error::Entry`] if an entry
    /// would lead out of the tree or cannot be kept, and errors of the image.
    pub fn add_tar(&mut self, name: &str, reader: impl Read) -> Result<(), Error> {
        self.collector.begin(name.to_owned());
        archive::add(&mut self.collector, reader)?;
        self.collector.report();
        Ok(())
    }

    /// Adds what a directory holds, other file systems mounted below it included. Symbolic links
    /// are taken as such and never followed, `path` itself apart.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] for a file that cannot be read, [`Error::Entry`] for one that changes its
    /// size meanwhile or cannot be kept, and errors of the image.
    pub fn add_directory(&mut self, path: &Path) -> Result<(), Error> {
        self.collector.begin(path.display().to_string());
        walk::add(&mut self.collector, path)?;
        self.collector.report();
        Ok(())
    }

    /// Writes everything but the file contents, which are written already.
    ///
    /// # Errors
    ///
    /// The image cannot be written or would be too large; attributes do not fit.
    pub fn finish(self) -> Result<Summary, Error> {
        let Self { collector, out, data_start, options } = self;
        let Collected { contents, tree, origin, skipped_xattrs } = collector.finish();
        let Blocks { stream, erofs } = contents;
        let finished = match erofs {
            None => finish::finish(stream, &tree, data_start, &options),
            Some(writer) => erofs::finish::finish(stream, writer, &tree, &options),
        };
        let Finished { bytes, inodes, data_bytes, uuid, leaves } =
            finished.map_err(|failure| match failure {
                Failure::Image(error) => error,
                Failure::Node(path, problem) => Error::entry(&origin, &path, problem),
            })?;
        let verity = match (leaves, &options.verity) {
            (Some(leaves), Some(options)) => Some(leaves.append_to(out, bytes, options)?),
            _ => None,
        };
        Ok(Summary {
            bytes: verity.as_ref().map_or(bytes, Verity::total_bytes),
            file_system_bytes: bytes,
            inodes,
            data_bytes,
            skipped_xattrs,
            uuid,
            verity,
        })
    }
}

/// Makes an image of the directory or archive at `source` in `out`, telling `progress` how far it
/// has come.
///
/// # Errors
///
/// As [`detect`], [`LayerBuilder::add_tar`], [`LayerBuilder::add_directory`] and
/// [`LayerBuilder::finish`]; [`Error::Unsupported`] if `source` is an image already.
pub fn build_image(
    source: &Path,
    out: &File,
    options: Options,
    progress: impl FnMut(Progress),
) -> Result<Summary, Error> {
    let kind = detect(source)?;
    let mut builder = LayerBuilder::new(out, options)?.on_progress(progress);
    match kind {
        Kind::Directory => builder.add_directory(source)?,
        Kind::Tar(_) => {
            let read = |cause| Error::Read { path: source.to_owned(), cause };
            let file = File::open(source).map_err(read)?;
            builder.collector.expect(file.metadata().map_err(read)?.len());
            // Advice that is not taken costs time, and nothing else.
            let _ = fadvise(&file, 0, None, Advice::Sequential);
            builder.add_tar(&source.display().to_string(), file)?;
        }
        Kind::Ext4 { .. } | Kind::Erofs { .. } | Kind::Vhd { .. } => {
            return Err(Error::Unsupported {
                path: source.to_owned(),
                found: "an image already",
                advice: "attach it as it is".to_owned(),
            });
        }
    }
    builder.finish()
}
