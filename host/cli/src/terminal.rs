//! The local terminal: its size, and raw mode that never outlives this process.

use std::io::{self, IsTerminal};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{self, OptionalActions, Termios};

use crate::error::{Context, Error};

/// What the terminal was like before it was made raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Rows and columns of the terminal that this process has, wherever it has it.
pub(crate) fn size() -> Option<(u16, u16)> {
    let (stdin, stdout, stderr) =
        (rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr());
    let size = |fd: BorrowedFd<'_>| termios::tcgetwinsize(fd).ok();
    let size = size(stdout).or_else(|| size(stdin)).or_else(|| size(stderr))?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Raw mode of the terminal on stdin, until this is dropped.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Enters raw mode; does nothing where stdin is no terminal.
    pub(crate) fn enter() -> Result<Option<Self>, Error> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                before(panic);
            }));
        });
        let stdin = rustix::stdio::stdin();
        let mut mode = termios::tcgetattr(stdin).context(|| "read the terminal's mode".into())?;
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(mode.clone());
        mode.make_raw();
        termios::tcsetattr(stdin, OptionalActions::Now, &mode)
            .context(|| "put the terminal into raw mode".into())?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mode) = saved {
        // The terminal may be gone; then there is nothing to restore.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &mode);
    }
}
