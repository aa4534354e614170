use std::os::unix::net::UnixStream as StdUnixStream;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::*;

/// QEMU's end.
struct Fake(BufReader<UnixStream>);

impl Fake {
    fn new() -> (Qmp, Self) {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let theirs = BufReader::new(UnixStream::from_std(theirs).unwrap());
        (Qmp::new(ours, |_| {}).unwrap(), Self(theirs))
    }

    async fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn greet(&mut self) {
        self.say(r#"{"QMP": {"version": {}, "capabilities": []}}"#).await;
        let command = self.hear().await;
        assert_eq!(command["execute"], "qmp_capabilities");
        self.say(&json!({ "return": {}, "id": command["id"] }).to_string()).await;
    }
}

#[tokio::test]
async fn commands_wait_for_the_greeting_and_go_one_by_one() {
    let (qmp, mut fake) = Fake::new();
    let mut events = qmp.events();
    let server = async {
        fake.greet().await;
        let first = fake.hear().await;
        assert!(fake.0.buffer().is_empty(), "the second came before the first was answered");
        fake.say(r#"{"event": "RESUME", "data": {}}"#).await;
        fake.say(&json!({ "return": first["execute"], "id": first["id"] }).to_string()).await;
        let second = fake.hear().await;
        let error = json!({ "class": "GenericError", "desc": "no" });
        fake.say(&json!({ "error": error, "id": second["id"] }).to_string()).await;
    };
    let (a, b, ()) =
        tokio::join!(qmp.run("a", Value::Null), qmp.run("b", json!({ "x": 1 })), server);
    assert_eq!(a.unwrap(), "a");
    assert_eq!(b, Err(QmpError::Refused { command: "b".into(), reason: "no".into() }));
    assert_eq!(events.recv().await.unwrap().name, "RESUME");
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_the_monitor_in_step() {
    let (qmp, mut fake) = Fake::new();
    let mut gone = Box::pin(qmp.run("gone", Value::Null));
    assert!(futures_poll_once(&mut gone).await.is_none());
    drop(gone);
    let server = async {
        fake.greet().await;
        for _ in 0..2 {
            let command = fake.hear().await;
            fake.say(&json!({ "return": command["execute"], "id": command["id"] }).to_string())
                .await;
        }
    };
    let (answer, ()) = tokio::join!(qmp.run("here", Value::Null), server);
    assert_eq!(answer.unwrap(), "here");
}

async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn the_end_of_qemu_answers_everything() {
    let (qmp, mut fake) = Fake::new();
    let server = async {
        fake.greet().await;
        fake.hear().await;
        drop(fake);
    };
    let (a, b, ()) = tokio::join!(qmp.run("a", Value::Null), qmp.run("b", Value::Null), server);
    assert_eq!((a, b), (Err(QmpError::Closed), Err(QmpError::Closed)));
    qmp.ended().await;
    assert_eq!(qmp.run("c", Value::Null).await, Err(QmpError::Closed));
}

#[tokio::test]
async fn a_wrong_id_ends_the_monitor() {
    let (qmp, mut fake) = Fake::new();
    let server = async {
        fake.greet().await;
        fake.hear().await;
        fake.say(r#"{"return": {}, "id": 4711}"#).await;
    };
    let (answer, ()) = tokio::join!(qmp.run("a", Value::Null), server);
    assert_eq!(answer, Err(QmpError::Closed));
}

#[tokio::test]
async fn a_descriptor_goes_with_its_command() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::io::{IoSliceMut, Read, Seek, Write};

    let (qmp, mut fake) = Fake::new();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"inside").unwrap();
    let server = async {
        fake.greet().await;
        let socket = fake.0.get_ref();
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        socket.readable().await.unwrap();
        let received = socket
            .try_io(Interest::READABLE, || {
                let slices = &mut [IoSliceMut::new(&mut bytes)];
                Ok(recvmsg(socket, slices, &mut control, RecvFlags::CMSG_CLOEXEC)?)
            })
            .unwrap();
        let command: Value = serde_json::from_slice(&bytes[..received.bytes]).unwrap();
        assert_eq!(command["execute"], "add-fd");
        let mut descriptors: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(descriptors.len(), 1);
        let mut got = std::fs::File::from(descriptors.remove(0));
        let mut text = String::new();
        got.rewind().unwrap();
        got.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        fake.say(&json!({ "return": {}, "id": command["id"] }).to_string()).await;
    };
    let copy = file.try_clone().unwrap();
    let (answer, ()) = tokio::join!(qmp.run_with("add-fd", Value::Null, copy.into()), server);
    answer.unwrap();
}
