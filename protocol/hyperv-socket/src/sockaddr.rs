//! The address of a Hyper-V socket, byte for byte, on any platform.
//!
//! | offset | size | field       |                                                            |
//! |-------:|-----:|-------------|------------------------------------------------------------|
//! |      0 |    2 | `Family`    | [`AF_HYPERV`], little-endian                               |
//! |      2 |    2 | `Reserved`  | zero                                                       |
//! |      4 |   16 | `VmId`      | a GUID as Windows keeps it: the first three fields         |
//! |     20 |   16 | `ServiceId` | little-endian (4, 2 and 2 bytes), the last 8 bytes as read |

use uuid::Uuid;

use crate::{ServiceId, VmId};

/// The address family of Hyper-V sockets on Windows.
pub const AF_HYPERV: u16 = 34;
/// The protocol to create such a socket with (`HV_PROTOCOL_RAW`).
pub const HV_PROTOCOL_RAW: i32 = 1;
/// Bytes in a `SOCKADDR_HV`.
pub const SOCKADDR_HV_LEN: usize = 36;

const VM_ID: usize = 4;
const SERVICE_ID: usize = 20;

/// What a `SOCKADDR_HV` says.
///
/// ```
/// use hyperv_socket::{ServiceId, VmId, sockaddr::SockaddrHv};
///
/// let address = SockaddrHv { vm: VmId::PARENT, service: ServiceId::from_port(0x4000_0000) };
/// assert_eq!(address.to_bytes()[20..24], [0x00, 0x00, 0x00, 0x40]);
/// assert_eq!(SockaddrHv::from_bytes(&address.to_bytes()), Some(address));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockaddrHv {
    /// The partition.
    pub vm: VmId,
    /// The service in it.
    pub service: ServiceId,
}

impl SockaddrHv {
    /// The bytes to pass to `bind` and `connect`.
    pub fn to_bytes(&self) -> [u8; SOCKADDR_HV_LEN] {
        let mut bytes = [0; SOCKADDR_HV_LEN];
        bytes[..2].copy_from_slice(&AF_HYPERV.to_le_bytes());
        bytes[VM_ID..SERVICE_ID].copy_from_slice(&self.vm.0.to_bytes_le());
        bytes[SERVICE_ID..].copy_from_slice(&self.service.0.to_bytes_le());
        bytes
    }

    /// Reads what `accept` or `getpeername` filled in; `None` if it is of another family.
    ///
    /// The reserved field is not looked at.
    pub fn from_bytes(bytes: &[u8; SOCKADDR_HV_LEN]) -> Option<Self> {
        let guid = |at: usize| {
            let mut guid = [0; 16];
            guid.copy_from_slice(&bytes[at..at + 16]);
            Uuid::from_bytes_le(guid)
        };
        (u16::from_le_bytes([bytes[0], bytes[1]]) == AF_HYPERV)
            .then(|| Self { vm: VmId(guid(VM_ID)), service: ServiceId(guid(SERVICE_ID)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const PARENT_PORT_0X40000001: [u8; SOCKADDR_HV_LEN] = [
        34, 0,  0, 0,
        // a42e7cda-d03f-480c-9cc2-a4de20abb878
        0xda, 0x7c, 0x2e, 0xa4,  0x3f, 0xd0,  0x0c, 0x48,
        0x9c, 0xc2, 0xa4, 0xde, 0x20, 0xab, 0xb8, 0x78,
        // 40000001-facb-11e6-bd58-64006a7986d3
        0x01, 0x00, 0x00, 0x40,  0xcb, 0xfa,  0xe6, 0x11,
        0xbd, 0x58, 0x64, 0x00, 0x6a, 0x79, 0x86, 0xd3,
    ];

    #[test]
    fn guids_are_laid_out_in_windows_order() {
        let address = SockaddrHv { vm: VmId::PARENT, service: ServiceId::from_port(0x4000_0001) };
        assert_eq!(address.to_bytes(), PARENT_PORT_0X40000001);
        assert_eq!(SockaddrHv::from_bytes(&PARENT_PORT_0X40000001), Some(address));
    }

    #[test]
    fn an_address_of_another_family_is_not_read() {
        let mut bytes = PARENT_PORT_0X40000001;
        bytes[0] = 2;
        assert_eq!(SockaddrHv::from_bytes(&bytes), None);
    }
}
