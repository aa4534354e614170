//! A further process in a container.

use std::rc::Rc;

use serde_json::Value;

use super::{Container, new_pipes, user, workdir};
use crate::process::{Process, SignalCode};
use crate::relay::{Delivery, Relay};
use crate::runtime::{Confinement, Job};
use crate::stdio::{Pipes, Streams};
use crate::terminal::ConsoleSocket;
use crate::uvm::Uvm;
use crate::{Error, Result};

impl Container {
    /// Starts an OCI process object with its streams on the host's ports.
    pub(crate) async fn exec(
        &self,
        uvm: &Uvm,
        mut process: Value,
        ports: Streams<u32>,
    ) -> Result<u32> {
        if self.init.has_exited() {
            return Err(Error::ContainerNotRunning(self.id.clone()));
        }
        self.inherit(&mut process)?;
        let confinement = self.filter.as_ref().map(|filter| Confinement::of(filter, &mut process));
        if let Some(cwd) = process["cwd"].as_str() {
            let root = format!("/proc/{}/root", self.init.pid());
            workdir::check(root.as_ref(), cwd)?;
        }
        let host = ports.dial(&uvm.host).await?;
        let expectation = uvm.reaper.expect();
        let terminal = process["terminal"].as_bool().unwrap_or_default();
        let (console, pipes) = match terminal {
            true => {
                let name = format!("{}-{}", self.id, next_console());
                (Some(ConsoleSocket::bind("/run/linkspan/console".as_ref(), &name)?), None)
            }
            false => (None, Some(new_pipes()?)),
        };
        let job = Job::Exec {
            id: self.id.clone(),
            process: process.clone(),
            console: console.as_ref().map(|console| console.path().to_owned()),
            confinement,
        };
        let pid = uvm.runtime.run(job, pipes.as_ref().and_then(Pipes::theirs)).await?;
        let io = |source| Error::Io { what: "relay stdio".to_owned(), source };
        let child = expectation.register(pid.ok_or(Error::NoProcess(0))?).map_err(io)?;
        drop(expectation);
        let process = match console {
            None => {
                let relay = Relay::pipes(
                    pipes.map(Pipes::into_ours).unwrap_or_default(),
                    host,
                    &ports,
                    &Delivery::Once,
                );
                let made = Process::new(child, None);
                made.attach(relay.map_err(io)?);
                made
            }
            Some(console) => {
                let terminal = console.receive().await.inspect_err(|_| drop(child.signal(9)))?;
                let relay =
                    Relay::terminal(&terminal, host, &ports, &Delivery::Once).map_err(io)?;
                let made = Process::new(child, Some(terminal));
                made.attach(relay);
                made
            }
        };
        process.supervise(SignalCode::Shell, async || {});
        self.execs.borrow_mut().insert(process.pid(), Rc::clone(&process));
        Ok(process.pid())
    }

    /// An exec has the init's limits, its own user if it names one, else the init's; and no more
    /// capabilities than the init, if it says nothing of them.
    fn inherit(&self, process: &mut Value) -> Result<()> {
        let Value::Object(own) = process else {
            let reason = "is not an object".to_owned();
            return Err(Error::Document { field: "OciProcess", reason });
        };
        match self.process.get("rlimits") {
            Some(limits) => drop(own.insert("rlimits".to_owned(), limits.clone())),
            None => drop(own.remove("rlimits")),
        }
        if !own.get("capabilities").is_some_and(Value::is_object)
            && let Some(capabilities) = self.process.get("capabilities")
        {
            own.insert("capabilities".to_owned(), capabilities.clone());
        }
        let named = |process: &Value| {
            process["user"]["username"].as_str().is_some_and(|name| !name.is_empty())
        };
        if named(process) {
            user::resolve(process, &self.root)?;
            if let Some(user) = process["user"].as_object_mut() {
                user.remove("username");
            }
        } else if named(&self.process) {
            process["user"] = self.process["user"].clone();
        }
        Ok(())
    }
}

fn next_console() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
