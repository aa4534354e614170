//! A registry as small as can be, on the loopback address: manifests, blobs with ranges, tokens.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What it has, and how it behaves.
#[derive(Default)]
pub(crate) struct Shelf {
    /// Path below `/v2/`, media type and bytes.
    pub(crate) content: BTreeMap<String, (String, Vec<u8>)>,
    /// Whether a token is needed, and who gets one.
    pub(crate) user: Option<(String, String)>,
    pub(crate) tokens: bool,
    /// Breaks off a blob after so many bytes, once each.
    pub(crate) break_after: Vec<usize>,
    pub(crate) ignore_ranges: bool,
    /// What was asked for, with the start of the range.
    pub(crate) asked: Vec<(String, Option<usize>)>,
}

pub(crate) struct TestRegistry {
    pub(crate) address: String,
    pub(crate) shelf: Arc<Mutex<Shelf>>,
}

impl TestRegistry {
    /// Its thread ends with the process.
    pub(crate) fn start(shelf: Shelf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shelf = Arc::new(Mutex::new(shelf));
        let (served, host) = (Arc::clone(&shelf), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shelf, host) = (Arc::clone(&served), host.clone());
                std::thread::spawn(move || drop(serve(&stream, &shelf, &host)));
            }
        });
        Self { address, shelf }
    }
}

fn serve(stream: &TcpStream, shelf: &Mutex<Shelf>, host: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        answer(stream, &path, &headers, &mut shelf.lock().unwrap(), host)?;
    }
}

fn answer(
    mut stream: &TcpStream,
    path: &str,
    headers: &BTreeMap<String, String>,
    shelf: &mut Shelf,
    host: &str,
) -> std::io::Result<()> {
    let authorization = headers.get("authorization").cloned().unwrap_or_default();
    if let Some(query) = path.strip_prefix("/token?") {
        assert!(query.contains("scope=repository%3Aapp%2Fthree%3Apull"), "{query}");
        assert!(query.contains("service=test"), "{query}");
        let basic = |(user, password): &(String, String)| {
            assert_eq!((user.as_str(), password.as_str()), ("me", "secret"));
            "Basic bWU6c2VjcmV0".to_owned()
        };
        let known = shelf.user.as_ref().is_none_or(|user| authorization == basic(user));
        return match known {
            true => respond(stream, "200 OK", "", br#"{"token":"good"}"#),
            false => respond(stream, "401 Unauthorized", "", b"{}"),
        };
    }
    if shelf.tokens && authorization != "Bearer good" {
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:app/three:pull\"\r\n"
        );
        return respond(stream, "401 Unauthorized", &challenge, b"{}");
    }
    let start = headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let path = path.strip_prefix("/v2/").unwrap_or(path);
    shelf.asked.push((path.to_owned(), start));
    let Some((media_type, bytes)) = shelf.content.get(path) else {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#;
        return respond(stream, "404 Not Found", "", body);
    };
    let (status, bytes) = match start.filter(|_| !shelf.ignore_ranges) {
        Some(start) => ("206 Partial Content", &bytes[start.min(bytes.len())..]),
        None => ("200 OK", &bytes[..]),
    };
    if path.contains("/blobs/")
        && bytes.len() > 100_000
        && let Some(length) = shelf.break_after.pop()
    {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", bytes.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(&bytes[..length])?;
        return stream.shutdown(std::net::Shutdown::Both);
    }
    respond(stream, status, &format!("Content-Type: {media_type}\r\n"), bytes)
}

fn respond(
    mut stream: &TcpStream,
    status: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
