//! A kernel package, opened: where its kernel and each of its modules lie.
//!
//! A `.deb` is read once, as a stream; what may be needed later is put aside in an unnamed
//! temporary file, so memory stays small and most modules are never decompressed. Dependencies
//! come from the modules themselves (`.modinfo`), for `modules.dep` is made at installation and
//! is in no package.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    Error, Event, Step,
    compression::expand,
    elf::{self, ModuleInfo},
    progress,
};

/// An opened kernel package.
#[derive(Debug)]
pub struct KernelPackage {
    release: String,
    vmlinuz: Blob,
    modules: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
    spool: Option<File>,
}

#[derive(Debug)]
struct Module {
    /// Its path in the package, for messages.
    path: String,
    blob: Blob,
}

#[derive(Debug)]
enum Blob {
    File(PathBuf),
    Spooled { offset: u64, len: usize },
}

/// What has been found so far, by package-relative path.
#[derive(Default)]
struct Found {
    kernels: BTreeMap<String, Blob>,
    modules: BTreeMap<String, BTreeMap<String, Module>>,
    builtin: BTreeMap<String, BTreeSet<String>>,
}

/// What a file in the package is good for.
enum Role<'a> {
    Kernel { release: &'a str },
    Module { release: &'a str, name: String },
    Builtin { release: &'a str },
}

impl KernelPackage {
    /// Opens a Debian package or the tree it unpacks to.
    ///
    /// # Errors
    ///
    /// When `path` is neither, is damaged, or has no kernel or several.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, &mut |_| {})
    }

    /// The same, reporting [`Step::Unpack`].
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(path: &Path, on_event: &mut dyn FnMut(Event)) -> Result<Self, Error> {
        let read = Error::read("kernel package", path);
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) => return Err(read(error)),
        };
        let total = meta.is_file().then_some(meta.len());
        progress::step(on_event, Step::Unpack, total, |advance| {
            if meta.is_dir() { open_tree(path) } else { open_deb(path, advance) }
        })
    }

    /// The kernel's release, such as `6.1.0-56-cloud-amd64`.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The names of all modules that are files, normalised to `_`.
    pub fn module_names(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    pub(crate) fn has_module(&self, name: &str) -> bool {
        self.modules.contains_key(&normal_name(name))
    }

    pub(crate) fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(&normal_name(name))
    }

    /// The kernel image as shipped.
    pub(crate) fn vmlinuz(&self) -> Result<Vec<u8>, Error> {
        self.read(&self.vmlinuz)
    }

    /// A module, decompressed, and what it needs. The module must exist.
    pub(crate) fn module(&self, name: &str) -> Result<(Vec<u8>, ModuleInfo), Error> {
        let module = &self.modules[&normal_name(name)];
        let bad = |reason| Error::BadModule { module: module.path.clone(), reason };
        let data = expand(self.read(&module.blob)?).map_err(|error| bad(error.to_string()))?;
        let info = elf::module_info(&data).map_err(bad)?;
        Ok((data, info))
    }

    fn read(&self, blob: &Blob) -> Result<Vec<u8>, Error> {
        match blob {
            Blob::File(path) => fs::read(path).map_err(Error::read("kernel file", path)),
            Blob::Spooled { offset, len } => {
                let mut data = vec![0; *len];
                let spool = self.spool.as_ref().expect("spooled blobs come with a spool");
                spool
                    .read_exact_at(&mut data, *offset)
                    .map_err(Error::read("kernel file", "(temporary file)"))?;
                Ok(data)
            }
        }
    }
}

/// Module names mean the same with `-` and `_`.
pub(crate) fn normal_name(name: &str) -> String {
    name.replace('-', "_")
}

/// `kernel/fs/fuse/virtiofs.ko.xz` is called `virtiofs`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem =
        [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| file.strip_suffix(end))?;
    Some(normal_name(stem))
}

fn role(path: &str) -> Option<Role<'_>> {
    let path = path.strip_prefix("usr/").unwrap_or(path);
    if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
        return (!release.contains('/')).then_some(Role::Kernel { release });
    }
    let (release, rest) = path.strip_prefix("lib/modules/")?.split_once('/')?;
    if rest == "modules.builtin" {
        return Some(Role::Builtin { release });
    }
    Some(Role::Module { release, name: module_name(rest)? })
}

impl Found {
    /// Of two modules of one name, that below `updates/` counts, as it does for `depmod`.
    fn module(&mut self, release: &str, name: String, module: Module) {
        let rank = |module: &Module| (!module.path.contains("/updates/"), module.path.clone());
        let modules = self.modules.entry(release.into()).or_default();
        if modules.get(&name).is_none_or(|known| rank(&module) < rank(known)) {
            modules.insert(name, module);
        }
    }

    fn builtin_list(&mut self, release: &str, text: &str) {
        let names = text.lines().filter_map(module_name).collect();
        self.builtin.insert(release.into(), names);
    }

    fn finish(mut self, path: &Path, spool: Option<File>) -> Result<KernelPackage, Error> {
        if self.kernels.len() > 1 {
            let releases = self.kernels.into_keys().collect();
            return Err(Error::SeveralKernels { path: path.into(), releases });
        }
        let Some((release, vmlinuz)) = self.kernels.pop_first() else {
            return Err(Error::NoKernel { path: path.into() });
        };
        let modules = self.modules.remove(&release).unwrap_or_default();
        let builtin = self.builtin.remove(&release).unwrap_or_default();
        Ok(KernelPackage { release, vmlinuz, modules, builtin, spool })
    }
}

fn open_tree(root: &Path) -> Result<KernelPackage, Error> {
    let mut found = Found::default();
    let mut pending = vec!["boot".to_owned()];
    for base in ["lib/modules", "usr/lib/modules"] {
        // On a merged-/usr system the two are one.
        if root.join(base).is_dir() {
            pending.push(base.into());
            break;
        }
    }
    while let Some(dir) = pending.pop() {
        let full = root.join(&dir);
        let entries = match fs::read_dir(&full) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::read("directory of kernel package", full)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(Error::read("directory of kernel package", &full))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let path = format!("{dir}/{name}");
            let kind = entry.file_type().map_err(Error::read("kernel file", entry.path()))?;
            if kind.is_dir() && !dir.starts_with("boot") {
                pending.push(path);
                continue;
            }
            if !kind.is_file() {
                continue;
            }
            let blob = Blob::File(entry.path());
            match role(&path) {
                Some(Role::Kernel { release }) => {
                    found.kernels.insert(release.into(), blob);
                }
                Some(Role::Module { release, name }) => {
                    let module = Module { path: path.clone(), blob };
                    found.module(release, name, module);
                }
                Some(Role::Builtin { release }) => {
                    let text = fs::read_to_string(entry.path())
                        .map_err(Error::read("modules.builtin", entry.path()))?;
                    found.builtin_list(release, &text);
                }
                None => {}
            }
        }
    }
    found.finish(root, None)
}

fn open_deb(path: &Path, advance: &mut dyn FnMut(u64)) -> Result<KernelPackage, Error> {
    let file = File::open(path).map_err(Error::read("kernel package", path))?;
    let not_deb = |reason: String| Error::NotADeb { path: path.into(), reason };
    let mut deb = ar::Archive::new(io::BufReader::new(Counted { inner: file, advance }));
    let mut first = true;
    while let Some(member) = deb.next_entry() {
        let member = member.map_err(|error| not_deb(error.to_string()))?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let name = name.trim_end_matches('/');
        if std::mem::take(&mut first) && name != "debian-binary" {
            return Err(not_deb(format!("its first member is {name:?}, not \"debian-binary\"")));
        }
        let decoder: Box<dyn Read + '_> = match name {
            "data.tar" => Box::new(member),
            "data.tar.gz" => Box::new(flate2::read::MultiGzDecoder::new(member)),
            "data.tar.xz" => Box::new(liblzma::read::XzDecoder::new_multi_decoder(member)),
            "data.tar.zst" => {
                Box::new(zstd::Decoder::new(member).map_err(|error| not_deb(error.to_string()))?)
            }
            other if other.starts_with("data.tar") => {
                return Err(not_deb(format!("it has {other}, a compression not known here")));
            }
            _ => continue,
        };
        let unpack = |source| Error::Unpack { path: path.into(), member: name.into(), source };
        let (found, spool) = read_tar(decoder).map_err(unpack)?;
        return found.finish(path, Some(spool));
    }
    Err(not_deb(if first { "it is empty".into() } else { "it has no data.tar".into() }))
}

fn read_tar(reader: impl Read) -> io::Result<(Found, File)> {
    let mut found = Found::default();
    let mut spool = tempfile::tempfile()?;
    let mut tar = tar::Archive::new(reader);
    for entry in tar.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = path.trim_start_matches("./").trim_start_matches('/');
        match role(path) {
            Some(Role::Kernel { release }) => {
                let blob = put_aside(&mut spool, &mut entry)?;
                found.kernels.insert(release.into(), blob);
            }
            Some(Role::Module { release, name }) => {
                let module = Module { path: path.into(), blob: put_aside(&mut spool, &mut entry)? };
                found.module(release, name, module);
            }
            Some(Role::Builtin { release }) => {
                let mut text = String::new();
                entry.read_to_string(&mut text)?;
                found.builtin_list(release, &text);
            }
            None => {}
        }
    }
    spool.flush()?;
    Ok((found, spool))
}

fn put_aside(spool: &mut File, entry: &mut impl Read) -> io::Result<Blob> {
    let offset = spool.seek(SeekFrom::End(0))?;
    let len = io::copy(entry, spool)?;
    let len = usize::try_from(len).map_err(io::Error::other)?;
    Ok(Blob::Spooled { offset, len })
}

/// Reports the bytes that pass.
struct Counted<'a> {
    inner: File,
    advance: &'a mut dyn FnMut(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        (self.advance)(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_updated_module_counts_in_whatever_order_they_are_found() {
        let paths = ["lib/modules/6.1/kernel/a.ko", "lib/modules/6.1/updates/a.ko"];
        for order in [[0, 1], [1, 0]] {
            let mut found = Found::default();
            for index in order {
                let path = paths[index].to_owned();
                let blob = Blob::Spooled { offset: 0, len: 0 };
                found.module("6.1", "a".into(), Module { path, blob });
            }
            assert_eq!(found.modules["6.1"]["a"].path, paths[1]);
        }
    }

    #[test]
    fn files_of_a_package_are_told_by_where_they_lie() {
        assert!(matches!(role("boot/vmlinuz-6.1"), Some(Role::Kernel { release: "6.1" })));
        assert!(matches!(
            role("usr/lib/modules/6.1/kernel/fs/virtio-fs.ko.xz"),
            Some(Role::Module { release: "6.1", name }) if name == "virtio_fs"
        ));
        assert!(matches!(role("lib/modules/6.1/modules.builtin"), Some(Role::Builtin { .. })));
        for other in
            ["boot/config-6.1", "boot/vmlinuz-6.1/x", "lib/modules/6.1/modules.order", "x.ko"]
        {
            assert!(role(other).is_none(), "{other}");
        }
    }
}
