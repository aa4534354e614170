//! Containers.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use linkspan_protocol::message::{
    ContainerId, ContainerMetrics, Create, DeleteContainerState, GetProperties, HostedContainer,
    ModifySettings, Properties, PropertyType, SchemaVersion, ShutdownForced, ShutdownGraceful,
    Start as StartContainer,
};
use linkspan_protocol::resource::{ContainerConstraints, ModifyType};
use linkspan_protocol::{HResult, client::CloseReason};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::error::Context;
use crate::layers::{LayerPlan, LayerProgress, Layers};
use crate::network::UserNetwork;
use crate::process::{self, Child, Command, ProcessHandle, Start, Stdio};
use crate::spec::container_document;
use crate::undo::{Step, Undo};
use crate::uvm::Shared;
use crate::{Error, ProcessSpec, Result};

/// A container to be made. See [`UtilityVm::container`](crate::UtilityVm::container).
#[must_use]
pub struct ContainerBuilder {
    uvm: Arc<Shared>,
    id: String,
    layers: Layers,
    process: ProcessSpec,
    spec: Option<Value>,
    hostname: Option<String>,
    network: bool,
    shares: Vec<Share>,
    progress: Box<dyn Fn(LayerProgress<'_>) + Send>,
}

impl ContainerBuilder {
    pub(crate) fn new(uvm: Arc<Shared>, id: String, layers: Layers) -> Self {
        Self {
            uvm,
            id,
            layers,
            process: ProcessSpec::new(["sh"]),
            spec: None,
            hostname: None,
            network: false,
            shares: Vec::new(),
            progress: Box::new(|_| {}),
        }
    }

    /// What its init is; `sh` unless told otherwise.
    pub fn process(mut self, process: ProcessSpec) -> Self {
        self.process = process;
        self
    }

    /// Its host name; the first twelve characters of its id unless told otherwise.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = Some(hostname.into());
        self
    }

    /// Connects it with the utility VM's [network](crate::Builder::user_network), which one
    /// container at a time can have. Without, it can speak only with itself.
    pub fn network(mut self, connected: bool) -> Self {
        self.network = connected;
        self
    }

    /// A whole OCI runtime-spec document in place of [`process`](Self::process) and
    /// [`hostname`](Self::hostname). Its `root` is set to the layers' place in the guest.
    pub fn spec(mut self, spec: Value) -> Self {
        self.spec = Some(spec);
        self
    }

    /// As [`spec`](Self::spec), from a file such as a bundle's `config.json`.
    ///
    /// # Errors
    /// When it cannot be read or is no JSON.
    pub fn config(self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read(path).context(|| format!("read {}", path.display()))?;
        let spec = serde_json::from_slice(&text).map_err(|error| Error::Option {
            option: "config",
            reason: format!("{}: {error}", path.display()),
        })?;
        Ok(self.spec(spec))
    }

    /// Shows a directory of this host in the container at `target`, where `read_only` refuses writes
    /// on this side already. A QEMU machine needs room for it
    /// ([`Builder::shares`](crate::Builder::shares)) and `virtiofsd`, which takes root.
    pub fn share(
        mut self,
        source: impl Into<PathBuf>,
        target: impl Into<String>,
        read_only: bool,
    ) -> Self {
        let (source, target) = (source.into(), target.into());
        self.shares.push(Share { source, entry: None, target, read_only });
        self
    }

    /// As [`share`](Self::share), but the container sees only one entry of the directory, such as a
    /// file, which may be a mount of its own. The guest sees the whole directory, and can write to
    /// what this host lets it write to: `read_only` is the container's alone here.
    pub fn share_entry(
        mut self,
        directory: impl Into<PathBuf>,
        entry: impl Into<String>,
        target: impl Into<String>,
        read_only: bool,
    ) -> Self {
        let (source, target) = (directory.into(), target.into());
        self.shares.push(Share { source, entry: Some(entry.into()), target, read_only });
        self
    }

    /// Gets to know how far the making of layer images has come. Called from another thread.
    pub fn on_progress(mut self, progress: impl Fn(LayerProgress<'_>) + Send + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Makes it: attaches its disks, mounts them, combines them, creates it. It does not run yet.
    ///
    /// # Errors
    /// Whatever fails; all that was done before is taken back then.
    pub async fn create(self) -> Result<Container> {
        // To its end even if nobody waits any more: half a container is nobody's to take back.
        let made = tokio::spawn(self.make()).await;
        made.unwrap_or_else(|panic| Err(Error::Vmm(panic.into())))
    }

    async fn make(self) -> Result<Container> {
        let Self { uvm, id, layers, process, spec, hostname, network, shares, progress } = self;
        check_id(&id)?;
        if spec.is_none() && process.args.first().is_none_or(String::is_empty) {
            let reason = "is empty; give a program to run".to_owned();
            return Err(Error::Option { option: "args", reason });
        }
        let directories = uvm.vmm.shares_directories();
        let (sources, scratch) = tokio::task::spawn_blocking(move || layers.read(directories))
            .await
            .map_err(|panic| Error::Vmm(panic.into()))??;
        let hostname = hostname.unwrap_or_else(|| id.chars().take(12).collect());
        let mut spec = spec.unwrap_or_else(|| container_document(&process, &hostname));

        let mut undo = Undo::default();
        let made = async {
            let reporter = Arc::new(Mutex::new(progress));
            if network {
                connect(&uvm, &mut spec, &mut undo).await?;
            }
            // The guest finds it while the layers are mounted.
            let scratch = uvm.attach(scratch, &mut undo).await?;
            let layers = uvm.mount_layers(sources, reporter, &mut undo).await?;
            let plan = LayerPlan::new(&id, layers, scratch);
            let what = || format!("mount disk {scratch}");
            uvm.modify(ModifyType::Add, plan.scratch.clone(), what).await?;
            undo.push(Step::Unmap(plan.scratch));
            let what = || format!("combine the layers of {id}");
            uvm.modify(ModifyType::Add, plan.combined.clone(), what).await?;
            undo.push(Step::Uncombine(plan.combined.clone()));
            for (number, share) in shares.iter().enumerate() {
                let place = format!("{}/mounts/m{number}", plan.bundle);
                let fixed = share.read_only && share.entry.is_none();
                let source = uvm.share(&share.source, fixed, place, &mut undo).await?;
                add_mount(&mut spec, share.mount(&source))?;
            }
            spec["root"]["path"] = json!(plan.combined.container_root_path);
            let document = HostedContainer {
                schema_version: SchemaVersion::MINIMUM,
                oci_bundle_path: plan.bundle,
                oci_specification: Some(spec),
                scratch_dir_path: plan.scratch_directory,
            };
            let exited = uvm.bridge.container_exit(&id);
            let oom_kills = uvm.bridge.oom_kills(&id);
            let request = Create::new(&document)
                .map_err(|error| Error::Option { option: "spec", reason: error.to_string() })?;
            let container = ContainerId(id.clone());
            uvm.bridge.call(&container, &request, || format!("create container {id}")).await?;
            Ok((exited, oom_kills))
        };
        match made.await {
            Ok((exited, oom_kills)) => {
                let init = Mutex::new(None);
                Ok(Container { uvm, id: ContainerId(id), exited, oom_kills, init, teardown: undo })
            }
            Err(error) => {
                uvm.bridge.forget_container(&id);
                // The first failure says what went wrong; what follows from it is logged.
                let _ = undo.run(&uvm).await;
                Err(error)
            }
        }
    }
}

/// Gives a container the utility VM's adapter.
async fn connect(uvm: &Shared, spec: &mut Value, undo: &mut Undo) -> Result<()> {
    let can = uvm.bridge.capabilities().guest_defined_capabilities;
    if !can.namespace_add_request_supported {
        let reason = "the guest agent takes no adapters".to_owned();
        return Err(Error::Option { option: "network", reason });
    }
    if !uvm.free_adapter.swap(false, Ordering::AcqRel) {
        let reason = "the utility VM has no adapter that is free".to_owned();
        return Err(Error::Option { option: "network", reason });
    }
    undo.push(Step::Disconnect);
    let what = || "connect the adapter".to_owned();
    uvm.modify(ModifyType::Add, UserNetwork::adapter(), what).await?;
    spec["windows"]["network"]["networkNamespace"] = json!(UserNetwork::NAMESPACE);
    Ok(())
}

/// A directory of this host in a container.
struct Share {
    source: PathBuf,
    /// The only thing in it that is shown.
    entry: Option<String>,
    target: String,
    read_only: bool,
}

impl Share {
    /// The container's mount of it, where the guest sees it at `source`.
    fn mount(&self, source: &str) -> Value {
        let access = if self.read_only { "ro" } else { "rw" };
        let options = ["rbind", access];
        let source = match &self.entry {
            Some(entry) => format!("{source}/{entry}"),
            None => source.to_owned(),
        };
        json!({"destination": self.target, "type": "bind", "source": source, "options": options})
    }
}

fn add_mount(spec: &mut Value, mount: Value) -> Result<()> {
    let bad = |reason: &str| Error::Option { option: "spec", reason: reason.to_owned() };
    let spec = spec.as_object_mut().ok_or_else(|| bad("is no JSON object"))?;
    let mounts = spec.entry("mounts").or_insert_with(|| json!([]));
    mounts.as_array_mut().ok_or_else(|| bad("has mounts that are no list"))?.push(mount);
    Ok(())
}

fn check_id(id: &str) -> Result<()> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if id.is_empty() || id.len() > 64 || !id.bytes().all(valid) || id.starts_with('.') {
        let reason = format!("{id:?} is not 1 to 64 letters, digits, _ - . (and no dot first)");
        return Err(Error::Option { option: "container id", reason });
    }
    Ok(())
}

/// A container in a utility VM.
///
/// Dropping it leaves it running; [`delete`](Self::delete) removes it, and everything goes with
/// the utility VM.
#[derive(Debug)]
pub struct Container {
    uvm: Arc<Shared>,
    id: ContainerId,
    exited: watch::Receiver<bool>,
    oom_kills: watch::Receiver<u64>,
    init: Mutex<Option<ProcessHandle>>,
    teardown: Undo,
}

/// How long a guest may take to pass on that a container is to end. The bridge outlives that.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// How long a killed init may take to end.
const KILL: Duration = Duration::from_secs(10);

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// Runs its init.
    ///
    /// # Errors
    /// When the guest refuses, above all a second time.
    pub async fn start(&self, stdio: Stdio) -> Result<Child> {
        self.start_init(stdio, false).await
    }

    /// Runs its init, with output that outlives lost connections: each byte arrives once, whatever
    /// happens to the connections on the way. It costs a copy in this process. Guests that are not
    /// Linkspan's do not know it; their output is as with [`start`](Self::start).
    ///
    /// # Errors
    /// When the guest refuses, above all a second time.
    pub async fn start_resumable(&self, stdio: Stdio) -> Result<Child> {
        self.start_init(stdio, true).await
    }

    async fn start_init(&self, stdio: Stdio, resume: bool) -> Result<Child> {
        let what = || format!("start container {}", self.id);
        self.uvm.bridge.call(&self.id, &StartContainer {}, what).await?;
        let init = process::start(&self.uvm, &self.id, Start::Init { resume }, stdio).await?;
        *self.init.lock().unwrap_or_else(PoisonError::into_inner) = Some(init.handle().clone());
        Ok(init)
    }

    /// A further process in it.
    pub fn command(&self, program: impl Into<String>) -> Command<'_> {
        Command::new(&self.uvm, self.id.clone(), program.into())
    }

    /// Runs a further process that is described in full.
    ///
    /// # Errors
    /// When the guest refuses; see [`Error::program_problem`].
    pub async fn exec(&self, spec: &ProcessSpec, stdio: Stdio) -> Result<Child> {
        process::start(&self.uvm, &self.id, Start::Exec(spec.document()), stdio).await
    }

    /// As [`exec`](Self::exec), with a whole OCI process object.
    ///
    /// # Errors
    /// When the guest refuses; see [`Error::program_problem`].
    pub async fn exec_document(&self, process: Value, stdio: Stdio) -> Result<Child> {
        process::start(&self.uvm, &self.id, Start::Exec(process), stdio).await
    }

    /// Pids of its processes in the guest's root namespace.
    ///
    /// # Errors
    /// When the guest refuses or is gone.
    pub async fn processes(&self) -> Result<Vec<u32>> {
        let properties = self.properties(PropertyType::PROCESS_LIST).await?;
        Ok(properties.process_list.iter().map(|process| process.process_id).collect())
    }

    /// What the guest's kernel counts for it.
    ///
    /// # Errors
    /// When the guest refuses or is gone.
    pub async fn statistics(&self) -> Result<ContainerMetrics> {
        let properties = self.properties(PropertyType::STATISTICS).await?;
        Ok(properties.metrics.map(|metrics| *metrics).unwrap_or_default())
    }

    async fn properties(&self, which: PropertyType) -> Result<Properties> {
        let request = GetProperties::of([which]);
        let what = || format!("ask for properties of container {}", self.id);
        Ok(self.uvm.bridge.call(&self.id, &request, what).await?.properties.0)
    }

    /// Changes its limits while it runs: an OCI `linux.resources` object.
    ///
    /// # Errors
    /// When the guest refuses or is gone.
    pub async fn update(&self, resources: Value) -> Result<()> {
        let constraints =
            ContainerConstraints { linux: Some(resources), ..ContainerConstraints::default() };
        let request = ModifySettings::new(ModifyType::Update, constraints.into());
        let what = || format!("update container {}", self.id);
        self.uvm.bridge.call(&self.id, &request, what).await.map(drop)
    }

    /// Holds all of its processes still; returns when they are. SIGKILL ends them all the same.
    ///
    /// # Errors
    /// When the guest refuses or is gone.
    pub async fn pause(&self) -> Result<()> {
        self.freeze(true).await
    }

    /// Lets its processes go on after a [`pause`](Self::pause).
    ///
    /// # Errors
    /// When the guest refuses or is gone.
    pub async fn resume(&self) -> Result<()> {
        self.freeze(false).await
    }

    /// As an OCI runtime that knows cgroup v2 takes it: the protocol has no request of its own.
    async fn freeze(&self, frozen: bool) -> Result<()> {
        let state = if frozen { "1" } else { "0" };
        self.update(json!({"unified": {"cgroup.freeze": state}})).await
    }

    /// Asks its init to end (SIGTERM). One that has ended is no error, nor is a container that the
    /// guest does not know.
    ///
    /// # Errors
    /// When the guest refuses or is gone.
    pub async fn shut_down(&self) -> Result<()> {
        let what = || format!("shut container {} down", self.id);
        let limit = Some(SHUTDOWN);
        self.stopped(self.uvm.bridge.call_within(&self.id, &ShutdownGraceful {}, limit, what).await)
    }

    /// Ends its init (SIGKILL). One that has ended is no error, nor is a container that the guest
    /// does not know.
    ///
    /// # Errors
    /// When the guest refuses or is gone.
    pub async fn terminate(&self) -> Result<()> {
        let what = || format!("terminate container {}", self.id);
        let limit = Some(SHUTDOWN);
        self.stopped(self.uvm.bridge.call_within(&self.id, &ShutdownForced {}, limit, what).await)
    }

    fn stopped<T>(&self, outcome: Result<T>) -> Result<()> {
        match outcome {
            Err(error)
                if matches!(
                    error.code(),
                    Some(HResult::SYSTEM_ALREADY_STOPPED | HResult::SYSTEM_NOT_FOUND)
                ) =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Waits until the guest says that it has exited, which takes that its init was waited for.
    ///
    /// # Errors
    /// When the bridge is gone.
    pub async fn exited(&self) -> Result<()> {
        let what = || format!("wait for the exit of container {}", self.id);
        let closed = |_| Error::Closed { what: what(), reason: CloseReason::Local };
        self.exited.clone().wait_for(|&exited| exited).await.map_err(closed).map(drop)
    }

    /// How many of its processes the kernel has killed for want of memory, as it happens. Stays 0
    /// with guests that are not Linkspan's: they do not tell.
    pub fn oom_kills(&self) -> watch::Receiver<u64> {
        self.oom_kills.clone()
    }

    /// Removes it with its disks. A running one is ended first.
    ///
    /// # Errors
    /// The first failure; what can be removed is removed all the same.
    pub async fn delete(mut self) -> Result<()> {
        let what = || format!("delete container {}", self.id);
        let init = self.init.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(init) = init
            && !init.has_ended()
        {
            self.terminate().await?;
            let late = |_| Error::TimedOut { what: what(), seconds: KILL.as_secs() };
            tokio::time::timeout(KILL, init.wait()).await.map_err(late)??;
        }
        // The guest deletes the bundle, where nothing may be mounted then.
        let within = |step: &Step| {
            matches!(step, Step::Uncombine(_) | Step::Undirectory(_) | Step::Unshare(_))
        };
        let combined = self.teardown.run_while(&self.uvm, within).await;
        let can = self.uvm.bridge.capabilities().guest_defined_capabilities;
        let deleted = match can.delete_container_state_supported {
            true => self.uvm.bridge.call(&self.id, &DeleteContainerState {}, what).await.map(drop),
            false => Ok(()),
        };
        self.uvm.bridge.forget_container(self.id.as_str());
        let rest = self.teardown.run(&self.uvm).await;
        combined.and(deleted).and(rest)
    }
}
