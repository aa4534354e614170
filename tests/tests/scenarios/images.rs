//! Container images: what they say about their process, and layers over one another.

use std::path::Path;

use linkspan_tests::{Backend, User, block_on, on_both_backends, rootfs};
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

    if backend == Backend::Qemu {
        // In the machine's memory, all three of them.
        let root = "grep -o 'lowerdir=[^,]*' /proc/mounts; cat file";
        let words =
            ["--pmem", "3", "--verity", "--entrypoint", "", "three:1", "--", "sh", "-c", root];
        let said = user.say(&run(&words), b"").await;
        let expected = "lowerdir=/run/layers/p2:/run/layers/p1:/run/layers/p0\nupper";
        let sorted = |text: &str| {
            let (layers, rest) =
                text.trim_start_matches("lowerdir=").split_once('\n').unwrap_or_default();
            let mut layers: Vec<_> = layers.split(':').map(str::to_owned).collect();
            // They are attached as they come.
            layers.sort();
            (layers, rest.to_owned())
        };
        assert_eq!(sorted(&said.out), sorted(expected), "{said:?}");
    }
    let other = ["--layer-format", "erofs", "--entrypoint", "", "-u", "0", "-w", "/", "three:1"];
    let said = user.say(&run(&[&other[..], &["--", "sh", "-c", "id -u; pwd"]].concat()), b"").await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "0\n/\n"), "{said:?}");

    let said = user.say(&["image", "remove", "three:1"], b"").await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = user.say(&run(&["three:1", "--", "true"]), b"").await;
    assert!(said.code == Some(125) && said.err.contains("three:1"), "{said:?}");
    assert!(user.left().iter().all(|path| path.starts_with("tmp/linkspan-0")), "{:?}", user.left());
}

/// A layer with a hash tree, with the usual root in it, and its root hash.
fn pinned(directory: &Path) -> (String, String) {
    let image = directory.join("pinned.ext4").to_str().unwrap().to_owned();
    let root = rootfs();
    let args = ["layer", "build", root.to_str().unwrap(), "--verity", "--json", "-o", &image];
    let output = std::process::Command::new(linkspan_tests::cli()).args(args).output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    (image, told["root_hash"].as_str().unwrap().to_owned())
}

#[test]
fn a_root_hash_that_the_user_gives_is_what_the_guest_checks() {
    block_on(async {
        let user = User::of(Backend::Qemu);
        let directory = tempfile::tempdir().unwrap();
        let (image, root) = pinned(directory.path());
        let other = format!("{}{}", if root.starts_with('0') { "1" } else { "0" }, &root[1..]);
        let run = async |hashes: &[&str], more: &[&str]| {
            let mut args = vec!["run"];
            args.extend(more);
            for hash in hashes {
                args.extend(["--root-hash", hash]);
            }
            args.extend([&image, "--", "sh", "-c", "grep -c verity /proc/mounts; echo ran"]);
            user.say(&args, b"").await
        };
        let said = run(&[&root], &["--pmem", "2"]).await;
        assert_eq!((said.code, said.out.as_str()), (Some(0), "0\nran\n"), "{said:?}");
        let said = run(&[&other], &[]).await;
        assert_eq!(said.code, Some(125), "{said:?}");
        assert!(said.err.contains("do not match the root hash") && said.err.contains(&other));
        for (hashes, part) in [
            (&[&*root, &*root][..], "given 2 times for 1 layers"),
            (&["abc"][..], "\"abc\" is not 64"),
        ] {
            let said = run(hashes, &["--vmm", "loopback"]).await;
            assert!(said.code == Some(125) && said.err.contains(part), "{said:?}");
        }
        let said = run(&[], &["--vmm", "loopback", "--pmem", "1"]).await;
        assert!(said.code == Some(125) && said.err.contains("--pmem"), "{said:?}");
    });
}

#[test]
fn layer_commands_make_check_compare_and_take_apart_what_they_say() {
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

        let out = path(&format!("out.{format}"));
        let said = linkspan(&["extract", &image, "-o", &out]);
        assert_eq!(said.0, Some(0), "{said:?}");
        assert_eq!(std::fs::read_to_string(format!("{out}/file")).unwrap(), "content");
        let again = linkspan(&["extract", &image, "-o", &out]);
        assert!(again.0 == Some(125) && again.2.contains("not empty"), "{again:?}");
        assert_eq!(linkspan(&["diff", &image, &out]), (Some(0), String::new(), String::new()));
        assert_eq!(linkspan(&["diff", "--whiteouts", &tar, &image]).0, Some(0));
        std::fs::write(format!("{out}/file"), "changed").unwrap();
        let said = linkspan(&["diff", "--ignore", "time", &image, &out]);
        assert_eq!(said.1, "~ file  content 7 bytes -> 7 bytes, others\n");
        assert_eq!(said.0, Some(1));
        let said = linkspan(&["--json", "diff", &image, &out]);
        let found: Value = serde_json::from_str(&said.1).unwrap();
        assert_eq!(
            (&found["same"], &found["differences"][0]["path"]),
            (&json!(false), &json!("file"))
        );
        let said = linkspan(&["diff", &image, &path("missing")]);
        assert!(said.0 == Some(2) && said.2.contains("missing"), "{said:?}");
        let again = path(&format!("again.{format}.tar"));
        let said = linkspan(&["extract", &image, "--tar", &again, "--whiteouts", "oci"]);
        assert_eq!(said.0, Some(0), "{said:?}");
        assert_eq!(linkspan(&["diff", "--whiteouts", &again, &image]).0, Some(0));

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
