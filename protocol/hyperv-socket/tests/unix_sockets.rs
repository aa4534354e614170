//! Streams and listeners over Unix sockets, the one family every Linux machine can be tested with.
#![cfg(target_os = "linux")]

use std::fs;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use hyperv_socket::{
    Endpoint, Listener, Local, Peer, Stream, VmId, accept_hybrid, connect, hybrid,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};

/// A host's listening side and the guest's dialling side of one hybrid vsock.
struct Hybrid {
    base: PathBuf,
    _directory: TempDir,
}

impl Hybrid {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { base: directory.path().join("vm.sock"), _directory: directory }
    }

    fn host(&self) -> Local {
        Local::HybridHost { path: self.base.clone() }
    }

    fn guest(&self) -> Peer {
        Peer::HybridGuest { path: self.base.clone() }
    }

    fn file(&self, port: u32) -> PathBuf {
        PathBuf::from(format!("{}_{port}", self.base.display()))
    }
}

async fn read_all(stream: &mut Stream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[tokio::test]
async fn a_guest_reaches_the_listener_of_its_port() {
    let hybrid = Hybrid::new();
    let one = Listener::bind(&hybrid.host(), 1).unwrap();
    let two = Listener::bind(&hybrid.host(), 2).unwrap();
    connect(&hybrid.guest(), 2).await.unwrap().write_all(b"to two").await.unwrap();
    connect(&hybrid.guest(), 1).await.unwrap().write_all(b"to one").await.unwrap();

    let (mut stream, address) = one.accept().await.unwrap();
    assert_eq!(read_all(&mut stream).await, "to one");
    assert_eq!((address.cid, address.port), (None, None));
    assert_eq!(read_all(&mut two.accept().await.unwrap().0).await, "to two");
}

#[tokio::test]
async fn a_half_close_ends_one_direction_and_leaves_the_other() {
    let (mut near, mut far) = Stream::pair().unwrap();
    near.write_all(b"request").await.unwrap();
    AsyncWriteExt::shutdown(&mut near).await.unwrap();
    assert_eq!(read_all(&mut far).await, "request");

    for round in 0..3 {
        far.write_all(format!("reply {round}").as_bytes()).await.unwrap();
        let mut reply = [0; 7];
        near.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply, *format!("reply {round}").as_bytes());
    }
    let error = near.write_all(b"more").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut near).await, "");
}

#[tokio::test]
async fn a_half_close_wakes_a_reader_that_waits_already() {
    let (near, far) = Stream::pair().unwrap();
    let (mut reader, mut writer) = near.into_split();
    let waiting = tokio::spawn(async move { reader.read(&mut [0; 8]).await });
    tokio::task::yield_now().await;
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), 0);

    writer.write_all(b"still").await.unwrap();
    let (mut reader, _writer) = far.into_split();
    let mut text = [0; 5];
    reader.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"still");
}

#[tokio::test]
async fn dropping_the_write_half_ends_its_direction_only() {
    let (near, mut far) = Stream::pair().unwrap();
    let (mut reader, mut writer) = near.into_split();
    writer.write_all(b"last words").await.unwrap();
    drop(writer);
    assert_eq!(read_all(&mut far).await, "last words");
    far.write_all(b"heard").await.unwrap();
    drop(far);
    let mut reply = String::new();
    reader.read_to_string(&mut reply).await.unwrap();
    assert_eq!(reply, "heard");
}

#[tokio::test]
async fn a_forgotten_write_half_ends_nothing_while_its_reader_lives() {
    let (near, far) = Stream::pair().unwrap();
    let (reader, writer) = near.into_split();
    writer.forget();
    let nothing = far.try_io(Interest::READABLE, || read_now(&far));
    assert_eq!(nothing.unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(reader);
    far.readable().await.unwrap();
    assert_eq!(far.try_io(Interest::READABLE, || read_now(&far)).unwrap(), 0);
}

#[tokio::test]
async fn reunited_halves_are_the_stream_again() {
    let (near, mut far) = Stream::pair().unwrap();
    let (other, _) = Stream::pair().unwrap();
    let (reader, writer) = near.into_split();
    let (other_reader, other_writer) = other.into_split();
    assert!(other_reader.reunite(writer).is_err_and(|error| {
        // Taken apart by hand, for a dropped error drops the halves and so ends the direction.
        let hyperv_socket::ReuniteError(_, writer) = error;
        writer.forget();
        true
    }));
    drop((reader, other_writer));
    assert_eq!(read_all(&mut far).await, "");

    let (near, mut far) = Stream::pair().unwrap();
    let (reader, writer) = near.into_split();
    let mut near = reader.reunite(writer).unwrap();
    near.write_all(b"whole").await.unwrap();
    drop(near);
    assert_eq!(read_all(&mut far).await, "whole");
}

#[tokio::test]
async fn two_tasks_fill_both_directions_at_once() {
    const TOTAL: usize = 4 << 20; // bytes, many times what a socket buffers
    let (near, far) = Stream::pair().unwrap();
    let mut tasks = Vec::new();
    for (stream, byte) in [(near, b'n'), (far, b'f')] {
        let (mut reader, mut writer) = stream.into_split();
        tasks.push(tokio::spawn(async move {
            writer.write_all(&vec![byte; TOTAL]).await.unwrap();
            0
        }));
        tasks.push(tokio::spawn(async move {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).await.unwrap();
            assert!(received.iter().all(|&other| other != byte));
            received.len()
        }));
    }
    let mut received = 0;
    for task in tasks {
        received += task.await.unwrap();
    }
    assert_eq!(received, 2 * TOTAL);
}

#[tokio::test]
async fn borrowed_halves_leave_the_stream_whole() {
    let (mut near, mut far) = Stream::pair().unwrap();
    {
        let (mut reader, mut writer) = near.split();
        far.write_all(b"in").await.unwrap();
        let mut received = [0; 2];
        let (sent, read) = tokio::join!(writer.write_all(b"out"), reader.read_exact(&mut received));
        sent.unwrap();
        read.unwrap();
        assert_eq!(&received, b"in");
    }
    near.write_all(b", more").await.unwrap();
    drop(near);
    assert_eq!(read_all(&mut far).await, "out, more");
}

#[tokio::test]
async fn slices_are_written_in_one_call() {
    let (mut near, mut far) = Stream::pair().unwrap();
    assert!(near.is_write_vectored());
    let slices = [IoSlice::new(b"header "), IoSlice::new(b"payload")];
    let written = poll_fn(|cx| Pin::new(&mut near).poll_write_vectored(cx, &slices)).await;
    assert_eq!(written.unwrap(), 14);
    drop(near);
    assert_eq!(read_all(&mut far).await, "header payload");
}

#[tokio::test]
async fn a_descriptor_goes_in_and_out_of_a_stream() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let number = near.as_raw_fd();
    let mut stream = Stream::from_fd(OwnedFd::from(near)).unwrap();
    assert_eq!(stream.as_raw_fd(), number);
    stream.write_all(b"through").await.unwrap();
    let fd = stream.into_fd();
    assert_eq!(fd.as_raw_fd(), number);
    drop(fd);
    let mut text = String::new();
    far.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}

#[tokio::test]
async fn a_descriptor_that_is_no_stream_socket_is_refused() {
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    let error = Stream::from_fd(OwnedFd::from(datagram)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let file = tempfile::tempfile().unwrap();
    assert!(Stream::from_fd(OwnedFd::from(file)).is_err());
}

#[tokio::test]
async fn readiness_serves_system_calls_of_ones_own() {
    let (near, mut far) = Stream::pair().unwrap();
    let nothing = near.try_io(Interest::READABLE, || read_now(&near)).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    let (ready, sent) = tokio::join!(near.readable(), far.write_all(b"abc"));
    ready.unwrap();
    sent.unwrap();
    assert_eq!(near.try_io(Interest::READABLE, || read_now(&near)).unwrap(), 3);
    near.writable().await.unwrap();
}

/// Reads through a second descriptor of the same socket.
fn read_now(stream: &Stream) -> io::Result<usize> {
    use std::os::fd::AsFd;
    UnixStream::from(stream.as_fd().try_clone_to_owned()?).read(&mut [0; 8])
}

#[tokio::test]
async fn dialling_a_port_nobody_listens_on_names_path_and_port() {
    let hybrid = Hybrid::new();
    let error = connect(&hybrid.guest(), 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = chain(&error);
    assert!(text.contains(&hybrid.file(9).display().to_string()), "{text}");
    assert!(text.contains("port 9") && text.contains("os error 2"), "{text}");

    abandon(&hybrid.file(9));
    let error = connect(&hybrid.guest(), 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn dialling_a_listener_with_a_full_queue_says_so() {
    let hybrid = Hybrid::new();
    let _listener = Listener::bind(&hybrid.host(), 1).unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        match connect(&hybrid.guest(), 1).await {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
        assert!(waiting.len() < 1000);
    };
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    assert!(waiting.len() >= 128, "{}", waiting.len());
}

#[tokio::test]
async fn a_host_dials_into_a_guest_through_its_vmm() {
    let hybrid = Hybrid::new();
    let vmm = Listener::bind_unix(&hybrid.base).unwrap();
    let peer = Peer::HybridHost { path: hybrid.base.clone() };
    let guest = async {
        let (mut stream, _) = vmm.accept().await.unwrap();
        let port = accept_hybrid(&mut stream).await.unwrap();
        stream.write_all(b"guest").await.unwrap();
        (port, stream)
    };
    let (host, (port, mut guest)) = tokio::join!(connect(&peer, 1024), guest);
    assert_eq!(port, 1024);
    let mut host = host.unwrap();
    AsyncWriteExt::shutdown(&mut host).await.unwrap();
    assert_eq!(read_all(&mut guest).await, "");
    drop(guest);
    assert_eq!(read_all(&mut host).await, "guest");
}

#[tokio::test]
async fn a_refusing_vmm_is_reported_with_path_and_port() {
    let hybrid = Hybrid::new();
    let vmm = Listener::bind_unix(&hybrid.base).unwrap();
    let peer = Peer::HybridHost { path: hybrid.base.clone() };
    let refuse = async {
        let (mut stream, _) = vmm.accept().await.unwrap();
        hybrid::requested_port(&mut stream).await.unwrap()
    };
    let (host, wanted) = tokio::join!(connect(&peer, 77), refuse);
    assert_eq!(wanted, 77);
    let error = host.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let text = error.to_string();
    assert!(text.contains("port 77") && text.contains("vm.sock"), "{text}");
}

#[tokio::test]
async fn an_endpoint_may_be_a_plain_unix_socket() {
    let hybrid = Hybrid::new();
    let listener = Listener::bind_unix(&hybrid.base).unwrap();
    let endpoint: Endpoint = format!("unix:{}", hybrid.base.display()).parse().unwrap();
    endpoint.connect().await.unwrap().write_all(b"plain").await.unwrap();
    assert_eq!(read_all(&mut listener.accept().await.unwrap().0).await, "plain");
}

#[tokio::test]
async fn hyper_v_is_unsupported_on_linux_and_says_which_address() {
    let peer = Peer::HyperV { vm: VmId::PARENT };
    let local = Local::HyperV { vm: VmId::WILDCARD };
    let errors = [connect(&peer, 5).await.unwrap_err(), Listener::bind(&local, 5).unwrap_err()];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("hyperv:"), "{error}");
        assert!(error.to_string().contains("port 5"), "{error}");
    }
}

#[tokio::test]
async fn a_dropped_listener_takes_its_file_with_it() {
    let hybrid = Hybrid::new();
    let listener = Listener::bind(&hybrid.host(), 1).unwrap();
    assert!(hybrid.file(1).exists());
    drop(listener);
    assert!(!hybrid.file(1).exists());
}

#[tokio::test]
async fn a_dropped_listener_leaves_its_successors_file_alone() {
    let hybrid = Hybrid::new();
    let old = Listener::bind(&hybrid.host(), 1).unwrap();
    // Moved rather than removed, so that its inode number is not free to be used again.
    fs::rename(hybrid.file(1), hybrid.file(2)).unwrap();
    let new = Listener::bind(&hybrid.host(), 1).unwrap();
    drop(old);
    connect(&hybrid.guest(), 1).await.unwrap();
    drop(new);
    assert!(!hybrid.file(1).exists());
}

#[tokio::test]
async fn a_live_listener_is_not_pushed_aside() {
    let hybrid = Hybrid::new();
    let listener = Listener::bind(&hybrid.host(), 1).unwrap();
    let error = Listener::bind(&hybrid.host(), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let text = chain(&error);
    assert!(text.contains("port 1") && text.contains("somebody else listens"), "{text}");

    let (mut probe, _) = listener.accept().await.unwrap();
    assert_eq!(read_all(&mut probe).await, "");
    connect(&hybrid.guest(), 1).await.unwrap().write_all(b"alive").await.unwrap();
    assert_eq!(read_all(&mut listener.accept().await.unwrap().0).await, "alive");
}

#[tokio::test]
async fn a_stale_socket_file_is_replaced() {
    let hybrid = Hybrid::new();
    abandon(&hybrid.file(1));
    let listener = Listener::bind(&hybrid.host(), 1).unwrap();
    connect(&hybrid.guest(), 1).await.unwrap().write_all(b"new").await.unwrap();
    assert_eq!(read_all(&mut listener.accept().await.unwrap().0).await, "new");
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_not_replaced() {
    let hybrid = Hybrid::new();
    fs::write(hybrid.file(1), "precious").unwrap();
    let error = Listener::bind(&hybrid.host(), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(chain(&error).contains("not a socket"));
    assert_eq!(fs::read_to_string(hybrid.file(1)).unwrap(), "precious");
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_an_error() {
    let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
    assert!(Listener::bind_unix(&path).is_err());
    let error = connect(&Peer::HybridGuest { path }, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

/// Leaves a socket file behind as a killed process does.
fn abandon(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert!(path.exists());
}
