//! Frames, and what is made of wrong ones.

use std::time::Duration;

use linkspan_protocol::MessageType;
use linkspan_protocol::frame::{HEADER_LEN, HOST_LIMIT};
use serde_json::Value;

use super::script::{Script, Step};
use super::session::HostSession;
use crate::verdict::{Checked, Stop};
use crate::wire::frame;

/// The request whose answer is spoiled: one for which hosts wait before they go on.
const CREATE: MessageType = MessageType::CREATE;

/// The right answer follows what is wrong after so long: a host that passes over it goes on.
const PAUSE: Step = Step::Wait(Duration::from_millis(200));

pub(super) async fn ids(s: &mut HostSession) -> Checked {
    several(s).await
}

pub(super) async fn header(s: &mut HostSession) -> Checked {
    several(s).await
}

pub(super) async fn envelope(s: &mut HostSession) -> Checked {
    several(s).await
}

pub(super) async fn trace(s: &mut HostSession) -> Checked {
    s.plain().await?;
    several(s).await
}

/// What holds for all requests can be told of a run that has any.
async fn several(s: &mut HostSession) -> Checked {
    let plain = s.plain().await?;
    match plain.requests.len() {
        0 => Err(Stop::Skip("the host sends nothing".into())),
        1 => Err(Stop::Skip("the host sends nothing but its negotiation".into())),
        _ => Ok(()),
    }
}

pub(super) async fn order(s: &mut HostSession) -> Checked {
    let mut script = Script::new("answers in the other order");
    script.backwards = true;
    let plain = s.plain().await?;
    let run = s.run(script).await?;
    super::session::does_all(&run, &plain)?;
    match run.out_of_order || plain.out_of_order {
        true => Ok(()),
        false => Err(Stop::Skip("the host did not have two requests outstanding".into())),
    }
}

pub(super) async fn bare_type(s: &mut HostSession) -> Checked {
    let script = Script::new("responses of type 0x20000000").every(|bytes| {
        let mut bytes = bytes.to_vec();
        bytes[..4].copy_from_slice(&0x2000_0000u32.to_le_bytes());
        bytes
    });
    s.goes_on(script).await.map(drop)
}

pub(super) async fn unknown_id(s: &mut HostSession) -> Checked {
    let other = Step::bytes(|bytes| {
        let mut bytes = bytes.to_vec();
        bytes[8..16].copy_from_slice(&4711u64.to_le_bytes());
        bytes
    });
    let script = Script::new("a response with an unknown id");
    s.terminates(script.once(CREATE, [other, PAUSE, Step::Answer])).await?;
    if s.is_hardened() {
        let twice = Step::bytes(|bytes| [bytes, bytes].concat());
        s.terminates(Script::new("the same response twice").once(CREATE, [twice])).await?;
    }
    Ok(())
}

/// A response's payload in another form.
fn with_payload(bytes: &[u8], payload: &[u8]) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
    let id = u64::from_le_bytes(bytes[8..16].try_into().unwrap_or_default());
    frame(MessageType(word(0)), id, payload)
}

pub(super) async fn no_activity(s: &mut HostSession) -> Checked {
    let script = Script::new("responses without ActivityId").every(|bytes| {
        let mut body: Value = serde_json::from_slice(&bytes[HEADER_LEN..]).unwrap_or_default();
        body.as_object_mut().map(|body| body.remove("ActivityId"));
        with_payload(bytes, body.to_string().as_bytes())
    });
    s.goes_on(script).await.map(drop)
}

pub(super) async fn newline(s: &mut HostSession) -> Checked {
    let script = Script::new("responses that end in a newline").every(|bytes| {
        let payload = [&bytes[HEADER_LEN..], b"\n"].concat();
        with_payload(bytes, &payload)
    });
    s.goes_on(script).await.map(drop)
}

pub(super) async fn no_json(s: &mut HostSession) -> Checked {
    let mut payloads: Vec<Vec<u8>> = vec![b"so long".to_vec()];
    if s.is_hardened() {
        payloads.extend([
            b"{\"Result\":0".to_vec(),
            b"{\"Result\":0,\"ErrorMessage\":\"\xff\xfe\"}".to_vec(),
            b"{\"Result\":\"0\"}".to_vec(),
            b"{\"Result\":99999999999}".to_vec(),
            [vec![b'['; 30_000], vec![b']'; 30_000]].concat(),
        ]);
    }
    for payload in payloads {
        let wrong = Step::bytes(move |bytes| with_payload(bytes, &payload));
        s.terminates(Script::new("a response that is no JSON").once(CREATE, [wrong])).await?;
    }
    Ok(())
}

pub(super) async fn sizes(s: &mut HostSession) -> Checked {
    let largest = Step::bytes(|bytes| {
        let mut payload = bytes[HEADER_LEN..].to_vec();
        payload.resize(HOST_LIMIT - HEADER_LEN, b' ');
        with_payload(bytes, &payload)
    });
    s.goes_on(Script::new("a response of 65536 bytes").once(CREATE, [largest])).await?;
    let above = Step::bytes(|bytes| {
        let mut payload = bytes[HEADER_LEN..].to_vec();
        payload.resize(HOST_LIMIT - HEADER_LEN + 1, b' ');
        with_payload(bytes, &payload)
    });
    s.terminates(Script::new("a response of 65537 bytes").once(CREATE, [above])).await?;
    let mut sizes = vec![15u32];
    if s.is_hardened() {
        sizes.extend([0, 0x7fff_ffff, u32::MAX]);
    }
    for size in sizes {
        let wrong = Step::bytes(move |bytes| {
            let mut bytes = bytes[..HEADER_LEN].to_vec();
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            bytes
        });
        let script = Script::new("a header with an impossible size");
        s.terminates(script.once(CREATE, [wrong, PAUSE, Step::Answer])).await?;
    }
    Ok(())
}

pub(super) async fn kinds(s: &mut HostSession) -> Checked {
    let kinds: &[u32] = if s.is_hardened() { &[0, 1, 4, 15] } else { &[1] };
    for &kind in kinds {
        let wrong = Step::bytes(move |bytes| {
            let mut bytes = bytes.to_vec();
            bytes[3] = u8::try_from(kind << 4).unwrap_or_default();
            bytes
        });
        let script = Script::new("a frame that is neither response nor notification");
        s.terminates(script.once(CREATE, [wrong, PAUSE, Step::Answer])).await?;
    }
    Ok(())
}

pub(super) async fn other_notification(s: &mut HostSession) -> Checked {
    let wrong = Step::bytes(|_| {
        let body =
            b"{\"ContainerId\":\"x\",\"Type\":\"Started\",\"Operation\":\"None\",\"Result\":0}";
        frame(MessageType(0x3010_0201), 0, body)
    });
    let script = Script::new("a notification of another type");
    s.terminates(script.once(CREATE, [wrong, PAUSE, Step::Answer])).await.map(drop)
}
