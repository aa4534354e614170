//! What a profile says, with names turned into numbers.

use serde::Deserialize;
use serde_json::Value;

/// What the kernel does with a call: `SECCOMP_RET_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action(pub(super) u32);

impl Action {
    pub(super) const NO_SUCH_CALL: Self = Self(0x0005_0000 | nix::libc::ENOSYS as u32);

    fn parse(name: &str, number: Option<u32>) -> Result<Self, String> {
        let with = |base: u32, default: i32| {
            let number = number.unwrap_or(default as u32);
            match u16::try_from(number) {
                Ok(number) if base != 0x0005_0000 || number <= 4095 => {
                    Ok(Self(base | u32::from(number)))
                }
                _ => Err(format!("errnoRet {number} of {name} is too large")),
            }
        };
        match name {
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Self(0)),
            "SCMP_ACT_KILL_PROCESS" => Ok(Self(0x8000_0000)),
            "SCMP_ACT_TRAP" => Ok(Self(0x0003_0000)),
            "SCMP_ACT_ERRNO" => with(0x0005_0000, nix::libc::EPERM),
            "SCMP_ACT_TRACE" => with(0x7ff0_0000, nix::libc::EPERM),
            "SCMP_ACT_LOG" => Ok(Self(0x7ffc_0000)),
            "SCMP_ACT_ALLOW" => Ok(Self(0x7fff_0000)),
            "SCMP_ACT_NOTIFY" => {
                Err("SCMP_ACT_NOTIFY is not supported: nobody would listen".to_owned())
            }
            other => Err(format!("action {other:?} is not known")),
        }
    }

    /// Whether it lets a call through.
    pub(super) fn permits(self) -> bool {
        matches!(self.0 >> 16, 0x7ffc | 0x7fff)
    }
}

/// A comparison of an argument with a value, both of 64 bits and unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument, masked.
    Masked(u64),
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) names: Vec<String>,
    pub(super) action: Action,
    /// All have to hold.
    pub(super) conditions: Vec<Condition>,
}

#[derive(Debug)]
pub(super) struct Profile {
    pub(super) default: Action,
    pub(super) architectures: Vec<String>,
    pub(super) flags: u32,
    pub(super) rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Syscall>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

impl Profile {
    pub(super) fn parse(document: &Value) -> Result<Self, String> {
        let document = Document::deserialize(document).map_err(|error| error.to_string())?;
        if document.listener_path.is_some_and(|path| !path.is_empty()) {
            return Err("listenerPath is not supported: nobody would listen".to_owned());
        }
        let mut flags = 0;
        for flag in document.flags.unwrap_or_default() {
            flags |= match flag.as_str() {
                // The runtime's process has one thread.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                "SECCOMP_FILTER_FLAG_LOG" => 1 << 1,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 1 << 2,
                other => return Err(format!("flag {other:?} is not known")),
            };
        }
        let mut rules = Vec::new();
        for syscall in document.syscalls.unwrap_or_default() {
            let action = Action::parse(&syscall.action, syscall.errno_ret)?;
            let conditions = syscall.args.unwrap_or_default();
            let conditions =
                conditions.iter().map(Condition::parse).collect::<Result<Vec<_>, _>>()?;
            let names = syscall.names;
            // Several conditions on one argument are alternatives, as other runtimes have it.
            let repeats = conditions.iter().enumerate().any(|(at, condition)| {
                conditions[..at].iter().any(|other| other.index == condition.index)
            });
            if repeats {
                for condition in conditions {
                    let names = names.clone();
                    rules.push(Rule { names, action, conditions: vec![condition] });
                }
            } else {
                rules.push(Rule { names, action, conditions });
            }
        }
        Ok(Self {
            default: Action::parse(&document.default_action, document.default_errno_ret)?,
            architectures: document.architectures.unwrap_or_default(),
            flags,
            rules,
        })
    }
}

impl Condition {
    fn parse(argument: &Argument) -> Result<Self, String> {
        if argument.index > 5 {
            return Err(format!("argument {} is not 0 to 5", argument.index));
        }
        let (operator, value) = match argument.op.as_str() {
            "SCMP_CMP_NE" => (Operator::NotEqual, argument.value),
            "SCMP_CMP_LT" => (Operator::Less, argument.value),
            "SCMP_CMP_LE" => (Operator::LessOrEqual, argument.value),
            "SCMP_CMP_EQ" => (Operator::Equal, argument.value),
            "SCMP_CMP_GE" => (Operator::GreaterOrEqual, argument.value),
            "SCMP_CMP_GT" => (Operator::Greater, argument.value),
            "SCMP_CMP_MASKED_EQ" => (Operator::Masked(argument.value), argument.value_two),
            other => return Err(format!("operator {other:?} is not known")),
        };
        Ok(Self { index: argument.index, operator, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_cannot_be_kept_is_refused_by_name() {
        let rule = |action: &str, op: &str, index: u32| {
            let args = [json!({"index": index, "value": 1, "op": op})];
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["read"], "action": action, "args": args},
            ]})
        };
        for (document, named) in [
            (json!({}), "defaultAction"),
            (json!({"defaultAction": "SCMP_ACT_MAYBE"}), "SCMP_ACT_MAYBE"),
            (json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}), "5000"),
            (json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}), "\"X\""),
            (json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}), "listenerPath"),
            (rule("SCMP_ACT_NOTIFY", "SCMP_CMP_EQ", 0), "SCMP_ACT_NOTIFY"),
            (rule("SCMP_ACT_ERRNO", "SCMP_CMP_ALMOST", 0), "SCMP_CMP_ALMOST"),
            (rule("SCMP_ACT_ERRNO", "SCMP_CMP_EQ", 6), "6"),
        ] {
            let error = Profile::parse(&document).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
