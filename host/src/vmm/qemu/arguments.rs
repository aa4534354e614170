//! QEMU's command line. Pure: options and descriptor numbers in, arguments out.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use super::error::QemuError;
use super::shares::port_name;
use crate::network::UserNetwork;

/// SCSI controllers of a machine.
pub(super) const CONTROLLERS: u8 = 4;

/// Addresses that are set aside for persistent memory, if there is to be any, in MiB. They are just
/// numbers until something is there.
const PMEM_MIB: u64 = 256 << 10;

/// What runs the guest's instructions. Decided, unlike [`Accel`](super::Accel).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The vsock device.
#[derive(Debug, Clone, Copy)]
pub(super) enum VsockArguments {
    /// One of ours behind this descriptor.
    User { socket: RawFd },
    /// The kernel's.
    Kernel { device: RawFd, cid: u64 },
}

/// All that the command line depends on.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) name: &'a str,
    pub(super) kernel: &'a Path,
    pub(super) initrd: Option<&'a Path>,
    pub(super) kernel_arguments: &'a [String],
    pub(super) memory_mib: u32,
    /// Pieces of persistent memory that may be added.
    pub(super) pmem: u32,
    /// Directories that may be shared.
    pub(super) shares: u32,
    pub(super) cpus: u32,
    pub(super) accelerator: Accelerator,
    pub(super) icount: bool,
    pub(super) console: RawFd,
    pub(super) monitor: Option<RawFd>,
    pub(super) vsock: Option<VsockArguments>,
    pub(super) network: Option<&'a UserNetwork>,
    pub(super) extra: &'a [OsString],
}

impl Machine<'_> {
    /// The arguments, the program's name not among them.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut line = Line(Vec::new());
        line.option("-name", escape(self.name));
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            line.0.push(flag.into());
        }
        line.option("-display", "none");
        line.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny");
        let board = "q35,hpet=off,usb=off,smbus=off,vmport=off,sata=off,memory-backend=mem0";
        let memory = self.memory_mib;
        match self.pmem {
            0 => {
                line.option("-M", board);
                line.option("-m", format!("{memory}M"));
            }
            slots => {
                line.option("-M", format!("{board},nvdimm=on"));
                let most = u64::from(memory) + PMEM_MIB;
                line.option("-m", format!("{memory}M,slots={slots},maxmem={most}M"));
            }
        }
        line.option("-object", format!("memory-backend-memfd,id=mem0,size={memory}M,share=on"));
        line.option("-smp", self.cpus.to_string());
        match (self.accelerator, self.icount) {
            (Accelerator::Kvm, _) => {
                line.option("-accel", "kvm");
                line.option("-cpu", "host");
            }
            (Accelerator::Tcg, icount) => {
                let thread = if icount { "single" } else { "multi" };
                line.option("-accel", format!("tcg,thread={thread},tb-size=256"));
                // TCG runs `rep movsb` byte by byte: without these two the guest does not use it.
                line.option("-cpu", "max,erms=off,fsrm=off");
                if icount {
                    // An idle guest's clock keeps real time: run ahead, it would let the agent's
                    // deadlines pass while a disk is still being read.
                    line.option("-icount", "shift=0,sleep=on");
                }
            }
        }
        line.option("-chardev", format!("socket,id=console,fd={}", self.console));
        line.option("-serial", "chardev:console");
        if let Some(monitor) = self.monitor {
            line.option("-chardev", format!("socket,id=qmp,fd={monitor}"));
            line.option("-mon", "chardev=qmp,mode=control");
            line.option("-device", "virtio-rng-pci");
            for controller in 0..CONTROLLERS {
                line.option("-device", format!("virtio-scsi-pci,id=scsi{controller}"));
            }
            for share in 0..self.shares {
                let (name, chassis) = (port_name(share), share + 1);
                line.option("-device", format!("pcie-root-port,id={name},chassis={chassis}"));
            }
        }
        match self.vsock {
            None => {}
            Some(VsockArguments::User { socket }) => {
                line.option("-chardev", linkspan_vsock::Device::chardev("vsock", socket));
                line.option("-device", "vhost-user-vsock-pci,chardev=vsock");
            }
            Some(VsockArguments::Kernel { device, cid }) => {
                line.option("-device", format!("vhost-vsock-pci,vhostfd={device},guest-cid={cid}"));
            }
        }
        if let Some(network) = self.network {
            line.option("-netdev", network.netdev());
            // Without the ROM by which a machine boots from its network: nothing here does.
            let mac = UserNetwork::MAC;
            line.option("-device", format!("virtio-net-pci,netdev=net0,mac={mac},romfile="));
        }
        line.option("-kernel", self.kernel);
        if let Some(initrd) = self.initrd {
            line.option("-initrd", initrd);
        }
        line.option("-append", self.kernel_arguments.join(" "));
        line.0.extend(self.extra.iter().cloned());
        line.0
    }
}

struct Line(Vec<OsString>);

impl Line {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

/// A value for QEMU's `key=value,…` syntax.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// What the guest's kernel is told: ours, and then `extra`, which may overrule.
pub(super) fn kernel_arguments(
    accelerator: Accelerator,
    extra: &[String],
) -> Result<Vec<String>, QemuError> {
    let ours = ["console=ttyS0", "quiet", "panic=-1", "random.trust_cpu=on", "8250.nr_uarts=1"];
    // Debian's kernel zeroes all memory that it gives itself, each buffer of a stream included.
    let memory = ["init_on_alloc=0"];
    // Under TCG the kernel's checks of these clocks fail whenever the host is busy.
    let clocks: &[_] = match accelerator {
        Accelerator::Kvm => &[],
        Accelerator::Tcg => &["tsc=reliable", "no_timer_check"],
    };
    if let Some(bad) = extra.iter().find(|argument| !is_one_argument(argument)) {
        return Err(QemuError::KernelArgument(bad.clone()));
    }
    let ours = ours.iter().chain(&memory).chain(clocks).map(|&argument| argument.to_owned());
    Ok(ours.chain(extra.iter().cloned()).collect())
}

/// Whether the kernel takes it as one argument; it allows spaces within double quotes.
fn is_one_argument(argument: &str) -> bool {
    let mut quoted = false;
    let fits = argument.chars().all(|c| {
        quoted ^= c == '"';
        !c.is_control() && (quoted || c != ' ')
    });
    fits && !quoted && !argument.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(accelerator: Accelerator, vsock: VsockArguments) -> Machine<'static> {
        Machine {
            name: "a,b",
            kernel: Path::new("/boot/a,b=c"),
            initrd: Some(Path::new("/boot/initrd")),
            kernel_arguments: &[],
            memory_mib: 512,
            pmem: 0,
            shares: 0,
            cpus: 2,
            accelerator,
            icount: false,
            console: 7,
            monitor: Some(8),
            vsock: Some(vsock),
            network: None,
            extra: &[],
        }
    }

    fn line(machine: &Machine<'_>) -> String {
        let words: Vec<_> =
            machine.arguments().into_iter().map(|a| a.into_string().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn everything_is_passed_by_descriptor() {
        let line = line(&machine(Accelerator::Tcg, VsockArguments::User { socket: 9 }));
        for part in [
            "-chardev socket,id=console,fd=7 -serial chardev:console",
            "-chardev socket,id=qmp,fd=8 -mon chardev=qmp,mode=control",
            "-chardev socket,id=vsock,fd=9 -device vhost-user-vsock-pci,chardev=vsock",
            "-object memory-backend-memfd,id=mem0,size=512M,share=on",
            "memory-backend=mem0 -m 512M",
            "-device virtio-scsi-pci,id=scsi0 ",
            "-device virtio-scsi-pci,id=scsi3 ",
            "-name a,,b ",
            "-kernel /boot/a,b=c -initrd /boot/initrd ",
        ] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
        assert!(!line.contains("path="));
    }

    #[test]
    fn an_adapter_is_there_only_if_asked_for() {
        let without = machine(Accelerator::Tcg, VsockArguments::User { socket: 9 });
        assert!(!line(&without).contains("net0"));
        let network = UserNetwork { forwards: vec!["8080:80".parse().unwrap()] };
        let with = Machine { network: Some(&network), ..without };
        let line = line(&with);
        assert!(line.contains("-netdev user,id=net0,ipv6=off,hostfwd=tcp::8080-:80 "), "{line}");
        assert!(line.contains("virtio-net-pci,netdev=net0,mac=02:4c:53:00:00:01"), "{line}");
    }

    #[test]
    fn the_accelerator_decides_on_the_processor() {
        let user = VsockArguments::User { socket: 9 };
        let kvm = line(&machine(Accelerator::Kvm, user));
        assert!(kvm.contains("-accel kvm -cpu host "), "{kvm}");
        let tcg = line(&machine(Accelerator::Tcg, user));
        assert!(tcg.contains("-accel tcg,thread=multi,tb-size=256 -cpu max,erms=off,fsrm=off "));
        let counted = Machine { icount: true, cpus: 1, ..machine(Accelerator::Tcg, user) };
        let counted = line(&counted);
        assert!(
            counted.contains("tcg,thread=single") && counted.contains("-icount shift=0,sleep=on")
        );
    }

    #[test]
    fn the_kernels_vsock_device_gets_its_descriptor_and_context_id() {
        let kernel = VsockArguments::Kernel { device: 11, cid: 4 };
        let line = line(&machine(Accelerator::Kvm, kernel));
        assert!(line.contains("-device vhost-vsock-pci,vhostfd=11,guest-cid=4"), "{line}");
    }

    #[test]
    fn persistent_memory_has_room_only_if_it_is_wanted() {
        let user = VsockArguments::User { socket: 9 };
        let without = line(&machine(Accelerator::Kvm, user));
        assert!(without.contains("-m 512M ") && !without.contains("nvdimm"), "{without}");
        let with = line(&Machine { pmem: 8, ..machine(Accelerator::Kvm, user) });
        assert!(with.contains(",nvdimm=on ") && with.contains("-m 512M,slots=8,maxmem=262656M "));
    }

    #[test]
    fn extra_arguments_come_last() {
        let extra = [OsString::from("-trace"), OsString::from("x")];
        let mut machine = machine(Accelerator::Kvm, VsockArguments::User { socket: 9 });
        machine.extra = &extra;
        assert!(line(&machine).ends_with(" -trace x"));
    }

    #[test]
    fn only_tcg_needs_its_clocks_trusted() {
        let extra = ["linkspan.agent=-v4".to_owned()];
        let tcg = kernel_arguments(Accelerator::Tcg, &extra).unwrap();
        assert!(tcg.contains(&"no_timer_check".into()));
        assert_eq!(tcg.last(), Some(&extra[0]));
        let kvm = kernel_arguments(Accelerator::Kvm, &extra).unwrap();
        assert!(
            !kvm.iter().any(|argument| argument.starts_with("tsc") || argument.contains("timer"))
        );
    }

    #[test]
    fn a_kernel_argument_stays_one_argument() {
        for good in ["a", "a=b", "dyndbg=\"file a.c +p\"", "a=\"\""] {
            assert!(kernel_arguments(Accelerator::Kvm, &[good.into()]).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a\nb", "a=\"b", "a=\"b\" c"] {
            assert!(kernel_arguments(Accelerator::Kvm, &[bad.into()]).is_err(), "{bad}");
        }
    }
}
