//! The tree as a newc cpio archive, the form the kernel unpacks.
//!
//! Nothing in it comes from the building machine: inode numbers count up from 1, owners are 0, the
//! date is the one given.

use cpio::newc::{Builder, ModeFileType, trailer};

use crate::{
    Error,
    tree::{Node, Tree},
};

/// Writes `tree` with every entry dated `mtime` (seconds since 1970).
pub(crate) fn write(tree: &Tree, mtime: u32) -> Result<Vec<u8>, Error> {
    let mut archive = Vec::new();
    for (ino, (path, entry)) in (1..).zip(tree.iter()) {
        // The kernel unpacks into `/`, so names go without it.
        let builder = Builder::new(&path.as_str()[1..]).ino(ino).mtime(mtime);
        let builder = match &entry.node {
            Node::Directory { mode } => {
                builder.mode(*mode).set_mode_file_type(ModeFileType::Directory).nlink(2)
            }
            Node::File { mode, .. } => {
                builder.mode(*mode).set_mode_file_type(ModeFileType::Regular).nlink(1)
            }
            Node::Symlink { .. } => {
                builder.mode(0o777).set_mode_file_type(ModeFileType::Symlink).nlink(1)
            }
            Node::CharDevice { mode, major, minor } => builder
                .mode(*mode)
                .set_mode_file_type(ModeFileType::Char)
                .nlink(1)
                .rdev_major(*major)
                .rdev_minor(*minor),
        };
        let data = entry.node.data();
        let size = u32::try_from(data.len())
            .map_err(|_| Error::TooLarge { path: path.to_string(), bytes: data.len() as u64 })?;
        let mut writer = builder.write(&mut archive, size);
        let written = std::io::Write::write_all(&mut writer, data);
        written.and_then(|()| writer.finish().map(drop)).expect("a vector takes every write");
    }
    trailer(&mut archive).expect("a vector takes every write");
    Ok(archive)
}
