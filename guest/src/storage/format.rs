//! Making file systems.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use linkspan_guest_sys::Stdio;
use linkspan_layer::scratch::{self, ScratchOptions};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::mapping::device_size;
use super::probe::Filesystem;
use crate::error::Context;
use crate::{Error, Result};

/// What is written at once. No block is written in part: of one that is encrypted and was never
/// written, the other part cannot be read.
const BLOCK: usize = 4096;

/// Makes an empty ext4 on a device, whatever is on it. It has no journal: what it is for does not
/// outlive the machine.
pub(crate) fn ext4(device: &Path) -> Result<()> {
    let size = device_size(device)?;
    let what = || format!("make an ext4 file system on {}", device.display());
    // All of it that is not zero fits some pages of memory; a sparse file there is its plan.
    let plan = memfd_create(c"linkspan-format", MemfdFlags::CLOEXEC).context(what)?;
    let plan = File::from(plan);
    let options = ScratchOptions { zeroed: false, ..ScratchOptions::default() };
    scratch::format(&plan, size, &options).map_err(io::Error::other).context(what)?;
    let device = File::options().write(true).open(device).context(what)?;
    copy_data(&plan, &device).and_then(|()| device.sync_data()).context(what)
}

/// Copies what a sparse file has, in whole blocks.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let mut buffer = [0; BLOCK];
    let mut at = 0;
    loop {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data / BLOCK as u64 * BLOCK as u64,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        from.read_exact_at(&mut buffer, at)?;
        to.write_all_at(&buffer, at)?;
        at += BLOCK as u64;
    }
}

/// Makes an xfs, which only its own program can.
pub(crate) fn xfs(device: &Path) -> Result<()> {
    let program = mkfs_xfs()?;
    let what = || format!("run {} -f {}", program.display(), device.display());
    let (said, stderr) = pipe_with(PipeFlags::CLOEXEC).context(what)?;
    let mut command = Command::new(&program);
    command.arg("-q").arg("-f").arg(device).env_clear();
    let stdio = Stdio::Descriptors([None, None, Some(stderr)]);
    let pid = linkspan_guest_sys::spawn(&mut command, stdio, &[]).context(what)?;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // Others reap it, maybe before it can be watched; whether it has done its work shows.
    let watched = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let mut text = String::new();
    let _ = File::from(said).take(4096).read_to_string(&mut text);
    if let Some(watched) = watched {
        while let Err(Errno::INTR) = poll(&mut [PollFd::new(&watched, PollFlags::IN)], None) {}
    }
    match Filesystem::detect(device)? {
        Some(Filesystem::Xfs) => Ok(()),
        _ => Err(io::Error::other(text.trim().to_owned())).context(what),
    }
}

fn mkfs_xfs() -> Result<PathBuf> {
    let places = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"];
    let mut programs = places.iter().map(|place| Path::new(place).join("mkfs.xfs"));
    programs.find(|program| program.is_file()).ok_or_else(|| {
        Error::NotSupported(
            "formatting as xfs without mkfs.xfs in the utility VM's image (a static one, with \
             `linkspan image build --modules +xfs --add FILE:/sbin/mkfs.xfs`; ext4 needs none)"
                .to_owned(),
        )
    })
}
