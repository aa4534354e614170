//! An image of three layers, made by hand.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use linkspan_image::{Digest, LayerForm, Platform, Store};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Blobs by digest, and the descriptor of a list of images.
pub(crate) struct Fixture {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) index: Value,
    pub(crate) manifest: Value,
    pub(crate) config: Vec<u8>,
    /// Uncompressed, the lowest first.
    pub(crate) layers: Vec<Vec<u8>>,
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, name, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let big: Vec<u8> =
            (0..700_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let layers = vec![
            tar(&[("bin/sh", b"shell"), ("etc/gone", b"x"), ("big", &big)]),
            tar(&[("etc/.wh.gone", b""), ("etc/kept", b"kept")]),
            tar(&[("top", b"top")]),
        ];
        let mut fixture = Self {
            blobs: BTreeMap::new(),
            index: Value::Null,
            manifest: Value::Null,
            config: Vec::new(),
            layers: layers.clone(),
        };
        let packed = [
            (gzip(&layers[0]), "application/vnd.oci.image.layer.v1.tar+gzip"),
            (
                zstd::encode_all(&layers[1][..], 1).unwrap(),
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
            (layers[2].clone(), "application/vnd.oci.image.layer.v1.tar"),
        ];
        let described: Vec<Value> =
            packed.into_iter().map(|(bytes, kind)| fixture.put(bytes, kind)).collect();
        let diffs: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let ours = Platform::of_this_machine();
        let config = json!({
            "architecture": ours.architecture, "os": "linux",
            "config": {
                "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["true"], "Env": ["A=1", "PATH=/bin"],
                "User": "1000:100", "WorkingDir": "/srv", "StopSignal": "SIGINT",
            },
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        fixture.config = serde_json::to_vec(&config).unwrap();
        let config =
            fixture.put(fixture.config.clone(), "application/vnd.oci.image.config.v1+json");
        fixture.manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": described,
        });
        let bytes = serde_json::to_vec(&fixture.manifest).unwrap();
        let mut ours_is = fixture.put(bytes, MANIFEST);
        ours_is["platform"] = json!({"os": "linux", "architecture": ours.architecture});
        let other = json!({
            "mediaType": MANIFEST, "digest": Digest::of(b"never fetched"), "size": 13,
            "platform": {"os": "linux", "architecture": "s390x"},
        });
        fixture.index =
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, ours_is]});
        fixture
    }

    pub(crate) fn put(&mut self, bytes: Vec<u8>, media_type: &str) -> Value {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        self.blobs.insert(digest.to_string(), bytes);
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    pub(crate) fn blob_of_layer(&self, layer: usize) -> String {
        self.manifest["layers"][layer]["digest"].as_str().unwrap().to_owned()
    }

    /// An OCI image layout.
    pub(crate) fn write_layout(&self, directory: &Path) {
        std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        std::fs::write(directory.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(directory.join("index.json"), self.index.to_string()).unwrap();
        for (digest, bytes) in &self.blobs {
            let name = digest.strip_prefix("sha256:").unwrap();
            std::fs::write(directory.join("blobs/sha256").join(name), bytes).unwrap();
        }
    }

    /// What `docker save` wrote for years; a layer that is there twice is a link.
    pub(crate) fn docker_save(&self) -> Vec<u8> {
        let manifest = json!([{
            "Config": "config.json", "RepoTags": ["example.com/saved:1"],
            "Layers": ["0/layer.tar", "1/layer.tar", "2/layer.tar"],
        }]);
        let mut tar = tar::Builder::new(Vec::new());
        for (name, data) in [
            ("config.json", self.config.as_slice()),
            ("2/layer.tar", &self.layers[2]),
            ("real/layer.tar", &self.layers[1]),
            ("0/layer.tar", &self.layers[0]),
            ("manifest.json", manifest.to_string().as_bytes()),
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(data.len() as u64);
            tar.append_data(&mut header, name, data).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "1/layer.tar", "../real/layer.tar").unwrap();
        tar.into_inner().unwrap()
    }
}

pub(crate) fn tar_of_directory(directory: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", directory).unwrap();
    tar.into_inner().unwrap()
}

pub(crate) fn store() -> (TempDir, Store) {
    let directory = TempDir::new().unwrap();
    let store = Store::open(directory.path().join("store")).unwrap();
    (directory, store)
}

/// The image is all there, and says what it was made to say.
pub(crate) fn assert_complete(store: &Store, name: &str) {
    let image = store.image(name).unwrap();
    let process = image.process();
    assert_eq!(process.arguments(None, &[]), ["/bin/sh", "-c", "true"]);
    assert_eq!((process.user.as_str(), process.working_dir.as_str()), ("1000:100", "/srv"));
    let env: Vec<_> = process.environment().collect();
    assert_eq!(env, [("A".into(), "1".into()), ("PATH".into(), "/bin".into())]);
    let made = image.prepare(store, LayerForm::default(), &mut |_| {}).unwrap();
    assert_eq!(made.len(), 3);
    for layer in &made {
        let kind = linkspan_layer::detect(&layer.path).unwrap();
        assert!(matches!(kind, linkspan_layer::Kind::Ext4 { .. }), "{kind:?}");
    }
    assert_eq!(image.prepare(store, LayerForm::default(), &mut |_| panic!()).unwrap(), made);
    let layer = &std::fs::read(&made[1].path).unwrap();
    assert!(layer.windows(4).any(|bytes| bytes == b"gone"), "a whiteout has its name");
    assert!(!layer.windows(8).any(|bytes| bytes == b".wh.gone"));
}
