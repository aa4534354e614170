//! A utility VM, a container in it, a process in that: `quickstart IMAGE_DIR ROOTFS [loopback]`.

use linkspan_host::{Backend, Layers, ProcessSpec, Stdio, UtilityVm};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [image, rootfs, rest @ ..] = args.as_slice() else {
        return Err("usage: quickstart IMAGE_DIR ROOTFS [loopback]".into());
    };
    let backend = match rest {
        [word] if word == "loopback" => Backend::Loopback,
        _ => Backend::Qemu,
    };
    let uvm = UtilityVm::builder("quickstart").image(image).backend(backend).start().await?;
    println!("{} is up: {}", uvm.name(), uvm.vmm().describe());

    let container = uvm
        .container("web", Layers::of(rootfs))
        .process(ProcessSpec::new(["sleep", "1000"]))
        .create()
        .await?;
    let init = container.start(Stdio::NULL).await?;

    let output = container.command("sh").args(["-c", "id; hostname; ps; exit 3"]).output().await?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", output.status);

    init.handle().kill().await?;
    println!("init: {}", init.wait().await?);
    container.delete().await?;
    uvm.terminate().await;
    Ok(())
}
