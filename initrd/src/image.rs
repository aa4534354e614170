//! Puts everything together and writes the outputs, all of them or none.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::{
    Category, Compression, Error, Event, ForeignAgent, GuestPath, KernelPackage, ModuleForm,
    Modules, SizeTable, Step, agent, archive, elf,
    modules::{KernelModules, ModuleSource, load_order},
    progress,
    tree::{Node, Tree},
    vmlinux,
};

/// Directories of an empty guest; the agent mounts over most of them.
const DIRECTORIES: &[(&str, u32)] = &[
    ("/bin", 0o755),
    ("/dev", 0o755),
    ("/etc/linkspan/modules", 0o755),
    ("/lib/modules", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/var", 0o755),
];

/// Describes a boot image, then builds it.
#[derive(Debug, Clone)]
pub struct ImageBuilder<'k> {
    kernel: &'k KernelPackage,
    agent: PathBuf,
    foreign: Option<ForeignAgent>,
    vmbus: bool,
    modules: Modules,
    form: ModuleForm,
    compression: Compression,
    mtime: u32,
    vmlinux: bool,
    added: Vec<(PathBuf, GuestPath)>,
}

/// An output file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// A built boot image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Image {
    /// The kernel's release.
    pub release: String,
    /// The kernel as shipped.
    pub vmlinuz: BootFile,
    /// The kernel uncompressed, if it was asked for.
    pub vmlinux: Option<BootFile>,
    /// The initial root file system.
    pub initrd: BootFile,
    /// What in it takes how much room.
    pub sizes: SizeTable,
}

impl<'k> ImageBuilder<'k> {
    /// An image of `kernel` with the binary at `agent` as `/init`.
    pub fn new(kernel: &'k KernelPackage, agent: impl Into<PathBuf>) -> Self {
        Self {
            kernel,
            agent: agent.into(),
            foreign: None,
            vmbus: false,
            modules: Modules::default(),
            form: ModuleForm::default(),
            compression: Compression::default(),
            mtime: 0,
            vmlinux: false,
            added: Vec::new(),
        }
    }

    /// Has `/init` supervise another agent.
    #[must_use]
    pub fn foreign_agent(mut self, agent: ForeignAgent) -> Self {
        self.foreign = Some(agent);
        self
    }

    /// Has `/init` give virtio devices the names that they would have on VMBus before it starts the
    /// other agent: for one that was written for Hyper-V and looks for its devices nowhere else.
    #[must_use]
    pub fn vmbus_compat(mut self, wanted: bool) -> Self {
        self.vmbus = wanted;
        self
    }

    /// Chooses module groups instead of the default ones.
    #[must_use]
    pub fn modules(mut self, modules: Modules) -> Self {
        self.modules = modules;
        self
    }

    /// Chooses what of each module is taken.
    #[must_use]
    pub fn module_form(mut self, form: ModuleForm) -> Self {
        self.form = form;
        self
    }

    /// Chooses the initrd's compression.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Dates every file, in seconds since 1970; 0 unless told. See [`source_date_epoch`].
    #[must_use]
    pub fn mtime(mut self, mtime: u32) -> Self {
        self.mtime = mtime;
        self
    }

    /// Also puts out `vmlinux`, the uncompressed kernel with its PVH entry.
    #[must_use]
    pub fn vmlinux(mut self, wanted: bool) -> Self {
        self.vmlinux = wanted;
        self
    }

    /// Adds a regular file with its own mode, owner 0:0.
    #[must_use]
    pub fn add(mut self, file: impl Into<PathBuf>, guest_path: GuestPath) -> Self {
        self.added.push((file.into(), guest_path));
        self
    }

    /// Adds a file given as `FILE:GUESTPATH`. The last colon divides.
    ///
    /// # Errors
    ///
    /// When there is no colon, nothing before it, or no plain absolute path after it.
    pub fn add_spec(self, spec: &str) -> Result<Self, Error> {
        match spec.rsplit_once(':') {
            Some((file, guest_path)) if !file.is_empty() => Ok(self.add(file, guest_path.parse()?)),
            _ => Err(Error::BadAddition { value: spec.into() }),
        }
    }

    /// Builds `vmlinuz`, `initrd` and, if asked for, `vmlinux` in `directory`, which is made if it
    /// is not there. Nothing is left behind on failure; files of an earlier build are replaced.
    ///
    /// # Errors
    ///
    /// When an input cannot be read or does not fit, or an output cannot be written.
    pub fn build(&self, directory: &Path, on_event: &mut dyn FnMut(Event)) -> Result<Image, Error> {
        let tree = self.tree(on_event)?;
        let archive = archive::write(&tree, self.mtime)?;
        let raw = archive.len() as u64;
        let initrd = progress::step(on_event, Step::Compress, Some(raw), |advance| {
            self.compression.compress(&archive, advance)
        })?;
        drop(archive);
        let sizes = SizeTable::new(&tree, raw, initrd.len() as u64, self.compression)?;
        let vmlinuz = self.kernel.vmlinuz()?;
        let vmlinux = match self.vmlinux {
            false => None,
            true => Some(progress::step(on_event, Step::Vmlinux, None, |advance| {
                let kernel = vmlinux::extract(&vmlinuz, self.kernel.release())?;
                advance(kernel.len() as u64);
                Ok::<_, Error>(kernel)
            })?),
        };
        let mut outputs = vec![("vmlinuz", vmlinuz), ("initrd", initrd)];
        outputs.extend(vmlinux.map(|kernel| ("vmlinux", kernel)));
        let total = outputs.iter().map(|(_, data)| data.len() as u64).sum();
        let mut written = progress::step(on_event, Step::Write, Some(total), |advance| {
            write_all(directory, &outputs, advance)
        })?
        .into_iter();
        let mut next = || written.next().expect("one file is written for each output");
        Ok(Image {
            release: self.kernel.release().into(),
            vmlinuz: next(),
            initrd: next(),
            vmlinux: self.vmlinux.then(next),
            sizes,
        })
    }

    fn tree(&self, on_event: &mut dyn FnMut(Event)) -> Result<Tree, Error> {
        let mut tree = Tree::default();
        for (path, mode) in DIRECTORIES {
            tree.add(path, Node::Directory { mode: *mode }, Category::Other, "a directory")?;
        }
        let console = Node::CharDevice { mode: 0o600, major: 5, minor: 1 };
        tree.add("/dev/console", console, Category::Other, "the console")?;

        let (program, _) = agent::read_file("agent", &self.agent)?;
        for (file, guest_path) in &self.added {
            let (data, meta) = agent::read_file("file to add", file)?;
            let node = Node::File { mode: meta.permissions().mode() & 0o7777, data };
            tree.add(guest_path.as_str(), node, Category::Added, format!("--add {file:?}"))?;
        }
        agent::check_program("agent", &self.agent, &program, &tree)?;
        let init = Node::File { mode: 0o755, data: program };
        tree.add("/init", init, Category::Agent, format!("agent {:?}", self.agent))?;
        // All but the first are what other hosts, and hooks, call it by.
        for name in [
            "/bin/linkspan-guest",
            "/bin/gcs",
            "/bin/vsockexec",
            "/bin/generichook",
            "/bin/install-drivers",
            "/bin/wait-paths",
        ] {
            let link = Node::Symlink { target: "/init".into() };
            if self.foreign.as_ref().is_none_or(|foreign| foreign.guest_path.as_str() != name) {
                tree.add(name, link, Category::Other, "a name of the agent")?;
            }
        }

        if let Some(foreign) = &self.foreign {
            let what = "foreign agent";
            let (data, _) = agent::read_file(what, &foreign.file)?;
            agent::check_program(what, &foreign.file, &data, &tree)?;
            let origin = format!("{what} {:?}", foreign.file);
            let node = Node::File { mode: 0o755, data };
            tree.add(foreign.guest_path.as_str(), node, Category::Agent, origin)?;
            let config = Node::File { mode: 0o644, data: foreign.config()?.into_bytes() };
            tree.add("/etc/linkspan/agent", config, Category::Other, "the agent to run")?;
        }
        if self.vmbus {
            let marker = Node::File { mode: 0o644, data: Vec::new() };
            tree.add("/etc/linkspan/vmbus", marker, Category::Other, "the wish for VMBus names")?;
        }
        progress::step(on_event, Step::Modules, None, |advance| {
            self.add_modules(&mut tree, advance)
        })?;
        Ok(tree)
    }

    fn add_modules(&self, tree: &mut Tree, advance: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let directory = format!("/lib/modules/{}", self.kernel.release());
        let mut source = KernelModules { kernel: self.kernel, read: BTreeMap::new() };
        for group in self.modules.groups() {
            let mut list = String::new();
            let order = match load_order(&mut source, group.modules, group.name) {
                Err(Error::NoModule { .. }) if self.modules.may_lack(group) => continue,
                order => order?,
            };
            for name in order {
                let path = format!("{directory}/{name}.ko");
                list.push_str(&path);
                list.push('\n');
                if tree.contains(&path) {
                    continue;
                }
                source.info(&name)?;
                let Some((data, _)) = source.read.get_mut(&name) else { continue };
                let data = elf::shape_module(std::mem::take(data), self.form)
                    .map_err(|reason| Error::BadModule { module: name.clone(), reason })?;
                advance(data.len() as u64);
                let node = Node::File { mode: 0o644, data };
                tree.add(&path, node, Category::Modules(group.name), format!("module {name:?}"))?;
            }
            let path = format!("/etc/linkspan/modules/{}", group.name);
            let node = Node::File { mode: 0o644, data: list.into_bytes() };
            tree.add(&path, node, Category::Other, format!("module group {:?}", group.name))?;
        }
        Ok(())
    }
}

fn write_all(
    directory: &Path,
    outputs: &[(&str, Vec<u8>)],
    advance: &mut dyn FnMut(u64),
) -> Result<Vec<BootFile>, Error> {
    fs::create_dir_all(directory).map_err(Error::write(directory))?;
    let mut ready = Vec::new();
    for (name, data) in outputs {
        let path = directory.join(name);
        let mut file = NamedTempFile::new_in(directory).map_err(Error::write(&path))?;
        file.write_all(data).map_err(Error::write(&path))?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))
            .map_err(Error::write(&path))?;
        advance(data.len() as u64);
        let bytes = data.len() as u64;
        ready.push((file, BootFile { path, bytes, sha256: sha256(data) }));
    }
    let mut done: Vec<BootFile> = Vec::new();
    for (file, output) in ready {
        if let Err(error) = file.persist(&output.path) {
            // The directory must not show a kernel without its initrd.
            for half in &done {
                let _ = fs::remove_file(&half.path);
            }
            return Err(Error::write(&output.path)(error.error));
        }
        done.push(output);
    }
    Ok(done)
}

/// The SHA-256 of `data` in lower-case hexadecimal.
pub(crate) fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The date that `SOURCE_DATE_EPOCH` asks for, for [`ImageBuilder::mtime`].
///
/// # Errors
///
/// When it is set and not a number of seconds that fits 32 bits.
pub fn source_date_epoch() -> Result<Option<u32>, Error> {
    let Some(value) = env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let value = value.to_string_lossy().into_owned();
    match value.parse() {
        Ok(seconds) => Ok(Some(seconds)),
        Err(_) => Err(Error::BadSetting {
            field: "SOURCE_DATE_EPOCH",
            value,
            reason: "is not a number of seconds from 0 to 4294967295",
        }),
    }
}
