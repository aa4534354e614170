//! Bitmaps of blocks and inodes: a set bit is in use.

use super::BLOCK;

/// One bitmap block.
pub(crate) struct Bitmap([u8; BLOCK]);

impl Bitmap {
    pub(crate) fn new() -> Self {
        Self([0; BLOCK])
    }

    /// Sets the bits from `start` up to `end`.
    pub(crate) fn set(&mut self, start: u32, end: u32) {
        self.change(start, end, true);
    }

    /// Clears the bits from `start` up to `end`.
    pub(crate) fn clear(&mut self, start: u32, end: u32) {
        self.change(start, end, false);
    }

    fn change(&mut self, start: u32, end: u32, value: bool) {
        let mut bit = start;
        while bit < end {
            let byte = &mut self.0[bit as usize / 8];
            if bit.is_multiple_of(8) && end - bit >= 8 {
                *byte = if value { 0xff } else { 0 };
                bit += 8;
            } else {
                let mask = 1 << (bit % 8);
                if value {
                    *byte |= mask
                } else {
                    *byte &= !mask
                }
                bit += 1;
            }
        }
    }

    /// Number of clear bits.
    pub(crate) fn free(&self) -> u32 {
        self.0.iter().map(|byte| byte.count_zeros()).sum()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
