//! What was done and how long each part took.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// The steps of one run, in the order in which they were begun.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<Step>,
}

struct Step {
    name: String,
    took: Duration,
    failed: bool,
}

impl Steps {
    /// Does `work` under a headline and takes the time.
    pub(crate) fn run<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        headline(name);
        let begun = Instant::now();
        let outcome = work();
        let failed = outcome.is_err();
        self.done.push(Step { name: name.into(), took: begun.elapsed(), failed });
        outcome
    }

    /// Writes the table of all steps, if there is any.
    pub(crate) fn summarize(&self, out: &mut dyn Write) {
        if !self.done.is_empty() {
            // Nothing can be done about a terminal that has gone.
            let _ = self.table(out);
        }
    }

    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let width = self.done.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
        writeln!(out)?;
        for Step { name, took, failed } in &self.done {
            let mark = if *failed { "  FAILED" } else { "" };
            writeln!(out, "  {name:width$}  {:>9}{mark}", duration(*took))?;
        }
        let total = self.done.iter().map(|step| step.took).sum();
        writeln!(out, "  {:width$}  {:>9}", "total", duration(total))
    }
}

/// Announces what comes next, on standard error.
pub(crate) fn headline(text: &str) {
    let (bold, plain) = if io::stderr().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    eprintln!("{bold}==> {text}{plain}");
}

fn duration(duration: Duration) -> String {
    let tenths = duration.as_millis().div_ceil(100);
    match tenths / 600 {
        0 => format!("{}.{} s", tenths / 10, tenths % 10),
        minutes => format!("{minutes} min {:02} s", tenths % 600 / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_at_a_glance() {
        assert_eq!(duration(Duration::from_millis(0)), "0.0 s");
        assert_eq!(duration(Duration::from_millis(1)), "0.1 s");
        assert_eq!(duration(Duration::from_millis(59_900)), "59.9 s");
        assert_eq!(duration(Duration::from_millis(59_901)), "1 min 00 s");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 05 s");
    }

    #[test]
    fn the_table_has_failed_steps_too() {
        let mut steps = Steps::default();
        steps.run("one", || Ok(())).unwrap();
        steps.run::<()>("number two", || anyhow::bail!("no")).unwrap_err();
        let mut out = Vec::new();
        steps.summarize(&mut out);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().skip(1).map(|line| line.trim_end()).collect();
        assert!(lines[0].starts_with("  one         "), "{text}");
        assert!(lines[1].ends_with("FAILED"), "{text}");
        assert!(lines[2].starts_with("  total"), "{text}");
    }

    #[test]
    fn nothing_done_needs_no_table() {
        let mut out = Vec::new();
        Steps::default().summarize(&mut out);
        assert!(out.is_empty());
    }
}
