//! The Sandbox service: a pod that begins with its utility VM, and needs no image for that.
//!
//! The guest wants a first container in a pod, whose namespaces the others join. It is made here,
//! around a program that does nothing; containerd knows of it only as the sandbox.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use containerd_shim_protos::ttrpc::Result;
use containerd_shim_protos::ttrpc::asynchronous::{Service, TtrpcContext};

use crate::process::{KILL, Phase};
use crate::service::to_its_end;
use crate::shim::Shim;
use crate::{metrics, timestamp};

/// Services to register.
pub(crate) fn sandbox(shim: &Arc<Shim>) -> HashMap<String, Service> {
    create_sandbox(Arc::new(SandboxService(Arc::clone(shim))))
}

struct SandboxService(Arc<Shim>);

impl SandboxService {
    /// What a request is to be carried out on.
    fn shim(&self) -> &Shim {
        self.0.asked.notify_one();
        &self.0
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Result<CreateSandboxResponse> {
        self.0.asked.notify_one();
        let shim = Arc::clone(&self.0);
        let making =
            async move { shim.create_sandbox(&request.sandbox_id, &request.bundle_path).await };
        to_its_end(making).await?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> Result<StartSandboxResponse> {
        let sandbox = self.shim().sandbox(&request.sandbox_id)?;
        let task = sandbox.task;
        let pid = to_its_end(async move { task.start().await }).await?;
        let created_at = timestamp::field(Some(sandbox.created_at));
        Ok(StartSandboxResponse { pid, created_at, ..StartSandboxResponse::default() })
    }

    async fn platform(&self, _: &TtrpcContext, _: PlatformRequest) -> Result<PlatformResponse> {
        let mut answer = PlatformResponse::default();
        let platform = answer.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        };
        Ok(answer)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> Result<StopSandboxResponse> {
        let sandbox = self.shim().sandbox(&request.sandbox_id)?;
        // One that has stopped is stopped.
        if !matches!(sandbox.task.init.phase(), Phase::Stopped(_)) {
            sandbox.task.kill("", KILL).await?;
            sandbox.task.init.wait().await;
        }
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> Result<WaitSandboxResponse> {
        let exit = self.shim().sandbox(&request.sandbox_id)?.task.init.wait().await;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: timestamp::field(Some(exit.at)),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> Result<SandboxStatusResponse> {
        let sandbox = self.shim().sandbox(&request.sandbox_id)?;
        let phase = sandbox.task.init.phase();
        let state = match phase {
            Phase::Running => "SANDBOX_READY",
            Phase::Created | Phase::Stopped(_) => "SANDBOX_NOTREADY",
        };
        let mut info = HashMap::new();
        if request.verbose {
            info.insert("machine".to_owned(), self.0.machine.describe().await);
        }
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: sandbox.task.init.pid(),
            state: state.to_owned(),
            info,
            created_at: timestamp::field(Some(sandbox.created_at)),
            exited_at: timestamp::field(phase.exit().map(|exit| exit.at)),
            ..SandboxStatusResponse::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> Result<PingResponse> {
        let sandbox = self.shim().sandbox(&request.sandbox_id)?;
        // An answer of the guest's own.
        sandbox.task.pids().await?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        _: ShutdownSandboxRequest,
    ) -> Result<ShutdownSandboxResponse> {
        self.shim().ending.notify_one();
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> Result<SandboxMetricsResponse> {
        let metrics = self.shim().sandbox(&request.sandbox_id)?.task.metrics().await?;
        let mut answer = SandboxMetricsResponse::default();
        let metric = answer.metrics.mut_or_insert_default();
        metric.timestamp = timestamp::now();
        metric.id = request.sandbox_id;
        metric.data = Some(metrics::answer(&metrics)?).into();
        Ok(answer)
    }
}
