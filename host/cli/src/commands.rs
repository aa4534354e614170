//! The subcommands, a module each.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod conform;
pub(crate) mod decode;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod kill;
pub(crate) mod layer;
pub(crate) mod logs;
pub(crate) mod ps;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod simulate;
pub(crate) mod stats;
pub(crate) mod uvm;
pub(crate) mod version;
pub(crate) mod wait;

use clap::Args;

use crate::error::Error;
use crate::registry::{Place, Registry};

/// Which utility VM.
#[derive(Args, Clone, Debug)]
pub(crate) struct UvmName {
    /// Which utility VM; may be left out if only one is running
    #[arg(long, value_name = "NAME")]
    pub(crate) uvm: Option<String>,
}

impl UvmName {
    fn place(&self) -> Result<Place, Error> {
        Registry::open()?.find(self.uvm.as_deref())
    }
}
