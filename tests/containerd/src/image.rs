//! Container images of two layers, in archives that `ctr image import` takes.
//!
//! The upper layer adds a file, changes one, removes one, and hides what a directory of the lower
//! one holds: an overlay that does not put its layers together as it should shows.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What containers are made from.
pub(crate) const NAME: &str = "localhost/busybox:test";

/// What a pod's sandbox is made from.
pub(crate) const PAUSE: &str = "localhost/pause:test";

/// What a sandbox runs.
pub(crate) const PAUSE_COMMAND: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";

/// Writes an archive.
pub(crate) fn write(rootfs: &Path, archive: &Path, name: &str, command: &str) -> Result<()> {
    let mut archive = tar::Builder::new(File::create(archive)?);
    let mut blob = |bytes: &[u8]| -> Result<(String, usize)> {
        let digest = hex(bytes);
        append(&mut archive, &format!("blobs/sha256/{digest}"), bytes)?;
        Ok((format!("sha256:{digest}"), bytes.len()))
    };
    let mut layers = Vec::new();
    for bytes in [lower(rootfs)?, upper()?] {
        layers.push(blob(&bytes)?);
    }
    let digests: Vec<&str> = layers.iter().map(|(digest, _)| digest.as_str()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "OF=image"], "Cmd": ["sh", "-c", command], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": digests},
    });
    let config = blob(&serde_json::to_vec(&config)?)?;
    let descriptor = |kind: &str, (digest, size): &(String, usize)| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": layers.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect::<Vec<Value>>(),
    });
    let manifest = blob(&serde_json::to_vec(&manifest)?)?;
    let mut entry = descriptor("manifest.v1+json", &manifest);
    entry["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    append(&mut archive, "index.json", &serde_json::to_vec(&index)?)?;
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.into_inner()?.flush()?;
    Ok(())
}

fn lower(rootfs: &Path) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    layer.follow_symlinks(false);
    layer.mode(tar::HeaderMode::Complete);
    for entry in fs::read_dir(rootfs)? {
        let entry = entry?;
        let name = entry.file_name();
        match entry.file_type()?.is_dir() {
            true => layer.append_dir_all(&name, entry.path())?,
            false => layer.append_path_with_name(entry.path(), &name)?,
        }
    }
    for (path, text) in
        [("srv/kept", "lower"), ("srv/changed", "lower"), ("srv/removed", "x"), ("opt/old", "x")]
    {
        append(&mut layer, path, text.as_bytes())?;
    }
    Ok(layer.into_inner()?)
}

fn upper() -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (path, text) in [
        ("srv/changed", "upper"),
        ("srv/added", "upper"),
        ("srv/.wh.removed", ""),
        ("opt/.wh..wh..opq", ""),
        ("opt/new", "upper"),
    ] {
        append(&mut layer, path, text.as_bytes())?;
    }
    Ok(layer.into_inner()?)
}

fn append<W: Write>(archive: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len().try_into()?);
    header.set_mode(0o644);
    archive.append_data(&mut header, path, bytes)?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
