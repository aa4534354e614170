//! What containerd says at the start besides the command line, and the answer that it wants.
//!
//! | containerd | standard input                  | how it is told              | answer                       |
//! |------------|---------------------------------|-----------------------------|------------------------------|
//! | 1.6        | options, an `Any`, or nothing   | no `MAX_SHIM_VERSION`       | the bare address             |
//! | 1.7 to 2.2 | the same                        | `MAX_SHIM_VERSION`          | JSON, version 2              |
//! | from 2.3   | `BootstrapParams`               | its id is that of the flags | `BootstrapResult`, version 3 |

use std::io::{self, Read};
use std::path::PathBuf;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use serde_json::json;

use crate::arguments::Arguments;
use crate::error::Error;

/// The most that containerd may say, in bytes.
const LIMIT: u64 = 10 << 20;

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Bare,
    Json,
    Protobuf,
}

/// What containerd says.
#[derive(Debug)]
pub(crate) struct Bootstrap {
    pub(crate) form: Form,
    /// What the user chose, if anything.
    pub(crate) options: Option<Any>,
    /// Where sockets are to be, if containerd wants to say.
    pub(crate) socket_directory: Option<PathBuf>,
}

impl Bootstrap {
    /// Reads it from standard input, to its end.
    pub(crate) fn read(arguments: &Arguments) -> Result<Self, Error> {
        let mut input = Vec::new();
        let read = io::stdin().lock().take(LIMIT).read_to_end(&mut input);
        read.map_err(Error::io("read containerd's parameters"))?;
        let versions = std::env::var_os("MAX_SHIM_VERSION").is_some();
        Self::parse(&input, arguments, versions)
    }

    fn parse(input: &[u8], arguments: &Arguments, versions: bool) -> Result<Self, Error> {
        let form = if versions { Form::Json } else { Form::Bare };
        if input.is_empty() {
            return Ok(Self { form, options: None, socket_directory: None });
        }
        // An Any is a BootstrapParams as well, with its type in place of the id.
        if let Ok(params) = BootstrapParams::parse_from_bytes(input)
            && params.instance_id == arguments.id
            && params.namespace == arguments.namespace
        {
            let socket_directory = params.socket_dir.filter(|directory| !directory.is_empty());
            let options = params.extensions.into_iter().find_map(|each| each.value.into_option());
            let socket_directory = socket_directory.map(PathBuf::from);
            return Ok(Self { form: Form::Protobuf, options, socket_directory });
        }
        let options = Any::parse_from_bytes(input)
            .map_err(|error| Error::input("standard input", format!("no options: {error}")))?;
        Ok(Self { form, options: Some(options), socket_directory: None })
    }
}

impl Form {
    /// The answer that says where the server is.
    pub(crate) fn answer(self, address: &str) -> Result<Vec<u8>, Error> {
        match self {
            Self::Bare => Ok(address.into()),
            Self::Json => {
                let answer = json!({"version": 2, "address": address, "protocol": "ttrpc"});
                Ok(answer.to_string().into_bytes())
            }
            Self::Protobuf => {
                let answer = BootstrapResult {
                    version: 3,
                    address: address.to_owned(),
                    protocol: "ttrpc".to_owned(),
                    ..BootstrapResult::default()
                };
                let written = answer.write_to_bytes();
                written.map_err(|error| Error::input("answer", error.to_string()))
            }
        }
    }
}

/// Says what this runtime is.
pub(crate) fn info() -> Result<(), Error> {
    let version = RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..RuntimeVersion::default()
    };
    let info = RuntimeInfo {
        name: "io.containerd.linkspan.v1".to_owned(),
        version: Some(version).into(),
        ..RuntimeInfo::default()
    };
    let bytes = info.write_to_bytes().map_err(|error| Error::input("answer", error.to_string()))?;
    crate::print_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;

    fn arguments() -> Arguments {
        let line = "-namespace ns -id web start";
        Arguments::parse(line.split(' ').map(str::to_owned)).unwrap()
    }

    fn options() -> Any {
        let type_url = "runtimeoptions.v1.Options".to_owned();
        Any { type_url, value: b"\x12\x02/x".to_vec(), ..Any::default() }
    }

    #[test]
    fn the_form_of_the_answer_follows_from_what_containerd_says() {
        let parse =
            |input: &[u8], versions| Bootstrap::parse(input, &arguments(), versions).unwrap();
        assert_eq!(parse(b"", false).form, Form::Bare);
        assert_eq!(parse(b"", true).form, Form::Json);
        let old = parse(&options().write_to_bytes().unwrap(), true);
        assert_eq!((old.form, old.options), (Form::Json, Some(options())));
        let extension = Extension { value: Some(options()).into(), ..Extension::default() };
        let params = BootstrapParams {
            instance_id: "web".into(),
            namespace: "ns".into(),
            socket_dir: Some("/run/s".into()),
            extensions: vec![extension],
            ..BootstrapParams::default()
        };
        let new = parse(&params.write_to_bytes().unwrap(), true);
        assert_eq!((new.form, new.options), (Form::Protobuf, Some(options())));
        assert_eq!(new.socket_directory, Some("/run/s".into()));
    }

    #[test]
    fn each_answer_is_what_its_containerd_parses() {
        let address = "unix:///run/s/x";
        assert_eq!(Form::Bare.answer(address).unwrap(), address.as_bytes());
        let json: serde_json::Value =
            serde_json::from_slice(&Form::Json.answer(address).unwrap()).unwrap();
        assert_eq!(json, json!({"version": 2, "address": address, "protocol": "ttrpc"}));
        let bytes = Form::Protobuf.answer(address).unwrap();
        let result = BootstrapResult::parse_from_bytes(&bytes).unwrap();
        assert_eq!((result.version, result.address.as_str()), (3, address));
    }

    #[test]
    fn what_is_no_protobuf_is_refused() {
        assert!(Bootstrap::parse(b"\xff\xff", &arguments(), true).is_err());
    }
}
