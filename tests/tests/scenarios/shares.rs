//! Directories of this host in containers: by virtio-fs in a VM, as they are without one.

use std::fs;

use linkspan_host::{ContainerBuilder, Layers, ProcessSpec, Stdio};
use linkspan_tests::{Backend, User, layer_image, machine, on_both_backends, unique};

on_both_backends!(alone:
    directories_of_this_host_are_shared_and_let_go,
    volumes_of_the_command_line_are_shares,
);

async fn output(container: ContainerBuilder) -> (String, String) {
    let container = container.create().await.unwrap();
    let child = container.start(Stdio::OUTPUT).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    container.delete().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

async fn directories_of_this_host_are_shared_and_let_go(backend: Backend) {
    let uvm = machine("shares", backend).shares(2).start().await.unwrap();
    let (open, fixed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(fixed.path().join("given"), "by the host\n").unwrap();
    // More often than there are ports: what is let go of is used again.
    for round in 0..3 {
        fs::write(open.path().join("now"), format!("round {round}\n")).unwrap();
        let script = "cat /fixed/given /open/now; echo mine > /open/made; echo x > /fixed/made";
        let container = uvm
            .container(unique("shares"), Layers::of(layer_image()))
            .process(ProcessSpec::new(["sh", "-c", script]))
            .share(open.path(), "/open", false)
            .share(fixed.path(), "/fixed", true);
        let (said, complaint) = output(container).await;
        assert_eq!(said, format!("by the host\nround {round}\n"), "{complaint}");
        assert!(complaint.contains("Read-only file system"), "{complaint}");
        assert_eq!(fs::read_to_string(open.path().join("made")).unwrap(), "mine\n");
        assert!(!fixed.path().join("made").exists());
        fs::remove_file(open.path().join("made")).unwrap();
    }
    let missing = uvm.container(unique("missing"), Layers::of(layer_image())).share(
        open.path().join("nowhere"),
        "/nowhere",
        true,
    );
    let error = missing.create().await.unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
    if backend == Backend::Qemu {
        let mut many = uvm.container(unique("many"), Layers::of(layer_image()));
        for target in ["/a", "/b", "/c"] {
            many = many.share(open.path(), target, false);
        }
        let error = many.create().await.unwrap_err().to_string();
        assert!(error.contains("all 2 ports"), "{error}");
    }
    uvm.terminate().await;
}

async fn volumes_of_the_command_line_are_shares(backend: Backend) {
    let user = User::of(backend);
    let (open, fixed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(fixed.path().join("given"), "by the host\n").unwrap();
    let volumes = [
        format!("{}:/open", open.path().display()),
        format!("{}:/deep/fixed:ro", fixed.path().display()),
    ];
    let options = ["--volume", &volumes[0], "--volume", &volumes[1]];
    let script =
        ["sh", "-c", "cat /deep/fixed/given; echo mine > /open/made; echo x > /deep/fixed/x"];
    let said = user.run(&options, &script, b"").await;
    assert_eq!(said.out, "by the host\n", "{said:?}");
    assert!(said.err.contains("Read-only file system"), "{said:?}");
    assert_eq!(fs::read_to_string(open.path().join("made")).unwrap(), "mine\n");
    assert!(!fixed.path().join("x").exists());
    let said = user.run(&["--volume", "/no/where:/x"], &["true"], b"").await;
    assert!(said.code == Some(125) && said.err.contains("/no/where"), "{said:?}");

    // A machine that stays has room for as many as it was started with.
    let start = [&["uvm", "start", "sharing", "--shares", "1"][..], &user.vmm()].concat();
    assert_eq!(user.say(&start, b"").await.code, Some(0));
    let root = linkspan_tests::rootfs();
    let run = |more: &[&str]| {
        let head = ["run", "--uvm", "sharing", "--volume", &volumes[0]];
        let tail = [root.to_str().unwrap(), "--", "cat", "/open/made"];
        [&head[..], more, &tail].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let said = user.say(&run(&[]).iter().map(String::as_str).collect::<Vec<_>>(), b"").await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "mine\n"), "{said:?}");
    if backend == Backend::Qemu {
        let many = run(&["--volume", &volumes[1]]);
        let said = user.say(&many.iter().map(String::as_str).collect::<Vec<_>>(), b"").await;
        assert!(said.code == Some(125) && said.err.contains("all 1 ports"), "{said:?}");
    }
    assert_eq!(user.say(&["uvm", "stop", "sharing"], b"").await.code, Some(0));
}
