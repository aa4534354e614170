//! A client of the CRI: what a kubelet says to containerd, as far as a pod of two containers needs
//! it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// How long a call may take.
const LIMIT: Duration = Duration::from_secs(600);

/// The messages, as far as they are used: fields that are not named here are left out.
pub(crate) mod message {
    use super::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Named {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(string, tag = "2")]
        pub(crate) uid: String,
        #[prost(string, tag = "3")]
        pub(crate) namespace: String,
    }

    /// `NODE` is 2, `POD` 0, `CONTAINER` 1.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct NamespaceOption {
        #[prost(int32, tag = "1")]
        pub(crate) network: i32,
        #[prost(int32, tag = "2")]
        pub(crate) pid: i32,
        #[prost(int32, tag = "3")]
        pub(crate) ipc: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct SandboxSecurity {
        #[prost(message, optional, tag = "1")]
        pub(crate) namespaces: Option<NamespaceOption>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct LinuxSandbox {
        #[prost(message, optional, tag = "2")]
        pub(crate) security: Option<SandboxSecurity>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct PodConfig {
        #[prost(message, optional, tag = "1")]
        pub(crate) metadata: Option<Named>,
        #[prost(string, tag = "2")]
        pub(crate) hostname: String,
        #[prost(string, tag = "3")]
        pub(crate) log_directory: String,
        #[prost(map = "string, string", tag = "7")]
        pub(crate) annotations: HashMap<String, String>,
        #[prost(message, optional, tag = "8")]
        pub(crate) linux: Option<LinuxSandbox>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct RunPod {
        #[prost(message, optional, tag = "1")]
        pub(crate) config: Option<PodConfig>,
        #[prost(string, tag = "2")]
        pub(crate) runtime_handler: String,
    }

    /// A pod's or a container's id: all requests and answers that hold nothing else.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Id {
        #[prost(string, tag = "1")]
        pub(crate) id: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Image {
        #[prost(string, tag = "1")]
        pub(crate) image: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ContainerSecurity {
        #[prost(message, optional, tag = "3")]
        pub(crate) namespaces: Option<NamespaceOption>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Resources {
        #[prost(int64, tag = "4")]
        pub(crate) memory_limit_in_bytes: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Update {
        #[prost(string, tag = "1")]
        pub(crate) container: String,
        #[prost(message, optional, tag = "2")]
        pub(crate) linux: Option<Resources>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct LinuxContainer {
        #[prost(message, optional, tag = "1")]
        pub(crate) resources: Option<Resources>,
        #[prost(message, optional, tag = "2")]
        pub(crate) security: Option<ContainerSecurity>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct ContainerConfig {
        #[prost(message, optional, tag = "1")]
        pub(crate) metadata: Option<Named>,
        #[prost(message, optional, tag = "2")]
        pub(crate) image: Option<Image>,
        #[prost(string, repeated, tag = "3")]
        pub(crate) command: Vec<String>,
        #[prost(string, tag = "11")]
        pub(crate) log_path: String,
        #[prost(message, optional, tag = "15")]
        pub(crate) linux: Option<LinuxContainer>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct CreateContainer {
        #[prost(string, tag = "1")]
        pub(crate) pod: String,
        #[prost(message, optional, tag = "2")]
        pub(crate) config: Option<ContainerConfig>,
        #[prost(message, optional, tag = "3")]
        pub(crate) pod_config: Option<PodConfig>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Exec {
        #[prost(string, tag = "1")]
        pub(crate) container: String,
        #[prost(string, repeated, tag = "2")]
        pub(crate) command: Vec<String>,
        #[prost(int64, tag = "3")]
        pub(crate) timeout: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Executed {
        #[prost(bytes = "vec", tag = "1")]
        pub(crate) stdout: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(crate) stderr: Vec<u8>,
        #[prost(int32, tag = "3")]
        pub(crate) exit_code: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Status {
        #[prost(int32, tag = "3")]
        pub(crate) state: i32,
        #[prost(int32, tag = "7")]
        pub(crate) exit_code: i32,
        #[prost(string, tag = "10")]
        pub(crate) reason: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct StatusAnswer {
        #[prost(message, optional, tag = "1")]
        pub(crate) status: Option<Status>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Count {
        #[prost(uint64, tag = "1")]
        pub(crate) value: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Usage {
        #[prost(message, optional, tag = "2")]
        pub(crate) value: Option<Count>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Stats {
        #[prost(message, optional, tag = "2")]
        pub(crate) cpu: Option<Usage>,
        #[prost(message, optional, tag = "3")]
        pub(crate) memory: Option<Usage>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct StatsAnswer {
        #[prost(message, optional, tag = "1")]
        pub(crate) stats: Option<Stats>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Nothing {}
}

/// A connection to containerd's CRI.
pub(crate) struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = runtime.block_on(endpoint.connect()).context("connect to containerd")?;
        Ok(Self { runtime, channel })
    }

    /// One call of the runtime service.
    pub(crate) fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}").parse()?;
        let mut client = Grpc::new(self.channel.clone());
        let answer = self.runtime.block_on(async {
            client.ready().await?;
            let call = client.unary(Request::new(request), path, ProstCodec::default());
            anyhow::Ok(tokio::time::timeout(LIMIT, call).await??.into_inner())
        });
        answer.with_context(|| method.to_owned())
    }
}
