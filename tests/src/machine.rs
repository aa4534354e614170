//! How machines are described.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use linkspan_host::{Backend, Builder, UtilityVm};

use crate::places::{image, rootfs};

/// A machine on the image under test. Its root has `/bin/busybox`, to look around with.
pub fn machine(name: &str, backend: Backend) -> Builder {
    let builder = UtilityVm::builder(name).image(image()).backend(backend);
    match backend {
        Backend::Qemu => builder.initrd(initrd_with_shell()),
        Backend::Loopback => builder,
    }
}

/// The guest agent of the image under test.
pub fn agent() -> PathBuf {
    image().join("agent")
}

/// The root file system as a layer image that QEMU need not make anew each time. The path leads
/// to an unnamed file of this process.
pub fn layer_image() -> PathBuf {
    static IMAGE: OnceLock<File> = OnceLock::new();
    path_of(IMAGE.get_or_init(|| {
        let file = tempfile::tempfile().expect("make an unnamed file");
        let options = linkspan_layer::Options::default();
        linkspan_layer::build_image(&rootfs(), &file, options, |_| {}).expect("make a layer image");
        file
    }))
}

/// A file in the guest.
type Added<'a> = (&'a str, u32, Vec<u8>);

/// The image's initrd with an uncompressed archive behind it, which the kernel unpacks as well.
fn initrd_with(files: &[Added<'_>]) -> File {
    let mut initrd = fs::read(image().join("initrd")).expect("read the initrd");
    initrd.resize(initrd.len().next_multiple_of(512), 0);
    for (number, (name, mode, contents)) in (4711..).zip(files) {
        let size = u32::try_from(contents.len()).expect("a small file");
        let entry = cpio::newc::Builder::new(name).mode(*mode).nlink(1).ino(number);
        let mut writer = entry.write(&mut initrd, size);
        writer.write_all(contents).expect("write to memory");
        writer.finish().expect("write to memory");
    }
    cpio::newc::trailer(&mut initrd).expect("write to memory");
    let mut file = tempfile::tempfile().expect("make an unnamed file");
    file.write_all(&initrd).expect("write the initrd");
    file.seek(SeekFrom::Start(0)).expect("rewind the initrd");
    file
}

fn shell() -> Added<'static> {
    let program = fs::read(rootfs().join("bin/busybox")).expect("read busybox");
    ("bin/busybox", 0o100_755, program)
}

fn initrd_with_shell() -> PathBuf {
    static INITRD: OnceLock<File> = OnceLock::new();
    path_of(INITRD.get_or_init(|| initrd_with(&[shell()])))
}

/// A machine under QEMU in which our agent takes the place of one that was written for Hyper-V: it
/// is started by `/init` as somebody else's, and finds its devices under VMBus names.
pub fn machine_with_vmbus_names(name: &str) -> Builder {
    static INITRD: OnceLock<File> = OnceLock::new();
    let initrd = INITRD.get_or_init(|| {
        let agent = b"/bin/gcs\n-v4\n-log-format=json\n-log-port=109\n".to_vec();
        initrd_with(&[
            shell(),
            ("etc/linkspan/agent", 0o100_644, agent),
            ("etc/linkspan/vmbus", 0o100_644, Vec::new()),
        ])
    });
    UtilityVm::builder(name).image(image()).initrd(path_of(initrd))
}

/// A path by which other processes find an unnamed file of ours.
fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}
