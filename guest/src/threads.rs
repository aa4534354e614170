//! Where the threads of the agent's processes are, for DumpStacks.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// All threads of all processes that run this program: state, where the kernel has them wait, and
/// the kernel's stack where it shows one.
pub(crate) fn describe() -> String {
    let mut text = String::new();
    for pid in processes() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten().map(|entry| entry.path()) {
            describe_thread(&mut text, pid, &task);
        }
    }
    text
}

/// This program's processes, by the file that they run.
fn processes() -> Vec<u32> {
    let own = fs::read_link("/proc/self/exe").ok();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut pids: Vec<u32> =
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).ok() == own).collect();
    pids.sort_unstable();
    pids
}

fn describe_thread(text: &mut String, pid: u32, task: &Path) {
    let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
    let tid = task.file_name().unwrap_or_default().to_string_lossy();
    let stat = read("stat");
    // The name is in brackets and may hold anything, brackets as well.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?');
    let (name, place) = (read("comm"), read("wchan"));
    let _ = writeln!(text, "process {pid} thread {tid} {}: {state} {place}", name.trim());
    for frame in read("stack").lines() {
        let frame = frame.rsplit(' ').next().unwrap_or(frame);
        let _ = writeln!(text, "    {frame}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_of_this_program_is_told_with_its_name() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("bystander".into());
        let (here, there) = std::sync::mpsc::channel();
        let work = move || {
            here.send(()).unwrap();
            receiver.recv()
        };
        let thread = thread.spawn(work).unwrap();
        // It gives itself its name, before it works.
        there.recv().unwrap();
        let text = describe();
        drop(sender);
        let _ = thread.join().unwrap();
        let own = format!("process {} thread ", std::process::id());
        assert!(text.contains(&own) && text.contains("bystander: "), "{text}");
    }
}
