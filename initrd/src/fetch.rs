//! Gets Debian's kernel package through apt, once.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Error, Event, Step, image::sha256, progress};

/// A directory in which fetched packages stay.
#[derive(Debug, Clone)]
pub struct PackageCache {
    directory: PathBuf,
}

/// A package that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The `.deb`.
    pub path: PathBuf,
    /// Whether it was there already.
    pub reused: bool,
}

/// What apt knows of a package.
#[derive(Debug, PartialEq, Eq)]
struct Announced {
    file_name: String,
    sha256: String,
    size: Option<u64>,
}

impl PackageCache {
    /// The meta package that stands for Debian's newest kernel for virtual machines.
    pub const DEFAULT_PACKAGE: &'static str = "linux-image-cloud-amd64";

    /// A cache in `directory`, which is made when needed.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// `$XDG_CACHE_HOME/linkspan`, or `~/.cache/linkspan`.
    ///
    /// # Errors
    ///
    /// When the environment has neither `XDG_CACHE_HOME` nor `HOME`.
    pub fn for_user() -> Result<Self, Error> {
        Self::from_environment(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))
    }

    fn from_environment(xdg: Option<OsString>, home: Option<OsString>) -> Result<Self, Error> {
        let set = |value: Option<OsString>| value.filter(|v| !v.is_empty()).map(PathBuf::from);
        // The XDG rules have a relative path ignored.
        let base = set(xdg)
            .filter(|path| path.is_absolute())
            .or_else(|| set(home).map(|home| home.join(".cache")))
            .ok_or(Error::NoCacheDirectory)?;
        Ok(Self::new(base.join("linkspan")))
    }

    /// Where the packages are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The kernel behind `package`, a meta package or a kernel itself, downloaded unless the very
    /// file apt announces is there. Reports [`Step::Download`] if it downloads.
    ///
    /// # Errors
    ///
    /// When apt is missing, does not know the package, or cannot get it; the message says what to do.
    pub fn fetch(&self, package: &str, on_event: &mut dyn FnMut(Event)) -> Result<Fetched, Error> {
        let depends = apt_text("apt-cache", &["depends", "--", package])?;
        let kernel = kernel_behind(package, &depends);
        let shown = apt_text("apt-cache", &["show", "--no-all-versions", "--", &kernel])?;
        let announced = parse_show(&shown)
            .map_err(|reason| Error::UnknownPackage { package: package.into(), reason })?;
        let path = self.directory.join(&announced.file_name);
        if let Ok(data) = fs::read(&path)
            && sha256(&data) == announced.sha256
        {
            return Ok(Fetched { path, reused: true });
        }
        progress::step(on_event, Step::Download, announced.size, |advance| {
            self.download(&kernel, &announced, &path)?;
            advance(announced.size.unwrap_or(0));
            Ok::<_, Error>(())
        })?;
        Ok(Fetched { path, reused: false })
    }

    fn download(&self, kernel: &str, announced: &Announced, path: &Path) -> Result<(), Error> {
        fs::create_dir_all(&self.directory).map_err(Error::write(&self.directory))?;
        let work = tempfile::tempdir_in(&self.directory).map_err(Error::write(&self.directory))?;
        apt("apt-get", &["download", "--", kernel], Some(work.path()))?;
        let got = fs::read_dir(work.path())
            .map_err(Error::read("download directory", work.path()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|end| end == "deb"))
            .ok_or_else(|| Error::UnknownPackage {
                package: kernel.into(),
                reason: "apt-get download left no file".into(),
            })?;
        let data = fs::read(&got).map_err(Error::read("downloaded package", &got))?;
        let actual = sha256(&data);
        if actual != announced.sha256 {
            let expected = announced.sha256.clone();
            return Err(Error::WrongDigest { path: got, actual, expected });
        }
        fs::rename(&got, path).map_err(Error::write(path))
    }
}

/// The kernel a meta package depends on, or the package itself.
fn kernel_behind(package: &str, depends: &str) -> String {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends:"))
        .map(str::trim)
        .find(|name| {
            let release = name.strip_prefix("linux-image-");
            release.is_some_and(|release| release.starts_with(|c: char| c.is_ascii_digit()))
        })
        .unwrap_or(package)
        .into()
}

fn parse_show(text: &str) -> Result<Announced, String> {
    let stanza = text.split("\n\n").next().unwrap_or_default();
    let field = |name: &str| {
        let value = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    };
    let file = field("Filename").ok_or("apt-cache show gives no Filename")?;
    let file_name = file.rsplit('/').next().unwrap_or_default().to_owned();
    if file_name.is_empty() || file_name == ".." {
        return Err(format!("apt-cache show gives Filename {file:?}"));
    }
    let sha256 = field("SHA256").ok_or("apt-cache show gives no SHA256")?.to_ascii_lowercase();
    let size = field("Size").and_then(|size| size.parse().ok());
    Ok(Announced { file_name, sha256, size })
}

fn apt_text(program: &'static str, args: &[&str]) -> Result<String, Error> {
    apt(program, args, None).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn apt(program: &'static str, args: &[&str], directory: Option<&Path>) -> Result<Vec<u8>, Error> {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C");
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    let output = command.output().map_err(|source| Error::NoApt { program, source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("E:")).collect();
    Err(Error::Apt {
        command: format!("{program} {}", args.join(" ")),
        status: output.status.to_string(),
        stderr: errors.join(" "),
        advice: "run `apt-get update`, or give the kernel with --kernel-package",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_behind_a_meta_package_is_its_versioned_dependency() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-base\n  \
                       Depends: linux-image-6.1.0-56-cloud-amd64\n";
        let kernel = kernel_behind("linux-image-cloud-amd64", depends);
        assert_eq!(kernel, "linux-image-6.1.0-56-cloud-amd64");
    }

    #[test]
    fn a_kernel_package_stands_for_itself() {
        let depends = "linux-image-6.1.0-56-cloud-amd64\n  Depends: kmod\n  Depends: linux-base\n";
        let kernel = kernel_behind("linux-image-6.1.0-56-cloud-amd64", depends);
        assert_eq!(kernel, "linux-image-6.1.0-56-cloud-amd64");
    }

    #[test]
    fn the_first_stanza_names_the_file() {
        let shown = "Package: a\nSize: 12\nFilename: pool/a_1.deb\nSHA256: AB\n\nFilename: b\n";
        let announced = parse_show(shown).unwrap();
        let expected =
            Announced { file_name: "a_1.deb".into(), sha256: "ab".into(), size: Some(12) };
        assert_eq!(announced, expected);
    }

    #[test]
    fn an_answer_without_a_file_says_what_is_missing() {
        assert_eq!(parse_show("").unwrap_err(), "apt-cache show gives no Filename");
        assert_eq!(parse_show("Filename: x\n").unwrap_err(), "apt-cache show gives no SHA256");
    }

    #[test]
    fn the_cache_follows_xdg_then_home() {
        let place = |xdg: Option<&str>, home: Option<&str>| {
            PackageCache::from_environment(xdg.map(Into::into), home.map(Into::into))
                .map(|cache| cache.directory.display().to_string())
        };
        assert_eq!(place(Some("/x"), Some("/h")).unwrap(), "/x/linkspan");
        assert_eq!(place(Some("relative"), Some("/h")).unwrap(), "/h/.cache/linkspan");
        assert_eq!(place(None, Some("/h")).unwrap(), "/h/.cache/linkspan");
        assert!(matches!(place(Some(""), None), Err(Error::NoCacheDirectory)));
    }
}
