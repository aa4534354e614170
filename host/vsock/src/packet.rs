//! The header of a vsock packet. Integers are little-endian; the payload follows it in the same chain.
//!
//! | offset | size | field       |                                                            |
//! |-------:|-----:|-------------|------------------------------------------------------------|
//! |      0 |    8 | `src_cid`   | who sends                                                  |
//! |      8 |    8 | `dst_cid`   | to whom; the host is 2                                     |
//! |     16 |    4 | `src_port`  |                                                            |
//! |     20 |    4 | `dst_port`  |                                                            |
//! |     24 |    4 | `len`       | bytes of payload, this header not counted                  |
//! |     28 |    2 | `kind`      | 1: stream                                                  |
//! |     30 |    2 | `operation` | [`Operation`]                                              |
//! |     32 |    4 | `flags`     | of a shutdown: 1 receives no more, 2 sends no more         |
//! |     36 |    4 | `buf_alloc` | bytes the sender of this packet can hold for the stream    |
//! |     40 |    4 | `fwd_cnt`   | bytes it has passed on so far, modulo 2^32                 |

/// Bytes of an encoded [`Header`].
pub(crate) const HEADER_LEN: usize = 44;

/// The only socket type served.
pub(crate) const STREAM: u16 = 1;

/// The host's context id.
pub(crate) const HOST_CID: u64 = 2;

/// Shutdown flag: the sender of the packet will receive no more.
pub(crate) const SHUTDOWN_RECEIVE: u32 = 1;
/// Shutdown flag: the sender of the packet will send no more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;

/// What a packet asks for. Open, for the guest chooses the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation(pub(crate) u16);

impl Operation {
    pub(crate) const REQUEST: Self = Self(1);
    pub(crate) const RESPONSE: Self = Self(2);
    pub(crate) const RESET: Self = Self(3);
    pub(crate) const SHUTDOWN: Self = Self(4);
    pub(crate) const DATA: Self = Self(5);
    pub(crate) const CREDIT_UPDATE: Self = Self(6);
    pub(crate) const CREDIT_REQUEST: Self = Self(7);
}

/// A decoded packet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) operation: Operation,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// Decodes a header. Any bytes are a header; whether it makes sense is for the reader to say.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            operation: Operation(u16_at(30)),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// Encodes the header.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet, addressed as if its destination sent it.
    pub(crate) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            kind: self.kind,
            operation: Operation::RESET,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_encoding_and_fields_sit_where_the_table_says() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: HOST_CID,
            src_port: 0xa1a2_a3a4,
            dst_port: 0xb1b2_b3b4,
            len: 0xc1c2_c3c4,
            kind: STREAM,
            operation: Operation::SHUTDOWN,
            flags: SHUTDOWN_SEND,
            buf_alloc: 0xd1d2_d3d4,
            fwd_cnt: 0xe1e2_e3e4,
        };
        let bytes = header.encode();
        assert_eq!(bytes[0..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[20..24], [0xb4, 0xb3, 0xb2, 0xb1]);
        assert_eq!(bytes[28..32], [1, 0, 4, 0]);
        assert_eq!(bytes[40..44], [0xe4, 0xe3, 0xe2, 0xe1]);
        assert_eq!(Header::decode(&bytes), header);
    }
}
