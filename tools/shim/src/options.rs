//! What one can choose, in TOML.
//!
//! containerd hands on a path (`ConfigPath` of a runtime's options, `ctr run
//! --runtime-config-path`) or, from 1.7 on, the text itself. Without either it is
//! `/etc/linkspan/shim.toml`, if there is such a file. docs/containerd.md explains each option.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::protobuf::CodedInputStream;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use linkspan_host::{Accel, Backend, Builder, UtilityVm, boot_image};
use serde::Deserialize;

use crate::error::Error;

/// Where options are unless containerd says otherwise.
const DEFAULT_PATH: &str = "/etc/linkspan/shim.toml";

/// The type of options that containerd makes of what it does not know itself.
const TYPE: &str = "runtimeoptions.v1.Options";

/// What a container is connected with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Network {
    /// Nothing but itself, and its pod.
    #[default]
    None,
    /// QEMU's user network, which the first container of a machine gets.
    User,
}

/// A file system of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LayerFormat {
    #[default]
    Ext4,
    Erofs,
}

/// All that one can choose.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    pub(crate) image: Option<PathBuf>,
    pub(crate) vmm: Backend,
    pub(crate) accel: Accel,
    pub(crate) qemu: Option<PathBuf>,
    pub(crate) qemu_args: Vec<String>,
    pub(crate) kernel_args: Vec<String>,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) boot_timeout_s: u64,
    pub(crate) agent_log_level: Option<String>,
    pub(crate) scratch_mib: u64,
    pub(crate) layer_format: LayerFormat,
    pub(crate) layer_cache: PathBuf,
    pub(crate) network: Network,
    pub(crate) shares: u32,
    pub(crate) debug: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            image: None,
            vmm: Backend::Qemu,
            accel: Accel::Auto,
            qemu: None,
            qemu_args: Vec::new(),
            kernel_args: Vec::new(),
            memory_mib: 512,
            cpus: 2,
            boot_timeout_s: 60,
            agent_log_level: None,
            scratch_mib: linkspan_host::DEFAULT_SCRATCH_MIB,
            layer_format: LayerFormat::Ext4,
            layer_cache: "/var/lib/linkspan/layers".into(),
            network: Network::None,
            shares: 8,
            debug: false,
        }
    }
}

/// Where options come from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Text(String),
}

impl Options {
    /// Those that containerd hands on, or the machine's.
    ///
    /// # Errors
    /// A named file that cannot be read, and what is no option, with its place.
    pub(crate) fn read(options: Option<&Any>) -> Result<Self, Error> {
        match options.map(source).transpose()?.flatten() {
            Some(Source::File(path)) => Self::of_file(&path),
            Some(Source::Text(text)) => Self::parse(&text, Path::new("options")),
            None => match Self::of_file(Path::new(DEFAULT_PATH)) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Ok(Self::default())
                }
                other => other,
            },
        }
    }

    fn of_file(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path);
        Self::parse(&text.map_err(Error::io(format!("read {}", path.display())))?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let bad = |reason: String| Error::Options { path: path.to_owned(), reason };
        let options: Self = toml::from_str(text).map_err(|error| bad(error.to_string()))?;
        for (name, value) in [("memory_mib", options.memory_mib), ("cpus", options.cpus)] {
            if value == 0 {
                return Err(bad(format!("{name} is 0")));
            }
        }
        if options.network == Network::User && options.vmm == Backend::Loopback {
            return Err(
                bad("network \"user\" is QEMU's, which vmm \"loopback\" is not".to_owned()),
            );
        }
        Ok(options)
    }

    /// The machine, with room for as many shared directories.
    pub(crate) fn builder(&self, name: &str, shares: u32) -> Result<Builder, Error> {
        let image = boot_image::find(self.image.as_deref(), self.vmm)?;
        let mut builder = UtilityVm::builder(name)
            .backend(self.vmm)
            .image(image)
            .accel(self.accel)
            .memory_mib(self.memory_mib)
            .cpus(self.cpus)
            .boot_timeout(Duration::from_secs(self.boot_timeout_s));
        if self.vmm == Backend::Qemu {
            builder = builder.shares(shares);
        }
        if let Some(qemu) = &self.qemu {
            builder = builder.qemu(qemu);
        }
        if let Some(level) = &self.agent_log_level {
            builder = builder.log_level(level);
        }
        if self.network == Network::User {
            builder = builder.user_network([]);
        }
        let builder = self.kernel_args.iter().fold(builder, Builder::kernel_arg);
        Ok(self.qemu_args.iter().fold(builder, Builder::qemu_arg))
    }

    /// How images of layers are made.
    pub(crate) fn layers(&self) -> linkspan_layer::Options {
        let format = match self.layer_format {
            LayerFormat::Ext4 => linkspan_layer::Format::Ext4,
            LayerFormat::Erofs => linkspan_layer::Format::Erofs,
        };
        linkspan_layer::Options { format, ..linkspan_layer::Options::default() }
    }
}

/// What containerd's options name: `string type_url = 1; string config_path = 2; bytes
/// config_body = 3`.
fn source(options: &Any) -> Result<Option<Source>, Error> {
    let bad = |reason: String| Error::input("runtime options", reason);
    if options.type_url.is_empty() {
        return Ok(None);
    }
    if options.type_url.rsplit('/').next() != Some(TYPE) {
        let reason = format!("{} are another runtime's; this one's are {TYPE}", options.type_url);
        return Err(bad(reason));
    }
    let (mut path, mut body) = (String::new(), Vec::new());
    let mut input = CodedInputStream::from_bytes(&options.value);
    let mut read = || -> containerd_shim_protos::protobuf::Result<()> {
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                18 => path = input.read_string()?,
                26 => body = input.read_bytes()?,
                other => {
                    let kind = containerd_shim_protos::protobuf::rt::WireType::new(other & 7);
                    match kind {
                        Some(kind) => input.skip_field(kind)?,
                        None => return input.check_eof(),
                    }
                }
            }
        }
        Ok(())
    };
    read().map_err(|error| bad(error.to_string()))?;
    if !body.is_empty() {
        let text = String::from_utf8(body).map_err(|error| bad(error.to_string()))?;
        return Ok(Some(Source::Text(text)));
    }
    Ok(Some(path).filter(|path| !path.is_empty()).map(|path| Source::File(path.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(value: &[u8]) -> Any {
        Any { type_url: TYPE.to_owned(), value: value.to_vec(), ..Any::default() }
    }

    #[test]
    fn options_are_a_path_or_the_text_itself() {
        assert_eq!(source(&any(b"\x12\x02/x")).unwrap(), Some(Source::File("/x".into())));
        let text = source(&any(b"\x0a\x01t\x1a\x08cpus = 1")).unwrap();
        assert_eq!(text, Some(Source::Text("cpus = 1".into())));
        assert_eq!(source(&any(b"")).unwrap(), None);
        assert!(source(&any(b"\x12\x09/x")).is_err());
        let runc = Any { type_url: "containerd.runc.v1.Options".into(), ..Any::default() };
        assert!(source(&runc).unwrap_err().to_string().contains("containerd.runc.v1.Options"));
    }

    #[test]
    fn what_is_chosen_holds_and_all_else_is_the_default() {
        let text =
            "memory_mib = 256\naccel = \"tcg\"\nlayer_format = \"erofs\"\nnetwork = \"user\"";
        let options = Options::parse(text, Path::new("x")).unwrap();
        let expected = Options {
            memory_mib: 256,
            accel: Accel::Tcg,
            layer_format: LayerFormat::Erofs,
            network: Network::User,
            ..Options::default()
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn what_is_no_option_is_named_with_its_file() {
        for (text, named) in [
            ("memory = 1", "memory"),
            ("cpus = 0", "cpus"),
            ("vmm = \"xen\"", "xen"),
            ("vmm = \"loopback\"\nnetwork = \"user\"", "network"),
        ] {
            let error = Options::parse(text, Path::new("/etc/x.toml")).unwrap_err().to_string();
            assert!(error.starts_with("/etc/x.toml") && error.contains(named), "{error}");
        }
    }
}
