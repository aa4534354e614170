//! What takes how much room in the image.

use std::{collections::BTreeMap, fmt};

use crate::{Compression, Error, tree::Tree};

/// What a file in the image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Category {
    /// Our agent, and a foreign one.
    Agent,
    /// Kernel modules, by the first group that has them.
    Modules(&'static str),
    /// Files added by the caller.
    Added,
    /// Configuration and the archive's own overhead.
    Other,
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent => f.pad("agent"),
            Self::Modules(group) => f.pad(&format!("modules/{group}")),
            Self::Added => f.pad("added"),
            Self::Other => f.pad("other"),
        }
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeRow {
    /// What it is for.
    pub category: Category,
    /// Where it lies in the guest.
    pub path: String,
    /// Its size in bytes.
    pub raw: u64,
    /// Its share of the compressed image in bytes, estimated by compressing it alone.
    pub compressed: u64,
}

/// All files of an image with something in them, and the totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeTable {
    /// By category, largest first within one.
    pub rows: Vec<SizeRow>,
    /// Bytes of the uncompressed archive.
    pub raw: u64,
    /// Bytes of the initrd.
    pub compressed: u64,
}

impl SizeTable {
    pub(crate) fn new(
        tree: &Tree,
        raw: u64,
        compressed: u64,
        compression: Compression,
    ) -> Result<Self, Error> {
        // How files compare is all that is wanted of each, so the quickest level will do.
        let quick = match compression {
            Compression::None => Compression::None,
            Compression::Gzip(_) => Compression::Gzip(1),
            Compression::Zstd(_) => Compression::Zstd(1),
            Compression::Lz4(_) => Compression::Lz4(1),
        };
        let mut rows = Vec::new();
        for (path, entry) in tree.iter().filter(|(_, entry)| !entry.node.data().is_empty()) {
            let alone = quick.compress(entry.node.data(), &mut |_| {})?.len() as u64;
            rows.push(SizeRow {
                category: entry.category,
                path: path.to_string(),
                raw: entry.node.data().len() as u64,
                compressed: alone,
            });
        }
        let sum: u64 = rows.iter().map(|row| row.compressed).sum();
        for row in &mut rows {
            row.compressed = scaled(row.compressed, compressed, sum);
        }
        rows.sort_by(|a, b| (a.category, b.raw, &a.path).cmp(&(b.category, a.raw, &b.path)));
        Ok(Self { rows, raw, compressed })
    }

    /// Raw and estimated compressed bytes of each category.
    #[must_use]
    pub fn by_category(&self) -> BTreeMap<Category, (u64, u64)> {
        let mut sums = BTreeMap::new();
        for row in &self.rows {
            let sum: &mut (u64, u64) = sums.entry(row.category).or_default();
            sum.0 += row.raw;
            sum.1 += row.compressed;
        }
        sums
    }
}

fn scaled(part: u64, whole: u64, of: u64) -> u64 {
    u64::try_from(u128::from(part) * u128::from(whole) / u128::from(of.max(1))).unwrap_or(u64::MAX)
}

impl fmt::Display for SizeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.path.len() + 2).max().unwrap_or(0).max(24);
        writeln!(f, "{:width$}  {:>10}  {:>10}", "", "bytes", "compressed")?;
        let sums = self.by_category();
        for (category, (raw, compressed)) in &sums {
            writeln!(f, "{category:width$}  {raw:>10}  {compressed:>10}")?;
            for row in self.rows.iter().filter(|row| row.category == *category) {
                let SizeRow { path, raw, compressed, .. } = row;
                writeln!(f, "  {path:inner$}  {raw:>10}  {compressed:>10}", inner = width - 2)?;
            }
        }
        let overhead = self.raw.saturating_sub(sums.values().map(|sum| sum.0).sum());
        writeln!(f, "{:width$}  {overhead:>10}", "archive headers")?;
        writeln!(f, "{:width$}  {:>10}  {:>10}", "total", self.raw, self.compressed)?;
        let percent = scaled(self.compressed, 1000, self.raw);
        write!(f, "{:width$}  {:>9}.{}%", "ratio", percent / 10, percent % 10)
    }
}
