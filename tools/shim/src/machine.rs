//! The utility VM of one server. It boots while containerd still prepares the container.

use linkspan_host::{Builder, UtilityVm};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::error::{Error, told};

/// A machine that boots, runs, or has failed to.
#[derive(Debug)]
pub(crate) struct Machine {
    state: watch::Receiver<Option<Result<UtilityVm, String>>>,
    booting: JoinHandle<()>,
}

impl Machine {
    /// Boots one.
    pub(crate) fn boot(builder: Builder) -> Self {
        let (sender, state) = watch::channel(None);
        let booting = tokio::spawn(async move {
            let outcome = builder.start().await;
            match &outcome {
                Ok(uvm) => info!(machine = uvm.vmm().describe(), "the utility VM is up"),
                Err(error) => warn!(%error, "the utility VM did not come up"),
            }
            sender.send_replace(Some(outcome.map_err(|error| told(&error))));
        });
        Self { state, booting }
    }

    /// The running machine; waits until it is that.
    ///
    /// # Errors
    /// Why it did not come up.
    pub(crate) async fn uvm(&self) -> Result<UtilityVm, Error> {
        let mut state = self.state.clone();
        let known = state.wait_for(Option::is_some).await;
        match known.as_deref() {
            Ok(Some(Ok(uvm))) => Ok(uvm.clone()),
            Ok(Some(Err(reason))) => Err(Error::Machine(reason.clone())),
            _ => Err(Error::Machine("the utility VM is ending".to_owned())),
        }
    }

    /// For people: what it runs on, or why it does not.
    pub(crate) async fn describe(&self) -> String {
        match self.uvm().await {
            Ok(uvm) => uvm.vmm().describe(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends it, wherever it is. Returns when nothing of it is left.
    pub(crate) async fn end(&self) {
        // What boots ends with its future.
        self.booting.abort();
        // Over once its sender is gone; it may have come up in the meantime.
        let _ = self.state.clone().wait_for(|_| false).await;
        let uvm = self.state.borrow().as_ref().and_then(|state| state.clone().ok());
        if let Some(uvm) = uvm {
            uvm.terminate().await;
        }
    }
}
