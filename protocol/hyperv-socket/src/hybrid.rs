//! The line each side says when a host dials into a guest over a hybrid-vsock Unix socket.
//!
//! ```text
//! host:  CONNECT 1024\n
//! VMM:   OK 1073741824\n        then the stream belongs to the guest's listener on port 1024
//! ```
//!
//! The VMM's number is the port the connection got on the host's side. A VMM that finds nobody
//! listening on the port just closes the connection. The guest may talk first, right behind the
//! VMM's newline, so both sides read a byte at a time and never past it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest line accepted, newline included; the longest sensible one has 19 bytes.
const LINE_LIMIT: usize = 32;

/// The host's part: asks for `port` and waits for the answer. Returns the number answered.
///
/// [`connect`](crate::connect) does this for a [`Peer::HybridHost`](crate::Peer::HybridHost).
///
/// # Errors
///
/// [`ConnectionRefused`](io::ErrorKind::ConnectionRefused) if the other side closes instead of
/// answering, [`InvalidData`](io::ErrorKind::InvalidData) if its answer is not `OK <number>` or is
/// longer than 32 bytes, and what reading and writing give.
pub async fn dial<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, port: u32) -> io::Result<u32> {
    write_all(stream, format!("CONNECT {port}\n").as_bytes()).await?;
    let line = read_line(stream).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("closed before it answered CONNECT {port}: nobody listens there"),
        ),
        _ => error,
    })?;
    number_after("OK", &line)
}

/// The VMM's part, first half: reads which port the host wants.
///
/// To refuse, drop the stream; to agree, [`answer`].
///
/// # Errors
///
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the line is cut short,
/// [`InvalidData`](io::ErrorKind::InvalidData) if it is not `CONNECT <port>` or is longer than 32
/// bytes, and what reading gives.
pub async fn requested_port<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<u32> {
    number_after("CONNECT", &read_line(stream).await?)
}

/// The VMM's part, second half: tells the host that its connection has the host-side port `port`.
///
/// # Errors
///
/// What writing gives.
pub async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, port: u32) -> io::Result<()> {
    write_all(stream, format!("OK {port}\n").as_bytes()).await
}

/// The VMM's whole part, where any port will do: reads the wanted port, agrees, and returns it.
///
/// The number in the answer is the wanted port, for want of another.
///
/// # Errors
///
/// As [`requested_port`] and [`answer`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// use hyperv_socket::{Stream, accept_hybrid, hybrid};
///
/// let (mut host, mut vmm) = Stream::pair()?;
/// let (answered, wanted) = tokio::join!(hybrid::dial(&mut host, 1024), accept_hybrid(&mut vmm));
/// assert_eq!((answered?, wanted?), (1024, 1024));
/// # Ok(())
/// # }
/// ```
pub async fn accept_hybrid<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<u32> {
    let port = requested_port(stream).await?;
    answer(stream, port).await?;
    Ok(port)
}

fn number_after(word: &str, line: &str) -> io::Result<u32> {
    let number = line
        .strip_prefix(word)
        .and_then(|rest| rest.strip_prefix(' '))
        .and_then(|number| number.parse().ok());
    number.ok_or_else(|| {
        let problem = format!("expected \"{word} <number>\", got {line:?}");
        io::Error::new(io::ErrorKind::InvalidData, problem)
    })
}

/// Reads up to and including the newline, and not a byte more; the newline is not returned.
async fn read_line<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<String> {
    let mut line = String::new();
    loop {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut buffer)).await?;
        match buffer.filled() {
            [] => return Err(io::ErrorKind::UnexpectedEof.into()),
            [b'\n'] => return Ok(line),
            _ if line.len() + 1 >= LINE_LIMIT => {
                let problem = format!("line longer than {LINE_LIMIT} bytes: {line:?}...");
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            [byte, ..] => line.push(char::from(*byte)),
        }
    }
}

async fn write_all<S: AsyncWrite + Unpin>(stream: &mut S, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn the_guest_may_talk_right_behind_the_answer() {
        let (mut host, mut vmm) = duplex(64);
        vmm.write_all(b"OK 1073741824\nhello").await.unwrap();
        assert_eq!(dial(&mut host, 52).await.unwrap(), 1_073_741_824);

        let mut request = [0; 11];
        vmm.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"CONNECT 52\n");
        let mut rest = [0; 5];
        host.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[tokio::test]
    async fn the_host_may_talk_right_behind_its_request() {
        let (mut host, mut vmm) = duplex(64);
        host.write_all(b"CONNECT 4294967295\nhello").await.unwrap();
        assert_eq!(accept_hybrid(&mut vmm).await.unwrap(), u32::MAX);
        vmm.shutdown().await.unwrap();

        let mut answer = String::new();
        host.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "OK 4294967295\n");
        let mut rest = [0; 5];
        vmm.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[tokio::test]
    async fn a_request_may_be_refused_by_closing() {
        let (mut host, mut vmm) = duplex(64);
        let vmm = async move { requested_port(&mut vmm).await };
        let (answered, wanted) = tokio::join!(dial(&mut host, 7), vmm);
        assert_eq!(wanted.unwrap(), 7);
        let error = answered.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains("CONNECT 7"), "{error}");
    }

    #[tokio::test]
    async fn an_answer_that_is_not_ok_is_shown() {
        for answer in ["ERR 5\n", "OK\n", "OK  5\n", "OK five\n", "OK 4294967296\n", "\n"] {
            let (mut host, mut vmm) = duplex(64);
            vmm.write_all(answer.as_bytes()).await.unwrap();
            let error = dial(&mut host, 7).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(answer.trim_end()), "{error}");
        }
    }

    #[tokio::test]
    async fn an_endless_line_is_given_up_at_its_bound() {
        let (mut host, mut vmm) = duplex(256);
        host.write_all(&[b'x'; 100]).await.unwrap();
        drop(host);
        let error = requested_port(&mut vmm).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut rest = Vec::new();
        vmm.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 100 - LINE_LIMIT);
    }
}
