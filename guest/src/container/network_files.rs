//! `hostname`, `hosts` and `resolv.conf`, which a container finds in its `/etc`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::Context;
use crate::{Error, Result};

pub(super) const NAMES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// What a container is called if neither a host nor an init has named the machine.
const UNNAMED: &str = "localhost";

/// A host name that is safe to write down; the UVM's own for an empty one.
pub(super) fn hostname(wanted: &str) -> Result<String> {
    let hostname = match wanted {
        "" => nix::unistd::gethostname()
            .context(|| "read the host name".to_owned())?
            .to_string_lossy()
            .into_owned(),
        wanted => wanted.to_owned(),
    };
    // The kernel's own word for it.
    if hostname == "(none)" && wanted.is_empty() {
        return Ok(UNNAMED.to_owned());
    }
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if hostname.len() > 255 || !hostname.bytes().all(valid) {
        let reason = format!("{hostname:?} is no host name");
        return Err(Error::Argument { field: "hostname", reason });
    }
    Ok(hostname)
}

/// Writes one of them.
pub(super) fn write(directory: &Path, name: &str, hostname: &str, resolv_conf: &str) -> Result<()> {
    let path = directory.join(name);
    let written = match name {
        "hostname" => fs::write(&path, format!("{hostname}\n")),
        "hosts" => fs::write(&path, hosts(hostname)),
        _ => fs::write(&path, resolv_conf),
    };
    written.context(|| format!("write {}", path.display()))
}

/// Adds mounts of them to a spec, where it does not bring its own. `write` is called for each
/// that is added.
pub(super) fn mount(
    spec: &mut Value,
    directory: &Path,
    mut write: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let read_only = spec["root"]["readonly"].as_bool().unwrap_or_default();
    let mounts = super::bundle::list(spec, "/mounts");
    for name in NAMES {
        let destination = format!("/etc/{name}");
        if mounts.iter().any(|mount| mount["destination"] == destination.as_str()) {
            continue;
        }
        write(name)?;
        let options = if read_only { json!(["bind", "ro"]) } else { json!(["bind"]) };
        mounts.push(json!({
            "destination": destination,
            "type": "bind",
            "source": directory.join(name),
            "options": options,
        }));
    }
    Ok(())
}

fn hosts(hostname: &str) -> String {
    let names = match hostname.split_once('.') {
        Some((label, _)) => format!("{hostname} {label}"),
        None => hostname.to_owned(),
    };
    format!(
        "127.0.0.1 localhost\n127.0.0.1 {names}\n\n\
         # The following lines are desirable for IPv6 capable hosts\n\
         ::1     ip6-localhost ip6-loopback\nfe00::0 ip6-localnet\nff00::0 ip6-mcastprefix\n\
         ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dotted_name_has_its_first_label_beside_it() {
        assert!(hosts("a.b.c").contains("\n127.0.0.1 a.b.c a\n\n#"));
        assert!(hosts("plain").starts_with("127.0.0.1 localhost\n127.0.0.1 plain\n\n#"));
    }

    #[test]
    fn only_names_are_host_names() {
        assert_eq!(hostname("a-b_c.9").unwrap(), "a-b_c.9");
        assert!(!hostname("").unwrap().is_empty());
        for bad in ["a b", "a\nb", "a/b", "ü", &"x".repeat(256)] {
            assert!(hostname(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_the_spec_mounts_itself_is_left_alone() {
        let mut spec = json!({
            "root": {"readonly": true},
            "mounts": [{"destination": "/etc/hosts"}],
        });
        let mut written = Vec::new();
        mount(&mut spec, "/pod".as_ref(), |name| {
            written.push(name.to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(written, ["hostname", "resolv.conf"]);
        assert_eq!(spec["mounts"].as_array().unwrap().len(), 3);
        assert_eq!(spec["mounts"][1]["options"], json!(["bind", "ro"]));
        assert_eq!(spec["mounts"][2]["source"], "/pod/resolv.conf");
    }
}
