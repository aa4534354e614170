//! The machine that is measured, and what is done in it: request by request, so that each part
//! can be counted alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hyperv_socket::{Listener, Local};
use linkspan_host::protocol::message::{
    ContainerId, Create, DeleteContainerState, ExecuteProcess, ExecuteProcessSettings,
    GetProperties, HostedContainer, INFINITE, ModifySettings, ProcessParameters, PropertyType,
    SchemaVersion, SignalProcess, Start, VsockStdio, WaitForProcess,
};
use linkspan_host::protocol::resource::{
    CombinedLayers, Layer, MappedVirtualDisk, ModifyType, Resource,
};
use linkspan_host::protocol::{JsonString, port};
use linkspan_host::vmm::{Accept, Disk, ScsiAddress};
use linkspan_host::{Accel, Builder, UtilityVm};
use linkspan_initrd::{ImageBuilder, KernelPackage, Modules, PackageCache};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An image with busybox in the utility VM's root, and a layer with busybox.
pub(crate) struct Bench {
    directory: TempDir,
    image: PathBuf,
    kernel_package: PathBuf,
    kernel: String,
    kernel_args: Vec<String>,
}

impl Bench {
    pub(crate) fn prepare(image: &Path, busybox: &Path, kernel_args: &[String]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let cache = PackageCache::for_user()?;
        let package = cache.fetch(PackageCache::DEFAULT_PACKAGE, &mut |_| {})?.path;
        let kernel = KernelPackage::open(&package)?;
        let busybox_at = format!("{}:/bin/busybox", busybox.display());
        ImageBuilder::new(&kernel, image.join("agent"))
            .vmlinux(true)
            .modules(Modules::default())
            .add_spec(&busybox_at)?
            .build(&directory.path().join("image"), &mut |_| {})
            .context("build the bench's image")?;
        let root = directory.path().join("rootfs");
        for name in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
            std::fs::create_dir_all(root.join(name))?;
        }
        std::fs::copy(busybox, root.join("bin/busybox"))
            .with_context(|| format!("copy {}", busybox.display()))?;
        let image = directory.path().join("image");
        let kernel = kernel.release().to_owned();
        let kernel_args = kernel_args.to_vec();
        Ok(Self { directory, image, kernel_package: package, kernel, kernel_args })
    }

    fn builder(&self, name: &str, image: &Path) -> Builder {
        let builder = UtilityVm::builder(name).image(image);
        self.kernel_args.iter().fold(builder, |builder, arg| builder.kernel_arg(arg))
    }

    /// The release of the kernel that is measured with.
    pub(crate) fn kernel(&self) -> &str {
        &self.kernel
    }

    pub(crate) fn machine(&self, accel: Accel) -> Builder {
        self.builder("bench", &self.image).accel(accel).boot_timeout(Duration::from_secs(120))
    }

    pub(crate) async fn start(&self, accel: Accel, count: bool) -> Result<UtilityVm> {
        let mut builder = self.machine(accel);
        if count {
            builder = builder.cpus(1).count_instructions();
        }
        Ok(builder.start().await?)
    }

    /// Microseconds from the kernel's start to the floor's answer.
    pub(crate) async fn floor_boot(&self, floor: &Path) -> Result<u64> {
        let out = self.directory.path().join("floor");
        let kernel = KernelPackage::open(&self.kernel_package)?;
        ImageBuilder::new(&kernel, floor).vmlinux(true).build(&out, &mut |_| {})?;
        let sockets = self.directory.path().join("floor-vsock");
        let listener = Listener::bind(&Local::HybridHost { path: sockets.clone() }, port::BRIDGE)?;
        let machine = self
            .builder("floor", &out)
            .accel(Accel::Tcg)
            .cpus(1)
            .count_instructions()
            .start_exported(&sockets)
            .await?;
        let exchange = async {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(b"when?").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            let seconds: f64 = text.split(' ').next().unwrap_or_default().parse()?;
            anyhow::Ok((seconds * 1e6) as u64)
        };
        let answer = tokio::time::timeout(Duration::from_secs(120), exchange).await;
        machine.terminate().await;
        answer.context("the floor did not answer within 120 s")?
    }

    fn layer(&self) -> Result<Disk> {
        let file = tempfile::tempfile()?;
        let options = linkspan_layer::Options::default();
        let root = self.directory.path().join("rootfs");
        let summary = linkspan_layer::build_image(&root, &file, options, |_| {})?;
        Ok(Disk { file, size: summary.bytes, read_only: true })
    }
}

const LAYER: &str = "/run/mounts/scsi/m0";
const SCRATCH: &str = "/run/mounts/scsi/m1";

/// A layer and a scratch disk that are mapped, and containers on them.
pub(crate) struct BenchContainer;

impl BenchContainer {
    pub(crate) async fn map(bench: &Bench, uvm: &UtilityVm) -> Result<Self> {
        let file = tempfile::tempfile()?;
        let size = 1 << 30;
        linkspan_layer::scratch::format(&file, size, &Default::default())?;
        let scratch = Disk { file, size, read_only: false };
        for (lun, disk, path) in [(0, bench.layer()?, LAYER), (1, scratch, SCRATCH)] {
            let read_only = disk.read_only;
            uvm.vmm().attach_disk(ScsiAddress { controller: 0, lun }, disk).await?;
            let disk = MappedVirtualDisk {
                mount_path: path.to_owned(),
                lun,
                read_only,
                ..MappedVirtualDisk::default()
            };
            modify(uvm, ModifyType::Add, disk.into()).await?;
        }
        Ok(Self)
    }

    /// From the layers to nothing: combine, create, run `true`, wait, take down, delete.
    pub(crate) async fn cycle(&self, uvm: &UtilityVm, id: &str) -> Result<()> {
        let running = Running::create(uvm, id, &["/bin/busybox", "true"]).await?;
        running.wait(uvm, running.init).await?;
        running.remove(uvm).await
    }

    /// A container that stays.
    pub(crate) async fn run(&self, uvm: &UtilityVm, id: &str) -> Result<Running> {
        Running::create(uvm, id, &["/bin/busybox", "sleep", "100000"]).await
    }
}

pub(crate) struct Running {
    id: ContainerId,
    init: u32,
    combined: CombinedLayers,
}

impl Running {
    async fn create(uvm: &UtilityVm, id: &str, args: &[&str]) -> Result<Self> {
        let bundle = format!("/run/gcs/c/{id}");
        let combined = CombinedLayers {
            container_id: id.to_owned(),
            container_root_path: format!("{bundle}/rootfs"),
            layers: vec![Layer { path: LAYER.to_owned(), ..Layer::default() }],
            scratch_path: format!("{SCRATCH}/scratch/{id}"),
            ..CombinedLayers::default()
        };
        modify(uvm, ModifyType::Add, combined.clone().into()).await?;
        let document = HostedContainer {
            schema_version: SchemaVersion::MINIMUM,
            oci_bundle_path: bundle,
            oci_specification: Some(spec(&combined.container_root_path, args)),
            scratch_dir_path: combined.scratch_path.clone(),
        };
        let id = ContainerId::from(id);
        uvm.request(&id, &Create::new(&document)?).await?;
        uvm.request(&id, &Start {}).await?;
        let init = execute(uvm, &id, ProcessParameters::default(), VsockStdio::default()).await?;
        Ok(Self { id, init, combined })
    }

    async fn wait(&self, uvm: &UtilityVm, process_id: u32) -> Result<u32> {
        let request = WaitForProcess { process_id, timeout_in_ms: INFINITE };
        Ok(uvm.request(&self.id, &request).await?.exit_code)
    }

    /// `echo` in it, its output read.
    pub(crate) async fn exec(&self, uvm: &UtilityVm) -> Result<()> {
        let mut text = Vec::new();
        let port = 0x5000_0000;
        let mut listener = uvm.vmm().listen(port, Accept::Once).await?;
        let pid = self.exec_with_output(uvm, &["/bin/busybox", "echo", "hello"], port).await?;
        let mut stream = listener.accept().await.context("stdout did not come")?;
        stream.read_to_end(&mut text).await?;
        drop(stream);
        anyhow::ensure!(text == b"hello\n" && self.wait(uvm, pid).await? == 0, "{text:?}");
        Ok(())
    }

    async fn exec_with_output(&self, uvm: &UtilityVm, args: &[&str], port: u32) -> Result<u32> {
        let parameters = ProcessParameters {
            create_std_out_pipe: true,
            oci_process: Some(process(args)),
            ..ProcessParameters::default()
        };
        execute(uvm, &self.id, parameters, VsockStdio { stdout: port, ..VsockStdio::default() })
            .await
    }

    pub(crate) async fn statistics(&self, uvm: &UtilityVm) -> Result<()> {
        let answer = uvm.request(&self.id, &GetProperties::of([PropertyType::STATISTICS])).await?;
        anyhow::ensure!(answer.properties.0.metrics.is_some(), "no statistics");
        Ok(())
    }

    /// Reads `bytes` of its output.
    pub(crate) async fn output(&self, uvm: &UtilityVm, bytes: u64) -> Result<Duration> {
        let port = 0x5000_0001;
        let mut listener = uvm.vmm().listen(port, Accept::Once).await?;
        let args = crate::dd(bytes).args;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let pid = self.exec_with_output(uvm, &args, port).await?;
        let mut stream = listener.accept().await.context("stdout did not come")?;
        let (mut buffer, mut seen, mut began) = (vec![0; 1 << 20], 0, None);
        loop {
            let len = stream.read(&mut buffer).await?;
            began.get_or_insert_with(std::time::Instant::now);
            seen += len as u64;
            if len == 0 {
                break;
            }
        }
        let took = began.map(|began| began.elapsed()).unwrap_or_default();
        drop(stream);
        anyhow::ensure!(seen == bytes && self.wait(uvm, pid).await? == 0, "{seen} of {bytes}");
        Ok(took)
    }

    /// Writes `bytes` to its input; the time is that until it has counted them.
    pub(crate) async fn input(&self, uvm: &UtilityVm, bytes: u64) -> Result<Duration> {
        let (stdin, stdout) = (0x5000_0002, 0x5000_0003);
        let mut input = uvm.vmm().listen(stdin, Accept::Once).await?;
        let mut output = uvm.vmm().listen(stdout, Accept::Once).await?;
        let parameters = ProcessParameters {
            create_std_in_pipe: true,
            create_std_out_pipe: true,
            oci_process: Some(process(&["/bin/busybox", "sh", "-c", crate::SINK])),
            ..ProcessParameters::default()
        };
        let stdio = VsockStdio { stdin, stdout, ..VsockStdio::default() };
        let pid = execute(uvm, &self.id, parameters, stdio).await?;
        let mut input = input.accept().await.context("stdin did not come")?;
        let mut output = output.accept().await.context("stdout did not come")?;
        let began = std::time::Instant::now();
        let buffer = vec![0; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            let len = left.min(buffer.len() as u64) as usize;
            input.write_all(&buffer[..len]).await?;
            left -= len as u64;
        }
        input.shutdown(std::net::Shutdown::Write)?;
        let mut text = String::new();
        output.read_to_string(&mut text).await?;
        let took = began.elapsed();
        drop((input, output));
        self.wait(uvm, pid).await?;
        crate::swallowed(&text)?;
        Ok(took)
    }

    pub(crate) async fn end(self, uvm: &UtilityVm) -> Result<()> {
        uvm.request(&self.id, &SignalProcess { process_id: self.init, options: None }).await?;
        self.wait(uvm, self.init).await?;
        self.remove(uvm).await
    }

    async fn remove(self, uvm: &UtilityVm) -> Result<()> {
        modify(uvm, ModifyType::Remove, self.combined.into()).await?;
        uvm.request(&self.id, &DeleteContainerState {}).await?;
        Ok(())
    }
}

async fn modify(uvm: &UtilityVm, modify: ModifyType, resource: Resource) -> Result<()> {
    uvm.request(&ContainerId::uvm(), &ModifySettings::new(modify, resource)).await?;
    Ok(())
}

async fn execute(
    uvm: &UtilityVm,
    id: &ContainerId,
    parameters: ProcessParameters,
    stdio: VsockStdio,
) -> Result<u32> {
    let settings = ExecuteProcessSettings {
        process_parameters: JsonString(parameters),
        stdio_relay_settings: None,
        vsock_stdio_relay_settings: Some(stdio),
    };
    Ok(uvm.request(id, &ExecuteProcess { settings }).await?.process_id)
}

fn process(args: &[&str]) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"})
}

fn spec(root: &str, args: &[&str]) -> Value {
    let namespaces: Vec<_> = ["pid", "mount", "ipc", "uts", "network", "cgroup"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    json!({
        "ociVersion": "1.1.0",
        "process": process(args),
        "root": {"path": root},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        ],
        "linux": {"namespaces": namespaces},
    })
}
