//! Identities of images that depend on what they hold and on nothing else.

/// A 128-bit FNV-1a hash over words: tells images apart, and protects nothing.
pub(crate) struct Fingerprint(u128);

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mixed = self.0 ^ u128::from(u64::from_le_bytes(word));
            self.0 = mixed.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    /// Marked as made by hashing (version 8, for own schemes).
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let mut uuid = self.0.to_be_bytes();
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}
