//! Directories of the host.
//!
//! | a host sends          | is served by                                             |
//! |-----------------------|----------------------------------------------------------|
//! | a port, a share name  | 9p on a stream to that port, the name being its `aname`  |
//! | port 0, a tag         | a virtio-fs device with that tag                         |
//!
//! The second is ours: hosts that know 9p only always send a port.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::mount::{MountPoint, make_directory};
use crate::{Error, Result};

/// Bytes of a 9p message, as hosts serve it.
const MESSAGE: u32 = 65_536;

/// What serves a directory.
#[derive(Debug)]
pub(crate) enum Server {
    /// 9p on this stream.
    Stream(OwnedFd),
    /// The virtio-fs device whose tag the share's name is.
    Device,
}

/// A directory of the host at a path.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub(crate) name: String,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

impl Share {
    /// A name goes into the mount options, which part at commas.
    pub(crate) fn check(&self) -> Result<()> {
        match self.name.contains([',', '\0', '\\']) || self.name.len() > 255 {
            true => {
                let reason =
                    format!("{:?} has a comma, backslash or NUL, or over 255 bytes", self.name);
                Err(Error::Argument { field: "ShareName", reason })
            }
            false => Ok(()),
        }
    }

    /// As [`mount`](Self::mount), from a device; `None` while there is none with the tag.
    pub(crate) fn mount_device(&self) -> Result<Option<()>> {
        match self.mount(&Server::Device) {
            Ok(()) => Ok(Some(())),
            // The kernel's word for a tag that it does not know.
            Err(Error::Io { source, .. })
                if source.raw_os_error() == Some(Errno::EINVAL as i32) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Mounts it. After a failure everything is as before.
    pub(crate) fn mount(&self, server: &Server) -> Result<()> {
        let made = make_directory(&self.target, 0o700)?;
        let flags = if self.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let point = |source, kind, data| MountPoint {
            source: Path::new(source),
            target: &self.target,
            kind: Some(kind),
            flags,
            data,
        };
        match server {
            Server::Stream(stream) => {
                crate::modules::need("9p");
                let options = self.options(stream.as_raw_fd());
                let source = if self.name.is_empty() { "host" } else { &self.name };
                point(source, "9p", Some(&options)).mount()?;
            }
            Server::Device => {
                crate::modules::need("share");
                point(&self.name, "virtiofs", None).mount()?;
            }
        }
        made.keep();
        Ok(())
    }

    fn options(&self, stream: i32) -> String {
        let mut options = format!("trans=fd,rfdno={stream},wfdno={stream},msize={MESSAGE}");
        if !self.name.is_empty() {
            options += &format!(",aname={}", self.name);
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, read_only: bool) -> Share {
        Share { name: name.to_owned(), target: "/run/x".into(), read_only }
    }

    #[test]
    fn the_options_are_those_that_hosts_know() {
        let bare = "trans=fd,rfdno=7,wfdno=7,msize=65536";
        assert_eq!(share("", false).options(7), bare);
        assert_eq!(share("0", true).options(7), format!("{bare},aname=0"));
    }

    #[test]
    fn a_name_adds_no_option_of_its_own() {
        share("12", false).check().unwrap();
        for bad in ["0,uname=root", "a\\,b", "a\0b", &"x".repeat(256)] {
            assert!(share(bad, false).check().is_err(), "{bad:?}");
        }
    }
}
