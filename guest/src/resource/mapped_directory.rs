//! A directory of the host at a path.

use std::net::Shutdown;
use std::time::Duration;

use linkspan_protocol::resource::MappedDirectory;
use rustix::io::fcntl_dupfd_cloexec;

use crate::error::Context;
use crate::guest_path::GuestPath;
use crate::storage::{Server, Share, appear_slowly, blocking};
use crate::uvm::Uvm;
use crate::{Error, Result};

/// How long a host may take to speak 9p.
const GREETING: Duration = Duration::from_secs(20);

pub(super) async fn add(uvm: &Uvm, directory: MappedDirectory) -> Result<()> {
    let target = GuestPath::parse("MountPath", &directory.mount_path)?;
    let share = Share {
        name: directory.share_name,
        target: target.as_path().to_owned(),
        read_only: directory.read_only,
    };
    share.check()?;
    let port = u32::try_from(directory.port).map_err(|_| Error::Argument {
        field: "Port",
        reason: format!("{} is not a port", directory.port),
    })?;
    if port == 0 {
        let what = format!("the virtio-fs device {:?}", share.name);
        let mount = async || {
            let share = share.clone();
            blocking(move || share.mount_device()).await
        };
        return appear_slowly(&what, mount).await;
    }
    let stream = hyperv_socket::connect(&uvm.host, port).await;
    let stream = stream.context(|| format!("connect to the host's 9p server at port {port}"))?;
    let fd = fcntl_dupfd_cloexec(&stream, 3).context(|| "keep the 9p stream".to_owned())?;
    let mount = blocking(move || share.mount(&Server::Stream(fd)));
    tokio::pin!(mount);
    match tokio::time::timeout(GREETING, &mut mount).await {
        Ok(mounted) => mounted,
        Err(_) => {
            // The kernel waits for a host that stays silent until the stream ends.
            let _ = stream.shutdown(Shutdown::Both);
            mount.await.map_err(|_| {
                let what = format!("wait {} s for the host's 9p server", GREETING.as_secs());
                Error::Io { what, source: std::io::ErrorKind::TimedOut.into() }
            })
        }
    }
}

pub(super) async fn remove(uvm: &Uvm, directory: MappedDirectory) -> Result<()> {
    let target = GuestPath::parse("MountPath", &directory.mount_path)?;
    uvm.mounted.take_down(target.as_path(), false).await
}
