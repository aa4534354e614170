//! A small kernel package in every packing, and a reader for what is built of it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use linkspan_initrd::KernelPackage;
use object::write::{Object, StandardSegment, Symbol, SymbolSection};
use tempfile::TempDir;

pub(crate) const RELEASE: &str = "6.1.0-test-amd64";

/// How the kernel is packed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Packing {
    Tree,
    Plain,
    Gz,
    Xz,
    Zst,
}

/// A directory for one test.
pub(crate) struct Scene {
    dir: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        scene.write("agent", &executable(None), 0o700);
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.path("agent")
    }

    pub(crate) fn write(&self, name: &str, data: &[u8], mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Dates every file lying directly in the scene, so that two scenes differ.
    pub(crate) fn age(&self, seconds: u64) {
        for entry in fs::read_dir(self.dir.path()).unwrap().flatten() {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::open(entry.path()).unwrap().set_modified(time).unwrap();
        }
    }

    pub(crate) fn tree(&self) -> KernelPackage {
        KernelPackage::open(&self.package(Packing::Tree)).unwrap()
    }

    /// The tree again, with what the test has changed in it.
    pub(crate) fn tree_as_is(&self) -> KernelPackage {
        KernelPackage::open(&self.path("tree")).unwrap()
    }

    /// The file of a module in the tree.
    pub(crate) fn module_file(&self, name: &str) -> PathBuf {
        let files = kernel_files();
        let wanted = |path: &String| path.contains(&format!("/{name}.ko"));
        self.path("tree").join(files.into_iter().map(|(path, _)| path).find(wanted).unwrap())
    }

    pub(crate) fn package(&self, packing: Packing) -> PathBuf {
        if let Packing::Tree = packing {
            for (path, data) in kernel_files() {
                self.write(&format!("tree/{path}"), &data, 0o644);
            }
            return self.path("tree");
        }
        let mut tar = tar::Builder::new(Vec::new());
        for (path, data) in kernel_files() {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("./{path}"), data.as_slice()).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let (name, data) = match packing {
            Packing::Tree | Packing::Plain => ("data.tar", tar),
            Packing::Gz => ("data.tar.gz", gzip(&tar)),
            Packing::Xz => ("data.tar.xz", xz(&tar)),
            Packing::Zst => ("data.tar.zst", zstd(&tar)),
        };
        let control = ("control.tar", Vec::new());
        self.deb(&[("debian-binary", b"2.0\n".to_vec()), control, (name, data)])
    }

    pub(crate) fn deb(&self, members: &[(&str, Vec<u8>)]) -> PathBuf {
        let path = self.path("linux.deb");
        let mut deb = ar::Builder::new(File::create(&path).unwrap());
        for (name, data) in members {
            let header = ar::Header::new(name.as_bytes().to_vec(), data.len() as u64);
            deb.append(&header, data.as_slice()).unwrap();
        }
        path
    }
}

/// Modules in several compressions: `virtio_pci` needs `virtio` and the built-in `crc`, the vsock
/// transport names `vsock` and one module that does not exist as soft dependencies.
fn kernel_files() -> Vec<(String, Vec<u8>)> {
    let under = |path: &str| format!("lib/modules/{RELEASE}/{path}");
    let soft = "pre: vsock no_such_module";
    vec![
        (format!("boot/vmlinuz-{RELEASE}"), b"not quite a kernel".to_vec()),
        (format!("boot/config-{RELEASE}"), b"CONFIG_X=y\n".to_vec()),
        (under("modules.builtin"), b"kernel/lib/crc.ko\nkernel/fs/ext4/ext4.ko\n".to_vec()),
        (under("kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko"), module("virtio", soft)),
        (under("kernel/net/vmw_vsock/vsock.ko"), module("", "")),
        (under("kernel/drivers/virtio/virtio-pci.ko.xz"), xz(&module("virtio,crc", ""))),
        (under("kernel/drivers/virtio/virtio.ko.zst"), zstd(&module("", ""))),
        (under("kernel/fs/overlay.ko"), module("", "")),
        (under("kernel/fs/erofs.ko.gz"), gzip(&module("", ""))),
    ]
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

fn xz(data: &[u8]) -> Vec<u8> {
    let mut out = liblzma::write::XzEncoder::new(Vec::new(), 6);
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    // With a checksum, as packages have it, or a flipped literal would pass.
    let mut out = ::zstd::Encoder::new(Vec::new(), 3).unwrap();
    out.include_checksum(true).unwrap();
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

/// A relocatable ELF file with what a module has: `.modinfo`, symbols, BTF, a signature.
pub(crate) fn module(depends: &str, softdep: &str) -> Vec<u8> {
    use object::{
        Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    };
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let data_segment = object.segment_name(StandardSegment::Data).to_vec();
    let mut section = |name: &str, data: &[u8], kind| {
        let id = object.add_section(data_segment.clone(), name.as_bytes().to_vec(), kind);
        object.append_section_data(id, data, 8);
        id
    };
    let mut info = format!("license=GPL\0depends={depends}\0");
    if !softdep.is_empty() {
        info.push_str(&format!("softdep={softdep}\0"));
    }
    section(".modinfo", info.as_bytes(), SectionKind::ReadOnlyData);
    section(".BTF", &[0x9f; 400], SectionKind::Other);
    let text = section(".text", &[0xc3; 16], SectionKind::Text);
    for (name, scope) in
        [("init_module", SymbolScope::Linkage), ("unused_local", SymbolScope::Compilation)]
    {
        object.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: 1,
            kind: SymbolKind::Text,
            scope,
            weak: false,
            section: SymbolSection::Section(text),
            flags: SymbolFlags::None,
        });
    }
    let mut data = object.write().unwrap();
    data.extend_from_slice(b"signature~Module signature appended~\n");
    data
}

/// The smallest ELF executable that says which interpreter it wants.
pub(crate) fn executable(interpreter: Option<&str>) -> Vec<u8> {
    let mut data = vec![0; 64];
    data[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2_u16.to_le_bytes()); // ET_EXEC
    put(18, &62_u16.to_le_bytes()); // EM_X86_64
    put(20, &1_u32.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    if let Some(path) = interpreter {
        put(32, &64_u64.to_le_bytes()); // e_phoff
        put(54, &56_u16.to_le_bytes()); // e_phentsize
        put(56, &1_u16.to_le_bytes()); // e_phnum
        let size = path.len() as u64 + 1;
        for word in [3 | 4 << 32, 120, 0, 0, size, size, 1_u64] {
            data.extend_from_slice(&word.to_le_bytes()); // PT_INTERP, at offset 120
        }
        data.extend_from_slice(path.as_bytes());
        data.push(0);
    }
    data
}

/// An entry of a newc archive.
#[derive(Debug)]
pub(crate) struct CpioEntry {
    pub(crate) ino: u32,
    pub(crate) mode: u32,
    pub(crate) mtime: u32,
    pub(crate) rdev: (u32, u32),
    pub(crate) data: Vec<u8>,
}

/// Reads a newc archive and checks that owner and device are 0.
pub(crate) fn read_cpio(mut rest: &[u8]) -> Vec<(String, CpioEntry)> {
    let mut entries = Vec::new();
    loop {
        assert_eq!(&rest[..6], b"070701");
        let field = |n: usize| {
            let text = std::str::from_utf8(&rest[6 + n * 8..14 + n * 8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        let (size, name_size) = (field(6) as usize, field(11) as usize);
        let name = String::from_utf8(rest[110..110 + name_size - 1].to_vec()).unwrap();
        let data_at = (110 + name_size).next_multiple_of(4);
        if name == "TRAILER!!!" {
            return entries;
        }
        for owner in [2, 3, 7, 8] {
            assert_eq!(field(owner), 0, "{name}");
        }
        let data = rest[data_at..data_at + size].to_vec();
        let (ino, mode, mtime, rdev) = (field(0), field(1), field(5), (field(9), field(10)));
        entries.push((name, CpioEntry { ino, mode, mtime, rdev, data }));
        rest = &rest[(data_at + size).next_multiple_of(4)..];
    }
}
