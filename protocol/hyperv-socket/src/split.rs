//! A stream as a reader and a writer, so that two tasks can use its two directions.
//!
//! A stream keeps one waker for each direction, which is why there is one reader and one writer
//! and neither can be cloned.

use std::error::Error;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Stream;

/// The reading direction of a [`Stream`], from [`Stream::into_split`].
#[derive(Debug)]
pub struct ReadHalf {
    stream: Arc<Stream>,
}

/// The writing direction of a [`Stream`], from [`Stream::into_split`].
///
/// Dropping it shuts the direction down: the other side reads the end of the stream, and what it
/// still has to say can be read from the [`ReadHalf`].
#[derive(Debug)]
pub struct WriteHalf {
    stream: Arc<Stream>,
    shutdown_on_drop: bool,
}

/// The reading direction of a borrowed [`Stream`], from [`Stream::split`].
#[derive(Debug)]
pub struct ReadRef<'a>(&'a Stream);

/// The writing direction of a borrowed [`Stream`], from [`Stream::split`]. Dropping it does
/// nothing.
#[derive(Debug)]
pub struct WriteRef<'a>(&'a Stream);

impl Stream {
    /// Lends out the two directions.
    pub fn split(&mut self) -> (ReadRef<'_>, WriteRef<'_>) {
        (ReadRef(self), WriteRef(self))
    }

    /// Takes the stream apart into two directions that can go to two tasks.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// use hyperv_socket::Stream;
    /// use tokio::io::AsyncReadExt;
    ///
    /// let (near, mut far) = Stream::pair()?;
    /// let (reader, writer) = near.into_split();
    /// drop(writer);
    /// assert_eq!(far.read(&mut [0]).await?, 0);
    /// # drop(reader);
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        let stream = Arc::new(self);
        let reader = ReadHalf { stream: Arc::clone(&stream) };
        (reader, WriteHalf { stream, shutdown_on_drop: true })
    }
}

impl ReadHalf {
    /// The stream behind, for its descriptor and readiness.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Puts the stream together again, without shutting anything down.
    ///
    /// # Errors
    ///
    /// Gives both halves back if they are not of one stream.
    pub fn reunite(self, mut writer: WriteHalf) -> Result<Stream, ReuniteError> {
        if !Arc::ptr_eq(&self.stream, &writer.stream) {
            return Err(ReuniteError(self, writer));
        }
        writer.shutdown_on_drop = false;
        drop(writer);
        Arc::try_unwrap(self.stream).map_err(|stream| {
            let writer = WriteHalf { stream: Arc::clone(&stream), shutdown_on_drop: true };
            ReuniteError(Self { stream }, writer)
        })
    }
}

impl WriteHalf {
    /// The stream behind, for its descriptor and readiness.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Drops the half without shutting its direction down.
    pub fn forget(mut self) {
        self.shutdown_on_drop = false;
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if self.shutdown_on_drop {
            // Fails only if the connection is gone already, which is the same to the other side.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

/// Two halves of different streams; see [`ReadHalf::reunite`].
#[derive(Debug)]
pub struct ReuniteError(pub ReadHalf, pub WriteHalf);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reunite halves of different streams")
    }
}

impl Error for ReuniteError {}

macro_rules! async_read {
    ($($name:ty, $self:ident => $stream:expr;)*) => {$(
        impl AsyncRead for $name {
            fn poll_read(
                $self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                $stream.poll_receive(cx, buffer)
            }
        }
    )*};
}

async_read! {
    Stream, self => self;
    ReadHalf, self => self.stream;
    ReadRef<'_>, self => self.0;
}

macro_rules! async_write {
    ($($name:ty, $self:ident => $stream:expr;)*) => {$(
        impl AsyncWrite for $name {
            fn poll_write(
                $self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                $stream.poll_send(cx, bytes)
            }

            fn poll_write_vectored(
                $self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                $stream.poll_send_vectored(cx, slices)
            }

            fn is_write_vectored(&$self) -> bool {
                true
            }

            fn poll_flush($self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown($self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(end_writing(&$stream))
            }
        }
    )*};
}

async_write! {
    Stream, self => self;
    WriteHalf, self => self.stream;
    WriteRef<'_>, self => self.0;
}

/// Shuts the writing direction down; a connection that is gone already counts as shut down.
fn end_writing(stream: &Stream) -> io::Result<()> {
    match stream.shutdown(Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}
