//! What scenario tests stand on: shared utility VMs, containers at hand, a host and a guest that
//! speak the bridge by hand.
//!
//! Every scenario is run on both backends; see [`on_both_backends!`]. Booting takes seconds, so
//! scenarios share one utility VM per backend unless they are about the machine itself.
//!
//! | module      | what it holds                                                      |
//! |-------------|--------------------------------------------------------------------|
//! | `places`    | image, root file system and CLI: from the environment, or `target` |
//! | `machine`   | how a machine is described; the image with a shell in its root     |
//! | `scenario`  | the macro, the one runtime, the shared utility VMs                 |
//! | `sandbox`   | a running container for a scenario                                 |
//! | `raw`       | a host of bare frames, which can say what no library would         |
//! | `remains`   | what a machine leaves on this host, from outside                   |
//! | `cli`       | the `linkspan` program, as a user runs it                           |
//! | `guest`     | what is in a guest: mounts, cgroups, processes, descriptors        |
//! | `verity`    | hash trees of layers                                               |

mod cli;
mod flaky;
mod guest;
mod machine;
mod places;
pub mod raw;
mod remains;
mod sandbox;
mod scenario;
mod verity;

pub use cli::{Said, User};
pub use flaky::{Dice, Flaky};
pub use guest::GuestState;
pub use linkspan_host::Backend;
pub use machine::{agent, layer_image, machine, machine_with_vmbus_names};
pub use places::{cli, image, rootfs};
pub use remains::{Remains, pid_in};
pub use sandbox::{Sandbox, unique};
pub use scenario::{Vm, block_on, from_environment, shared};
pub use verity::append_tree;
