//! Reports: for people, for programs, for CI.

use std::fmt::Write;

use crate::run::{Outcome, Report};
use crate::verdict::Verdict;

/// How many lines of an exchange are shown of a failure.
const SHOWN: usize = 24;

impl Report {
    /// One line of the table.
    pub fn line(outcome: &Outcome) -> String {
        let mut line =
            format!("{:>4}  {:<9}  {}", outcome.id, outcome.verdict.name(), outcome.statement);
        if let Some(reason) = &outcome.reason
            && outcome.verdict == Verdict::Skipped
        {
            let _ = write!(line, " ({reason})");
        }
        line
    }

    /// What is wrong with one statement: the reason, and what went over the wire.
    pub fn details(outcome: &Outcome) -> String {
        let mut text = String::new();
        if let Some(reason) = &outcome.reason {
            let _ = writeln!(text, "      {reason}");
        }
        let skipped = outcome.exchange.len().saturating_sub(SHOWN);
        if skipped > 0 {
            let _ = writeln!(text, "        … {skipped} earlier lines, all of them with --json");
        }
        for line in &outcome.exchange[skipped..] {
            let _ = writeln!(text, "      {line}");
        }
        text
    }

    /// The sums.
    pub fn summary(&self) -> String {
        format!(
            "{} of {} statements hold, {} failed, {} tolerated, {} skipped (profile {})",
            self.count(Verdict::Pass),
            self.outcomes.len(),
            self.count(Verdict::Fail),
            self.count(Verdict::Tolerated),
            self.count(Verdict::Skipped),
            self.profile
        )
    }

    /// The table, with details of what does not hold.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for outcome in &self.outcomes {
            let _ = writeln!(text, "{}", Self::line(outcome));
            if matches!(outcome.verdict, Verdict::Fail | Verdict::Tolerated) {
                text.push_str(&Self::details(outcome));
            }
        }
        let _ = writeln!(text, "{}", self.summary());
        text
    }

    /// One JSON document.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// As CI systems read it.
    pub fn junit(&self) -> String {
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let total: u64 = self.outcomes.iter().map(|outcome| outcome.milliseconds).sum();
        let _ = writeln!(
            text,
            "<testsuite name=\"conform {} {}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{}\">",
            self.side,
            self.profile,
            self.outcomes.len(),
            self.count(Verdict::Fail),
            self.count(Verdict::Skipped),
            seconds(total)
        );
        for outcome in &self.outcomes {
            let name = escaped(&format!("{} {}", outcome.id, outcome.statement));
            let time = seconds(outcome.milliseconds);
            let _ = write!(
                text,
                "  <testcase classname=\"{}\" name=\"{name}\" time=\"{time}\">",
                self.side
            );
            let reason = escaped(outcome.reason.as_deref().unwrap_or_default());
            let exchange = escaped(&outcome.exchange.join("\n"));
            let _ = match outcome.verdict {
                Verdict::Pass => Ok(()),
                Verdict::Fail => write!(text, "<failure message=\"{reason}\">{exchange}</failure>"),
                Verdict::Skipped => write!(text, "<skipped message=\"{reason}\"/>"),
                Verdict::Tolerated => {
                    write!(text, "<system-out>tolerated: {reason}\n{exchange}</system-out>")
                }
            };
            text.push_str("</testcase>\n");
        }
        text.push_str("</testsuite>\n");
        text
    }

    /// A table for the documentation. It does not tell times, so that it changes only with verdicts.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# Conformance: {}, profile {}\n\n{}.\n\n| # | statement | verdict |\n|--:|---|---|\n",
            self.side,
            self.profile,
            self.summary()
        );
        for outcome in &self.outcomes {
            let reason = match (outcome.verdict, &outcome.reason) {
                (Verdict::Pass, _) | (_, None) => String::new(),
                (_, Some(reason)) => format!(": {}", reason.replace('|', "\\|").replace('\n', " ")),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {}{reason} |",
                outcome.id,
                outcome.statement.replace('|', "\\|"),
                outcome.verdict.name()
            );
        }
        text
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000)
}

/// Text for XML: what has a meaning there is written otherwise, what cannot be in it is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => {
                out.push(character)
            }
            _ => out.push('\u{fffd}'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::Profile;

    fn report() -> Report {
        let outcome = |id, verdict, reason: Option<&str>| Outcome {
            id,
            statement: "It is <so>",
            verdict,
            reason: reason.map(str::to_owned),
            milliseconds: 1500,
            exchange: reason.map(|_| "a & \u{1}b".to_owned()).into_iter().collect(),
        };
        Report {
            side: "guest",
            profile: Profile::V4Lcow,
            peer: "p".into(),
            outcomes: vec![
                outcome(1, Verdict::Pass, None),
                outcome(2, Verdict::Fail, Some("\"no\"")),
                outcome(3, Verdict::Skipped, Some("why")),
            ],
        }
    }

    #[test]
    fn junit_is_xml_whatever_a_peer_has_said() {
        let text = report().junit();
        assert!(text.contains("failures=\"1\" skipped=\"1\" time=\"4.500\""), "{text}");
        assert!(text.contains("message=\"&quot;no&quot;\">a &amp; \u{fffd}b</failure>"), "{text}");
        assert!(text.contains("name=\"1 It is &lt;so&gt;\""), "{text}");
    }

    #[test]
    fn a_failure_makes_a_report_bad_and_nothing_checked_too() {
        let mut report = report();
        assert!(!report.is_good() && report.deviations() == [2]);
        report.outcomes.remove(1);
        assert!(report.is_good());
        report.outcomes.remove(0);
        assert!(!report.is_good(), "all was skipped");
    }
}
