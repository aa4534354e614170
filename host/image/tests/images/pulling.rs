use linkspan_image::{
    Credentials, Digest, Error, Platform, Reference, Registry, RegistryOptions, Store, Stored,
};

use crate::fixture::{Fixture, INDEX, MANIFEST, assert_complete, store};
use crate::registry::{Shelf, TestRegistry};

/// A registry with the image as `app/three:1`.
fn shelf() -> (Fixture, Shelf) {
    let fixture = Fixture::new();
    let mut shelf = Shelf::default();
    for (digest, bytes) in &fixture.blobs {
        let content = (MANIFEST.to_owned(), bytes.clone());
        shelf.content.insert(format!("app/three/blobs/{digest}"), content.clone());
        shelf.content.insert(format!("app/three/manifests/{digest}"), content);
    }
    let index = fixture.index.to_string().into_bytes();
    let digest = Digest::of(&index);
    for reference in ["1".to_owned(), digest.to_string()] {
        let path = format!("app/three/manifests/{reference}");
        shelf.content.insert(path, (INDEX.to_owned(), index.clone()));
    }
    (fixture, shelf)
}

fn pull(registry: &TestRegistry, store: &Store, name: &str) -> Result<Stored, Error> {
    pull_as(registry, store, name, None)
}

fn pull_as(
    registry: &TestRegistry,
    store: &Store,
    name: &str,
    credentials: Option<Credentials>,
) -> Result<Stored, Error> {
    let image: Reference = format!("{}/app/{name}", registry.address).parse().unwrap();
    let options = RegistryOptions { credentials, ..RegistryOptions::default() };
    let platform = Platform::of_this_machine();
    Registry::of(&image, options).pull(store, &image, &platform, &mut |_| {})
}

#[test]
fn image_is_pulled_with_a_token_and_only_what_is_missing_is_fetched() {
    let (_, mut shelf) = shelf();
    shelf.tokens = true;
    let registry = TestRegistry::start(shelf);
    let (_directory, store) = store();
    let stored = pull(&registry, &store, "three:1").unwrap();
    assert_complete(&store, &stored.name);
    let blobs = || {
        let asked = &registry.shelf.lock().unwrap().asked;
        asked.iter().filter(|(path, _)| path.contains("/blobs/")).count()
    };
    assert_eq!(blobs(), 5, "manifest, configuration and three layers");
    pull(&registry, &store, "three:1").unwrap();
    assert_eq!(blobs(), 5);
}

#[test]
fn login_is_needed_where_the_registry_wants_one() {
    let (_, mut shelf) = shelf();
    shelf.tokens = true;
    shelf.user = Some(("me".to_owned(), "secret".to_owned()));
    let registry = TestRegistry::start(shelf);
    let (_directory, store) = store();
    let error = pull(&registry, &store, "three:1").unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("--username"), "{error}");
    let me = Credentials { user: "me".to_owned(), password: "secret".to_owned() };
    pull_as(&registry, &store, "three:1", Some(me)).unwrap();
}

#[test]
fn image_can_be_pinned_by_its_digest() {
    let (fixture, shelf) = shelf();
    let registry = TestRegistry::start(shelf);
    let (_directory, store) = store();
    let digest = Digest::of(fixture.index.to_string().as_bytes());
    pull(&registry, &store, &format!("three@{digest}")).unwrap();
    let path = format!("app/three/manifests/{digest}");
    let other = (MANIFEST.to_owned(), fixture.manifest.to_string().into_bytes());
    registry.shelf.lock().unwrap().content.insert(path, other);
    let error = pull(&registry, &store, &format!("three@{digest}")).unwrap_err();
    assert!(matches!(error, Error::WrongDigest { expected, .. } if expected == digest));
}

#[test]
fn broken_connections_are_gone_on_from() {
    let (fixture, mut shelf) = shelf();
    shelf.break_after = vec![200_000, 300_000];
    let registry = TestRegistry::start(shelf);
    let (_directory, store) = store();
    let stored = pull(&registry, &store, "three:1").unwrap();
    assert_complete(&store, &stored.name);
    let big = format!("app/three/blobs/{}", fixture.blob_of_layer(0));
    let asked = registry.shelf.lock().unwrap();
    let starts: Vec<_> = asked.asked.iter().filter(|(path, _)| *path == big).map(|a| a.1).collect();
    assert_eq!(starts, [None, Some(300_000), Some(500_000)]);
}

#[test]
fn interrupted_pull_is_gone_on_from_by_the_next_even_without_ranges() {
    for ignore_ranges in [false, true] {
        let (fixture, mut shelf) = shelf();
        shelf.ignore_ranges = ignore_ranges;
        let registry = TestRegistry::start(shelf);
        let (directory, store) = store();
        let digest = fixture.blob_of_layer(0);
        let hex = digest.strip_prefix("sha256:").unwrap();
        let partial = directory.path().join("store/ingest").join(hex);
        std::fs::write(&partial, &fixture.blobs[&digest][..150_000]).unwrap();
        let stored = pull(&registry, &store, "three:1").unwrap();
        assert_complete(&store, &stored.name);
        assert!(!partial.exists());
        let big = format!("app/three/blobs/{digest}");
        assert!(registry.shelf.lock().unwrap().asked.contains(&(big, Some(150_000))));
    }
}

#[test]
fn wrong_content_is_refused_and_not_kept() {
    let (fixture, mut shelf) = shelf();
    let digest = fixture.blob_of_layer(0);
    let path = format!("app/three/blobs/{digest}");
    let right = shelf.content[&path].clone();
    let mut flipped = right.clone();
    flipped.1[1000] ^= 1;
    let mut short = right.clone();
    short.1.truncate(1000);
    let mut long = right.clone();
    long.1.push(0);
    shelf.content.insert(path.clone(), right.clone());
    let registry = TestRegistry::start(shelf);
    for (content, what) in [(flipped, "hashes to"), (short, "instead of"), (long, "instead of")] {
        registry.shelf.lock().unwrap().content.insert(path.clone(), content);
        let (_directory, store) = store();
        let error = pull(&registry, &store, "three:1").unwrap_err().to_string();
        assert!(error.contains(&digest) && error.contains(what), "{error}");
        assert!(store.images().unwrap().is_empty());
        // With the right content it works, whatever came before.
        registry.shelf.lock().unwrap().content.insert(path.clone(), right.clone());
        pull(&registry, &store, "three:1").unwrap();
    }
}

#[test]
fn what_is_not_there_is_said_in_the_registrys_words() {
    let (_, shelf) = shelf();
    let registry = TestRegistry::start(shelf);
    let (_directory, store) = store();
    let error = pull(&registry, &store, "three:2").unwrap_err().to_string();
    assert!(error.contains("MANIFEST_UNKNOWN: not here") && error.contains("404"), "{error}");
    assert!(error.contains(&registry.address) && error.contains("app/three"), "{error}");
}
