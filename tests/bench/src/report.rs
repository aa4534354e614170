//! The figures, beside what they are measured against.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::counters::Cost;

/// What a figure counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Bytes,
    Kibibytes,
    Instructions,
    Microseconds,
    MebibytesPerSecond,
    PerSecond,
}

/// What a figure is measured against.
#[derive(Clone, Copy, Debug)]
enum Against {
    Nothing,
    /// The reference agent's figure in such a VM, and the share of it that is the goal.
    Reference(u64, f64),
    /// The least that is possible, in this run, and the share of it that is the goal.
    Floor(u64, Option<f64>),
    /// At most this.
    Goal(u64),
}

#[derive(Debug)]
struct Row {
    what: String,
    value: u64,
    unit: Unit,
    against: Against,
    note: String,
}

impl Row {
    fn meets(&self) -> Option<bool> {
        let value = self.value as f64;
        match self.against {
            Against::Reference(reference, share) if share < 1.0 => {
                Some(value <= reference as f64 * share)
            }
            Against::Floor(floor, Some(share)) => Some(value >= floor as f64 * share),
            Against::Goal(most) => Some(self.value <= most),
            _ => None,
        }
    }
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    fn push(&mut self, what: &str, value: u64, unit: Unit, against: Against, note: String) {
        self.rows.push(Row { what: what.to_owned(), value, unit, against, note });
    }

    pub(crate) fn size(&mut self, what: &str, bytes: u64, reference: u64, share: f64) {
        self.push(what, bytes, Unit::Bytes, Against::Reference(reference, share), String::new());
    }

    pub(crate) fn memory(&mut self, what: &str, kib: u64, reference: u64, share: f64) {
        self.push(what, kib, Unit::Kibibytes, Against::Reference(reference, share), String::new());
    }

    pub(crate) fn instructions(&mut self, what: &str, cost: Cost, reference: u64, share: f64) {
        let against = match reference {
            0 => Against::Nothing,
            reference => Against::Reference(reference, share),
        };
        let note = format!("the agent's own {}", number(cost.agent));
        self.push(what, cost.guest, Unit::Instructions, against, note);
    }

    pub(crate) fn floor(&mut self, what: &str, value: u64, floor: u64, unit: Unit) {
        self.push(what, value, unit, Against::Floor(floor, None), String::new());
    }

    pub(crate) fn goal(&mut self, what: &str, value: u64, most: u64, unit: Unit) {
        self.push(what, value, unit, Against::Goal(most), String::new());
    }

    pub(crate) fn time(&mut self, what: &str, took: Duration) {
        let value = took.as_micros() as u64;
        self.push(what, value, Unit::Microseconds, Against::Nothing, String::new());
    }

    pub(crate) fn rate(
        &mut self,
        what: &str,
        bytes: u64,
        ours: Duration,
        raw: Duration,
        share: f64,
    ) {
        let rate = |took: Duration| (bytes as f64 / took.as_secs_f64() / (1 << 20) as f64) as u64;
        let against = Against::Floor(rate(raw), (share > 0.0).then_some(share));
        self.push(what, rate(ours), Unit::MebibytesPerSecond, against, String::new());
    }

    pub(crate) fn per_second(&mut self, what: &str, count: u64, took: Duration, reference: u64) {
        let value = (count as f64 / took.as_secs_f64()) as u64;
        let against = Against::Reference(reference, 1.0);
        self.push(what, value, Unit::PerSecond, against, String::new());
    }

    /// The counted figures: those that repeat.
    pub(crate) fn counted(&self) -> BTreeMap<String, u64> {
        let counted = self.rows.iter().filter(|row| matches!(row.unit, Unit::Instructions));
        counted.map(|row| (row.what.trim().to_owned(), row.value)).collect()
    }

    /// Fails with the figures that miss their goals.
    pub(crate) fn check(&self) -> Result<()> {
        let missed: Vec<&str> = self
            .rows
            .iter()
            .filter(|row| row.meets() == Some(false))
            .map(|row| row.what.as_str())
            .collect();
        anyhow::ensure!(missed.is_empty(), "goals missed: {}", missed.join("; "));
        Ok(())
    }

    pub(crate) fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "what": row.what.trim(),
                "value": row.value,
                "unit": format!("{:?}", row.unit),
                "against": format!("{:?}", row.against),
                "meets": row.meets(),
                "note": row.note,
            })
        });
        rows.collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | measured | against | ratio | goal | |")?;
        writeln!(f, "|---|---:|---:|---:|---|---|")?;
        for row in &self.rows {
            let (base, goal) = match row.against {
                Against::Nothing => (None, String::new()),
                Against::Reference(base, share) if share < 1.0 => {
                    (Some(("reference", base)), format!("at most {:.0} %", share * 100.0))
                }
                Against::Reference(base, _) => (Some(("reference", base)), String::new()),
                Against::Floor(base, share) => {
                    let goal = share.map(|share| format!("at least {:.0} %", share * 100.0));
                    (Some(("floor", base)), goal.unwrap_or_default())
                }
                Against::Goal(most) => (None, format!("at most {}", shown(most, row.unit))),
            };
            let against = base
                .map(|(what, base)| format!("{what} {}", shown(base, row.unit)))
                .unwrap_or_default();
            let ratio = base
                .map(|(_, base)| format!("{:.2}", row.value as f64 / base as f64))
                .unwrap_or_default();
            let verdict = match row.meets() {
                Some(true) => ": met",
                Some(false) => ": **missed**",
                None => "",
            };
            let value = shown(row.value, row.unit);
            writeln!(
                f,
                "| {} | {value} | {against} | {ratio} | {goal}{verdict} | {} |",
                row.what.trim(),
                row.note
            )?;
        }
        Ok(())
    }
}

fn shown(value: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{} bytes", number(value)),
        Unit::Kibibytes => format!("{} KiB", number(value)),
        Unit::Instructions => format!("{} instr.", number(value)),
        Unit::Microseconds => format!("{:.1} ms", value as f64 / 1000.0),
        Unit::MebibytesPerSecond => format!("{value} MiB/s"),
        Unit::PerSecond => format!("{value} /s"),
    }
}

fn number(value: u64) -> String {
    match value {
        0..10_000 => value.to_string(),
        10_000..10_000_000 => format!("{:.0} k", value as f64 / 1e3),
        _ => format!("{:.1} M", value as f64 / 1e6),
    }
}
