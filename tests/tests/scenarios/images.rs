//! Container images: what they say about their process, and layers over one another.

use std::path::Path;

use linkspan_tests::{Backend, User, on_both_backends, rootfs};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

on_both_backends!(alone: image_runs_as_it_says_unless_told_otherwise);

/// A tar of some files, over one of the usual root if asked for.
fn layer(over_root: bool, files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    if over_root {
        tar.follow_symlinks(false);
        tar.append_dir_all("", rootfs()).unwrap();
    }
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// An OCI image layout of three layers.
fn write_layout(directory: &Path) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| -> Value {
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let layers = [
        layer(true, &[("srv/gone", "x"), ("opaque/old", "x"), ("srv/file", "lower")]),
        layer(false, &[("srv/.wh.gone", ""), ("opaque/.wh..wh..opq", ""), ("opaque/new", "new")]),
        layer(false, &[("srv/file", "upper")]),
    ];
    let described: Vec<Value> = layers.iter().map(|tar| put("layer.v1.tar", tar)).collect();
    let diffs: Vec<Value> = described.iter().map(|layer| layer["digest"].clone()).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {
            "Entrypoint": ["/bin/sh", "-c"], "WorkingDir": "/srv", "User": "5:6",
            "Env": ["A=image", "B=image"],
            "Cmd": ["echo $A $B $(id -u) $(id -g); ls; cat file; echo; ls /opaque; exit 4"],
        },
        "rootfs": {"type": "layers", "diff_ids": diffs},
    });
    let config = put("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": described});
    let manifest = put("manifest.v1+json", manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

async fn image_runs_as_it_says_unless_told_otherwise(backend: Backend) {
    let user = User::of(backend);
    let layout = tempfile::tempdir().unwrap();
    write_layout(layout.path());
    let layout = layout.path().to_str().unwrap();
    let said = user.say(&["image", "import", layout, "--name", "three:1"], b"").await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.starts_with("docker.io/library/three:1  sha256:"), "{said:?}");

    let run = |words: &[&'static str]| [&["run"], &user.vmm()[..], words].concat();
    // The loopback backend has the kernel of this machine, which need not have dm-verity.
    let checked = match backend {
        Backend::Qemu => &["--verity", "-e", "B=mine", "three:1"][..],
        Backend::Loopback => &["-e", "B=mine", "three:1"],
    };
    let said = user.say(&run(checked), b"").await;
    assert_eq!(said.out, "image mine 5 6\nfile\nupper\nnew\n", "{said:?}");
    assert_eq!((said.code, said.err.as_str()), (Some(4), ""));

    let other = ["--layer-format", "erofs", "--entrypoint", "", "-u", "0", "-w", "/", "three:1"];
    let said = user.say(&run(&[&other[..], &["--", "sh", "-c", "id -u; pwd"]].concat()), b"").await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "0\n/\n"), "{said:?}");

    let said = user.say(&["image", "remove", "three:1"], b"").await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = user.say(&run(&["three:1", "--", "true"]), b"").await;
    assert!(said.code == Some(125) && said.err.contains("three:1"), "{said:?}");
    assert!(user.left().iter().all(|path| path.starts_with("tmp/linkspan-0")), "{:?}", user.left());
}

#[test]
fn layer_commands_make_check_and_mount_what_they_say() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("layer.tar"), layer(false, &[("file", "content"), (".wh.gone", "")]))
        .unwrap();
    let linkspan = |args: &[&str]| {
        let output =
            std::process::Command::new(linkspan_tests::cli()).arg("layer").args(args).output();
        let output = output.expect("run linkspan");
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), out, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for format in ["ext4", "erofs"] {
        let image = path(&format!("layer.{format}"));
        let (tar, mount) = (path("layer.tar"), path(&format!("mount.{format}")));
        let options = ["--whiteouts", "--verity", "--vhd", "--format", format, "--json"];
        let said = linkspan(&[&["build", &tar, "-o", &image], &options[..]].concat());
        assert_eq!(said.0, Some(0), "{said:?}");
        let built: Value = serde_json::from_str(&said.1).unwrap();
        let root = built["root_hash"].as_str().unwrap();
        let again = linkspan(&["build", &tar, "-o", &image]);
        assert!(again.0 == Some(125) && again.2.contains("--force"), "{again:?}");

        assert_eq!(linkspan(&["verity", "root", &image]).1.trim(), root);
        let said = linkspan(&["verity", "verify", &image, "--root-hash", root]);
        assert_eq!(said.0, Some(0), "{said:?}");
        let said = linkspan(&["verity", "verify", &image, "--root-hash", &"0".repeat(64)]);
        assert!(said.0 == Some(125) && said.2.contains(root), "{said:?}");
        let said = linkspan(&["--json", "inspect", &image]);
        let found: Value = serde_json::from_str(&said.1).unwrap();
        assert_eq!(found["kind"], "fixed VHD");
        assert_eq!(found["verity"]["root_hash"], root);

        std::fs::create_dir(&mount).unwrap();
        let said = linkspan(&["mount", &image, &mount]);
        assert_eq!(said.0, Some(0), "{said:?}");
        let content = std::fs::read_to_string(format!("{mount}/file"));
        let hidden = std::fs::symlink_metadata(format!("{mount}/gone"));
        let status = std::process::Command::new("umount").arg(&mount).status().unwrap();
        assert!(status.success());
        assert_eq!(content.unwrap(), "content");
        assert!(std::os::unix::fs::FileTypeExt::is_char_device(&hidden.unwrap().file_type()));

        let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x55], 5000).unwrap();
        let said = linkspan(&["verity", "verify", &image]);
        assert!(said.0 == Some(125) && said.2.contains("block 1 (byte 4096)"), "{said:?}");
    }
}
