//! The last step of a container process: from the runtime's code to the container's program.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::unistd::execv;

use super::Confinement;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds the program as a shell would, and says plainly why it cannot be run.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) confinement: Option<Confinement>,
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        set_terminal_size(spec);
        let (program, args) = find(spec).map_err(ExecutorError::Other)?;
        let c_string = |text: &[u8]| {
            CString::new(text).map_err(|_| ExecutorError::Other("argument contains a NUL".into()))
        };
        let path = c_string(program.as_os_str().as_encoded_bytes())?;
        let args: Vec<_> =
            args.iter().map(|arg| c_string(arg.as_bytes())).collect::<Result<_, _>>()?;
        if let Some(confinement) = &self.confinement {
            confine(confinement).map_err(ExecutorError::Other)?;
        }
        let Err(error) = execv(&path, &args);
        Err(ExecutorError::Other(reason(&program.to_string_lossy(), error)))
    }
}

/// The runtime knows nothing of filters. What a filter denies is denied from here on, so that it
/// comes last.
fn confine(confinement: &Confinement) -> Result<(), String> {
    use caps::{CapSet, Capability};
    let Confinement { filter, surplus } = confinement;
    linkspan_guest_sys::load_seccomp(&filter.program, filter.flags)
        .map_err(|error| format!("load the seccomp filter: {error}"))?;
    for name in surplus {
        let capability: Capability =
            name.parse().map_err(|_| format!("{name:?} is no capability"))?;
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::drop(None, set, capability).map_err(|error| format!("drop {name}: {error}"))?;
        }
    }
    Ok(())
}

/// The runtime makes a terminal of no size. What runs in it must not see that, so it is set from
/// inside, before the program begins.
fn set_terminal_size(spec: &Spec) {
    let Some(process) = spec.process() else { return };
    let Some(size) = process.console_size().filter(|_| process.terminal() == Some(true)) else {
        return;
    };
    let fit = |size: u64| u16::try_from(size).unwrap_or(u16::MAX);
    let size = rustix::termios::Winsize {
        ws_row: fit(size.height()),
        ws_col: fit(size.width()),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let _ = rustix::termios::tcsetwinsize(std::io::stdin(), size);
}

fn find(spec: &Spec) -> Result<(PathBuf, &[String]), String> {
    let process = spec.process().as_ref().ok_or("the spec has no process")?;
    let args = process.args().as_deref().unwrap_or_default();
    let name = args.first().filter(|name| !name.is_empty()).ok_or("process.args is empty")?;
    if name.contains('/') {
        return match runnable(Path::new(name)) {
            Ok(()) => Ok((name.into(), args)),
            Err(error) => Err(reason(name, error)),
        };
    }
    let env = process.env().as_deref().unwrap_or_default();
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    let mut worst = Errno::ENOENT;
    for directory in path.unwrap_or(DEFAULT_PATH).split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match runnable(&candidate) {
            Ok(()) => return Ok((candidate, args)),
            Err(Errno::EACCES) => worst = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(reason(name, worst))
}

fn runnable(path: &Path) -> Result<(), Errno> {
    let data = fs::metadata(path)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    match data.is_file() && data.permissions().mode() & 0o111 != 0 {
        true => Ok(()),
        false => Err(Errno::EACCES),
    }
}

/// Hosts tell "not found" (127) from "cannot be run" (126) by these words.
fn reason(name: &str, error: Errno) -> String {
    match error {
        Errno::ENOENT | Errno::ENOTDIR if !name.contains('/') => {
            format!("executable {name:?} not found in $PATH")
        }
        Errno::ENOENT | Errno::ENOTDIR => format!("executable {name:?} not found: no such file"),
        Errno::EACCES => format!("executable {name:?} cannot be run: permission denied"),
        other => format!("executable {name:?} cannot be run: {}", other.desc()),
    }
}
