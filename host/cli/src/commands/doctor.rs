//! `linkspan doctor`.

use std::path::PathBuf;

use clap::Args;
use linkspan_host::doctor::{State, examine};

use crate::error::Error;
use crate::options::Global;
use crate::output;
use crate::progress::Progress;

/// Check this machine for what utility VMs and containerd need
///
/// Says for each thing what was found, and how to mend what is missing. KVM is tried with the boot
/// image's kernel, for a device that opens may still not work.
#[derive(Args, Debug)]
#[command(after_help = "Exit code: 0 if containers can be run in utility VMs here, 1 if not.")]
pub(crate) struct Doctor {
    /// Directory with the boot image: vmlinux or vmlinuz, initrd, agent
    #[arg(long, env = "LINKSPAN_IMAGE", value_name = "DIR")]
    image: Option<PathBuf>,
}

impl Doctor {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        let spinner = Progress::new(global).spinner("looking at this machine");
        let findings = examine(self.image.as_deref()).await;
        drop(spinner);
        let sound = findings.iter().all(|finding| finding.state != State::Bad);
        if global.json {
            output::json(&findings)?;
            return Ok(u32::from(!sound));
        }
        for finding in &findings {
            let state = match finding.state {
                State::Good => "ok",
                State::Fair => "note",
                State::Bad => "MISSING",
            };
            output::line(format!("{state:8} {:12} {}", finding.subject, finding.found))?;
            if let Some(mend) = &finding.mend {
                output::line(format!("{:21} -> {mend}", ""))?;
            }
        }
        Ok(u32::from(!sound))
    }
}
