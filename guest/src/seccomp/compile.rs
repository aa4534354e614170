//! From a profile to instructions.

use std::collections::BTreeMap;

use super::profile::{Action, Condition, Operator, Profile};

/// The longest program that the kernel takes.
const LONGEST: usize = 4096;

/// Offsets in the kernel's `seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// Calls of the x32 ABI, which shares the 64-bit architecture.
#[cfg(target_arch = "x86_64")]
const X32: Option<u32> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const X32: Option<u32> = None;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// One instruction as the kernel lays it out, little-endian.
fn instruction(code: u16, if_true: u8, if_false: u8, operand: u32) -> u64 {
    u64::from(code)
        | u64::from(if_true) << 16
        | u64::from(if_false) << 24
        | u64::from(operand) << 32
}

/// The number of a call by its name.
type Table = fn(&str) -> Option<u32>;

fn native(name: &str) -> Option<u32> {
    name.parse::<syscalls::Sysno>().ok().map(|call| call.id() as u32)
}

#[cfg(target_arch = "x86_64")]
fn compatible(name: &str) -> Option<u32> {
    name.parse::<syscalls::x86::Sysno>().ok().map(|call| call.id() as u32)
}

pub(super) fn compile(profile: &Profile) -> Result<Vec<u64>, String> {
    let mut program = vec![instruction(LOAD, 0, 0, ARCHITECTURE)];
    let mut architectures: Vec<(u32, Table)> = vec![(NATIVE, native)];
    #[cfg(target_arch = "x86_64")]
    if profile.architectures.iter().any(|name| name == "SCMP_ARCH_X86") {
        architectures.push((0x4000_0003, compatible));
    }
    for (architecture, table) in architectures {
        let mut body = vec![instruction(LOAD, 0, 0, NUMBER)];
        if let Some(x32) = X32.filter(|_| architecture == NATIVE) {
            body.push(instruction(IF_NOT_LESS, 0, 1, x32));
            body.push(instruction(RETURN, 0, 0, profile.default.0));
        }
        calls(profile, table, &mut body);
        // A conditional jump reaches no further than 255; this one goes around all of them.
        program.push(instruction(IF_EQUAL, 1, 0, architecture));
        let length = u32::try_from(body.len()).map_err(|_| "is too long".to_owned())?;
        program.push(instruction(JUMP, 0, 0, length));
        program.extend(body);
    }
    program.push(instruction(RETURN, 0, 0, profile.default.0));
    match program.len() <= LONGEST {
        true => Ok(program),
        false => Err(format!("takes {} instructions, and the kernel {LONGEST}", program.len())),
    }
}

/// All that is done with the calls of one architecture, whose number is loaded.
fn calls(profile: &Profile, table: Table, body: &mut Vec<u64>) {
    let mut plain: BTreeMap<u32, Action> = BTreeMap::new();
    let mut newest = None;
    for rule in &profile.rules {
        // A profile is written for many kernels: it may name what this one lacks.
        for number in rule.names.iter().filter_map(|name| table(name)) {
            newest = newest.max(Some(number));
            if rule.conditions.is_empty() {
                plain.entry(number).or_insert(rule.action);
            } else {
                let mut test = conditions(&rule.conditions);
                test.push(instruction(RETURN, 0, 0, rule.action.0));
                // Where a condition did not hold.
                test.push(instruction(LOAD, 0, 0, NUMBER));
                let over = u8::try_from(test.len()).unwrap_or(u8::MAX);
                body.push(instruction(IF_EQUAL, 0, over, number));
                body.extend(test);
            }
        }
    }
    for (first, last, action) in ranges(&plain) {
        if first == last {
            body.push(instruction(IF_EQUAL, 0, 1, first));
        } else {
            body.push(instruction(IF_NOT_LESS, 0, 2, first));
            body.push(instruction(IF_GREATER, 1, 0, last));
        }
        body.push(instruction(RETURN, 0, 0, action.0));
    }
    // What the profile's author did not know of: a program then does without it, which it would
    // not after a refusal.
    if let Some(newest) = newest.filter(|_| !profile.default.permits()) {
        body.push(instruction(IF_GREATER, 0, 1, newest));
        body.push(instruction(RETURN, 0, 0, Action::NO_SUCH_CALL.0));
    }
    body.push(instruction(RETURN, 0, 0, profile.default.0));
}

/// Calls in a row that are treated alike.
fn ranges(plain: &BTreeMap<u32, Action>) -> Vec<(u32, u32, Action)> {
    let mut ranges: Vec<(u32, u32, Action)> = Vec::new();
    for (&number, &action) in plain {
        match ranges.last_mut() {
            Some((_, last, same)) if *last + 1 == number && *same == action => *last = number,
            _ => ranges.push((number, number, action)),
        }
    }
    ranges
}

/// Where a comparison goes.
#[derive(Clone, Copy, PartialEq)]
enum Target {
    /// To the next comparison, or to what is to be done.
    Hold,
    /// Over both.
    Fail,
}

enum Step {
    Load(u32),
    And(u32),
    If(u16, u32, Target),
    Unless(u16, u32, Target),
}

/// Goes on behind itself if all conditions hold, else one instruction further. There are at most
/// six conditions, so that no jump is too far.
fn conditions(conditions: &[Condition]) -> Vec<u64> {
    let tests: Vec<Vec<Step>> = conditions.iter().map(|condition| compare(*condition)).collect();
    let total: usize = tests.iter().map(Vec::len).sum();
    let mut out = Vec::new();
    for test in tests {
        let behind = out.len() + test.len();
        for step in test {
            let next = out.len() + 1;
            let to = |target: Target| match target {
                Target::Hold => (behind - next) as u8,
                Target::Fail => (total + 1 - next) as u8,
            };
            out.push(match step {
                Step::Load(offset) => instruction(LOAD, 0, 0, offset),
                Step::And(mask) => instruction(AND, 0, 0, mask),
                Step::If(code, value, target) => instruction(code, to(target), 0, value),
                Step::Unless(code, value, target) => instruction(code, 0, to(target), value),
            });
        }
    }
    out
}

fn compare(condition: Condition) -> Vec<Step> {
    let at = ARGUMENTS + condition.index * 8;
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let mut out = Vec::new();
    match condition.operator {
        Operator::Equal | Operator::Masked(_) => {
            let mask = match condition.operator {
                Operator::Masked(mask) => Some(mask),
                _ => None,
            };
            for (offset, word, mask) in [
                (at + 4, high, mask.map(|mask| (mask >> 32) as u32)),
                (at, low, mask.map(|mask| mask as u32)),
            ] {
                out.push(Step::Load(offset));
                out.extend(mask.map(Step::And));
                out.push(Step::Unless(IF_EQUAL, word, Target::Fail));
            }
        }
        Operator::NotEqual => {
            out.push(Step::Load(at + 4));
            out.push(Step::Unless(IF_EQUAL, high, Target::Hold));
            out.push(Step::Load(at));
            out.push(Step::If(IF_EQUAL, low, Target::Fail));
        }
        Operator::Greater | Operator::GreaterOrEqual => {
            let code =
                if condition.operator == Operator::Greater { IF_GREATER } else { IF_NOT_LESS };
            out.push(Step::Load(at + 4));
            out.push(Step::If(IF_GREATER, high, Target::Hold));
            out.push(Step::Unless(IF_EQUAL, high, Target::Fail));
            out.push(Step::Load(at));
            out.push(Step::Unless(code, low, Target::Fail));
        }
        Operator::Less | Operator::LessOrEqual => {
            let code = if condition.operator == Operator::Less { IF_NOT_LESS } else { IF_GREATER };
            out.push(Step::Load(at + 4));
            out.push(Step::If(IF_GREATER, high, Target::Fail));
            out.push(Step::Unless(IF_EQUAL, high, Target::Hold));
            out.push(Step::Load(at));
            out.push(Step::If(code, low, Target::Fail));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;

    /// Runs a program as the kernel would.
    fn run(program: &[u64], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = vec![number, architecture, 0, 0];
        data.extend(arguments.iter().flat_map(|&value| [value as u32, (value >> 32) as u32]));
        let (mut at, mut value) = (0, 0);
        loop {
            let word = program[at];
            let (code, yes, no) = (word as u16, (word >> 16) as u8, (word >> 24) as u8);
            let operand = (word >> 32) as u32;
            at += 1;
            let holds = match code {
                LOAD => {
                    value = data[operand as usize / 4];
                    continue;
                }
                AND => {
                    value &= operand;
                    continue;
                }
                JUMP => {
                    at += operand as usize;
                    continue;
                }
                RETURN => return operand,
                IF_EQUAL => value == operand,
                IF_GREATER => value > operand,
                IF_NOT_LESS => value >= operand,
                other => panic!("no such instruction: {other:#x}"),
            };
            at += usize::from(if holds { yes } else { no });
        }
    }

    fn compiled(profile: Value) -> Vec<u64> {
        compile(&Profile::parse(&profile).unwrap()).unwrap()
    }

    fn number(name: &str) -> u32 {
        native(name).unwrap()
    }

    #[test]
    fn a_list_of_allowed_calls_allows_those_alone() {
        let program = compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["read", "write", "no_such_call", "futex", "statx"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            ],
        }));
        let run =
            |name: &str, first: u64| run(&program, NATIVE, number(name), [first, 0, 0, 0, 0, 0]);
        for allowed in ["read", "write", "futex", "statx"] {
            assert_eq!(run(allowed, 0), ALLOW, "{allowed}");
        }
        assert_eq!(run("execve", 0), EPERM);
        assert_eq!(run("mount", 0), ENOSYS);
        assert_eq!(run("clone", 0x11), ALLOW);
        assert_eq!(run("clone", 0x1000_0000), EPERM);
        // Newer than all that the profile names.
        assert_eq!(run("openat2", 0), ENOSYS);
        assert_eq!(super::tests::run(&program, 7, number("read"), [0; 6]), EPERM);
        #[cfg(target_arch = "x86_64")]
        {
            assert_eq!(super::tests::run(&program, NATIVE, 0x4000_0000, [0; 6]), EPERM);
            assert_eq!(
                super::tests::run(&program, 0x4000_0003, 3, [0; 6]),
                ALLOW,
                "read of 32 bits"
            );
        }
    }

    #[test]
    fn every_comparison_is_of_64_bits() {
        let values = [0, 1, 5, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0005, 0x5_0000_0001, u64::MAX];
        for value in values {
            for (name, holds) in [
                ("NE", (|a, b| a != b) as fn(u64, u64) -> bool),
                ("LT", |a, b| a < b),
                ("LE", |a, b| a <= b),
                ("EQ", |a, b| a == b),
                ("GE", |a, b| a >= b),
                ("GT", |a, b| a > b),
            ] {
                let program = compiled(json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [
                        {"index": 1, "value": 7, "op": "SCMP_CMP_EQ"},
                        {"index": 5, "value": value, "op": format!("SCMP_CMP_{name}")},
                    ]}],
                }));
                for argument in values {
                    let run = |first| {
                        run(&program, NATIVE, number("read"), [0, first, 0, 0, 0, argument])
                    };
                    let expected = if holds(argument, value) { EPERM } else { ALLOW };
                    assert_eq!(run(7), expected, "{argument:#x} {name} {value:#x}");
                    assert_eq!(run(8), ALLOW);
                }
            }
        }
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives() {
        let program = compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
                {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"},
            ]}],
        }));
        let run = |value| run(&program, NATIVE, number("personality"), [value, 0, 0, 0, 0, 0]);
        assert_eq!([run(0), run(8), run(4)], [ALLOW, ALLOW, EPERM]);
    }

    #[test]
    fn a_profile_that_the_kernel_would_not_take_is_refused() {
        let rule = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 0, "op": "SCMP_CMP_NE"}]});
        let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": vec![rule; 1000]});
        assert!(compile(&Profile::parse(&profile).unwrap()).unwrap_err().contains("4096"));
    }
}
