//! Scenarios, the runtime that they share, and the utility VMs that they share.

use std::fmt;
use std::ops::Deref;
use std::sync::OnceLock;
use std::time::Duration;

use linkspan_host::{Backend, UtilityVm};
use tokio::runtime::Runtime;

use crate::machine::machine;

/// Makes two tests of each scenario, an `async fn(Vm)`: `loopback::name` and `qemu::name`.
#[macro_export]
macro_rules! on_both_backends {
    ($($name:ident),* $(,)?) => {
        mod loopback {
            $(#[test]
            fn $name() {
                $crate::shared($crate::Backend::Loopback, super::$name);
            })*
        }
        mod qemu {
            $(#[test]
            fn $name() {
                $crate::shared($crate::Backend::Qemu, super::$name);
            })*
        }
    };
    (alone: $($name:ident),* $(,)?) => {
        mod loopback {
            $(#[test]
            fn $name() {
                $crate::block_on(super::$name($crate::Backend::Loopback));
            })*
        }
        mod qemu {
            $(#[test]
            fn $name() {
                $crate::block_on(super::$name($crate::Backend::Qemu));
            })*
        }
    };
}

/// No scenario takes this long, unless `LINKSPAN_SCENARIO_SECONDS` says so.
const LIMIT: Duration = Duration::from_secs(300);

/// What of it is left for the agent of a scenario that hangs to say what it waits for.
const EXPLANATION: Duration = Duration::from_secs(10);

/// A number that makes a scenario longer than it is by default.
///
/// # Panics
/// When the variable is no number.
pub fn from_environment(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => default,
    }
}

/// A shared utility VM, lent to a scenario.
#[derive(Clone)]
pub struct Vm {
    uvm: UtilityVm,
    /// What it runs on.
    pub backend: Backend,
}

impl Deref for Vm {
    type Target = UtilityVm;

    fn deref(&self) -> &UtilityVm {
        &self.uvm
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uvm.fmt(f)
    }
}

impl Vm {
    /// One that a scenario has started its own way.
    pub fn of(uvm: UtilityVm, backend: Backend) -> Self {
        Self { uvm, backend }
    }

    /// Starts one for a scenario that needs its own.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn own(name: &str, backend: Backend) -> Self {
        let uvm = machine(name, backend).start().await.expect("the utility VM comes up");
        Self { uvm, backend }
    }
}

/// Runs a scenario in the backend's shared utility VM.
///
/// # Panics
/// When the scenario does, and when it takes too long.
pub fn shared<F: Future<Output = ()>>(backend: Backend, scenario: impl FnOnce(Vm) -> F) {
    block_on(async {
        let vm = shared_vm(backend).await;
        let agent = vm.clone();
        // Before the limit of all, so that it can say what the agent was waiting for.
        let limit = limit().saturating_sub(EXPLANATION);
        if tokio::time::timeout(limit, scenario(vm)).await.is_err() {
            let stacks = tokio::time::timeout(EXPLANATION / 2, agent.dump_stacks()).await;
            panic!("the scenario hangs: no end within {limit:?}; the agent: {stacks:#?}");
        }
    });
}

/// Runs a future on the runtime of all scenarios.
///
/// # Panics
/// When it takes too long.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    // One runtime, so that what a shared utility VM has spawned outlives the test that did it.
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
    });
    runtime.block_on(async {
        let limit = limit();
        match tokio::time::timeout(limit, future).await {
            Ok(output) => output,
            Err(_) => panic!("the scenario hangs: no end within {limit:?}"),
        }
    })
}

fn limit() -> Duration {
    Duration::from_secs(from_environment("LINKSPAN_SCENARIO_SECONDS", LIMIT.as_secs()))
}

/// The utility VMs end with this process: QEMU is killed with its keeper, the loopback agent sees
/// the end of its standard input.
async fn shared_vm(backend: Backend) -> Vm {
    static LOOPBACK: tokio::sync::Mutex<Option<Vm>> = tokio::sync::Mutex::const_new(None);
    static QEMU: tokio::sync::Mutex<Option<Vm>> = tokio::sync::Mutex::const_new(None);
    let mut slot = match backend {
        Backend::Loopback => LOOPBACK.lock().await,
        Backend::Qemu => QEMU.lock().await,
    };
    // One that a scenario has broken must not fail all others.
    let usable = match &*slot {
        Some(vm) => tokio::time::timeout(Duration::from_millis(1), vm.closed()).await.is_err(),
        None => false,
    };
    if !usable {
        *slot = Some(Vm::own("shared", backend).await);
    }
    slot.clone().expect("was just started")
}
