//! Verdicts on disk, so that the probe is paid once per boot of the host.
//!
//! The file is one line per kernel and QEMU: key, `works` or `broken`, reason, by tabs. It lies in
//! a directory that only we can write to: whoever could forge it would choose our hypervisor.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::Verdict;

/// Lines that are kept.
const ENTRIES: usize = 32;

/// The longest file that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Cache {
    file: PathBuf,
}

impl Cache {
    /// The user's. `None` if there is no directory for it that is safe.
    pub(super) fn open() -> Option<Self> {
        let user = geteuid().as_raw();
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = runtime.filter(|path| path.is_absolute());
        let candidates = [
            runtime.map(|base| base.join("linkspan")),
            Some(PathBuf::from(format!("/run/user/{user}/linkspan"))),
            Some(std::env::temp_dir().join(format!("linkspan-{user}"))),
        ];
        candidates.into_iter().flatten().find_map(|directory| Self::in_directory(&directory).ok())
    }

    /// One in `directory`, which is made unless it is there; its parent has to be.
    fn in_directory(directory: &Path) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let metadata = fs::symlink_metadata(directory)?;
        let ours = metadata.is_dir() && metadata.uid() == geteuid().as_raw();
        if !ours || metadata.mode() & 0o022 != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Self { file: directory.join("kvm-probe") })
    }

    pub(super) fn get(&self, key: &str) -> Option<Verdict> {
        self.lines().iter().find_map(|line| {
            let rest = line.strip_prefix(key)?.strip_prefix('\t')?;
            let (word, reason) = rest.split_once('\t')?;
            let works = match word {
                "works" => true,
                "broken" => false,
                _ => return None,
            };
            Some(Verdict { works, reason: reason.to_owned() })
        })
    }

    /// Remembers a verdict. If that fails the probe is paid again.
    pub(super) fn put(&self, key: &str, verdict: &Verdict) {
        if let Err(error) = self.try_put(key, verdict) {
            tracing::debug!(%error, file = %self.file.display(), "cannot keep the KVM verdict");
        }
    }

    fn try_put(&self, key: &str, verdict: &Verdict) -> io::Result<()> {
        let mut lines = self.lines();
        lines.retain(|line| !line.starts_with(&format!("{key}\t")));
        let word = if verdict.works { "works" } else { "broken" };
        let reason = verdict.reason.replace(|c: char| c.is_control(), " ");
        lines.push(format!("{key}\t{word}\t{reason}"));
        let kept = &lines[lines.len().saturating_sub(ENTRIES)..];
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        let mut new = tempfile::NamedTempFile::new_in(directory)?;
        new.write_all(format!("{}\n", kept.join("\n")).as_bytes())?;
        new.persist(&self.file)?;
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        let small = fs::metadata(&self.file).is_ok_and(|metadata| metadata.len() <= FILE_LIMIT);
        let text = small.then(|| fs::read_to_string(&self.file).ok()).flatten();
        text.unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// What a verdict holds for: this boot of the host, this QEMU and this kernel. `None` if that
/// cannot be told.
pub(super) fn key(qemu: &Path, kernel: &Path) -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let file = |path: &Path| {
        let path = fs::canonicalize(path).ok()?;
        let metadata = fs::metadata(&path).ok()?;
        let name: String = path.as_os_str().as_bytes().escape_ascii().to_string();
        let name = name.replace(' ', "\\x20");
        Some(format!("{name} {}.{}", metadata.mtime(), metadata.mtime_nsec()))
    };
    Some(format!("{} {} {}", boot.trim(), file(qemu)?, file(kernel)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(works: bool) -> Verdict {
        Verdict { works, reason: "because".into() }
    }

    #[test]
    fn verdicts_are_remembered_by_key_and_replaced() {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::in_directory(&base.path().join("linkspan")).unwrap();
        assert_eq!(cache.get("a"), None);
        cache.put("a", &verdict(true));
        cache.put("ab", &verdict(false));
        assert_eq!(cache.get("a"), Some(verdict(true)));
        assert_eq!(cache.get("ab"), Some(verdict(false)));
        cache.put("a", &Verdict { works: false, reason: "two\nlines\tof it".into() });
        let replaced = Verdict { works: false, reason: "two lines of it".into() };
        assert_eq!(cache.get("a"), Some(replaced));
        assert_eq!(cache.lines().len(), 2);
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::in_directory(&base.path().join("linkspan")).unwrap();
        (0..ENTRIES + 5).for_each(|number| cache.put(&format!("k{number}"), &verdict(true)));
        assert_eq!(cache.lines().len(), ENTRIES);
        assert_eq!((cache.get("k0"), cache.get("k36")), (None, Some(verdict(true))));
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_used() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let base = tempfile::tempdir().unwrap();
        let open = base.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::in_directory(&open).is_err());
        let link = base.path().join("link");
        symlink(base.path(), &link).unwrap();
        assert!(Cache::in_directory(&link).is_err());
        assert!(Cache::in_directory(&base.path().join("no/parent")).is_err());
    }

    #[test]
    fn a_changed_kernel_has_another_key() {
        let base = tempfile::tempdir().unwrap();
        let (qemu, kernel) = (base.path().join("qe mu"), base.path().join("kernel"));
        fs::write(&qemu, "").unwrap();
        assert_eq!(key(&qemu, &kernel), None);
        let file = fs::File::create(&kernel).unwrap();
        let before = key(&qemu, &kernel).unwrap();
        assert_eq!(key(&qemu, &kernel), Some(before.clone()));
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_ne!(key(&qemu, &kernel), Some(before));
    }
}
