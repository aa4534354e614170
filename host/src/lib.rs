//! Utility VMs, containers and processes: the host end of the GCS bridge.
//!
//! ```no_run
//! use linkspan_host::{Layers, ProcessSpec, Stdio, UtilityVm};
//! use tokio::io::AsyncWriteExt;
//!
//! # async fn run() -> linkspan_host::Result<()> {
//! let uvm = UtilityVm::builder("demo").image("target/linkspan/image").memory_mib(512).start().await?;
//!
//! let web = uvm
//!     .container("web", Layers::of("rootfs.tar.gz"))
//!     .process(ProcessSpec::new(["sleep", "1000"]))
//!     .create()
//!     .await?;
//! let init = web.start(Stdio::NULL).await?;
//!
//! let release = web.command("cat").arg("/etc/os-release").output().await?;
//! println!("{}", String::from_utf8_lossy(&release.stdout));
//!
//! let mut wc = web.command("wc").arg("-c").spawn().await?;
//! wc.stdin.take().expect("is piped").write_all(b"hello").await.expect("wc reads");
//! println!("{}", wc.wait_with_output().await?.status);
//!
//! init.handle().kill().await?;
//! println!("sleep ended with {}", init.wait().await?);
//! web.delete().await?;
//! uvm.terminate().await;
//! # Ok(()) }
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `uvm` | [`UtilityVm`] and its [`Builder`] |
//! | `container` | [`Container`] |
//! | `process` | [`Command`], [`Child`], [`ExitStatus`], in the image of `std::process` |
//! | `layers` | [`Layers`]; the plan of a container's root, as data |
//! | `attachments` | which layers are attached where and for how many, as data |
//! | `storage` | carries it out: each layer is attached and mounted once, for all |
//! | `layer_cache` | images of directories that never change |
//! | `verity` | root hashes that a caller pins |
//! | `bridge` | the protocol's client over the guest's connections |
//! | `boot_ports` | random bytes for a booting guest, and its log |
//! | `network` | the user network of a machine under QEMU |
//! | [`relay`] | moves bytes between a process's streams and files |
//! | [`boot_image`] | where boot images lie |
//! | [`doctor`] | whether this machine has what is needed |
//! | `undo` | steps back: rollback, and teardown |
//! | [`vmm`] | the seam to what runs the machine: QEMU, or namespaces of this kernel |

mod attachments;
pub mod boot_image;
mod boot_ports;
mod bridge;
mod container;
pub mod doctor;
mod error;
mod layer_cache;
mod layers;
mod network;
mod process;
pub mod relay;
mod resume;
mod spec;
mod storage;
mod undo;
mod uvm;
mod verity;
pub mod vmm;

pub use container::{Container, ContainerBuilder};
pub use error::{Error, ProgramProblem};
pub use hyperv_socket::Stream;
pub use layer_cache::LayerCache;
pub use layers::{DEFAULT_SCRATCH_MIB, LayerProgress, Layers};
pub use linkspan_protocol as protocol;
pub use network::{PortForward, Transport};
pub use process::{Child, Command, ExitStatus, Output, ProcessHandle, Stdio};
pub use spec::ProcessSpec;
pub use uvm::{Backend, Builder, Machine, UtilityVm};
pub use vmm::qemu::Accel;

/// What this library's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
