//! The utility VM's clock, led by the hypervisor's.
//!
//! The hypervisor's clock is a PTP device of the kernel. It is compared with the system's every
//! few seconds; small differences are slewed away by the kernel, large ones, as after a pause of
//! the machine, are stepped over.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use linkspan_guest_sys::Adjustment;
use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic};
use tracing::{debug, info, warn};

/// Clocks of hypervisors, by the name that the kernel gives them.
const NAMES: [&str; 2] = ["hyperv", "KVM virtual PTP"];

/// How often the clocks are compared.
const INTERVAL: Duration = Duration::from_secs(8);

/// What is too far for slewing, in nanoseconds: it would take minutes.
const STEP: i64 = 100_000_000;

/// What is not worth a change, in nanoseconds: reading the clock is no more exact.
const NOISE: i64 = 10_000;

/// Follows the hypervisor's clock for ever, if there is one.
pub(crate) async fn follow() {
    let Some(device) = find(Path::new("/sys/class/ptp"), Path::new("/dev")) else {
        warn!("no clock of a hypervisor: the time may drift away from the host's");
        return;
    };
    let clock = match File::open(&device) {
        Ok(clock) => clock,
        Err(error) => {
            warn!(%error, device = %device.display(), "the hypervisor's clock cannot be read");
            return;
        }
    };
    info!(device = %device.display(), "follow the hypervisor's clock");
    loop {
        match compare(&clock) {
            Err(error) => warn!(%error, "the hypervisor's clock cannot be read"),
            Ok(offset) => {
                let adjusted = match adjustment(offset) {
                    Some(adjustment) => linkspan_guest_sys::adjust_clock(adjustment),
                    None => Ok(()),
                };
                match adjusted {
                    Ok(()) => debug!(offset, "clock"),
                    Err(error) => {
                        warn!(%error, "the clock cannot be set: left alone from now on");
                        return;
                    }
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn find(class: &Path, devices: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(class).ok()?.flatten();
    let mut found: Vec<(usize, PathBuf)> = entries
        .filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("clock_name")).ok()?;
            let rank = NAMES.iter().position(|known| *known == name.trim())?;
            Some((rank, devices.join(entry.file_name())))
        })
        .collect();
    found.sort();
    found.into_iter().next().map(|(_, device)| device)
}

/// How far the system's clock is behind, in nanoseconds: by the reading, out of a few, that took
/// the least time, for it is the most exact.
fn compare(clock: &File) -> rustix::io::Result<i64> {
    let mut best = (i64::MAX, 0);
    for _ in 0..5 {
        let before = nanoseconds(clock_gettime(ClockId::Realtime));
        let theirs = nanoseconds(clock_gettime_dynamic(DynamicClockId::Dynamic(clock.as_fd()))?);
        let after = nanoseconds(clock_gettime(ClockId::Realtime));
        best = best.min((after - before, theirs - (before + (after - before) / 2)));
    }
    Ok(best.1)
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

fn adjustment(offset: i64) -> Option<Adjustment> {
    match offset.saturating_abs() {
        0..NOISE => None,
        NOISE..=STEP => Some(Adjustment::Slew { microseconds: offset / 1000 }),
        _ => Some(Adjustment::Step { nanoseconds: offset }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hypervisor_s_clock_is_told_from_others() {
        let directory = std::env::temp_dir().join(format!("linkspan-ptp-{}", std::process::id()));
        for (device, name) in
            [("ptp0", "eth0 clock\n"), ("ptp1", "KVM virtual PTP\n"), ("ptp2", "hyperv\n")]
        {
            fs::create_dir_all(directory.join(device)).unwrap();
            fs::write(directory.join(device).join("clock_name"), name).unwrap();
        }
        let find = || find(&directory, Path::new("/dev"));
        assert_eq!(find(), Some("/dev/ptp2".into()));
        fs::remove_dir_all(directory.join("ptp2")).unwrap();
        assert_eq!(find(), Some("/dev/ptp1".into()));
        fs::remove_dir_all(directory.join("ptp1")).unwrap();
        assert_eq!(find(), None);
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(find(), None);
    }

    #[test]
    fn small_differences_are_slewed_and_large_ones_stepped() {
        assert_eq!(adjustment(9_999), None);
        assert_eq!(adjustment(-50_000), Some(Adjustment::Slew { microseconds: -50 }));
        assert_eq!(adjustment(100_000_000), Some(Adjustment::Slew { microseconds: 100_000 }));
        let step = Adjustment::Step { nanoseconds: -100_000_001 };
        assert_eq!(adjustment(-100_000_001), Some(step));
    }

    #[test]
    fn a_device_that_is_no_clock_is_refused() {
        assert!(compare(&File::open("/dev/null").unwrap()).is_err());
    }
}
