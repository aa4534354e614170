//! Checkers, kernel mounts, and the comparison of trees.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use linkspan_layer::{Error, Format, LayerBuilder, Options, Summary};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::{NamedTempFile, TempDir};

/// Either file system.
pub(crate) const FORMATS: [Format; 2] = [Format::Ext4, Format::Erofs];

pub(crate) fn of_format(format: Format) -> Options {
    Options { format, ..Options::default() }
}

pub(crate) fn image_of_directory(source: &Path) -> (NamedTempFile, Summary) {
    image(Options::default(), |builder| builder.add_directory(source)).expect("build the image")
}

pub(crate) fn image_of_tar(bytes: &[u8], options: Options) -> (NamedTempFile, Summary) {
    image(options, |builder| builder.add_tar("test.tar", bytes)).expect("build the image")
}

pub(crate) fn image(
    options: Options,
    fill: impl FnOnce(&mut LayerBuilder<'_>) -> Result<(), Error>,
) -> Result<(NamedTempFile, Summary), Error> {
    let out = NamedTempFile::new().expect("create a file for the image");
    let mut builder = LayerBuilder::new(out.as_file(), options)?;
    fill(&mut builder)?;
    let summary = builder.finish()?;
    assert_eq!(out.as_file().metadata().unwrap().len(), summary.bytes);
    Ok((out, summary))
}

/// The file system's checker finds nothing to mend.
pub(crate) fn assert_clean(image: &Path) {
    match file_system(image) {
        "erofs" => run(Command::new("fsck.erofs").arg(image)),
        _ => run(Command::new("e2fsck").arg("-fn").arg(image)),
    };
}

fn file_system(image: &Path) -> &'static str {
    let mut magic = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&File::open(image).unwrap(), &mut magic, 1024)
        .unwrap();
    if magic == [0xe2, 0xe1, 0xf5, 0xe0] { "erofs" } else { "ext4" }
}

/// Lets `look` see an image mounted, in a mount name space of its own.
pub(crate) fn mounted<T: Send>(
    image: &Path,
    read_only: bool,
    look: impl FnOnce(&Path) -> T + Send,
) -> T {
    assert!(nix::unistd::geteuid().is_root(), "mounting needs root: run this test as root");
    let inside = || {
        // Descriptors of its own, too: a program that another test starts holds a copy of all open
        // files until it has executed, and one copy of a file in here makes umount fail.
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FILES).expect("unshare");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make / private");
        let target = TempDir::new().unwrap();
        let options = if read_only { "loop,ro" } else { "loop" };
        run(Command::new("mount")
            .args(["-t", file_system(image), "-o", options])
            .arg(image)
            .arg(target.path()));
        let seen = look(target.path());
        run(Command::new("umount").arg(target.path()));
        seen
    };
    std::thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(seen) => seen,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Runs a program that must succeed, and shows what it said if it does not.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    text
}

/// Everything about an entry that an image must keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) device: (u32, u32),
    /// Target of a symbolic link, hash of a file.
    pub(crate) content: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// The first name of the same inode.
    pub(crate) same_as: Option<PathBuf>,
}

pub(crate) type Snapshot = BTreeMap<PathBuf, Facts>;

pub(crate) fn snapshot(root: &Path) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut inodes = HashMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let mut content = Vec::new();
        let mut size = 0;
        if kind.is_dir() {
            let mut names: Vec<_> =
                path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort_by(|a, b| b.cmp(a));
            pending.extend(names);
        } else if kind.is_symlink() {
            content = path.read_link().unwrap().as_os_str().as_bytes().to_vec();
        } else if kind.is_file() {
            content = hash_file(&path);
            size = metadata.len();
        }
        let mut same_as = None;
        let relative = path.strip_prefix(root).unwrap().to_owned();
        if !kind.is_dir() && metadata.nlink() > 1 {
            let first = inodes.entry(metadata.ino()).or_insert_with(|| relative.clone());
            same_as = Some(first.clone());
        }
        let facts = Facts {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            device: (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev())),
            content,
            size,
            xattrs: xattrs(&path),
            same_as,
        };
        snapshot.insert(relative, facts);
    }
    snapshot
}

pub(crate) fn assert_same(expected: &Snapshot, found: &Snapshot) {
    for (path, facts) in expected {
        let other = found.get(path);
        assert_eq!(Some(facts), other, "{} differs", path.display());
    }
    let more: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(more.is_empty(), "the image has more entries: {more:?}");
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let read = |name: &[u8]| {
        let mut value = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        (String::from_utf8_lossy(name).into_owned(), value)
    };
    names.map(read).collect()
}

/// Zeros count by their place only, which makes long holes cheap.
fn hash_file(path: &Path) -> Vec<u8> {
    let mut hasher = DefaultHasher::new();
    let mut file = File::open(path).unwrap();
    let zeros = vec![0; 1 << 20];
    let mut buffer = zeros.clone();
    for chunk in 0_u64.. {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]).unwrap() {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            break;
        }
        if buffer[..filled] != zeros[..filled] {
            hasher.write_u64(chunk);
            hasher.write(&buffer[..filled]);
        }
    }
    hasher.finish().to_le_bytes().to_vec()
}
