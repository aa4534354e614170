//! What a container is to others.
//!
//! | kind       | told by                              | belongs to                     |
//! |------------|--------------------------------------|--------------------------------|
//! | sandbox    | container type `sandbox`, or its id is the virtual pod's | the pod that it makes |
//! | workload   | container type `container`           | the virtual pod or the sandbox named |
//! | standalone | no container type                    | nobody                         |

use std::path::PathBuf;

use serde_json::Value;

use super::annotations::{self, Annotations};
use crate::guest_path::{ContainerName, GuestPath};
use crate::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Holds a pod's namespaces. `root` is where the pod's files are.
    Sandbox { pod: String, root: PathBuf, is_virtual: bool },
    /// Runs in a pod.
    Workload { pod: String },
    /// Neither.
    Standalone,
}

impl Kind {
    pub(super) fn of(id: &str, bundle: &GuestPath, spec: &Value) -> Result<Self> {
        let annotations = Annotations::of(spec);
        let virtual_pod = match annotations.get(annotations::VIRTUAL_POD_ID) {
            None => None,
            Some(pod) => Some(pod_name(annotations::VIRTUAL_POD_ID, pod)?),
        };
        if let Some(pod) = virtual_pod.as_deref().filter(|pod| *pod == id) {
            let parent = bundle.as_path().parent().unwrap_or(bundle.as_path());
            let root = parent.join("virtual-pods").join(pod);
            return Ok(Self::Sandbox { pod: pod.to_owned(), root, is_virtual: true });
        }
        match spec["annotations"][annotations::CONTAINER_TYPE].as_str() {
            None => Ok(Self::Standalone),
            Some("sandbox") => match virtual_pod {
                Some(pod) => {
                    let parent = bundle.as_path().parent().unwrap_or(bundle.as_path());
                    let root = parent.join("virtual-pods").join(&pod);
                    Ok(Self::Sandbox { pod, root, is_virtual: true })
                }
                None => Ok(Self::Sandbox {
                    pod: id.to_owned(),
                    root: bundle.as_path().to_owned(),
                    is_virtual: false,
                }),
            },
            Some("container") => match virtual_pod {
                Some(pod) => Ok(Self::Workload { pod }),
                None => {
                    let pod = annotations.get(annotations::SANDBOX_ID).unwrap_or_default();
                    let pod = pod_name(annotations::SANDBOX_ID, pod)?;
                    Ok(Self::Workload { pod })
                }
            },
            Some(other) => {
                let reason = format!("{other:?} is not a kind of container");
                Err(Error::Argument { field: annotations::CONTAINER_TYPE, reason })
            }
        }
    }

    /// The pod's part of a cgroup path.
    pub(super) fn pod(&self) -> Option<&str> {
        match self {
            Self::Sandbox { pod, .. } | Self::Workload { pod } => Some(pod),
            Self::Standalone => None,
        }
    }
}

/// A pod's id becomes a name in paths, as a container's does.
fn pod_name(field: &'static str, id: &str) -> Result<String> {
    match ContainerName::parse(id) {
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(_) => {
            let reason = format!("{id:?} is not the id of a pod");
            Err(Error::Argument { field, reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(id: &str, annotations: &Value) -> Result<Kind> {
        let bundle = GuestPath::parse("OciBundlePath", "/run/gcs/c/x").unwrap();
        Kind::of(id, &bundle, &json!({"annotations": annotations}))
    }

    #[test]
    fn a_containers_kind_follows_from_its_annotations() {
        let (kind_key, sandbox, pod) =
            (annotations::CONTAINER_TYPE, annotations::SANDBOX_ID, annotations::VIRTUAL_POD_ID);
        assert_eq!(kind("x", &json!({})).unwrap(), Kind::Standalone);
        let made = kind("x", &json!({kind_key: "sandbox"})).unwrap();
        let root = PathBuf::from("/run/gcs/c/x");
        assert_eq!(made, Kind::Sandbox { pod: "x".into(), root, is_virtual: false });
        let made = kind("x", &json!({kind_key: "container", sandbox: "s"})).unwrap();
        assert_eq!(made, Kind::Workload { pod: "s".into() });
        let made = kind("x", &json!({kind_key: "container", sandbox: "s", pod: "v"})).unwrap();
        assert_eq!(made, Kind::Workload { pod: "v".into() });
        let made = kind("v", &json!({kind_key: "container", pod: "v"})).unwrap();
        let root = PathBuf::from("/run/gcs/c/virtual-pods/v");
        assert_eq!(made, Kind::Sandbox { pod: "v".into(), root, is_virtual: true });
    }

    #[test]
    fn what_is_no_kind_and_no_pod_is_refused_by_name() {
        let (kind_key, sandbox, pod) =
            (annotations::CONTAINER_TYPE, annotations::SANDBOX_ID, annotations::VIRTUAL_POD_ID);
        for (document, field) in [
            (json!({kind_key: "foo"}), kind_key),
            (json!({kind_key: ""}), kind_key),
            (json!({kind_key: "container"}), sandbox),
            (json!({kind_key: "container", sandbox: "a/b"}), sandbox),
            (json!({pod: "../../etc"}), pod),
            (json!({pod: "/etc"}), pod),
        ] {
            let error = kind("x", &document).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
