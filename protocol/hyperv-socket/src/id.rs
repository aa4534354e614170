//! The two GUIDs of a Hyper-V socket address, and how a vsock port becomes the second.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Which partition a Hyper-V socket address means: a VM's runtime id, or one of the constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(pub Uuid);

impl VmId {
    /// Any partition; only to listen. The zero GUID.
    pub const WILDCARD: Self = Self(Uuid::nil());
    /// Every partition.
    pub const BROADCAST: Self = Self(Uuid::max());
    /// Any child of this partition; only to listen.
    pub const CHILDREN: Self = Self(Uuid::from_u128(0x90db8b89_0d35_4f79_8ce9_49ea0ac8b7cd));
    /// This partition itself.
    pub const LOOPBACK: Self = Self(Uuid::from_u128(0xe0e16197_dd56_4a10_9195_5ee7a155a838));
    /// The partition that hosts this one.
    pub const PARENT: Self = Self(Uuid::from_u128(0xa42e7cda_d03f_480c_9cc2_a4de20abb878));
    /// The host of a silo (a Windows container without a VM).
    pub const SILO_HOST: Self = Self(Uuid::from_u128(0x36bd0c5c_7276_4223_88ba_7d03b654c568));
}

/// Which service of a partition a Hyper-V socket address means.
///
/// Linux guests know 32-bit ports instead; a fixed template maps them into service ids.
///
/// ```
/// use hyperv_socket::ServiceId;
///
/// let service = ServiceId::from_port(0x4000_0001);
/// assert_eq!(service.to_string(), "40000001-facb-11e6-bd58-64006a7986d3");
/// assert_eq!(service.port(), Some(0x4000_0001));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub Uuid);

impl ServiceId {
    /// The template's `Data1`, its first 32 bits, is where the port goes.
    const TEMPLATE: u128 = 0x00000000_facb_11e6_bd58_64006a7986d3;
    const PORT_SHIFT: u32 = 96;

    /// The service id under which a Linux guest's vsock port `port` is known.
    pub const fn from_port(port: u32) -> Self {
        Self(Uuid::from_u128(((port as u128) << Self::PORT_SHIFT) | Self::TEMPLATE))
    }

    /// The vsock port this id stands for; `None` if it is not made from the template.
    pub fn port(&self) -> Option<u32> {
        let port = (self.0.as_u128() >> Self::PORT_SHIFT) as u32;
        (*self == Self::from_port(port)).then_some(port)
    }
}

macro_rules! text_of_a_guid {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

text_of_a_guid!(VmId);
text_of_a_guid!(ServiceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_becomes_the_first_eight_digits_of_its_service_id() {
        for (port, service) in [
            (1, "00000001-facb-11e6-bd58-64006a7986d3"),
            (109, "0000006d-facb-11e6-bd58-64006a7986d3"),
            (564, "00000234-facb-11e6-bd58-64006a7986d3"),
            (0x4000_0000, "40000000-facb-11e6-bd58-64006a7986d3"),
            (u32::MAX, "ffffffff-facb-11e6-bd58-64006a7986d3"),
        ] {
            assert_eq!(ServiceId::from_port(port).to_string(), service);
            assert_eq!(service.parse::<ServiceId>().unwrap().port(), Some(port));
        }
    }

    #[test]
    fn a_service_id_of_another_family_has_no_port() {
        let gcs: ServiceId = "acef5661-84a1-4e44-856b-6245e69f4620".parse().unwrap();
        assert_eq!(gcs.port(), None);
    }

    #[test]
    fn well_known_partitions_have_their_documented_ids() {
        for (vm, text) in [
            (VmId::WILDCARD, "00000000-0000-0000-0000-000000000000"),
            (VmId::BROADCAST, "ffffffff-ffff-ffff-ffff-ffffffffffff"),
            (VmId::CHILDREN, "90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd"),
            (VmId::LOOPBACK, "e0e16197-dd56-4a10-9195-5ee7a155a838"),
            (VmId::PARENT, "a42e7cda-d03f-480c-9cc2-a4de20abb878"),
            (VmId::SILO_HOST, "36bd0c5c-7276-4223-88ba-7d03b654c568"),
        ] {
            assert_eq!(vm.to_string(), text);
        }
    }
}
