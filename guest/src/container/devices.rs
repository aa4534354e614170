//! Devices of the utility VM in containers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use serde_json::{Value, json};

use super::bundle::list;
use crate::error::Context;
use crate::{Error, Result};

/// Not looked into, and not taken.
const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// A device of the utility VM.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) path: PathBuf,
    /// `b` or `c`.
    kind: &'static str,
    pub(super) number: (u32, u32),
    uid: u32,
    gid: u32,
}

impl Device {
    /// The device at a path; `None` if there is something else.
    fn at(path: &Path) -> std::io::Result<Option<Self>> {
        let data = fs::symlink_metadata(path)?;
        let kind = match data.file_type() {
            kind if kind.is_block_device() => "b",
            kind if kind.is_char_device() => "c",
            _ => return Ok(None),
        };
        let number = (major(data.rdev()), minor(data.rdev()));
        Ok(Some(Self { path: path.to_owned(), kind, number, uid: data.uid(), gid: data.gid() }))
    }

    fn document(&self) -> Value {
        json!({
            "path": self.path, "type": self.kind, "major": self.number.0, "minor": self.number.1,
            "uid": self.uid, "gid": self.gid,
        })
    }

    /// Its place in sysfs.
    pub(super) fn sysfs(&self) -> Option<PathBuf> {
        let class = if self.kind == "b" { "block" } else { "char" };
        let (major, minor) = self.number;
        fs::canonicalize(format!("/sys/dev/{class}/{major}:{minor}")).ok()
    }

    /// Puts it into a container, with leave to use it.
    pub(super) fn add(&self, spec: &mut Value) {
        self.put(list(spec, "/linux/devices"));
        allow(spec, self.kind, Some(self.number), "rwm");
    }

    fn put(&self, devices: &mut Vec<Value>) {
        let path = self.path.to_string_lossy();
        devices.retain(|device| device["path"].as_str() != Some(&path));
        devices.push(self.document());
    }
}

/// Adds a rule to those by which a container may use devices. No number means all.
pub(super) fn allow(spec: &mut Value, kind: &str, number: Option<(u32, u32)>, access: &str) {
    let mut rule = json!({"allow": true, "type": kind, "access": access});
    if let Some((major, minor)) = number {
        rule["major"] = json!(major);
        rule["minor"] = json!(minor);
    }
    list(spec, "/linux/resources/devices").push(rule);
}

/// All devices, and leave to use them.
pub(super) fn add_all(spec: &mut Value) -> Result<()> {
    let mut all = Vec::new();
    collect(Path::new("/dev"), &mut all)?;
    let devices = list(spec, "/linux/devices");
    for device in &all {
        device.put(devices);
    }
    let rules = list(spec, "/linux/resources/devices");
    rules.clear();
    rules.push(json!({"allow": true, "type": "a", "access": "rwm"}));
    Ok(())
}

/// The devices below a directory.
pub(super) fn collect(directory: &Path, all: &mut Vec<Device>) -> Result<()> {
    let what = || format!("list devices in {}", directory.display());
    for entry in fs::read_dir(directory).context(what)? {
        let entry = entry.context(what)?;
        let (name, path) = (entry.file_name(), entry.path());
        let kind = entry.file_type().context(what)?;
        if kind.is_dir() {
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                collect(&path, all)?;
            }
        } else if name != "console"
            // What goes while one looks is not there.
            && let Ok(Some(device)) = Device::at(&path)
            && device.number != (0, 0)
        {
            all.push(device);
        }
    }
    Ok(())
}

/// Takes numbers and owners of a spec's devices from the utility VM. A device that is not there is
/// an error where it `must` be, and else stays as it is written.
pub(super) fn look_up(spec: &mut Value, must: bool) -> Result<()> {
    if spec["linux"]["devices"].as_array().is_none_or(Vec::is_empty) {
        return Ok(());
    }
    let mut found = Vec::new();
    for device in list(spec, "/linux/devices") {
        let path = device["path"].as_str().unwrap_or_default().to_owned();
        match Device::at(Path::new(&path)) {
            Ok(Some(real)) => {
                *device = real.document();
                found.push((real.kind, real.number));
            }
            _ if !must => {}
            Ok(None) => {
                let reason = format!("{path:?} is not a device");
                return Err(Error::Argument { field: "linux.devices", reason });
            }
            Err(error) => return Err(error).context(|| format!("look at device {path:?}")),
        }
    }
    for (kind, number) in found {
        allow(spec, kind, Some(number), "rwm");
    }
    Ok(())
}

/// The number of the block device behind a symbolic link.
pub(super) fn linked(link: &Path) -> Result<(u32, u32)> {
    let what = || format!("find the block device behind {}", link.display());
    let target = fs::read_link(link).context(what)?;
    let target = link.parent().unwrap_or(Path::new("/")).join(target);
    let data = fs::metadata(&target).context(what)?;
    match data.file_type().is_block_device() {
        true => Ok((major(data.rdev()), minor(data.rdev()))),
        false => {
            let reason = format!("{} does not lead to a block device", link.display());
            Err(Error::Argument { field: "mounts", reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_from_the_machine_and_every_device_gets_leave() {
        let mut spec = json!({"linux": {"devices": [
            {"path": "/dev/null", "type": "b", "major": 99, "minor": 99, "fileMode": 511},
        ]}});
        look_up(&mut spec, true).unwrap();
        let device = &spec["linux"]["devices"][0];
        assert_eq!((&device["major"], &device["minor"]), (&json!(1), &json!(3)));
        assert!(device["type"] == "c" && device["fileMode"].is_null());
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
        assert_eq!(spec["linux"]["resources"]["devices"], json!([rule]));
    }

    #[test]
    fn what_is_no_device_is_refused_by_its_path() {
        for path in ["/dev/no-such-device", "/etc/passwd"] {
            let mut spec = json!({"linux": {"devices": [{"path": path}]}});
            let error = look_up(&mut spec, true).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
            look_up(&mut spec, false).unwrap();
            assert_eq!(spec["linux"]["devices"][0]["path"], path);
        }
    }

    #[test]
    fn a_privileged_container_has_all_devices_and_one_rule() {
        let mut spec = json!({"linux": {
            "devices": [{"path": "/dev/null"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        }});
        add_all(&mut spec).unwrap();
        let devices = spec["linux"]["devices"].as_array().unwrap();
        let named = |path: &str| devices.iter().filter(|device| device["path"] == path).count();
        assert!(named("/dev/null") == 1 && named("/dev/zero") == 1);
        assert!(!devices.iter().any(|device| device["path"].as_str().unwrap().contains("/pts/")));
        let rule = json!([{"allow": true, "type": "a", "access": "rwm"}]);
        assert_eq!(spec["linux"]["resources"]["devices"], rule);
    }
}
