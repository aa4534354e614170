mod driver;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::Receiver;

use super::*;
use crate::packet::{Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use driver::{Driver, GUEST_CID, ROOM, packet};

const PORT: u32 = 50;
const BOTH: u32 = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;

fn device() -> (Device, Receiver<GuestStream>) {
    let device = Device::new(Options { buffer: 4096, ..Options::new(GUEST_CID) }).unwrap();
    let (sender, streams) = channel();
    device.listen(PORT, Accept::Many, move |stream| sender.send(stream).is_ok()).unwrap();
    (device, streams)
}

fn open(driver: &mut Driver, streams: &Receiver<GuestStream>) -> UnixStream {
    driver.send(packet(PORT, Operation::REQUEST), &[]);
    driver.expect(Operation::RESPONSE);
    let stream = streams.recv().unwrap();
    assert_eq!((stream.guest_port, stream.host_port), (1000, PORT));
    stream.stream
}

fn data(bytes: &[u8]) -> Header {
    Header { len: bytes.len() as u32, ..packet(PORT, Operation::DATA) }
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..packet(PORT, Operation::SHUTDOWN) }
}

#[test]
fn bytes_go_both_ways_and_each_direction_closes_on_its_own() {
    let (device, streams) = device();
    let mut driver = Driver::start(&device);
    let mut stream = open(&mut driver, &streams);

    driver.send(data(b"ping"), b"ping");
    driver.send(shutdown(SHUTDOWN_SEND), &[]);
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "ping");

    stream.write_all(b"pong").unwrap();
    assert_eq!(driver.expect(Operation::DATA).1, b"pong");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(driver.expect(Operation::SHUTDOWN).0 & SHUTDOWN_SEND, SHUTDOWN_SEND);
}

#[test]
fn one_read_fills_several_of_the_guests_buffers() {
    let (device, streams) = device();
    let mut driver = Driver::start(&device);
    let mut stream = open(&mut driver, &streams);
    let sent: Vec<u8> = (0..ROOM * 3 + 17).map(|n| (n % 251) as u8).collect();
    stream.write_all(&sent).unwrap();
    drop(stream);
    let mut received = Vec::new();
    let flags = loop {
        match driver.receive() {
            (header, payload) if header.operation == Operation::DATA => received.extend(payload),
            // That the host is gone may be told before what it wrote is through; its end may not.
            (Header { flags: SHUTDOWN_RECEIVE, .. }, _) => {}
            (header, _) => break header.flags,
        }
    };
    assert_eq!(received, sent);
    assert_eq!(flags, BOTH);
}

#[test]
fn a_close_is_answered_after_everything_queued_was_delivered() {
    let (device, streams) = device();
    let mut driver = Driver::start(&device);
    let mut stream = open(&mut driver, &streams);
    // Fill the socket, and then the device's buffer, until it has no more credit to give.
    let chunk = [7; 4000];
    let (mut sent, mut room) = (0u32, 4096);
    loop {
        if room < 4000 {
            driver.send(packet(PORT, Operation::CREDIT_REQUEST), &[]);
            let (header, _) = driver.receive();
            room = 4096 - (sent - header.fwd_cnt);
            if room < 4000 {
                break;
            }
            continue;
        }
        driver.send(data(&chunk), &chunk);
        sent += 4000;
        room -= 4000;
    }
    driver.send(shutdown(BOTH), &[]);
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, vec![7; sent as usize]);
    loop {
        match driver.receive().0.operation {
            Operation::CREDIT_UPDATE => {}
            operation => break assert_eq!(operation, Operation::RESET),
        }
    }
}

#[test]
fn a_close_over_bytes_the_guest_never_read_is_an_end_of_file_for_the_host() {
    let (device, streams) = device();
    let mut driver = Driver::start(&device);
    let request = Header { buf_alloc: 0, ..packet(PORT, Operation::REQUEST) };
    driver.send(request, &[]);
    driver.expect(Operation::RESPONSE);
    let mut stream = streams.recv().unwrap().stream;
    stream.write_all(b"unread").unwrap();
    driver.send(Header { buf_alloc: 0, ..shutdown(BOTH) }, &[]);
    while driver.receive().0.operation != Operation::RESET {}
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    assert!(stream.write_all(b"more").is_err());
}

#[test]
fn a_port_nobody_listens_on_is_refused_at_once_and_a_once_port_the_second_time() {
    let (device, _streams) = device();
    let mut driver = Driver::start(&device);
    driver.send(packet(51, Operation::REQUEST), &[]);
    driver.expect(Operation::RESET);
    device.listen(52, Accept::Once, |_| true).unwrap();
    let request = |src_port| Header { src_port, ..packet(52, Operation::REQUEST) };
    driver.send(request(1), &[]);
    driver.expect(Operation::RESPONSE);
    loop {
        driver.send(request(2), &[]);
        let (header, _) = driver.receive();
        if header.operation == Operation::RESET {
            break;
        }
        // The handler dropped its stream, of which the guest was told first.
        assert_eq!(header.operation, Operation::SHUTDOWN);
    }
    device.listen(53, Accept::Many, |_| false).unwrap();
    driver.send(packet(53, Operation::REQUEST), &[]);
    while driver.receive().0.operation != Operation::RESET {}
}

#[test]
fn the_host_connects_and_is_refused() {
    let (device, _streams) = device();
    assert_eq!(device.connect(9).unwrap_err(), ConnectError::NotRunning);
    let mut driver = Driver::start(&device);
    driver.send(packet(51, Operation::REQUEST), &[]); // once this is answered the rings are known to run
    driver.expect(Operation::RESET);
    let (sender, answers) = channel();
    let answered = sender.clone();
    device.connect_with(9, move |answer| answered.send(answer).unwrap());
    let (request, _) = driver.receive();
    assert_eq!((request.operation, request.dst_port), (Operation::REQUEST, 9));
    let answer = |operation| Header { src_port: 9, ..packet(request.src_port, operation) };
    driver.send(answer(Operation::RESPONSE), &[]);
    let mut stream = answers.recv().unwrap().unwrap();
    stream.write_all(b"hello").unwrap();
    assert_eq!(driver.expect(Operation::DATA).1, b"hello");

    device.connect_with(9, move |answer| sender.send(answer).unwrap());
    let (request, _) = driver.receive();
    driver.send(Header { src_port: 9, ..packet(request.src_port, Operation::RESET) }, &[]);
    assert_eq!(answers.recv().unwrap().unwrap_err(), ConnectError::Refused);
}

#[test]
fn a_guest_that_does_not_answer_a_request_is_given_up() {
    let options = Options { connect_timeout: Duration::from_millis(20), ..Options::new(GUEST_CID) };
    let device = Device::new(options).unwrap();
    let mut driver = Driver::start(&device);
    driver.send(packet(51, Operation::REQUEST), &[]);
    driver.expect(Operation::RESET);
    assert_eq!(device.connect(9).unwrap_err(), ConnectError::TimedOut);
    driver.expect(Operation::REQUEST);
    driver.expect(Operation::RESET);
}

#[test]
fn nonsense_from_the_guest_harms_nobody() {
    let (device, streams) = device();
    let mut driver = Driver::start(&device);
    let mut stream = open(&mut driver, &streams);
    driver.send_raw(b"short", None, 5);
    driver.send_raw(&[], Some(0xffff_ffff_ffff_f000), 0x2000); // outside of memory
    driver.send_raw(&[], Some((1 << 20) - 10), 44); // across its end
    driver.send(Header { src_cid: 99, ..packet(PORT, Operation::REQUEST) }, &[]);
    for odd in [
        Header { dst_cid: 77, ..packet(PORT, Operation::REQUEST) },
        Header { kind: 2, ..packet(PORT, Operation::REQUEST) },
        Header { dst_port: u32::MAX, ..packet(PORT, Operation::REQUEST) },
        Header { src_port: 2000, ..packet(PORT, Operation::DATA) },
    ] {
        driver.send(odd, &[]);
        let (reset, _) = driver.receive();
        assert_eq!(reset, odd.reset());
    }
    driver.send(data(b"sane"), b"sane");
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"sane");
    // A length beyond the chain ends the connection it is for.
    driver.send(Header { len: 5000, ..packet(PORT, Operation::DATA) }, b"x");
    driver.expect(Operation::RESET);
    assert_eq!(stream.read(&mut heard).unwrap(), 0);
}

#[test]
fn connections_are_limited() {
    let options = Options { max_connections: 2, ..Options::new(GUEST_CID) };
    let device = Device::new(options).unwrap();
    let (sender, _streams) = channel();
    device.listen(PORT, Accept::Many, move |stream| sender.send(stream).is_ok()).unwrap();
    let mut driver = Driver::start(&device);
    let answers = [1, 2, 3].map(|src_port| {
        driver.send(Header { src_port, ..packet(PORT, Operation::REQUEST) }, &[]);
        driver.receive().0.operation
    });
    assert_eq!(answers, [Operation::RESPONSE, Operation::RESPONSE, Operation::RESET]);
}

#[test]
fn a_crowd_of_connections_gets_small_buffers() {
    let device = Device::new(Options::new(GUEST_CID)).unwrap();
    let (sender, _streams) = channel();
    device.listen(PORT, Accept::Many, move |stream| sender.send(stream).is_ok()).unwrap();
    let mut driver = Driver::start(&device);
    let buffers: Vec<u32> = (1..=66)
        .map(|src_port| {
            driver.send(Header { src_port, ..packet(PORT, Operation::REQUEST) }, &[]);
            driver.receive().0.buf_alloc
        })
        .collect();
    assert!(buffers[..64].iter().all(|&buffer| buffer == 4 << 20), "{buffers:?}");
    assert_eq!(buffers[64..], [256 << 10; 2]);
}

#[test]
fn streams_survive_a_pause_and_end_with_a_reboot() {
    let (device, streams) = device();
    let mut driver = Driver::start(&device);
    let mut stream = open(&mut driver, &streams);
    driver.pause_and_resume();
    driver.send(data(b"on"), b"on");
    let mut heard = [0; 2];
    stream.read_exact(&mut heard).unwrap();
    driver.reboot();
    assert_eq!(stream.read(&mut heard).unwrap(), 0);
    open(&mut driver, &streams);
}

#[test]
fn everything_ends_with_the_device_and_with_qemu() {
    let (dropped, streams) = device();
    let mut driver = Driver::start(&dropped);
    let mut stream = open(&mut driver, &streams);
    let (sender, ends) = channel();
    dropped.on_end(move |ended| sender.send(ended.clone()).unwrap());
    drop(dropped);
    assert_eq!(ends.recv().unwrap(), Ended::Dropped);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);

    let (device, streams) = device();
    let mut driver = Driver::start(&device);
    let mut stream = open(&mut driver, &streams);
    drop(driver);
    assert_eq!(device.wait(), Ended::HungUp);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(device.connect(1).unwrap_err(), ConnectError::Ended);
}
