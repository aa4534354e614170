//! Limits that an annotation sets.

use serde_json::{Value, json};

use super::annotations::CORE_LIMIT;
use super::bundle::list;
use crate::{Error, Result};

/// Sets the largest core dump, from `soft;hard` in bytes.
pub(super) fn core(spec: &mut Value, text: &str) -> Result<()> {
    let bad = |reason: &str| {
        Err(Error::Argument { field: CORE_LIMIT, reason: format!("{reason}: {text:?}") })
    };
    let values: Vec<&str> = text.split(';').collect();
    let [soft, hard] = values[..] else {
        return bad("wrong number of values supplied for rlimit core");
    };
    let Ok(soft) = soft.trim().parse::<u64>() else {
        return bad("failed to parse soft core rlimit");
    };
    let Ok(hard) = hard.trim().parse::<u64>() else {
        return bad("failed to parse hard core rlimit");
    };
    let limits = list(spec, "/process/rlimits");
    limits.retain(|limit| limit["type"] != "RLIMIT_CORE");
    limits.push(json!({"type": "RLIMIT_CORE", "soft": soft, "hard": hard}));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_values_of_a_core_limit_are_needed() {
        let mut spec = json!({"process": {"rlimits": [{"type": "RLIMIT_CORE", "soft": 1}]}});
        core(&mut spec, "5;18446744073709551615").unwrap();
        let expected = json!([{"type": "RLIMIT_CORE", "soft": 5, "hard": u64::MAX}]);
        assert_eq!(spec["process"]["rlimits"], expected);
        for (text, reason) in
            [("5", "wrong number"), ("1;2;3", "wrong number"), ("x;1", "soft"), ("1;-1", "hard")]
        {
            let error = core(&mut spec, text).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(text), "{error}");
        }
        assert_eq!(spec["process"]["rlimits"], expected);
    }
}
