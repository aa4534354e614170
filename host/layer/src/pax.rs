//! Records of extended tar headers: `length key=value\n`, where the length counts itself and the
//! value may hold any byte, line ends included.

use crate::error::Problem;
use crate::tree::Timestamp;

/// The records of one header, in their order.
#[derive(Debug, Default)]
pub(crate) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Self, Problem> {
        let mut records = Vec::new();
        // Some writers pad the last record with zeros.
        while bytes.first().is_some_and(|&byte| byte != 0) {
            let (record, rest) = split_record(bytes)
                .ok_or(Problem::ExtendedHeader("a record does not have its length"))?;
            let middle = record.iter().position(|&byte| byte == b'=');
            let middle = middle.ok_or(Problem::ExtendedHeader("a record has no value"))?;
            records.push((record[..middle].to_vec(), record[middle + 1..].to_vec()));
            bytes = rest;
        }
        Ok(Self(records))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// The last value of a key; an empty one counts as none.
    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        let (_, value) = self.iter().filter(|(found, _)| *found == key.as_bytes()).last()?;
        (!value.is_empty()).then_some(value)
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number.map(Some).ok_or(Problem::ExtendedHeader("a number does not parse"))
    }

    /// Seconds with a fraction, such as `-1.5`.
    pub(crate) fn time(&self, key: &str) -> Result<Option<Timestamp>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        parse_time(value).map(Some).ok_or(Problem::ExtendedHeader("a time does not parse"))
    }
}

fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    Some((record.get(space + 1..)?.strip_suffix(b"\n")?, rest))
}

fn parse_time(value: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?;
    let (digits, negative) = match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut seconds: i64 = whole.parse().ok()?;
    let nanoseconds = format!("{fraction:0<9}")[..9].parse::<u32>().ok()?;
    if !negative {
        return Some(Timestamp { seconds, nanoseconds });
    }
    seconds = -seconds;
    match nanoseconds {
        0 => Some(Timestamp { seconds, nanoseconds }),
        _ => Some(Timestamp { seconds: seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_line_ends_and_zeros() {
        let records = Records::parse(b"18 key=\n\0=binary\n9 other=1\n").unwrap_err();
        assert!(matches!(records, Problem::ExtendedHeader(_)));
        let records = Records::parse(b"17 key=\n\0=binary\n11 other=1\n").unwrap();
        assert_eq!(records.get("key"), Some(&b"\n\0=binary"[..]));
        assert_eq!(records.number("other").unwrap(), Some(1));
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        for bytes in ["99 key=value\n", "3 k=v\n", "x key=v\n", "0 k=v\n", "2 \n", "12 key=value"] {
            assert!(Records::parse(bytes.as_bytes()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn times_have_fractions_on_both_sides_of_zero() {
        let time = |text: &str| parse_time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("-3"), Some((-3, 0)));
        assert_eq!(time("1e3"), None);
        assert_eq!(time(""), None);
    }
}
