//! Registries: the pulling half of OCI's distribution protocol over HTTP.

mod auth;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use crate::blob::Source;
use crate::document::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Index, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST,
};
use crate::error::{At, Error, Result};
use crate::import::resolve;
use crate::store::{Store, Stored};
use crate::{Credentials, Digest, Platform, Progress, Reference, blob};

/// How often the rest of a blob is asked for after the connection broke.
const ATTEMPTS: usize = 4;

/// How a registry is spoken to.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// HTTP without TLS. Registries on this machine's own addresses are spoken to so anyway.
    pub plain_http: bool,
    /// Who asks. Without them, what `docker login` noted is tried.
    pub credentials: Option<Credentials>,
}

/// One repository of a registry.
pub struct Registry {
    agent: Agent,
    host: String,
    base: String,
    repository: String,
    credentials: Option<Credentials>,
    /// Value of the Authorization header that was accepted last.
    authorization: Mutex<Option<String>>,
}

impl Registry {
    /// The one that an image's name leads to.
    #[must_use]
    pub fn of(image: &Reference, options: RegistryOptions) -> Self {
        let host = image.resolve_registry().to_owned();
        let scheme = if options.plain_http || is_local(&host) { "http" } else { "https" };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("linkspan/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.into(),
            base: format!("{scheme}://{host}/v2/{}", image.repository()),
            repository: image.repository().to_owned(),
            credentials: options.credentials.or_else(|| Credentials::of_docker(image.registry())),
            host,
            authorization: Mutex::new(None),
        }
    }

    /// Fetches an image into the store. Blobs that are there already are not fetched again, and one
    /// that was interrupted goes on where it was.
    ///
    /// # Errors
    /// [`Error::Registry`] with what the registry said; wrong digests and sizes; no image for
    /// `platform`.
    pub fn pull(
        &self,
        store: &Store,
        image: &Reference,
        platform: &Platform,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Stored> {
        let _in_use = store.in_use()?;
        let pinned = image.digest().map(str::parse::<Digest>).transpose()?;
        let reference = image.digest().or(image.tag()).unwrap_or("latest");
        let what = format!("manifest {reference} of {}", self.repository);
        let response = self.get(&format!("manifests/{reference}"), &what, None)?;
        let media_type = header_text(&response, header::CONTENT_TYPE.as_str()).unwrap_or_default();
        let bytes = self.short(response, &what)?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = pinned
            && expected != digest
        {
            return Err(Error::WrongDigest { expected, found: digest });
        }
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let top = blob::put(store, &media_type, &bytes)?;
        let index = Index { schema_version: 2, media_type: String::new(), manifests: vec![top] };
        resolve(store, self, index, image, platform, progress)
    }

    fn error(&self, what: &str, reason: impl Into<String>) -> Error {
        let (what, registry) = (what.to_owned(), self.host.clone());
        Error::Registry { what, registry, reason: reason.into() }
    }

    /// Asks, and once more with what the registry wants to know.
    fn get(&self, path: &str, what: &str, from: Option<u64>) -> Result<Response<Body>> {
        let url = format!("{}/{path}", self.base);
        let known = || self.authorization.lock().ok().and_then(|known| known.clone());
        let ask = |authorization: Option<String>| {
            let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
            let mut request = self.agent.get(&url).header(header::ACCEPT, accept);
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            if let Some(from) = from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            request.call().map_err(|error| self.error(what, error.to_string()))
        };
        let mut response = ask(known())?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
            let challenges: Vec<_> = challenges.filter_map(|c| c.to_str().ok()).collect();
            let authorization = self.answer(&challenges, what)?;
            if let Ok(mut known) = self.authorization.lock() {
                *known = Some(authorization.clone());
            }
            response = ask(Some(authorization))?;
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            status => {
                let text = response.body_mut().with_config().limit(64 << 10).read_to_string();
                Err(self.error(what, refusal(status, &text.unwrap_or_default())))
            }
        }
    }

    fn short(&self, mut response: Response<Body>, what: &str) -> Result<Vec<u8>> {
        let body = response.body_mut().with_config().limit(MAX_DOCUMENT);
        body.read_to_vec().map_err(|error| self.error(what, error.to_string()))
    }

    /// Fetches the rest of a blob into `file`, which is hashed as far as it goes.
    fn append(
        &self,
        file: &mut File,
        have: &mut u64,
        hash: &mut Sha256,
        blob: &Descriptor,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let name = blob.digest.to_string();
        let what = format!("blob {name}");
        let from = (*have > 0).then_some(*have);
        let response = self.get(&format!("blobs/{name}"), &what, from)?;
        if from.is_some() && response.status() != StatusCode::PARTIAL_CONTENT {
            // It begins anew, and so do we.
            file.set_len(0).and_then(|()| file.rewind()).at("write", &name)?;
            (*have, *hash) = (0, Sha256::new());
        }
        let (_, body) = response.into_parts();
        let mut reader = body.into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.error(&what, error.to_string())),
            };
            *have += count as u64;
            if *have > blob.size {
                let (digest, expected, found) = (blob.digest.clone(), blob.size, *have);
                return Err(Error::WrongSize { digest, expected, found });
            }
            hash.update(&buffer[..count]);
            file.write_all(&buffer[..count]).at("write", &name)?;
            progress(Progress { what: &name, bytes: *have, total: Some(blob.size) });
        }
    }
}

impl Source for Registry {
    fn fetch(
        &self,
        store: &Store,
        blob: &Descriptor,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let path = store.ingest(&blob.digest);
        let open = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = open.at("open", &path)?;
        // Another process may be fetching it: then ours waits, and finds it there.
        flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
        if store.has(&blob.digest) {
            return Ok(());
        }
        let mut hash = Sha256::new();
        let mut have = hash_all(&mut file, &mut hash).at("read", &path)?;
        if have > blob.size {
            file.set_len(0).at("write", &path)?;
            (have, hash) = (0, Sha256::new());
        }
        let mut attempts = 0;
        while have < blob.size {
            attempts += 1;
            let before = have;
            let outcome = self.append(&mut file, &mut have, &mut hash, blob, progress);
            let gone_on = have > before;
            match outcome {
                Ok(()) if have < blob.size && !gone_on => {
                    let (digest, expected) = (blob.digest.clone(), blob.size);
                    return Err(Error::WrongSize { digest, expected, found: have });
                }
                Ok(()) => {}
                // A broken connection: what came is kept, now and for another time.
                Err(Error::Registry { .. }) if gone_on && attempts < ATTEMPTS => {}
                Err(error) => {
                    if matches!(error, Error::WrongSize { .. }) {
                        let _ = std::fs::remove_file(&path);
                    }
                    return Err(error);
                }
            }
        }
        let found = Digest::finish(hash);
        if found != blob.digest {
            // Of no use to anybody.
            let _ = std::fs::remove_file(&path);
            return Err(Error::WrongDigest { expected: blob.digest.clone(), found });
        }
        std::fs::rename(&path, store.blob(&blob.digest)).at("rename", &path)
    }
}

fn hash_all(file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
    file.rewind()?;
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            count => {
                hash.update(&buffer[..count]);
                total += count as u64;
            }
        }
    }
}

fn header_text(response: &Response<Body>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

/// What a registry says, in one line.
fn refusal(status: StatusCode, body: &str) -> String {
    let document: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let said = document.as_ref().and_then(|document| {
        let error = document.get("errors")?.get(0)?;
        let text = |field: &str| Some(error.get(field)?.as_str()?.to_owned());
        Some([text("code"), text("message")].into_iter().flatten().collect::<Vec<_>>().join(": "))
    });
    let advice = match status.as_u16() {
        401 | 403 => " (it may not exist, or need a login: --username)",
        404 => " (no such image or tag)",
        429 => " (too many requests; try again later)",
        _ => "",
    };
    let said = said.filter(|said| !said.is_empty()).map(|said| format!(": {said}"));
    format!("{status}{}{advice}", said.unwrap_or_default())
}

/// Whether a registry is on this machine.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_without_tls() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:80", "[::1]:5000"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["example.com", "localhost.example.com", "10.0.0.1:5000"] {
            assert!(!is_local(host), "{host}");
        }
    }
}
