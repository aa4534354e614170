//! Ids for containers that were given none.

use std::fmt::Write;

use rustix::rand::{GetRandomFlags, getrandom};

/// Twelve hexadecimal digits that no other container has.
pub(crate) fn random() -> String {
    let mut bytes = [0_u8; 6];
    if getrandom(&mut bytes, GetRandomFlags::empty()) != Ok(bytes.len()) {
        // Without entropy: unlike others all the same.
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        bytes.copy_from_slice(&now.to_le_bytes()[..6]);
    }
    bytes.iter().fold(String::new(), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })
}
