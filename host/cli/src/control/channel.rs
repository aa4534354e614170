//! Messages with descriptors over a Unix stream socket.
//!
//! | offset | size | field     |                                     |
//! |-------:|-----:|-----------|-------------------------------------|
//! |      0 |    4 | `length`  | bytes of what follows; little-endian |
//! |      4 |      | `payload` | JSON                                |
//!
//! A message's descriptors travel with its first byte.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The longest message that is taken.
const LIMIT: usize = 4 << 20;

/// As many descriptors as one message may bring: a process's standard streams.
const DESCRIPTORS: usize = 3;

/// Why a message did not come or go.
#[derive(Debug, Error)]
pub(crate) enum ChannelError {
    #[error("the other side is gone")]
    Closed,
    #[error("message of {size} bytes is longer than {LIMIT}")]
    TooLong { size: usize },
    #[error("message is not understood")]
    Malformed(#[source] serde_json::Error),
    #[error("transfer a message")]
    Io(#[source] io::Error),
}

/// Both directions of a connection.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

/// The sending direction.
#[derive(Clone, Debug)]
pub(crate) struct Sender(Arc<UnixStream>);

/// The receiving direction. Waiting for a message may be given up and taken up again.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: Arc<UnixStream>,
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    pub(crate) fn new(socket: UnixStream) -> Self {
        let socket = Arc::new(socket);
        let receiver = Receiver {
            socket: Arc::clone(&socket),
            bytes: Vec::new(),
            descriptors: VecDeque::new(),
        };
        Self { sender: Sender(socket), receiver }
    }
}

impl Sender {
    pub(crate) async fn send(&self, message: &impl Serialize) -> Result<(), ChannelError> {
        self.send_with(message, &[]).await
    }

    /// Sends a message and, with it, copies of descriptors.
    pub(crate) async fn send_with(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, message).map_err(ChannelError::Malformed)?;
        let size = bytes.len() - 4;
        match u32::try_from(size) {
            Ok(length) if size <= LIMIT => bytes[..4].copy_from_slice(&length.to_le_bytes()),
            _ => return Err(ChannelError::TooLong { size }),
        }
        let (mut rest, mut descriptors) = (&bytes[..], descriptors);
        while !rest.is_empty() {
            let sent = self
                .0
                .async_io(Interest::WRITABLE, || send_some(self.0.as_fd(), rest, descriptors))
                .await
                .map_err(lost)?;
            rest = &rest[sent..];
            descriptors = &[];
        }
        Ok(())
    }
}

impl Receiver {
    pub(crate) async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ChannelError> {
        loop {
            if let Some(message) = self.take()? {
                return serde_json::from_slice(&message).map_err(ChannelError::Malformed);
            }
            let Self { socket, bytes, descriptors } = self;
            let received = socket
                .async_io(Interest::READABLE, || receive_some(socket.as_fd(), bytes, descriptors))
                .await
                .map_err(lost)?;
            if received == 0 {
                return Err(ChannelError::Closed);
            }
        }
    }

    /// The next descriptor that came with messages received so far.
    pub(crate) fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    fn take(&mut self) -> Result<Option<Vec<u8>>, ChannelError> {
        let Some(length) = self.bytes.first_chunk() else { return Ok(None) };
        let size = u32::from_le_bytes(*length) as usize;
        if size > LIMIT {
            return Err(ChannelError::TooLong { size });
        }
        if self.bytes.len() < 4 + size {
            return Ok(None);
        }
        let rest = self.bytes.split_off(4 + size);
        let mut message = std::mem::replace(&mut self.bytes, rest);
        message.drain(..4);
        Ok(Some(message))
    }
}

fn lost(error: io::Error) -> ChannelError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ChannelError::Closed,
        _ => ChannelError::Io(error),
    }
}

fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than a message may bring"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

fn receive_some(
    socket: BorrowedFd<'_>,
    bytes: &mut Vec<u8>,
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut buffer = [0; 16 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let received = recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    bytes.extend_from_slice(&buffer[..received.bytes]);
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::control::{Order, Reply, Request};

    fn pair() -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a), Channel::new(b))
    }

    #[tokio::test]
    async fn messages_arrive_in_order_and_apart() {
        let (client, mut monitor) = pair();
        client.sender.send(&Request::List).await.unwrap();
        client.sender.send(&Order::Resize { rows: 1, columns: 2 }).await.unwrap();
        assert_eq!(monitor.receiver.receive::<Request>().await.unwrap(), Request::List);
        let order = monitor.receiver.receive::<Order>().await.unwrap();
        assert_eq!(order, Order::Resize { rows: 1, columns: 2 });
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_message() {
        let (mut client, monitor) = pair();
        let (read, mut write) = io::pipe().unwrap();
        let started = Reply::Started {
            container: "a".into(),
            pid: 1,
            stdin: false,
            stdout: true,
            stderr: false,
        };
        monitor.sender.send_with(&started, &[read.as_fd()]).await.unwrap();
        drop(read);
        assert_eq!(client.receiver.receive::<Reply>().await.unwrap(), started);
        let fd = client.receiver.descriptor().unwrap();
        assert!(client.receiver.descriptor().is_none());
        write.write_all(b"through").unwrap();
        drop(write);
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[tokio::test]
    async fn a_message_larger_than_a_socket_buffer_arrives_whole() {
        let (client, mut monitor) = pair();
        let container = "x".repeat(3 << 20);
        let request = Request::Wait { container };
        let (sent, received) =
            tokio::join!(client.sender.send(&request), monitor.receiver.receive::<Request>());
        sent.unwrap();
        assert!(received.unwrap() == request);
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        let (mut raw, socket) = UnixStream::pair().unwrap();
        raw.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        let error = Channel::new(socket).receiver.receive::<Request>().await.unwrap_err();
        assert!(matches!(error, ChannelError::TooLong { size } if size == u32::MAX as usize));
    }

    #[tokio::test]
    async fn the_end_of_the_other_side_is_told() {
        let (client, mut monitor) = pair();
        drop(client);
        let error = monitor.receiver.receive::<Request>().await.unwrap_err();
        assert!(matches!(error, ChannelError::Closed));
    }
}
