//! Any line: what is read ends with the line, and what is taken for a port is one.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use hyperv_socket::hybrid;

/// Tries an input, as what a host says and as what a VMM answers.
pub fn run(input: &[u8]) {
    let mut rest = input;
    if let Ok(port) = at_once(hybrid::requested_port(&mut rest)) {
        assert_eq!(rest.len(), behind_line(input), "more was read than the line");
        assert!(input.starts_with(b"CONNECT "));
        let mut said = Vec::new();
        at_once(hybrid::answer(&mut said, port)).expect("a vector takes it");
        assert_eq!(said, format!("OK {port}\n").as_bytes());
    }
    let mut stream = tokio::io::join(input, Vec::new());
    if at_once(hybrid::dial(&mut stream, 1024)).is_ok() {
        assert_eq!(stream.reader().len(), behind_line(input), "more was read than the line");
        assert!(input.starts_with(b"OK "));
    }
    assert_eq!(stream.writer().as_slice(), b"CONNECT 1024\n");
}

fn behind_line(input: &[u8]) -> usize {
    input.iter().position(|&byte| byte == b'\n').map_or(0, |end| input.len() - end - 1)
}

/// Runs what never has to wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits, with all its input there"),
    }
}
