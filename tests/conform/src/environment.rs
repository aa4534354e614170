//! What there is beside the agent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::statement::Need;
use crate::target::{Dial, Listen, Target};

/// Where a disk sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskAddress {
    /// 0 to 3.
    pub controller: u8,
    /// 0 to 63.
    pub lun: u8,
}

/// How a network adapter is named to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its id: what an agent on VMBus looks for, or a PCI address.
    pub id: String,
    /// `XX-XX-XX-XX-XX-XX`, what other agents look for; may be empty.
    pub mac: String,
}

/// What checks may use. The default is nothing.
#[derive(Clone, Debug)]
pub struct Environment {
    /// A disk with a root file system: busybox and its applets in `/bin`.
    pub layer_disk: Option<DiskAddress>,
    /// A path in the guest where that is mounted or was put by somebody.
    pub layer: Option<String>,
    /// A disk with another file system.
    pub second_layer: Option<DiskAddress>,
    /// A writable disk with nothing on it.
    pub blank_disk: Option<DiskAddress>,
    /// The words that run a script in the utility VM's root, but for the script: `/bin/sh -c`.
    pub shell: Vec<String>,
    /// A network adapter that nobody uses.
    pub nic: Option<Nic>,
    /// What has come on the log port.
    pub log: Log,
    /// How long what must not come is waited for.
    pub silence: Duration,
}

/// The agent's log stream, as far as it has come. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Takes the log stream of whoever connects, from now on.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn listen(&self, listen: &Listen) -> std::io::Result<()> {
        let mut listener = listen.bind(linkspan_protocol::port::LOG).await?;
        let log = self.clone();
        tokio::spawn(async move {
            while let Ok(mut stream) = listener.accept().await {
                let mut buffer = [0; 4096];
                while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                    log.push(&buffer[..len]);
                }
            }
        });
        Ok(())
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.extend_from_slice(bytes);
        }
    }

    /// Its whole lines.
    pub fn lines(&self) -> Vec<String> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = kept.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        String::from_utf8_lossy(&kept[..end]).lines().map(str::to_owned).collect()
    }
}

/// How much of a log is kept.
const KEPT: usize = 1 << 20;

impl Default for Environment {
    fn default() -> Self {
        Self {
            layer_disk: None,
            layer: None,
            second_layer: None,
            blank_disk: None,
            shell: Vec::new(),
            nic: None,
            log: Log::default(),
            silence: Duration::from_millis(400),
        }
    }
}

/// An environment in which a layer lies at a path in the guest, if there is one.
impl From<Option<String>> for Environment {
    fn from(layer: Option<String>) -> Self {
        Self { layer, ..Self::default() }
    }
}

impl Environment {
    /// The first of `needs` that is not there.
    pub(crate) fn lacks(&self, needs: &[Need], target: &Target) -> Option<Need> {
        needs.iter().copied().find(|need| match need {
            Need::Dialling => !target.dials(),
            Need::Redial => !target.redials(),
            Need::Stdio => target.stdio().is_none(),
            Need::Shell => self.shell.is_empty() || target.stdio().is_none(),
            Need::Layer => self.layer.is_none(),
            Need::SecondLayer => self.second_layer.is_none(),
            Need::Controller => self.layer_disk.or(self.second_layer).or(self.blank_disk).is_none(),
            Need::BlankDisk => self.blank_disk.is_none(),
            Need::Nic => self.nic.is_none(),
            Need::Logs => self.log.lines().is_empty(),
        })
    }
}

/// How an agent is named on a command line.
#[derive(Clone, Debug)]
pub enum Reach {
    /// It dials us.
    Listen(Listen),
    /// We dial it; its stdio comes elsewhere, if at all.
    Connect(Dial, Option<Listen>),
    /// We start it.
    Spawn(Vec<std::ffi::OsString>, Option<Listen>),
}

impl Reach {
    /// The target.
    pub fn target(self) -> Target {
        match self {
            Self::Listen(listen) => Target::listen(listen),
            Self::Connect(dial, stdio) => Target::Connect { dial, stdio },
            Self::Spawn(command, stdio) => Target::spawn(command, stdio),
        }
    }
}
