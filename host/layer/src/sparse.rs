//! Maps of sparse files: which parts of a file are data.

use std::ops::Range;

use crate::error::Problem;
use crate::pax::Records;

/// More parts than any honest archive has; a map is kept in memory.
const MAX_PARTS: usize = 1 << 20;

/// The data of a file, in order; the rest reads as zeros.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Size of the file in bytes, holes included.
    pub(crate) size: u64,
    pub(crate) data: Vec<Range<u64>>,
}

impl SparseMap {
    /// A file without holes.
    pub(crate) fn dense(size: u64) -> Self {
        Self { size, data: std::iter::once(0..size).collect() }
    }

    pub(crate) fn holes_only(size: u64) -> Self {
        Self { size, data: Vec::new() }
    }

    /// Adds a part behind the others.
    pub(crate) fn push(&mut self, offset: u64, length: u64) -> Result<(), Problem> {
        let end = offset.checked_add(length).filter(|&end| end <= self.size);
        let end = end.ok_or(Problem::SparseMap("a part lies beyond the end of the file"))?;
        if self.data.last().is_some_and(|last| last.end > offset) {
            return Err(Problem::SparseMap("parts overlap or are out of order"));
        }
        if self.data.len() == MAX_PARTS {
            return Err(Problem::SparseMap("more than 1048576 parts"));
        }
        if length > 0 {
            self.data.push(offset..end);
        }
        Ok(())
    }

    /// Bytes of all parts.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data.iter().map(|part| part.end - part.start).sum()
    }
}

/// How GNU tar notes holes in extended headers.
#[derive(Debug)]
pub(crate) enum PaxSparse {
    /// Versions 0.0 and 0.1: the whole map is in the header.
    InHeader(SparseMap),
    /// Version 1.0: the map comes before the data. The size is that of the file.
    InData(u64),
}

impl PaxSparse {
    /// `None` if the records say nothing of holes.
    pub(crate) fn new(records: &Records) -> Result<Option<Self>, Problem> {
        let number = |key| records.number(key);
        if records.get("GNU.sparse.major").is_some() {
            let version = (number("GNU.sparse.major")?, number("GNU.sparse.minor")?);
            if version != (Some(1), Some(0)) {
                return Err(Problem::SparseMap("unknown version"));
            }
            let size = number("GNU.sparse.realsize")?;
            return Ok(Some(Self::InData(size.ok_or(Problem::SparseMap("no size"))?)));
        }
        let Some(size) = number("GNU.sparse.size")? else { return Ok(None) };
        let mut map = SparseMap::holes_only(size);
        if let Some(list) = records.get("GNU.sparse.map") {
            let numbers: Option<Vec<u64>> = list.split(|&byte| byte == b',').map(parse).collect();
            let numbers = numbers.ok_or(Problem::SparseMap("not a list of numbers"))?;
            for pair in numbers.chunks(2) {
                let [offset, length] = *pair else {
                    return Err(Problem::SparseMap("an offset without a length"));
                };
                map.push(offset, length)?;
            }
        } else {
            let mut start = None;
            for (key, value) in records.iter() {
                let value = || parse(value).ok_or(Problem::SparseMap("not a number"));
                match key {
                    b"GNU.sparse.offset" => start = Some(value()?),
                    b"GNU.sparse.numbytes" => {
                        let offset = start.take();
                        let missing = Problem::SparseMap("a length without an offset");
                        map.push(offset.ok_or(missing)?, value()?)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(Some(Self::InHeader(map)))
    }
}

/// Reads a map of version 1.0: decimal lines (count, then offset and length of each part), padded
/// to whole records of 512 bytes. `next` gives the next record.
pub(crate) fn read_map<E: From<Problem>>(
    size: u64,
    mut next: impl FnMut() -> Result<[u8; 512], E>,
) -> Result<SparseMap, E> {
    let mut record = next()?;
    let mut at = 0;
    let mut line = || -> Result<u64, E> {
        let mut digits = Vec::new();
        loop {
            if at == record.len() {
                record = next()?;
                at = 0;
            }
            at += 1;
            match record[at - 1] {
                b'\n' => break,
                byte if digits.len() < 20 => digits.push(byte),
                _ => return Err(Problem::SparseMap("a line is no number").into()),
            }
        }
        Ok(parse(&digits).ok_or(Problem::SparseMap("a line is no number"))?)
    };
    let mut map = SparseMap::holes_only(size);
    for _ in 0..line()? {
        let offset = line()?;
        map.push(offset, line()?)?;
    }
    Ok(map)
}

fn parse(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_must_be_in_order_and_inside_the_file() {
        let mut map = SparseMap::holes_only(100);
        map.push(10, 20).unwrap();
        map.push(30, 0).unwrap();
        assert!(map.push(29, 5).is_err());
        assert!(map.push(90, 11).is_err());
        assert!(map.push(u64::MAX, 2).is_err());
        assert_eq!(map.data_bytes(), 20);
    }

    #[test]
    fn a_map_before_the_data_is_read_across_records() {
        let parts: Vec<String> = (0..100).map(|n| format!("{}\n{}\n", n * 1000, 7)).collect();
        let mut text = format!("100\n{}", parts.concat()).into_bytes();
        text.resize(text.len().next_multiple_of(512), 0);
        let mut records = text.chunks(512);
        let map = read_map::<Problem>(1 << 20, || Ok(records.next().unwrap().try_into().unwrap()));
        assert_eq!(map.unwrap().data.len(), 100);
        assert_eq!(records.next(), None);
    }
}
