//! What the guest is to allow: everything, once a boot.
//!
//! An empty policy is the open door that there is anyway. No other can be enforced here, and one
//! that is not enforced must not be taken: the host refuses to go on, as with an agent that was
//! built without an engine for policies.

use linkspan_protocol::resource::SecurityPolicy;

use crate::uvm::Uvm;
use crate::{Error, Result};

pub(super) fn set(uvm: &Uvm, policy: &SecurityPolicy) -> Result<()> {
    if uvm.has_policy.get() {
        let reason = "there is one already, and it holds until the machine ends".to_owned();
        return Err(Error::Argument { field: "EncodedSecurityPolicy", reason });
    }
    check(policy)?;
    uvm.has_policy.set(true);
    Ok(())
}

fn check(policy: &SecurityPolicy) -> Result<()> {
    let kind = policy.enforcer_type.as_str();
    if !["", "open_door"].contains(&kind) {
        let reason = format!("{kind:?} is not open_door, the only enforcer of this agent");
        return Err(Error::Argument { field: "EnforcerType", reason });
    }
    match policy.encoded_security_policy.len() {
        0 => Ok(()),
        bytes => {
            let reason = format!("{bytes} bytes of a policy that this agent cannot enforce");
            Err(Error::Argument { field: "EncodedSecurityPolicy", reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_open_door_is_taken() {
        let policy = |kind: &str, text: &str| SecurityPolicy {
            enforcer_type: kind.to_owned(),
            encoded_security_policy: text.to_owned(),
            ..SecurityPolicy::default()
        };
        assert!(check(&policy("", "")).is_ok() && check(&policy("open_door", "")).is_ok());
        for (kind, text, named) in [
            ("rego", "", "EnforcerType: \"rego\""),
            ("standard", "", "EnforcerType: \"standard\""),
            ("open_door", "cGFja2FnZQ==", "EncodedSecurityPolicy: 12 bytes"),
            ("", "cGFja2FnZQ==", "EncodedSecurityPolicy: 12 bytes"),
        ] {
            let error = check(&policy(kind, text)).unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
    }
}
