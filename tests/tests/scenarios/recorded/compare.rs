//! What has to be the same in two answers.

use std::collections::BTreeMap;

use linkspan_protocol::HResult;
use serde_json::Value;

/// Documents within documents.
const NESTED: [&str; 1] = ["Properties"];

/// Text that is each agent's own, and what differs from run to run.
const OWN: [&str; 4] = ["ErrorMessage", "ErrorRecords", "ProcessId", "GuestStacks"];

/// The differences of an answer from the recorded one, each as a sentence about ours.
pub(super) fn differences(recorded: &Value, ours: &Value) -> Vec<String> {
    let (expected, got) = (recorded["Result"].as_i64(), ours["Result"].as_i64());
    if expected != got {
        return vec![format!("{}, not {}", code(got), code(expected))];
    }
    let mut found = Vec::new();
    let (recorded, ours) = (flat(recorded), flat(ours));
    for (path, value) in &recorded {
        match ours.get(path) {
            // Go leaves a zero out, and in properties any number may be one.
            None if value.is_number() && (!is_exact(path) || *value == 0) => {}
            None => found.push(format!("no {path}")),
            Some(got) if is_exact(path) && got != value => {
                found.push(format!("{path} {got}, not {value}"));
            }
            Some(got) if kind(got) != kind(value) => {
                found.push(format!("{path} is {}, not {}", kind(got), kind(value)));
            }
            Some(_) => {}
        }
    }
    // A number that the recorded run had at zero says nothing.
    let may_be_zero = |path: &str, value: &Value| value.is_number() && !is_exact(path);
    let more = ours.iter().filter(|(path, value)| {
        !(recorded.contains_key(*path) || may_be_zero(path, value) || is_linkspans(path))
    });
    found.extend(more.map(|(path, _)| format!("also {path}")));
    found
}

fn is_exact(path: &str) -> bool {
    !path.starts_with("Properties")
}

/// What others pass over; ARCHITECTURE.md has the list.
fn is_linkspans(path: &str) -> bool {
    path.split('.').any(|key| key.starts_with("Linkspan"))
}

pub(super) fn code(result: Option<i64>) -> String {
    match result {
        Some(0) => "success".into(),
        Some(result) => HResult(result as i32).to_string(),
        None => "no Result".into(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Each value by its path. Of an array only what its elements are.
fn flat(value: &Value) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    spread(String::new(), value, &mut all);
    all
}

fn spread(path: String, value: &Value, all: &mut BTreeMap<String, Value>) {
    let name = path.rsplit('.').next().unwrap_or_default();
    if OWN.contains(&name) {
        return;
    }
    if NESTED.contains(&name)
        && let Some(Ok(inner)) = value.as_str().map(serde_json::from_str::<Value>)
    {
        return spread(path, &inner, all);
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let separator = if path.is_empty() { "" } else { "." };
                spread(format!("{path}{separator}{key}"), value, all);
            }
            if !path.is_empty() {
                all.insert(path, Value::Object(Default::default()));
            }
        }
        Value::Array(elements) => {
            for element in elements {
                spread(format!("{path}[]"), element, all);
            }
            all.insert(path, Value::Array(Vec::new()));
        }
        value => {
            all.insert(path, value.clone());
        }
    }
}
