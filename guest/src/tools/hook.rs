//! `generichook PROGRAM [ARGUMENTS]`, an OCI hook: the container's state comes on standard input.
//!
//! In arguments and environment, `{{id}}`, `{{pid}}` and `{{annotation "key"}}` are replaced.

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use serde_json::Value;

/// A log file of the program's, shown if it fails.
const DEBUG_FILE: &str = "GENERIC_HOOK_LOG_DEBUG_FILE";

/// How much of it goes into one line.
const PIECE: usize = 8000;

/// A state takes no more than this.
const LARGEST: u64 = 4 << 20;

pub(super) fn run(args: &[String]) -> Result<(), String> {
    let mut text = String::new();
    io::stdin()
        .take(LARGEST)
        .read_to_string(&mut text)
        .map_err(|error| format!("read the container's state: {error}"))?;
    let state: Value = serde_json::from_str(&text)
        .map_err(|error| format!("the container's state on standard input: {error}"))?;
    let args: Vec<String> = args.iter().map(|arg| expand(arg, &state)).collect::<Result<_, _>>()?;
    let (program, args) = args.split_first().ok_or("needs a program to run")?;
    let mut command = Command::new(program);
    command.args(args).env_clear();
    let mut debug_file = None;
    for (name, value) in std::env::vars() {
        let value = expand(&value, &state)?;
        if name == DEBUG_FILE {
            debug_file = Some(value.clone());
        }
        command.env(expand(&name, &state)?, value);
    }
    let status = command.status().map_err(|error| format!("run {program:?}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    if let Some(text) = debug_file.and_then(|file| std::fs::read(file).ok()) {
        for piece in text.chunks(PIECE) {
            eprintln!("generichook: {}", String::from_utf8_lossy(piece).trim_end());
        }
    }
    Err(match (status.code(), status.signal()) {
        (Some(code), _) => format!("{program:?} failed with exit code {code}"),
        (None, signal) => format!("{program:?} was ended by signal {}", signal.unwrap_or_default()),
    })
}

/// Replaces what stands in double braces.
fn expand(text: &str, state: &Value) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, tail)) = rest.split_once("{{") {
        out += before;
        let (expression, tail) =
            tail.split_once("}}").ok_or_else(|| format!("{text:?} has {{{{ without }}}}"))?;
        out += &evaluate(expression.trim_matches(['-', ' ', '\t']), state).ok_or_else(|| {
            format!("{text:?}: {expression:?} is not id, pid or annotation \"KEY\"")
        })?;
        rest = tail;
    }
    Ok(out + rest)
}

fn evaluate(expression: &str, state: &Value) -> Option<String> {
    match expression {
        "id" => state["id"].as_str().map(str::to_owned),
        "pid" => state["pid"].as_i64().map(|pid| pid.to_string()),
        other => {
            let key = other.strip_prefix("annotation")?.trim();
            let quoted = |quote: char| key.strip_prefix(quote)?.strip_suffix(quote);
            let key = quoted('"').or_else(|| quoted('`'))?;
            Some(state["annotations"][key].as_str().unwrap_or_default().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_state_is_put_where_it_is_asked_for() {
        let state = json!({"id": "web", "pid": 42, "annotations": {"a.b/c": "x y"}});
        for (text, expected) in [
            ("--pid={{pid}}", "--pid=42"),
            ("{{ id }}-{{pid}}", "web-42"),
            ("{{annotation \"a.b/c\"}}", "x y"),
            ("{{- annotation `none` -}}", ""),
            ("plain { } text", "plain { } text"),
        ] {
            assert_eq!(expand(text, &state).unwrap(), expected);
        }
        for text in ["{{pid", "{{bundle}}", "{{annotation}}", "{{annotation x}}"] {
            assert!(expand(text, &state).unwrap_err().contains(text), "{text}");
        }
    }
}
