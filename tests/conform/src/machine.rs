//! A utility VM of our own for an agent to be checked in, with disks for all checks.

use std::fs::File;
use std::path::{Path, PathBuf};

use hyperv_socket::Local;
use linkspan_host::vmm::{Disk, ScsiAddress};
use linkspan_host::{Builder, Machine};
use linkspan_protocol::port;
use tempfile::TempDir;

use crate::environment::{DiskAddress, Environment, Log, Nic};
use crate::target::{Listen, Target};

/// A running machine whose agent dials the harness.
#[derive(Debug)]
pub struct Bench {
    machine: Machine,
    _sockets: TempDir,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The machine or its disks.
    #[error("start a machine to check an agent in")]
    Machine(#[from] linkspan_host::Error),
    /// The layer.
    #[error("make a layer of {path}")]
    Layer {
        /// What was to be a root file system.
        path: PathBuf,
        /// Why it is not.
        source: linkspan_layer::Error,
    },
    /// A file or a directory.
    #[error("make files for a machine to check an agent in")]
    Files(#[from] std::io::Error),
}

const BLANK: u64 = 64 << 20;

impl Bench {
    /// Starts a machine and attaches disks: a root file system, another with little in it, and a
    /// blank one. If the machine has an adapter, the environment has it; the agent's log is
    /// listened to.
    ///
    /// # Errors
    /// When it does not start, or `rootfs` is none.
    pub async fn start(
        builder: Builder,
        rootfs: &Path,
    ) -> Result<(Self, Target, Environment), BenchError> {
        let sockets = tempfile::tempdir()?;
        let base = sockets.path().join("vsock");
        let local = Local::HybridHost { path: base.clone() };
        let layer = image_of(rootfs)?;
        let small = tempfile::tempdir()?;
        std::fs::write(small.path().join("second-layer"), "second\n")?;
        let second = image_of(small.path())?;
        let blank = tempfile::tempfile()?;
        blank.set_len(BLANK)?;
        let listen = Listen::Socket(local);
        // Before the machine, so that its agent finds somebody at once.
        let log = Log::default();
        log.listen(&listen).await?;
        let mut target = Target::listen(listen);
        target.open().await?;
        let builder = builder.agent_arg(format!("-log-port={}", port::LOG));
        let machine = builder.start_exported(&base).await?;
        for (lun, file, read_only) in [(0, layer, true), (1, second, true), (2, blank, false)] {
            let size = file.metadata()?.len();
            let address = ScsiAddress { controller: 0, lun };
            machine.vmm().attach_disk(address, Disk { file, size, read_only }).await?;
        }
        let disk = |lun| Some(DiskAddress { controller: 0, lun });
        let nic =
            machine.adapter().map(|nic| Nic { id: nic.id.clone(), mac: nic.mac_address.clone() });
        let environment = Environment {
            layer_disk: disk(0),
            second_layer: disk(1),
            blank_disk: disk(2),
            nic,
            log,
            ..Environment::default()
        };
        Ok((Self { machine, _sockets: sockets }, target, environment))
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Ends it.
    pub async fn end(&self) {
        self.machine.terminate().await;
    }
}

fn image_of(path: &Path) -> Result<File, BenchError> {
    let file = tempfile::tempfile()?;
    let options = linkspan_layer::Options::default();
    let layer = |source| BenchError::Layer { path: path.to_owned(), source };
    linkspan_layer::build_image(path, &file, options, |_| {}).map_err(layer)?;
    Ok(file)
}
