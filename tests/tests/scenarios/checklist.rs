//! docs/checklist.md against the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The statements about confidential computing.
const CONFIDENTIAL: std::ops::RangeInclusive<u32> = 106..=126;

const LAST: u32 = 130;

#[test]
fn every_test_of_the_checklist_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/checklist.md")).expect("read the checklist");
    let mut sources = String::new();
    for directory in ["guest", "host", "protocol", "tests"] {
        collect(&root.join(directory), &mut sources);
    }
    let mut numbers = BTreeSet::new();
    for line in text.lines() {
        let Some([number, _, asserted]) = cells(line) else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        assert!(numbers.insert(number), "statement {number} is there twice");
        let names: Vec<&str> = asserted.split('`').filter(|name| !name.trim().is_empty()).collect();
        assert!(!names.is_empty(), "statement {number} is asserted by nothing");
        for name in names {
            assert!(is_test(&sources, name), "{number}: no test {name}");
        }
    }
    let expected: BTreeSet<u32> = (1..=LAST).filter(|n| !CONFIDENTIAL.contains(n)).collect();
    assert_eq!(numbers, expected);
    assert!(!sources.contains(concat!("#[", "ignore")), "a test is left out");
}

/// Whether there is a function of this name that is marked as a test, or listed in a macro that
/// makes tests of names.
fn is_test(sources: &str, name: &str) -> bool {
    let marked = sources.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        let before = &sources[..at];
        let above = before.trim_end_matches(['a', 's', 'y', 'n', 'c', ' ']).trim_end();
        above.ends_with("#[test]") || above.ends_with(")]") && above.contains("#[tokio::test")
    });
    let listed = [
        format!("\n    {name},\n"),
        format!("({name}, \""),
        format!("!({name})"),
        format!("!(alone: {name})"),
    ];
    marked || listed.iter().any(|form| sources.contains(form))
}

fn cells(line: &str) -> Option<[&str; 3]> {
    let cells = line.strip_prefix("| ")?.strip_suffix(" |")?.splitn(3, " | ");
    cells.map(str::trim).collect::<Vec<_>>().try_into().ok()
}

fn collect(directory: &Path, sources: &mut String) {
    let entries = fs::read_dir(directory).expect("list sources");
    let paths = entries.map(|entry| entry.expect("list sources").path());
    for path in paths.collect::<BTreeSet<PathBuf>>() {
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, sources);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            sources.push_str(&fs::read_to_string(&path).expect("read a source"));
        }
    }
}
