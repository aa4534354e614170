//! A container's bundle: the directory that containerd makes for it.
//!
//! ```text
//! config.json     the OCI document
//! rootfs          where its root would be mounted; stays empty here
//! log             a FIFO for the server's log
//! address         where its server is, for containerd and `delete`
//! shim.pid        its server
//! mounts          host files on their way into the guest
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::Error;

/// Which pod a container is of.
pub(crate) const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// A bundle.
#[derive(Clone, Debug)]
pub(crate) struct Bundle(PathBuf);

impl Bundle {
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Its OCI document.
    pub(crate) fn spec(&self) -> Result<Value, Error> {
        let path = self.0.join("config.json");
        let what = || format!("read {}", path.display());
        let text = fs::read(&path).map_err(Error::io(what()))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::input("config.json", format!("{}: {error}", path.display())))
    }

    /// The id of what shares a server: a pod's, or the container's own.
    pub(crate) fn group(&self, id: &str) -> Result<String, Error> {
        let spec = match self.spec() {
            // A sandbox of the Sandbox API has none.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(id.to_owned());
            }
            spec => spec?,
        };
        let pod = spec["annotations"][SANDBOX_ID].as_str().filter(|pod| !pod.is_empty());
        Ok(pod.unwrap_or(id).to_owned())
    }

    /// Notes which server is the container's.
    pub(crate) fn note_server(&self, address: &str, pid: Option<u32>) -> Result<(), Error> {
        self.write("address", address)?;
        match pid {
            Some(pid) => self.write("shim.pid", &pid.to_string()),
            None => Ok(()),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.0.join(name);
        fs::write(&path, text).map_err(Error::io(format!("write {}", path.display())))
    }

    /// Where its server is, as far as that was noted.
    pub(crate) fn address(&self) -> Option<String> {
        fs::read_to_string(self.0.join("address")).ok()
    }

    /// The server that was started for it.
    pub(crate) fn server_pid(&self) -> Option<i32> {
        fs::read_to_string(self.0.join("shim.pid")).ok()?.trim().parse().ok()
    }

    /// Where host files are put on their way into the guest.
    pub(crate) fn mounts(&self) -> PathBuf {
        self.0.join("mounts")
    }
}
