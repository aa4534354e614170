//! A guest agent that lies, in place of the loopback backend's. Which lie is what `-loglevel=`
//! says, for that is what a caller can set.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let flag = |name: &str| args.iter().find_map(|arg| arg.strip_prefix(name)).unwrap_or_default();
    let directory = args.windows(2).find(|pair| pair[0] == "-directory").map(|pair| &pair[1]);
    // As the real one: everything ends with the host.
    let directory = directory.cloned();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        if let Some(directory) = directory {
            let _ = std::fs::remove_dir_all(directory);
        }
        std::process::exit(0);
    });
    let lie = flag("-loglevel=");
    eprintln!("false agent: {lie}");
    if lie == "ends" {
        std::process::exit(3);
    }
    let path = format!("{}_{}", flag("-host=hybrid:"), 0x4000_0000);
    if lie == "silent" {
        park();
    }
    loop {
        // The host may not listen yet, or not any more.
        if let Ok(stream) = UnixStream::connect(&path) {
            let _ = serve(stream, lie);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Does nothing more.
fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn serve(mut stream: UnixStream, lie: &str) -> std::io::Result<()> {
    let (message_type, id, _) = read_frame(&mut stream)?;
    let response = 0x2000_0000 | (message_type & 0x0fff_ffff);
    let good = br#"{"Result":0,"Version":4,"Capabilities":{"SupportedSchemaVersions":[{"Major":2,"Minor":1}],"RuntimeOsType":"Linux","GuestDefinedCapabilities":{"DumpStacksSupported":true}}}"#;
    match lie {
        "oversized-first" => stream.write_all(&header(response, 0x7fff_ffff, id))?,
        "short-first" => stream.write_all(&header(response, 3, id))?,
        "garbage-first" => stream.write_all(&[0xa5; 4096])?,
        "not-json-first" => stream.write_all(&frame(response, id, b"so long"))?,
        "version-5" => {
            let text = String::from_utf8_lossy(good).replace("\"Version\":4", "\"Version\":5");
            stream.write_all(&frame(response, id, text.as_bytes()))?;
        }
        "closes" => return Ok(()),
        "never-answers" => {}
        _ => stream.write_all(&frame(response, id, good))?,
    }
    loop {
        let (message_type, id, _) = read_frame(&mut stream)?;
        let response = 0x2000_0000 | (message_type & 0x0fff_ffff);
        match lie {
            "oversized" => stream.write_all(&header(response, 0x1_0001, id))?,
            "huge" => stream.write_all(&header(response, u32::MAX, id))?,
            "short" => stream.write_all(&header(response, 15, id))?,
            "garbage" => stream.write_all(&[0xa5; 4096])?,
            "not-json" => stream.write_all(&frame(response, id, b"so long"))?,
            "unknown-id" => stream.write_all(&frame(response, id + 7, b"{\"Result\":0}"))?,
            "unknown-notification" => stream.write_all(&frame(0x3010_0201, 0, b"{}"))?,
            "request" => stream.write_all(&frame(0x1010_0c01, id, b"{}"))?,
            "cut" => {
                stream.write_all(&header(response, 1000, id))?;
                stream.write_all(b"{\"Result\"")?;
                drop(stream);
                // It stays away, so what it owes will never come.
                park();
            }
            other => panic!("no such lie: {other}"),
        }
    }
}

fn read_frame(stream: &mut UnixStream) -> std::io::Result<(u32, u64, Vec<u8>)> {
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let id = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
    let mut payload = vec![0; word(4) as usize - 16];
    stream.read_exact(&mut payload)?;
    Ok((word(0), id, payload))
}

fn header(message_type: u32, size: u32, id: u64) -> Vec<u8> {
    let mut bytes = message_type.to_le_bytes().to_vec();
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes
}

fn frame(message_type: u32, id: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(message_type, 16 + payload.len() as u32, id);
    bytes.extend_from_slice(payload);
    bytes
}
