//! `linkspan conform`: whether a peer speaks the protocol.

mod guest;
mod host;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, value_parser};
use linkspan_conform::run::{Outcome, Plan, Report};
use linkspan_conform::statement::{Profile, Statement};
use linkspan_conform::verdict::Verdict;

use crate::error::{Context, Error};
use crate::options::Global;
use crate::output;

/// Check whether a guest agent, or a host's bridge, speaks the GCS bridge protocol
#[derive(Args, Debug)]
pub(crate) struct Conform {
    #[command(subcommand)]
    command: ConformCommand,
}

#[derive(Subcommand, Debug)]
enum ConformCommand {
    Guest(Box<guest::Guest>),
    Host(host::Host),
}

impl Conform {
    pub(crate) async fn run(self, global: &Global) -> Result<u32, Error> {
        match self.command {
            ConformCommand::Guest(guest) => guest.run(global).await,
            ConformCommand::Host(host) => host.run(global).await,
        }
    }
}

/// What to check, and how it is told.
#[derive(Args, Debug)]
struct CheckOptions {
    /// Only these statements: 19-36,110
    #[arg(long, value_name = "NUMBERS", help_heading = "Statements")]
    only: Option<String>,
    /// Print the statements and check nothing
    #[arg(long, help_heading = "Statements")]
    list: bool,
    /// v4-lcow: as hcsshim behaves today, with what it tolerates; hardened: nothing is tolerated
    #[arg(long, value_name = "PROFILE", default_value = "v4-lcow", value_parser = |text: &str| text.parse::<Profile>(), help_heading = "Statements")]
    profile: Profile,
    /// How long the check of one statement may take, in seconds; a guest's 30, a host's 60
    #[arg(long, value_name = "SECS", value_parser = value_parser!(u32).range(1..), help_heading = "Limits")]
    each_timeout: Option<u32>,
    /// How long all of them may take, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 600, value_parser = value_parser!(u32).range(1..), help_heading = "Limits")]
    timeout: u32,
    /// How long one answer may take, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 10, value_parser = value_parser!(u32).range(1..), help_heading = "Limits")]
    answer_timeout: u32,
    /// Write a report for CI as JUnit XML
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    junit: Option<PathBuf>,
    /// Write a table in Markdown
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    markdown: Option<PathBuf>,
}

impl CheckOptions {
    /// `each` is how long a check may take unless the caller says otherwise, in seconds.
    fn plan<S>(&self, statements: &[Statement<S>], each: u32) -> Result<Plan, Error> {
        let only = match &self.only {
            Some(text) => numbers(text).map_err(|reason| Error::input("--only", reason))?,
            None => Vec::new(),
        };
        if let Some(unknown) = only.iter().find(|&&id| statements.iter().all(|s| s.id != id)) {
            let reason = format!("there is no statement {unknown}; --list shows them");
            return Err(Error::input("--only", reason));
        }
        Ok(Plan {
            only,
            each: Duration::from_secs(self.each_timeout.unwrap_or(each).into()),
            all: Duration::from_secs(self.timeout.into()),
        })
    }

    fn answer(&self) -> Duration {
        Duration::from_secs(self.answer_timeout.into())
    }

    /// Prints what there is to check.
    fn print_list<S>(&self, statements: &[Statement<S>], global: &Global) -> Result<u32, Error> {
        let plan = self.plan(statements, 1)?;
        let wanted: Vec<&Statement<S>> = statements
            .iter()
            .filter(|s| plan.only.is_empty() || plan.only.contains(&s.id))
            .collect();
        if global.json {
            let rows: Vec<_> = wanted
                .iter()
                .map(|s| {
                    serde_json::json!({
                        "id": s.id, "statement": s.text, "needs": s.needs, "tolerated": s.tolerated,
                    })
                })
                .collect();
            output::json(&rows)?;
        } else {
            for statement in wanted {
                output::line(format!("{:>4}  {}", statement.id, statement.text))?;
            }
        }
        Ok(0)
    }

    /// Writes the reports, and says by the exit code whether all is well.
    fn tell(&self, report: &Report, global: &Global) -> Result<u32, Error> {
        for (path, text) in [(&self.junit, report.junit()), (&self.markdown, report.markdown())] {
            if let Some(path) = path {
                std::fs::write(path, text).context(|| format!("write {}", path.display()))?;
            }
        }
        if global.json {
            output::line(report.json())?;
        } else {
            output::line(report.summary())?;
        }
        Ok(u32::from(!report.is_good()))
    }
}

/// Prints an outcome as it comes, unless all is told at the end.
fn print(outcome: &Outcome, global: &Global) {
    if global.json {
        return;
    }
    // Nobody reading it is no reason to stop: the exit code still tells.
    let _ = output::line(Report::line(outcome));
    if matches!(outcome.verdict, Verdict::Fail | Verdict::Tolerated) {
        let _ = output::line(Report::details(outcome).trim_end());
    }
}

/// Reads `1,5-9`.
fn numbers(text: &str) -> Result<Vec<u32>, String> {
    let mut numbers = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number =
            |text: &str| {
                text.trim().parse::<u32>().ok().filter(|&n| n < 10_000).ok_or_else(|| {
                    format!("{part:?} is neither a number nor a range such as 19-36")
                })
            };
        numbers.extend(number(first)?..=number(last)?);
    }
    match numbers.is_empty() {
        true => Err(format!("{text:?} names no statement")),
        false => Ok(numbers),
    }
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn statements_are_named_by_numbers_and_ranges() {
        assert_eq!(numbers("3, 5-7,110"), Ok(vec![3, 5, 6, 7, 110]));
        for wrong in ["", "x", "3-", "-3", "7-5", "99999"] {
            assert!(numbers(wrong).is_err(), "{wrong:?}");
        }
    }
}
