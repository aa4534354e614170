//! The host's end of output that survives lost connections.
//!
//! The guest dials again after each loss; it is told how much has come, and goes on from there. So
//! every byte is given to the caller once, in order, over any number of connections.

use std::io;
use std::time::Duration;

use hyperv_socket::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::debug;

use crate::vmm::PortListener;

/// A count that says that no more is wanted.
const ENOUGH: u64 = u64::MAX;

/// How much comes before the guest is told that it has, in bytes: so that it may forget it.
const ACKNOWLEDGE: u64 = 32 << 10;

/// How long a guest that has announced the end may take to close.
const CLOSE: Duration = Duration::from_secs(5);

/// Takes output from the guest's connections; the result is the caller's end.
pub(crate) fn output(listener: PortListener) -> io::Result<Stream> {
    let (theirs, ours) = Stream::pair()?;
    tokio::spawn(pump(listener, ours));
    Ok(theirs)
}

/// How a connection ended.
enum End {
    /// All has come.
    Complete,
    /// The caller wants no more.
    Unwanted,
}

async fn pump(mut listener: PortListener, mut to: Stream) {
    let mut received = 0;
    while let Some(mut from) = listener.accept().await {
        match transfer(&mut from, &mut to, &mut received).await {
            Ok(End::Complete) => {
                let _ = tokio::time::timeout(CLOSE, from.write_all(&count(received))).await;
                return;
            }
            Ok(End::Unwanted) => {
                let _ = tokio::time::timeout(CLOSE, from.write_all(&count(ENOUGH))).await;
                return;
            }
            Err(error) => debug!(%error, received, "lost the connection of an output"),
        }
    }
}

fn count(bytes: u64) -> [u8; 8] {
    bytes.to_le_bytes()
}

async fn transfer(from: &mut Stream, to: &mut Stream, received: &mut u64) -> io::Result<End> {
    let mut buffer = vec![0; 64 << 10];
    let mut acknowledged = *received;
    from.write_all(&count(acknowledged)).await?;
    loop {
        let mut length = [0; 4];
        from.read_exact(&mut length).await?;
        let mut rest = u32::from_le_bytes(length) as usize;
        if rest == 0 {
            return Ok(End::Complete);
        }
        while rest > 0 {
            let most = rest.min(buffer.len());
            let len = from.read(&mut buffer[..most]).await?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if to.write_all(&buffer[..len]).await.is_err() {
                return Ok(End::Unwanted);
            }
            *received += len as u64;
            rest -= len;
            if *received - acknowledged >= ACKNOWLEDGE {
                acknowledged = *received;
                from.write_all(&count(acknowledged)).await?;
            }
        }
    }
}
