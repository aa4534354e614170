//! The Task service, under both names that containerd has for it: what differs is the name alone.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message, MessageField, MessageFull};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::{Task as TaskApi, create_task};
use containerd_shim_protos::ttrpc::Result;
use containerd_shim_protos::ttrpc::asynchronous::{Service, TtrpcContext};
use serde_json::Value;

use crate::error::Error;
use crate::shim::Shim;
use crate::stdio::Paths;
use crate::{metrics, timestamp};

/// The service's name from containerd 2.0 on.
const NAME: &str = "containerd.task.v3.Task";

/// Its name before.
const OLD_NAME: &str = "containerd.task.v2.Task";

/// Services to register.
pub(crate) fn task(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let service = || create_task(Arc::new(TaskService(Arc::clone(shim))));
    let mut services = service();
    if let Some(old) = service().remove(NAME) {
        services.insert(OLD_NAME.to_owned(), old);
    }
    services
}

struct TaskService(Arc<Shim>);

impl TaskService {
    /// What a request is to be carried out on.
    fn shim(&self) -> &Shim {
        self.0.asked.notify_one();
        &self.0
    }

    /// The same for what outlives the request.
    fn held(&self) -> Arc<Shim> {
        self.0.asked.notify_one();
        Arc::clone(&self.0)
    }
}

/// Does what may not stop half-way, also when nobody waits for it any more: with the time that
/// containerd gives a request, its handler ends wherever it is.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = std::result::Result<T, Error>> + Send + 'static,
) -> std::result::Result<T, Error> {
    let outcome = tokio::spawn(work).await;
    outcome.map_err(|lost| Error::Machine(lost.to_string()))?
}

/// A JSON document in an `Any`, as containerd hands OCI objects on.
fn document(field: &'static str, any: &MessageField<Any>) -> std::result::Result<Value, Error> {
    let any = any.as_ref().ok_or_else(|| Error::input(field, "is missing"))?;
    serde_json::from_slice(&any.value)
        .map_err(|error| Error::input(field, format!("{}: {error}", any.type_url)))
}

#[async_trait]
impl TaskApi for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Result<StateResponse> {
        let task = self.shim().task(&request.id)?;
        let process = task.process(&request.exec_id)?;
        let exit = process.phase().exit();
        let paths = process.paths.clone();
        Ok(StateResponse {
            id: request.id,
            bundle: task.bundle.path().display().to_string(),
            pid: process.pid(),
            status: EnumOrUnknown::new(task.status(&process)),
            stdin: paths.stdin,
            stdout: paths.stdout,
            stderr: paths.stderr,
            terminal: paths.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: timestamp::field(exit.map(|exit| exit.at)),
            exec_id: request.exec_id,
            ..StateResponse::default()
        })
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> Result<CreateTaskResponse> {
        let shim = self.held();
        let pid = to_its_end(async move { shim.create(request).await }).await?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Result<StartResponse> {
        let task = self.shim().task(&request.id)?;
        let starting = async move {
            match request.exec_id.as_str() {
                "" => task.start().await,
                exec => task.start_exec(exec).await,
            }
        };
        let pid = to_its_end(starting).await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Result<DeleteResponse> {
        let shim = self.held();
        Ok(to_its_end(async move { shim.delete(&request).await }).await?)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Result<PidsResponse> {
        let pids = self.shim().task(&request.id)?.pids().await?;
        let info = |exec_id| {
            let details = ProcessDetails { exec_id, ..ProcessDetails::default() };
            let type_url = ProcessDetails::descriptor().full_name().to_owned();
            let value = details.write_to_bytes().unwrap_or_default();
            Any { type_url, value, ..Any::default() }
        };
        let process = |(pid, exec): (u32, Option<String>)| ProcessInfo {
            pid,
            info: exec.map(info).into(),
            ..ProcessInfo::default()
        };
        let processes = pids.into_iter().map(process).collect();
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Result<Empty> {
        let task = self.shim().task(&request.id)?;
        to_its_end(async move { task.pause().await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Result<Empty> {
        let task = self.shim().task(&request.id)?;
        to_its_end(async move { task.resume().await }).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Result<Empty> {
        Err(Error::Unsupported("a checkpoint of a container in a utility VM".to_owned()).into())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Result<Empty> {
        // An init takes all with it, so that `all` says nothing more.
        self.shim().task(&request.id)?.kill(&request.exec_id, request.signal).await?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Result<Empty> {
        let task = self.shim().task(&request.id)?;
        let spec = document("spec", &request.spec)?;
        let paths = Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        task.add_exec(&request.exec_id, spec, paths)?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Result<Empty> {
        let size = |field, value: u32| {
            let fits = u16::try_from(value);
            fits.map_err(|_| Error::input(field, format!("{value} is more than 65535")))
        };
        let (rows, columns) = (size("height", request.height)?, size("width", request.width)?);
        let process = self.shim().task(&request.id)?.process(&request.exec_id)?;
        process.resize(rows, columns).await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Result<Empty> {
        let process = self.shim().task(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Result<Empty> {
        let task = self.shim().task(&request.id)?;
        task.update(document("resources", &request.resources)?).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Result<WaitResponse> {
        let process = self.shim().task(&request.id)?.process(&request.exec_id)?;
        let exit = process.wait().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: timestamp::field(Some(exit.at)),
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Result<StatsResponse> {
        let metrics = self.shim().task(&request.id)?.metrics().await?;
        let stats = Some(metrics::answer(&metrics)?).into();
        Ok(StatsResponse { stats, ..StatsResponse::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Result<ConnectResponse> {
        let task_pid = self.shim().task(&request.id).map_or(0, |task| task.init.pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Result<Empty> {
        // containerd says it after each container; it holds for the last.
        let shim = self.shim();
        if shim.is_empty() {
            shim.ending.notify_one();
        }
        Ok(Empty::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_has_begun_is_done_though_its_request_has_run_out_of_time() {
        let (go, told) = oneshot::channel();
        let (done, outcome) = oneshot::channel();
        let work = to_its_end(async move {
            told.await.unwrap();
            done.send("done").unwrap();
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), work).await.is_err());
        go.send(()).unwrap();
        assert_eq!(outcome.await.unwrap(), "done");
    }
}
