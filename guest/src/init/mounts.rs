//! The mounts that everything else stands on.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};

/// Forces version 1 of cgroups, as a word of the kernel's command line.
const FORCE_V1: &str = "hcsshim.cgroup=v1";

const CGROUPS: &str = "/sys/fs/cgroup";

pub(super) fn mount_all() -> io::Result<()> {
    // An initramfs cannot be pivoted away from; a bind mount of it can, and containers want to.
    let same = Some("/");
    fs::create_dir_all("/run")?;
    mount(same, "/run", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    std::env::set_current_dir("/run")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;

    let (nodev, nosuid, noexec) = (MsFlags::MS_NODEV, MsFlags::MS_NOSUID, MsFlags::MS_NOEXEC);
    let all = nodev | nosuid | noexec;
    for (kind, target, flags, data) in [
        ("devtmpfs", "/dev", nosuid | noexec, ""),
        ("proc", "/proc", all, ""),
        ("sysfs", "/sys", all, ""),
        ("tmpfs", "/run", all, "mode=0755"),
        ("tmpfs", "/tmp", all, "mode=1777"),
        ("tmpfs", "/dev/shm", all, ""),
        ("devpts", "/dev/pts", nosuid | noexec, "ptmxmode=0666,mode=0620,gid=5"),
    ] {
        fs::create_dir_all(target)?;
        match mount(Some(kind), target, Some(kind), flags, Some(data)) {
            Err(Errno::EBUSY) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Mounts cgroups: version 2 if the kernel has all that containers need of it, else version 1.
pub(super) fn mount_cgroups(kernel_command_line: &str) -> io::Result<()> {
    let forced = kernel_command_line.split_whitespace().any(|word| word == FORCE_V1);
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let unified = || mount(Some("cgroup2"), CGROUPS, Some("cgroup2"), flags, None::<&str>);
    if !forced && unified().is_ok() {
        if Path::new(CGROUPS).join("cgroup.controllers").exists()
            && fs::File::open(CGROUPS).is_ok_and(linkspan_guest_sys::has_device_programs)
        {
            return Ok(());
        }
        umount(CGROUPS)?;
    }
    mount(Some("cgroup_root"), CGROUPS, Some("tmpfs"), flags, Some("mode=0755"))?;
    for controller in enabled_controllers(&fs::read_to_string("/proc/cgroups")?) {
        let target = Path::new(CGROUPS).join(controller);
        fs::create_dir_all(&target)?;
        mount(Some(controller), &target, Some("cgroup"), flags, Some(controller))?;
    }
    Ok(())
}

/// `NAME HIERARCHY COUNT ENABLED` a line, below a heading.
fn enabled_controllers(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.nth(2) == Some("1")).then_some(name)
    })
}

/// Makes `/etc` and `/var` of a read-only root writable, until the machine ends.
pub(super) fn mount_writable() -> io::Result<()> {
    let (nodev, nosuid, noexec) = (MsFlags::MS_NODEV, MsFlags::MS_NOSUID, MsFlags::MS_NOEXEC);
    let over = "/run/over";
    fs::create_dir_all(over)?;
    let size = Some("size=40%,mode=0755");
    mount(Some("tmpfs"), over, Some("tmpfs"), nodev | nosuid | noexec, size)?;
    for (lower, flags) in [("/etc", nodev | nosuid | noexec), ("/var", nodev | nosuid)] {
        let [upper, work] = ["upper", "work"].map(|part| format!("{over}{lower}/{part}"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        mount(Some("overlay"), lower, Some("overlay"), flags, Some(options.as_str()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_that_the_kernel_has_switched_off_are_left_out() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t1\t1\t1\n\
                     memory\t0\t1\t0\nperf_event\t2\t1\t1\nodd\n";
        assert_eq!(enabled_controllers(table).collect::<Vec<_>>(), ["cpuset", "perf_event"]);
    }
}
