//! Which named utility VMs there are: a directory for each, held by its monitor's lock.
//!
//! | file           | what                                                            |
//! |----------------|-----------------------------------------------------------------|
//! | `lock`         | locked as long as the monitor lives; the kernel lets go of it    |
//! | `control.sock` | where it listens                                                |
//! | `monitor.log`  | what it logs                                                    |
//! | `state.json`   | what it is, for people and for when it does not answer          |

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use crate::control::Channel;
use crate::error::{Context, Error};

/// The named utility VMs of this user.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    directory: PathBuf,
}

/// The place of one utility VM, whose monitor may or may not live.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
}

/// A place that is ours. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) place: Place,
    _lock: File,
}

impl Registry {
    /// This user's.
    pub(crate) fn open() -> Result<Self, Error> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let uid = rustix::process::geteuid();
        let base = match runtime.filter(|path| path.is_absolute()) {
            Some(runtime) => runtime,
            None if uid.is_root() => PathBuf::from("/run"),
            None => PathBuf::from(format!("/run/user/{}", uid.as_raw())),
        };
        Self::at(base.join("linkspan/uvm"))
    }

    fn at(directory: PathBuf) -> Result<Self, Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.context(|| format!("make {} (XDG_RUNTIME_DIR)", directory.display()))?;
        Ok(Self { directory })
    }

    /// The place of a name.
    pub(crate) fn place(&self, name: &str) -> Result<Place, Error> {
        check_name(name)?;
        Ok(Place { name: name.to_owned(), directory: self.directory.join(name) })
    }

    /// All with a living monitor, by name. What dead ones have left is removed.
    pub(crate) fn list(&self) -> Result<Vec<Place>, Error> {
        let _exclusive = self.exclusively()?;
        let what = || format!("list {}", self.directory.display());
        let mut places = Vec::new();
        for entry in fs::read_dir(&self.directory).context(what)? {
            let Ok(name) = entry.context(what)?.file_name().into_string() else { continue };
            let Ok(place) = self.place(&name) else { continue };
            match place.lock()? {
                Some(_lock) => place.remove(),
                None => places.push(place),
            }
        }
        places.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(places)
    }

    /// The one that was named, or the only one.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<Place, Error> {
        let mut places = self.list()?;
        let names = || {
            let names = places.iter().map(|place| place.name.as_str()).collect::<Vec<_>>();
            match names.is_empty() {
                true => "none is running; start one with `linkspan uvm start NAME`".to_owned(),
                false => format!("running: {}", names.join(", ")),
            }
        };
        match name {
            Some(name) => match places.iter().position(|place| place.name == name) {
                Some(at) => Ok(places.swap_remove(at)),
                None => {
                    check_name(name)?;
                    let reason = format!("no utility VM named {name:?} is running ({})", names());
                    Err(Error::input("NAME", reason))
                }
            },
            None if places.len() == 1 => Ok(places.swap_remove(0)),
            None => Err(Error::input("--uvm", format!("name a utility VM ({})", names()))),
        }
    }

    /// Takes a place that nobody holds.
    pub(crate) fn hold(&self, name: &str) -> Result<Held, Error> {
        let place = self.place(name)?;
        let _exclusive = self.exclusively()?;
        if place.directory.exists() {
            if place.lock()?.is_none() {
                let reason = format!("a utility VM named {name:?} is running already");
                return Err(Error::input("NAME", reason));
            }
            place.remove();
        }
        let what = || format!("make {}", place.directory.display());
        DirBuilder::new().mode(0o700).create(&place.directory).context(what)?;
        match place.lock()? {
            Some(lock) => Ok(Held { place, _lock: lock }),
            None => Err(io::Error::from(io::ErrorKind::WouldBlock)).context(what),
        }
    }

    /// Held while places come and go, so that nobody takes a new one for a dead one.
    fn exclusively(&self) -> Result<File, Error> {
        let path = self.directory.join(".lock");
        let what = || format!("lock {}", path.display());
        let file = File::options().create(true).append(true).open(&path).context(what)?;
        file.lock().context(what)?;
        Ok(file)
    }
}

impl Place {
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("monitor.log")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// Connects to its monitor.
    pub(crate) async fn connect(&self) -> Result<Channel, Error> {
        let what = || format!("connect to the monitor of utility VM {:?}", self.name);
        Ok(Channel::new(UnixStream::connect(self.socket()).await.context(what)?))
    }

    /// Whether nobody holds it.
    pub(crate) fn is_free_or_absent(&self) -> Result<bool, Error> {
        Ok(!self.directory.exists() || self.lock()?.is_some())
    }

    /// The monitor's pid, if it got so far as to tell.
    pub(crate) fn monitor_pid(&self) -> Option<i32> {
        let state: serde_json::Value =
            serde_json::from_slice(&fs::read(self.state()).ok()?).ok()?;
        i32::try_from(state.get("pid")?.as_i64()?).ok()
    }

    /// Tells what it is, whole or not at all.
    pub(crate) fn write_state(&self, state: &[u8]) -> Result<(), Error> {
        let (path, new) = (self.state(), self.directory.join("state.json.new"));
        let write = || {
            let mut file = File::create(&new)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(state)?;
            fs::rename(&new, &path)
        };
        write().context(|| format!("write {}", path.display()))
    }

    /// Its lock, unless a monitor has it.
    fn lock(&self) -> Result<Option<File>, Error> {
        let path = self.directory.join("lock");
        let what = || format!("lock {}", path.display());
        let file = match File::options().create(true).append(true).open(&path) {
            // It has just gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.context(what)?,
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).context(what),
        }
    }

    fn remove(&self) {
        remove(&self.directory);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.place.remove();
    }
}

fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %directory.display(), %error, "remove");
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.is_empty()
        || name.len() > 48
        || !name.bytes().all(valid)
        || name.starts_with(['.', '-'])
    {
        let reason = format!(
            "{name:?} is no name for a utility VM: 1 to 48 letters, digits, _ - . (no dot or dash first)"
        );
        return Err(Error::input("NAME", reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::at(directory.path().join("uvm")).unwrap();
        (directory, registry)
    }

    #[test]
    fn a_name_is_held_once_and_free_again_afterwards() {
        let (_directory, registry) = registry();
        let held = registry.hold("a").unwrap();
        assert!(registry.hold("a").unwrap_err().to_string().contains("\"a\" is running already"));
        assert_eq!(registry.list().unwrap().len(), 1);
        drop(held);
        registry.hold("a").unwrap();
    }

    #[test]
    fn what_a_dead_monitor_left_is_removed_by_looking() {
        let (_directory, registry) = registry();
        let place = registry.place("dead").unwrap();
        fs::create_dir(&place.directory).unwrap();
        fs::write(place.log(), "last words").unwrap();
        assert!(registry.list().unwrap().is_empty());
        assert!(!place.directory.exists());
    }

    #[test]
    fn the_only_one_needs_no_name_and_two_do() {
        let (_directory, registry) = registry();
        assert!(registry.find(None).unwrap_err().to_string().contains("none is running"));
        let _a = registry.hold("a").unwrap();
        assert_eq!(registry.find(None).unwrap().name, "a");
        let _b = registry.hold("b").unwrap();
        assert!(registry.find(None).unwrap_err().to_string().contains("running: a, b"));
        assert_eq!(registry.find(Some("b")).unwrap().name, "b");
    }

    #[test]
    fn a_name_that_is_no_plain_file_name_is_refused() {
        let long = "x".repeat(49);
        for name in ["", ".", "..", "a/b", "-x", ".lock", "ä", long.as_str()] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
