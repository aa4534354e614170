//! Changing the system's clock.

use std::io;

/// A change of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjustment {
    /// At once.
    Step {
        /// Forward, or back if negative.
        nanoseconds: i64,
    },
    /// Little by little, at half a millisecond a second.
    Slew {
        /// Forward, or back if negative.
        microseconds: i64,
    },
}

/// Changes the system's clock.
///
/// # Errors
/// The kernel's; it takes root.
pub fn adjust_clock(adjustment: Adjustment) -> io::Result<()> {
    // SAFETY: a timex is plain data, for which all zeroes is a value.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    match adjustment {
        Adjustment::Step { nanoseconds } => {
            change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
            change.time.tv_sec = nanoseconds.div_euclid(1_000_000_000);
            change.time.tv_usec = nanoseconds.rem_euclid(1_000_000_000);
        }
        Adjustment::Slew { microseconds } => {
            change.modes = libc::ADJ_OFFSET_SINGLESHOT;
            change.offset = microseconds;
        }
    }
    // SAFETY: the call reads and writes a timex.
    match unsafe { libc::adjtimex(&mut change) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
