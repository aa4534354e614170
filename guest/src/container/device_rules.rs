//! `linux.resources.devices` on cgroup version 2, where a program decides.
//!
//! ```text
//! the rules from the last to the first ─> the first that speaks of a device decides ─> no
//! ```
//!
//! Behind a spec's own rules are those that every container has. Those of a spec without any are
//! one program for all containers, loaded once.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde_json::Value;
use tracing::warn;

use crate::{Error, Result, cgroup};

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// What is to be said of a device. `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// 1 for block, 2 for character devices.
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule { allow: true, kind: Some(2), major: Some(major), minor, access: ALL }
}

/// Any node may be made, if not used; what no program does without may be used: null, zero, full,
/// random, urandom, tty, console, ptmx, pts, tun.
const EVERYBODYS: [Rule; 12] = [
    Rule { allow: true, kind: Some(1), major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Some(2), major: None, minor: None, access: MKNOD },
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, Some(0)),
    character(5, Some(1)),
    character(5, Some(2)),
    character(136, None),
    character(10, Some(200)),
];

/// The programs of all containers.
#[derive(Default)]
pub(crate) struct DeviceRules {
    /// For those without rules of their own.
    common: OnceCell<OwnedFd>,
}

impl DeviceRules {
    /// Puts a container's cgroup under its rules. Version 1 has them as files, which the runtime
    /// writes.
    pub(super) fn apply(&self, spec: &Value, path: &Path) -> Result<()> {
        if !cgroup::is_unified() {
            return Ok(());
        }
        let rules = parse(&spec["linux"]["resources"]["devices"])?;
        if rules.last().is_some_and(Rule::allows_all) {
            return Ok(());
        }
        let applied = (|| -> io::Result<()> {
            let directory = File::open(cgroup::directory("", path))?;
            if !rules.is_empty() {
                let program = linkspan_guest_sys::load_device_program(&compile(&rules))?;
                return linkspan_guest_sys::attach_device_program(&directory, &program);
            }
            if self.common.get().is_none() {
                let program = linkspan_guest_sys::load_device_program(&compile(&[]))?;
                let _ = self.common.set(program);
            }
            match self.common.get() {
                Some(program) => linkspan_guest_sys::attach_device_program(&directory, program),
                None => Ok(()),
            }
        })();
        if let Err(error) = applied {
            warn!(%error, cgroup = %path.display(), "a container's devices are not kept in bounds");
        }
        Ok(())
    }
}

impl Rule {
    fn allows_all(&self) -> bool {
        self.allow && (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }
}

fn parse(rules: &Value) -> Result<Vec<Rule>> {
    let bad = |rule: &Value, what: &str| Error::Document {
        field: "linux.resources.devices",
        reason: format!("{what}: {rule}"),
    };
    let mut parsed = Vec::new();
    for rule in rules.as_array().into_iter().flatten() {
        let kind = match rule["type"].as_str().unwrap_or("a") {
            "a" | "" => None,
            "b" => Some(1),
            "c" | "u" => Some(2),
            _ => return Err(bad(rule, "type is not a, b or c")),
        };
        let number = |key: &str| match &rule[key] {
            Value::Null => Ok(None),
            value if value.as_i64() == Some(-1) => Ok(None),
            value => {
                let number = value.as_u64().and_then(|number| i32::try_from(number).ok());
                number.map(|number| Some(number as u32)).ok_or_else(|| bad(rule, "is no number"))
            }
        };
        let mut access = 0;
        for letter in rule["access"].as_str().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(bad(rule, "access is not of r, w and m")),
            };
        }
        let allow = rule["allow"].as_bool().unwrap_or_default();
        let (major, minor) = (number("major")?, number("minor")?);
        parsed.push(Rule { allow, kind, major, minor, access });
    }
    Ok(parsed)
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SET: u8 = 0xb7;
const UNLESS_EQUAL: u8 = 0x55;
const IF_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

/// One instruction as the kernel lays it out, little-endian.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: u32) -> u64 {
    u64::from(code)
        | u64::from(to) << 8
        | u64::from(from) << 12
        | u64::from(offset as u16) << 16
        | u64::from(value) << 32
}

/// Registers: 1 the question, 2 kind, 3 access, 4 and 5 the number, 0 the answer.
fn compile(own: &[Rule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in own.iter().chain(&EVERYBODYS).rev() {
        let mut block = Vec::new();
        let answer = [instruction(SET, 0, 0, 0, rule.allow.into()), instruction(EXIT, 0, 0, 0, 0)];
        let mut tests: Vec<(u8, u8, u32)> = Vec::new();
        tests.extend(rule.kind.map(|kind| (UNLESS_EQUAL, 2, kind)));
        // Leave has to cover all that is asked for; a refusal, any of it.
        match (rule.allow, rule.access) {
            (true, ALL) => {}
            (true, access) => {
                block.push(instruction(MOVE, 0, 3, 0, 0));
                block.push(instruction(AND, 0, 0, 0, ALL & !access));
                tests.insert(0, (UNLESS_EQUAL, 0, 0));
            }
            (false, access) => {
                block.push(instruction(MOVE, 0, 3, 0, 0));
                block.push(instruction(AND, 0, 0, 0, access));
                tests.insert(0, (IF_EQUAL, 0, 0));
            }
        }
        tests.extend(rule.major.map(|major| (UNLESS_EQUAL, 4, major)));
        tests.extend(rule.minor.map(|minor| (UNLESS_EQUAL, 5, minor)));
        let count = tests.len();
        for (at, (code, register, value)) in tests.into_iter().enumerate() {
            let over = (count - at - 1 + answer.len()) as i16;
            block.push(instruction(code, register, 0, over, value));
        }
        program.extend(block);
        program.extend(answer);
        if rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none() && rule.access == ALL
        {
            // Nothing before it is ever asked; the kernel takes no such code.
            if rule.allow {
                return program;
            }
        }
    }
    program.extend([instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Runs a program as the kernel would. Returns whether it says yes.
    fn ask(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let question = [access << 16 | kind, major, minor];
        let (mut registers, mut at) = ([0_u32; 11], 0_usize);
        loop {
            let word = program[at];
            let (to, from) = ((word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, value) = ((word >> 16) as i16 as isize, (word >> 32) as u32);
            at += 1;
            let jumps = match word as u8 {
                LOAD_WORD => {
                    registers[to] = question[offset as usize / 4];
                    false
                }
                MOVE => {
                    registers[to] = registers[from];
                    false
                }
                AND => {
                    registers[to] &= value;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= value;
                    false
                }
                SET => {
                    registers[to] = value;
                    false
                }
                UNLESS_EQUAL => registers[to] != value,
                IF_EQUAL => registers[to] == value,
                EXIT => return registers[0] == 1,
                other => panic!("no such instruction: {other:#x}"),
            };
            if jumps {
                at = at.checked_add_signed(offset).unwrap();
            }
        }
    }

    #[test]
    fn without_rules_only_what_everybody_has_may_be_used() {
        let program = compile(&[]);
        assert!(ask(&program, 2, READ | WRITE, 1, 3), "null");
        assert!(ask(&program, 2, ALL, 136, 7), "a terminal");
        assert!(ask(&program, 1, MKNOD, 8, 0), "a node may be made");
        assert!(!ask(&program, 1, READ, 8, 0) && !ask(&program, 1, MKNOD | READ, 8, 0));
        assert!(!ask(&program, 2, READ, 1, 11) && !ask(&program, 1, READ, 1, 3));
    }

    #[test]
    fn the_last_rule_that_speaks_of_a_device_decides() {
        let rules = parse(&json!([
            {"allow": true, "type": "b", "access": "rwm"},
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "rw"},
            {"allow": false, "type": "b", "major": 8, "minor": 3, "access": "w"},
        ]));
        let program = compile(&rules.unwrap());
        assert!(ask(&program, 1, READ | WRITE, 8, 0) && !ask(&program, 1, READ, 9, 0));
        assert!(ask(&program, 1, READ, 8, 3) && !ask(&program, 1, WRITE, 8, 3));
        assert!(!ask(&program, 1, READ | WRITE, 8, 3), "a refusal of a part is one");
        assert!(ask(&program, 2, READ, 1, 5), "what everybody has cannot be taken away");
    }

    #[test]
    fn all_is_all_and_nonsense_is_refused_as_it_was_written() {
        let all = parse(&json!([{"allow": true, "type": "a", "access": "rwm"}])).unwrap();
        assert!(all[0].allows_all());
        assert!(ask(&compile(&all), 1, ALL, 259, 0));
        for rule in [json!({"type": "x"}), json!({"access": "rx"}), json!({"major": "8"})] {
            let error = parse(&json!([rule])).unwrap_err().to_string();
            assert!(error.contains("linux.resources.devices"), "{error}");
        }
    }
}
