//! What has been reached, kept: instruction counts that a change may not exceed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How far a figure may be above its budget, in percent. The same program's repeat to 2 %.
const SLACK: u64 = 5;

/// The file's form: the kernel that was measured with, and instructions of the whole guest by figure.
struct Budget {
    kernel: String,
    instructions: BTreeMap<String, u64>,
}

impl Budget {
    fn read(path: &Path) -> Result<Self> {
        let context = || format!("read the budget {}", path.display());
        let text = fs::read_to_string(path).with_context(context)?;
        let value: Value = serde_json::from_str(&text).with_context(context)?;
        let kernel = value["kernel"].as_str().context("no \"kernel\"").with_context(context)?;
        let figures = value["instructions"].as_object().context("no \"instructions\"");
        let figures = figures.with_context(context)?.iter().map(|(what, value)| {
            let value = value.as_u64().with_context(|| format!("{what:?} is {value}"))?;
            Ok((what.clone(), value))
        });
        let instructions = figures.collect::<Result<_>>().with_context(context)?;
        Ok(Self { kernel: kernel.to_owned(), instructions })
    }
}

/// Fails with the figures that exceed the budget. Another kernel's are not held against it.
pub(crate) fn check(
    path: &Path,
    kernel: &str,
    measured: &BTreeMap<String, u64>,
) -> Result<Vec<String>> {
    let budget = Budget::read(path)?;
    if budget.kernel != kernel {
        let said = format!("the budget is {}'s, not {kernel}'s: nothing is checked", budget.kernel);
        return Ok(vec![said]);
    }
    let (mut wrong, mut lower) = (Vec::new(), Vec::new());
    for (what, &most) in &budget.instructions {
        match measured.get(what) {
            None => wrong.push(format!("{what}: not measured")),
            Some(&value) if value * 100 > most * (100 + SLACK) => {
                wrong.push(format!("{what}: {value}, {most} at most"));
            }
            Some(&value) if value * (100 + SLACK) < most * 100 => {
                lower.push(format!("{what}: {value}, and the budget of {most} can be lowered"));
            }
            Some(_) => {}
        }
    }
    anyhow::ensure!(
        wrong.is_empty(),
        "over the budget by more than {SLACK} %: {}",
        wrong.join("; ")
    );
    Ok(lower)
}

/// Makes what was measured the budget.
pub(crate) fn write(path: &Path, kernel: &str, measured: &BTreeMap<String, u64>) -> Result<()> {
    let text = serde_json::to_string_pretty(&json!({"kernel": kernel, "instructions": measured}))?;
    fs::write(path, text + "\n").with_context(|| format!("write the budget {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_above_the_budget_and_a_missing_one_are_named_and_another_kernel_is_let_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("budget");
        let figures = |exec: u64| BTreeMap::from([("exec".to_owned(), exec)]);
        write(&path, "6.1", &figures(1000)).unwrap();
        assert!(check(&path, "6.1", &figures(1050)).unwrap().is_empty());
        let error = check(&path, "6.1", &figures(1051)).unwrap_err().to_string();
        assert!(error.contains("exec: 1051, 1000 at most"), "{error}");
        let error = check(&path, "6.1", &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("exec: not measured"), "{error}");
        assert!(check(&path, "6.1", &figures(900)).unwrap()[0].contains("can be lowered"));
        assert!(check(&path, "6.2", &figures(9000)).unwrap()[0].contains("nothing is checked"));
    }
}
