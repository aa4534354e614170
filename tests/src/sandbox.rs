//! A running container for a scenario.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use linkspan_host::{
    Backend, Child, Container, ContainerBuilder, Layers, Output, ProcessSpec, Stdio,
};

use crate::machine::layer_image;
use crate::places::rootfs;
use crate::scenario::Vm;

/// A container whose init sleeps.
#[derive(Debug)]
pub struct Sandbox {
    container: Container,
    /// The sleeping init.
    pub init: Child,
}

impl Deref for Sandbox {
    type Target = Container;

    fn deref(&self) -> &Container {
        &self.container
    }
}

/// An id that no other scenario has.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Vm {
    /// The root file system in the form that this backend takes fastest.
    pub fn root(&self) -> PathBuf {
        match self.backend {
            Backend::Loopback => rootfs(),
            Backend::Qemu => layer_image(),
        }
    }

    /// A container to be made, with an init of the scenario's choice.
    pub fn with_init<A: Into<String>>(
        &self,
        name: &str,
        init: impl IntoIterator<Item = A>,
    ) -> ContainerBuilder {
        self.container(unique(name), Layers::of(self.root())).process(ProcessSpec::new(init))
    }

    /// A running container.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn sandbox(&self, name: &str) -> Sandbox {
        let init = ["sleep", "100000"];
        let container = self.with_init(name, init).create().await.expect("create a container");
        let init = container.start(Stdio::NULL).await.expect("start a container");
        Sandbox { container, init }
    }
}

impl Sandbox {
    /// Runs a shell script in it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn sh(&self, script: &str) -> Output {
        self.command("sh").args(["-c", script]).output().await.expect("run a shell")
    }

    /// What a shell script prints.
    ///
    /// # Panics
    /// When it fails.
    pub async fn text(&self, script: &str) -> String {
        let output = self.sh(script).await;
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script:?}: {}: {out}{err}", output.status);
        out.trim_end().to_owned()
    }

    /// Ends and deletes it.
    ///
    /// # Panics
    /// When that fails.
    pub async fn remove(self) {
        self.init.handle().kill().await.expect("kill the init");
        self.init.wait().await.expect("wait for the init");
        self.container.delete().await.expect("delete the container");
    }
}
