//! What a registry wants to know: names and passwords, as docker keeps them.

use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// A name and a password.
#[derive(Clone)]
pub struct Credentials {
    /// Who.
    pub user: String,
    /// Never shown.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    /// From `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`: what `docker login` noted there
    /// for a registry. Helper programs are not asked.
    #[must_use]
    pub fn of_docker(registry: &str) -> Option<Self> {
        let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
        let text = fs::read(directory.or_else(home)?.join("config.json")).ok()?;
        Self::from_config(&serde_json::from_slice(&text).ok()?, registry)
    }

    fn from_config(config: &Value, registry: &str) -> Option<Self> {
        let keys = [
            registry.to_owned(),
            format!("https://{registry}"),
            format!("https://{registry}/v1/"),
            format!("https://{registry}/v2/"),
        ];
        let hub = registry == "docker.io" || registry == "index.docker.io";
        let hub = hub.then(|| "https://index.docker.io/v1/".to_owned());
        let entry = hub.iter().chain(&keys).find_map(|key| config.get("auths")?.get(key))?;
        let decoded = STANDARD.decode(entry.get("auth")?.as_str()?.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Self { user: user.to_owned(), password: password.to_owned() })
    }

    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_by_its_registry() {
        let config = serde_json::json!({"auths": {
            "registry.example:5000": {"auth": STANDARD.encode("me:pass:word")},
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:secret")},
        }});
        let found = Credentials::from_config(&config, "registry.example:5000").unwrap();
        assert_eq!((found.user.as_str(), found.password.as_str()), ("me", "pass:word"));
        assert_eq!(Credentials::from_config(&config, "docker.io").unwrap().user, "hub");
        assert!(Credentials::from_config(&config, "elsewhere").is_none());
        assert!(!format!("{found:?}").contains("pass:word"));
    }
}
