//! What a command prints.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Context, Error};

/// Prints text, with a line's end. Nobody reading it is no failure.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<(), Error> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context(|| "write to stdout".into()),
    }
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from);
    line(text.context(|| "write JSON".into())?)
}

/// Prints rows below a header, in columns as wide as they must be.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> Result<(), Error> {
    line(columns(header, rows))
}

fn columns<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let row = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    let lines = rows.iter().map(|cells| row(cells.each_ref().map(String::as_str)));
    std::iter::once(row(header)).chain(lines).collect::<Vec<_>>().join("\n")
}

/// An age in its largest unit: `42 s`, `7 min`, `3 h`, `12 d`.
pub(crate) fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// Bytes in the unit that gives at most four digits.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 10_000 {
            return format!("{value} {unit}");
        }
        value /= 1024;
    }
    format!("{value} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["web".to_owned(), "1".to_owned()], ["database".to_owned(), "22".to_owned()]];
        assert_eq!(columns(["ID", "PID"], &rows), "ID         PID\nweb        1\ndatabase   22");
    }

    #[test]
    fn an_age_has_one_unit() {
        let told = [0, 119, 120, 7200, 172_800].map(|s| age(Duration::from_secs(s)));
        assert_eq!(told, ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }
}
