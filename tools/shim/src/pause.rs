//! The program of a sandbox that nobody gave one: it holds the pod's namespaces, and does nothing.
//!
//! As the first process of a PID namespace it also inherits orphans. It ignores SIGCHLD, so that the
//! kernel reaps them; all other signals but SIGKILL do not reach a first process without a handler.
//!
//! ```text
//! ELF header, 64 bytes │ one program header, 56 bytes │ code
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::Error;

/// Where it lies in its root.
pub(crate) const PATH: &str = "/pause";

const BASE: u64 = 0x40_0000;

const HEADERS: u64 = 64 + 56;

/// x86-64, by hand: small, static, and the same wherever this is built.
const CODE: [u8; 42] = [
    0x31, 0xc0, // xor eax, eax
    0x50, 0x50, 0x50, // push rax, three times: no mask, no restorer, no flags
    0x6a, 0x01, // push 1: SIG_IGN
    0xb8, 0x0d, 0x00, 0x00, 0x00, // mov eax, 13: rt_sigaction
    0xbf, 0x11, 0x00, 0x00, 0x00, // mov edi, 17: SIGCHLD
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0x31, 0xd2, // xor edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov r10d, 8
    0x0f, 0x05, // syscall
    0x90, 0x90, 0x90, // nop
    0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34: pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp to the last mov
];

/// Makes a root that holds the program alone.
pub(crate) fn make_root(root: &Path) -> Result<(), Error> {
    let what = || format!("make {}", root.display());
    for directory in ["", "proc", "dev", "sys", "etc"] {
        fs::create_dir_all(root.join(directory)).map_err(Error::io(what()))?;
    }
    let program = root.join(PATH.trim_start_matches('/'));
    fs::write(&program, elf()).map_err(Error::io(what()))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).map_err(Error::io(what()))
}

fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend(value.to_le_bytes());
    half(&mut file, 2); // a program at a fixed address
    half(&mut file, 62); // x86-64
    word(&mut file, 1); // version
    long(&mut file, BASE + HEADERS); // entry
    long(&mut file, 64); // program headers
    long(&mut file, 0); // no sections
    word(&mut file, 0); // flags
    for size in [64, 56, 1, 64, 0, 0] {
        half(&mut file, size);
    }
    let size = HEADERS + CODE.len() as u64;
    word(&mut file, 1); // to be loaded
    word(&mut file, 5); // readable, executable
    for value in [0, BASE, BASE, size, size, 0x1000] {
        long(&mut file, value);
    }
    file.extend(CODE);
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn it_runs_and_does_nothing_until_it_is_killed() {
        let place = tempfile::tempdir().unwrap();
        make_root(place.path()).unwrap();
        let mut child =
            Command::new(place.path().join("pause")).stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let state = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
                line.split_whitespace().nth(1).unwrap_or_default().to_owned()
            };
            // What it ignores besides, it has from whoever runs the test.
            let ignored = u64::from_str_radix(&field("SigIgn:"), 16).unwrap();
            (field("State:"), ignored >> 16 & 1)
        };
        let asleep = ("S".to_owned(), 1);
        for _ in 0..500 {
            if state() == asleep {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(state(), asleep);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
