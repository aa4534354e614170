//! Which modules the guest gets, in groups, and the order in which each group is loaded.

use std::collections::BTreeSet;

use crate::{Error, KernelPackage, elf::ModuleInfo, kernel::normal_name};

/// Modules that serve one purpose and are loaded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Its name, and that of its file below `/etc/linkspan/modules`.
    pub name: &'static str,
    /// Whether [`Modules::default`] has it.
    pub default: bool,
    /// Whether it is left out where the kernel lacks a module of it, unless it was asked for.
    pub optional: bool,
    /// Modules, in the order wanted, each with the reason it is there.
    pub modules: &'static [(&'static str, &'static str)],
}

/// All groups there are, in the order in which a guest wants them.
pub const GROUPS: &[Group] = &[
    Group {
        name: "vsock",
        default: true,
        optional: false,
        modules: &[
            ("virtio_pci", "the bus the vsock device sits on"),
            ("vmw_vsock_virtio_transport", "the bridge to the host, so it comes first"),
        ],
    },
    Group {
        name: "virtio",
        default: true,
        optional: false,
        modules: &[
            ("virtio_pci", "the bus"),
            ("virtio_scsi", "layer and scratch disks, plugged at run time"),
            ("sd_mod", "disks behind virtio_scsi"),
            ("virtio_net", "network adapters"),
        ],
    },
    Group {
        name: "hyperv",
        default: true,
        optional: false,
        modules: &[
            ("hv_vmbus", "the bus everything else sits on"),
            ("hv_sock", "the bridge to the host, so it comes first"),
            ("hv_storvsc", "layer and scratch disks"),
            ("sd_mod", "disks behind hv_storvsc"),
            ("hv_netvsc", "network adapters"),
            ("hv_utils", "the hyperv clock, for time synchronisation"),
        ],
    },
    Group {
        name: "storage",
        default: true,
        optional: false,
        modules: &[("overlay", "container roots")],
    },
    // From here on the agent loads a group when something asks for it, unless a comment says else.
    Group {
        name: "ext4",
        default: true,
        optional: true, // built into Debian's cloud kernels
        modules: &[("ext4", "layers and scratch disks")],
    },
    Group {
        name: "erofs",
        default: true,
        optional: false,
        modules: &[("erofs", "read-only layers")],
    },
    Group {
        name: "xfs",
        default: false,
        optional: false,
        modules: &[("xfs", "scratch disks; formatting them takes mkfs.xfs as well")],
    },
    Group {
        name: "pmem",
        default: true,
        optional: false,
        modules: &[
            ("nfit", "finds the host's NVDIMMs in ACPI"),
            ("nd_pmem", "layers on persistent memory"),
            ("dm_mod", "several layers on one device"),
        ],
    },
    Group {
        name: "verity",
        default: true,
        optional: false,
        modules: &[("dm_verity", "layers checked against their root hash")],
    },
    // Loaded at boot.
    Group {
        name: "network",
        default: true,
        optional: false,
        modules: &[("veth", "container network namespaces")],
    },
    Group {
        name: "vpci",
        default: false,
        optional: false,
        modules: &[("pci_hyperv", "devices assigned through Hyper-V")],
    },
    Group {
        name: "crypt",
        default: true,
        optional: true,
        modules: &[
            ("dm_crypt", "encrypted scratch"),
            ("dm_integrity", "its integrity tags"),
            ("authenc", "hmac(sha256) with xts(aes)"),
            ("xts", "xts(aes)"),
        ],
    },
    Group {
        name: "share",
        default: true,
        optional: true,
        modules: &[("virtiofs", "host directories under QEMU")],
    },
    Group {
        name: "9p",
        default: true,
        optional: true, // Debian's cloud kernels have none
        modules: &[
            ("9pnet_fd", "9p on a stream"),
            ("9p", "host directories, as hosts on Windows serve them"),
        ],
    },
    Group {
        name: "blk",
        default: false,
        optional: false,
        modules: &[("virtio_blk", "a root disk that is not SCSI")],
    },
    Group {
        name: "bridge",
        default: false,
        optional: false,
        modules: &[("bridge", "bridged container networks; larger than all other networking")],
    },
    Group {
        name: "memory",
        default: false,
        optional: false,
        modules: &[
            ("virtio_balloon", "giving memory back under QEMU"),
            ("virtio_mem", "adding memory under QEMU"),
        ],
    },
    Group {
        name: "loop",
        default: false,
        optional: false,
        modules: &[("loop", "mounting image files inside the guest")],
    },
];

/// A choice of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modules {
    groups: BTreeSet<&'static str>,
    /// Those of them that somebody has asked for by name.
    asked: BTreeSet<&'static str>,
}

impl Default for Modules {
    /// Everything a container host needs on QEMU and on Hyper-V.
    fn default() -> Self {
        Self {
            groups: GROUPS.iter().filter(|group| group.default).map(|group| group.name).collect(),
            asked: BTreeSet::new(),
        }
    }
}

impl Modules {
    /// None at all: for a kernel that has everything built in.
    #[must_use]
    pub fn none() -> Self {
        Self { groups: BTreeSet::new(), asked: BTreeSet::new() }
    }

    /// Containers under QEMU from SCSI disks: no Hyper-V, persistent memory or verity.
    #[must_use]
    pub fn minimal() -> Self {
        let groups = ["vsock", "virtio", "storage", "ext4", "network"].into();
        Self { groups, asked: BTreeSet::new() }
    }

    /// Adds a group.
    ///
    /// # Errors
    ///
    /// When there is no such group.
    pub fn with(mut self, name: &str) -> Result<Self, Error> {
        let name = known(name)?;
        self.groups.insert(name);
        self.asked.insert(name);
        Ok(self)
    }

    /// Leaves a group out.
    ///
    /// # Errors
    ///
    /// When there is no such group.
    pub fn without(mut self, name: &str) -> Result<Self, Error> {
        let name = known(name)?;
        self.groups.remove(name);
        self.asked.remove(name);
        Ok(self)
    }

    /// Whether a group may be left out because the kernel lacks a module of it.
    pub(crate) fn may_lack(&self, group: &Group) -> bool {
        group.optional && !self.asked.contains(group.name)
    }

    /// The chosen groups, in the order of [`GROUPS`].
    pub fn groups(&self) -> impl Iterator<Item = &'static Group> {
        GROUPS.iter().filter(|group| self.groups.contains(group.name))
    }
}

fn known(name: &str) -> Result<&'static str, Error> {
    GROUPS.iter().map(|group| group.name).find(|known| *known == name).ok_or_else(|| {
        let known: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
        Error::UnknownGroup { name: name.into(), known: known.join(", ") }
    })
}

/// Where the needs of modules come from.
pub(crate) trait ModuleSource {
    fn release(&self) -> &str;
    fn has(&self, name: &str) -> bool;
    fn is_builtin(&self, name: &str) -> bool;
    /// Only asked for what [`has`](Self::has) affirms.
    fn info(&mut self, name: &str) -> Result<ModuleInfo, Error>;
}

/// Modules of `kernel`, kept once read so that no module is decompressed twice.
pub(crate) struct KernelModules<'k> {
    pub(crate) kernel: &'k KernelPackage,
    pub(crate) read: std::collections::BTreeMap<String, (Vec<u8>, ModuleInfo)>,
}

impl ModuleSource for KernelModules<'_> {
    fn release(&self) -> &str {
        self.kernel.release()
    }

    fn has(&self, name: &str) -> bool {
        self.kernel.has_module(name)
    }

    fn is_builtin(&self, name: &str) -> bool {
        self.kernel.is_builtin(name)
    }

    fn info(&mut self, name: &str) -> Result<ModuleInfo, Error> {
        if !self.read.contains_key(name) {
            self.read.insert(name.into(), self.kernel.module(name)?);
        }
        Ok(self.read[name].1.clone())
    }
}

/// The modules behind `wanted` in load order, each after everything it depends on.
///
/// Built-in modules are left out. Soft dependencies that the kernel has not are left out too: it
/// does without them.
pub(crate) fn load_order(
    source: &mut dyn ModuleSource,
    wanted: &[(&str, &str)],
    group: &str,
) -> Result<Vec<String>, Error> {
    let mut walk = Walk { source, order: Vec::new(), open: Vec::new() };
    for (name, _) in wanted {
        walk.visit(&normal_name(name), &format!("group {group:?}"))?;
    }
    Ok(walk.order)
}

struct Walk<'s> {
    source: &'s mut dyn ModuleSource,
    order: Vec<String>,
    open: Vec<String>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str, wanted_by: &str) -> Result<(), Error> {
        if self.order.iter().any(|done| done == name) {
            return Ok(());
        }
        if !self.source.has(name) {
            if self.source.is_builtin(name) {
                return Ok(());
            }
            return Err(Error::NoModule {
                release: self.source.release().into(),
                module: name.into(),
                wanted_by: wanted_by.into(),
            });
        }
        if self.open.iter().any(|open| open == name) {
            return Err(Error::ModuleCycle {
                release: self.source.release().into(),
                module: name.into(),
                through: self.open.last().cloned().unwrap_or_default(),
            });
        }
        let info = self.source.info(name)?;
        self.open.push(name.into());
        let by = format!("module {name:?}");
        self.visit_soft(&info.before, &by)?;
        for needed in &info.depends {
            self.visit(&normal_name(needed), &by)?;
        }
        self.open.pop();
        // Something before it may have had it as its own soft dependency.
        if !self.order.iter().any(|done| done == name) {
            self.order.push(name.into());
        }
        self.visit_soft(&info.after, &by)
    }

    fn visit_soft(&mut self, names: &[String], by: &str) -> Result<(), Error> {
        for name in names.iter().map(|name| normal_name(name)) {
            if !self.source.has(&name) || self.open.contains(&name) {
                continue;
            }
            let depth = self.open.len();
            match self.visit(&name, by) {
                // A wish that cannot be ordered is not a need.
                Err(Error::ModuleCycle { .. }) => self.open.truncate(depth),
                other => other?,
            }
        }
        Ok(())
    }
}
