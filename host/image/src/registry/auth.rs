//! Challenges of registries: `Basic`, and `Bearer` with a token from elsewhere.

use ureq::http::header;

use super::Registry;
use crate::error::Result;

impl Registry {
    /// The Authorization header that answers one of these challenges.
    pub(super) fn answer(&self, challenges: &[&str], what: &str) -> Result<String> {
        for challenge in challenges {
            let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                return self.token(&parameters(rest), what);
            }
            if scheme.eq_ignore_ascii_case("basic")
                && let Some(credentials) = &self.credentials
            {
                return Ok(credentials.basic());
            }
        }
        Err(self.error(what, "it wants a login: name a user with --username"))
    }

    fn token(&self, parameters: &[(String, String)], what: &str) -> Result<String> {
        let value = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.as_str())
        };
        let realm = value("realm").unwrap_or_default();
        // A password must not leave an encrypted connection for one that is not.
        let as_ours = realm.starts_with("http://") && self.base.starts_with("http://");
        if !(realm.starts_with("https://") || as_ours) {
            let reason = format!("it sends to {realm:?} for a token, which is no https address");
            return Err(self.error(what, reason));
        }
        let scope = format!("repository:{}:pull", self.repository);
        let mut request = self.agent.get(realm).query("scope", value("scope").unwrap_or(&scope));
        if let Some(service) = value("service") {
            request = request.query("service", service);
        }
        if let Some(credentials) = &self.credentials {
            request = request.header(header::AUTHORIZATION, credentials.basic());
        }
        let failed = |reason: String| self.error("a token", reason);
        let mut response = request.call().map_err(|error| failed(error.to_string()))?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(1 << 20).read_to_string();
        let body = body.map_err(|error| failed(error.to_string()))?;
        if !status.is_success() {
            return Err(failed(super::refusal(status, &body)));
        }
        let document: serde_json::Value =
            serde_json::from_str(&body).map_err(|error| failed(error.to_string()))?;
        let token = ["token", "access_token"].iter().find_map(|key| document.get(key)?.as_str());
        let token = token.filter(|token| !token.is_empty());
        token
            .map(|token| format!("Bearer {token}"))
            .ok_or_else(|| failed("the answer has no token".to_owned()))
    }
}

/// `key="value",key=value`.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.push((key.trim().to_owned(), value.trim().to_owned()));
        rest = next.trim_start_matches([',', ' ']);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_may_be_quoted_and_hold_commas() {
        let text = r#"realm="https://auth.example/token",service=reg, scope="a:b:pull,push""#;
        let found = parameters(text);
        let found: Vec<_> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let expected = [
            ("realm", "https://auth.example/token"),
            ("service", "reg"),
            ("scope", "a:b:pull,push"),
        ];
        assert_eq!(found, expected);
    }
}
