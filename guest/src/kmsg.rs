//! The kernel's messages, into the agent's log.
//!
//! ```text
//! PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,...];TEXT\n
//!  KEY=VALUE\n ...            PRIORITY: facility << 3 | priority
//! ```

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tracing::{info, warn};

/// The kernel cuts records off there.
const RECORD: usize = 8 << 10;

const PRIORITIES: [&str; 8] =
    ["Emerg", "Alert", "Crit", "Err", "Warning", "Notice", "Info", "Debug"];

/// One message.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    priority: u8,
    facility: u64,
    sequence: u64,
    microseconds: u64,
    flags: &'a str,
    text: &'a str,
}

impl<'a> Record<'a> {
    fn parse(record: &'a str) -> Option<Self> {
        let (prefix, text) = record.split_once(';')?;
        let mut fields = prefix.split(',');
        let (value, sequence): (u64, u64) =
            (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (microseconds, flags) = (fields.next()?.parse().ok()?, fields.next()?);
        // Lines behind the first tell of the device: not the message.
        let text = text.lines().next().unwrap_or_default().trim();
        let priority = (value & 7) as u8;
        Some(Self { priority, facility: value >> 3, sequence, microseconds, flags, text })
    }
}

/// Logs the kernel's messages up to this priority, those of the boot included, as they come.
///
/// # Errors
/// When the kernel gives none.
pub(crate) async fn forward(level: u8) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = rustix::fs::open(Path::new("/dev/kmsg"), flags, Mode::empty())?;
    let device = linkspan_guest_sys::register(device)?;
    let mut buffer = vec![0; RECORD];
    let mut next = None;
    loop {
        let read = device
            .async_io(Interest::READABLE, |fd| {
                Ok(match rustix::io::read(fd, &mut buffer[..]) {
                    // Overwritten before it was read; the next is the oldest that is left.
                    Err(Errno::PIPE) => 0,
                    read => read?,
                })
            })
            .await?;
        let text = String::from_utf8_lossy(&buffer[..read]);
        let Some(record) = Record::parse(&text) else {
            continue;
        };
        let expected = next.replace(record.sequence + 1).unwrap_or(record.sequence);
        if record.sequence > expected {
            warn!(count = record.sequence - expected, "kernel messages were lost");
        }
        if record.priority <= level {
            info!(
                priority = PRIORITIES[usize::from(record.priority)],
                facility = record.facility,
                seq = record.sequence,
                timesincebootmicro = record.microseconds,
                flags = record.flags,
                field.message = record.text,
                "kmsg read"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_apart() {
        let text = "30,512,1234567,-,caller=T1;  usb 1-1: new; device \n SUBSYSTEM=usb\n";
        let record = Record {
            priority: 6,
            facility: 3,
            sequence: 512,
            microseconds: 1_234_567,
            flags: "-",
            text: "usb 1-1: new; device",
        };
        assert_eq!(Record::parse(text), Some(record));
        for broken in ["", ";", "x,1,2,-;t", "6,1;t", "6,1,2,-"] {
            assert_eq!(Record::parse(broken), None, "{broken:?}");
        }
    }
}
