use std::fs;
use std::path::Path;

use linkspan_image::{Digest, Error, LayerForm, Platform, Reference, Store, import};
use linkspan_layer::Format;
use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{Fixture, assert_complete, store, tar_of_directory};

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn take(store: &Store, path: &Path, as_name: Option<&str>) -> Result<(), Error> {
    let as_name = as_name.map(name);
    let platform = Platform::of_this_machine();
    import(store, path, as_name.as_ref(), &platform, &mut |_| {}).map(drop)
}

#[test]
fn layouts_and_archives_of_them_are_taken_in() {
    let source = TempDir::new().unwrap();
    let layout = source.path().join("layout");
    Fixture::new().write_layout(&layout);
    let archive = source.path().join("archive.tar");
    fs::write(&archive, tar_of_directory(&layout)).unwrap();
    let compressed = source.path().join("archive.tar.zst");
    fs::write(&compressed, zstd::encode_all(&tar_of_directory(&layout)[..], 1).unwrap()).unwrap();
    for path in [layout, archive, compressed] {
        let (_directory, store) = store();
        take(&store, &path, Some("example.com/three:1")).unwrap();
        assert_complete(&store, "example.com/three:1");
        let images = store.images().unwrap();
        assert_eq!(images[0].name, "example.com/three:1");
        assert_eq!(images[0].platform, Some(Platform::of_this_machine()));
        assert_complete(&store, &images[0].digest.hex()[..12]);
    }
}

#[test]
fn what_docker_save_wrote_is_taken_in_with_its_name() {
    let source = TempDir::new().unwrap();
    let path = source.path().join("saved.tar");
    fs::write(&path, Fixture::new().docker_save()).unwrap();
    let (_directory, store) = store();
    take(&store, &path, None).unwrap();
    assert_complete(&store, "example.com/saved:1");
}

#[test]
fn plain_root_file_systems_become_images_of_one_layer() {
    let source = TempDir::new().unwrap();
    let path = source.path().join("root.tar.zst");
    fs::write(&path, zstd::encode_all(&Fixture::new().layers[0][..], 1).unwrap()).unwrap();
    let (_directory, store) = store();
    let error = take(&store, &path, None).unwrap_err().to_string();
    assert!(error.contains("--name"), "{error}");
    take(&store, &path, Some("plain")).unwrap();
    let image = store.image("plain").unwrap();
    assert_eq!(image.name(), "docker.io/library/plain:latest");
    assert!(image.process().arguments(None, &[]).is_empty());
    let made = image.prepare(&store, LayerForm::default(), &mut |_| {}).unwrap();
    assert_eq!(made.len(), 1);
}

#[test]
fn layers_can_have_trees_whose_root_hashes_are_noted() {
    let source = TempDir::new().unwrap();
    Fixture::new().write_layout(source.path());
    let (_directory, store) = store();
    take(&store, source.path(), Some("three")).unwrap();
    let image = store.image("three").unwrap();
    for format in [Format::Ext4, Format::Erofs] {
        let form = LayerForm { format, verity: true };
        for layer in image.prepare(&store, form, &mut |_| {}).unwrap() {
            let file = fs::File::open(&layer.path).unwrap();
            let size = linkspan_layer::file_system_size(&file).unwrap().unwrap();
            let tree = linkspan_layer::verity::read(&file, size).unwrap().unwrap();
            assert_eq!(layer.root_hash, Some(tree.root_hex()));
        }
    }
}

#[test]
fn blobs_that_are_not_what_they_are_called_do_not_get_in() {
    let source = TempDir::new().unwrap();
    let fixture = Fixture::new();
    let victim = fixture.blob_of_layer(1);
    let path = source.path().join("blobs/sha256").join(victim.strip_prefix("sha256:").unwrap());
    fixture.write_layout(source.path());
    let right = fs::read(&path).unwrap();
    let mut flipped = right.clone();
    flipped[20] ^= 1;
    let longer = [&right[..], b"x"].concat();
    for (bytes, what) in
        [(flipped, "hashes to"), (longer, "instead of"), (right[1..].to_vec(), "instead of")]
    {
        fs::write(&path, bytes).unwrap();
        let (_directory, store) = store();
        let error = take(&store, source.path(), Some("x")).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(&victim), "{error}");
        assert!(!store.blob(&victim.parse().unwrap()).exists());
        assert!(store.images().unwrap().is_empty());
    }
    fs::remove_file(&path).unwrap();
    let (_directory, store) = store();
    let error = take(&store, source.path(), Some("x")).unwrap_err();
    assert!(matches!(error, Error::MissingBlob(digest) if digest.to_string() == victim));
}

#[test]
fn layer_that_is_not_what_the_configuration_says_makes_no_file_system() {
    let source = TempDir::new().unwrap();
    let mut fixture = Fixture::new();
    let mut layers = fixture.layers.clone();
    layers.swap(0, 2);
    fixture.layers = layers;
    let path = source.path().join("saved.tar");
    fs::write(&path, fixture.docker_save()).unwrap();
    let (_directory, store) = store();
    take(&store, &path, None).unwrap();
    let image = store.image("example.com/saved:1").unwrap();
    let error = image.prepare(&store, LayerForm::default(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    let layers = store.blob(&Digest::of(b"")).parent().unwrap().join("../../layers");
    assert_eq!(fs::read_dir(layers).unwrap().count(), 0);
}

#[test]
fn image_for_another_machine_is_refused_with_what_there_is() {
    let source = TempDir::new().unwrap();
    Fixture::new().write_layout(source.path());
    let (_directory, store) = store();
    let platform = "linux/riscv64".parse().unwrap();
    let name = name("x");
    let error = import(&store, source.path(), Some(&name), &platform, &mut |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("linux/riscv64") && error.contains("linux/s390x"), "{error}");
}

#[test]
fn removed_image_takes_with_it_what_no_other_needs() {
    let source = TempDir::new().unwrap();
    Fixture::new().write_layout(source.path());
    let (directory, store) = store();
    let files = || {
        let blobs = fs::read_dir(directory.path().join("store/blobs/sha256")).unwrap().count();
        (blobs, fs::read_dir(directory.path().join("store/layers")).unwrap().count())
    };
    take(&store, source.path(), Some("one")).unwrap();
    take(&store, source.path(), Some("two")).unwrap();
    store.image("one").unwrap().prepare(&store, LayerForm::default(), &mut |_| {}).unwrap();
    let before = files();
    assert_eq!(store.remove("one").unwrap(), 0);
    assert_eq!(files(), before);
    assert!(matches!(store.image("one"), Err(Error::Unknown(name)) if name == "one"));
    assert!(store.remove("two").unwrap() > 2_000_000);
    assert_eq!(files(), (0, 0));
}

#[test]
fn documents_that_lie_are_refused() {
    let mut fixture = Fixture::new();
    let mut manifest = fixture.manifest.clone();
    manifest["layers"].as_array_mut().unwrap().pop();
    let fewer = fixture.put(manifest.to_string().into_bytes(), crate::fixture::MANIFEST);
    let mut huge = fewer.clone();
    huge["size"] = json!(1_u64 << 40);
    let mut escaping = fewer.clone();
    escaping["digest"] = json!("sha256:../../../../etc/passwd");
    for (manifests, what) in [
        (json!([fewer]), "2 layers"),
        (json!([huge]), "1099511627776"),
        (json!([escaping]), "etc/passwd"),
        (json!([]), "nothing"),
        (json!(7), "index.json"),
    ] {
        fixture.index["manifests"] = manifests;
        let source = TempDir::new().unwrap();
        fixture.write_layout(source.path());
        let (_directory, store) = store();
        let error = take(&store, source.path(), Some("x")).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}
