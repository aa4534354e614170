//! Device-mapper: block devices that are made of others by a table.
//!
//! The kernel takes one message for everything, at `/dev/mapper/control`:
//!
//! ```text
//! 312 bytes   struct dm_ioctl: version, size, flags, device number, name
//!  40 bytes   struct dm_target_spec: first sector, sectors, kind      when a table is loaded,
//!  …          its parameters as text, NUL                             or its status told
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const HEADER: usize = 312;
const SPEC: usize = 40;
/// Bytes of a name, its NUL not among them.
const NAME: usize = 127;

const READ_ONLY: u32 = 1;
const BUFFER_FULL: u32 = 1 << 8;
/// The kernel forgets what it has been told.
const SECURE_DATA: u32 = 1 << 15;
/// Whoever has the device open may go on; with the last of them it goes.
const DEFERRED_REMOVE: u32 = 1 << 17;

mod code {
    use super::HEADER;
    nix::ioctl_readwrite_bad!(call_list, nix::request_code_readwrite!(0xfd, 2, HEADER), u8);
    nix::ioctl_readwrite_bad!(call_create, nix::request_code_readwrite!(0xfd, 3, HEADER), u8);
    nix::ioctl_readwrite_bad!(call_remove, nix::request_code_readwrite!(0xfd, 4, HEADER), u8);
    nix::ioctl_readwrite_bad!(call_suspend, nix::request_code_readwrite!(0xfd, 6, HEADER), u8);
    nix::ioctl_readwrite_bad!(call_load, nix::request_code_readwrite!(0xfd, 9, HEADER), u8);
    nix::ioctl_readwrite_bad!(call_status, nix::request_code_readwrite!(0xfd, 12, HEADER), u8);
}

#[derive(Clone, Copy)]
enum Call {
    List,
    Create,
    Remove,
    Resume,
    Load,
    Status,
}

/// The one line of a device's table.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// `linear`, `verity`, `crypt`, `integrity`.
    pub kind: &'a str,
    /// How long the device is, in sectors of 512 bytes.
    pub sectors: u64,
    /// What the kind wants to know.
    pub parameters: &'a str,
    /// Whether the device refuses writes.
    pub read_only: bool,
}

/// The kernel's device-mapper.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens it.
    ///
    /// # Errors
    /// `NotFound` when the kernel has none, or its module is not loaded.
    pub fn open() -> io::Result<Self> {
        let control = File::options().read(true).write(true).open("/dev/mapper/control")?;
        Ok(Self { control })
    }

    /// Makes a device and returns its minor number: it is `/dev/dm-<minor>`. After a failure there
    /// is none.
    ///
    /// # Errors
    /// The kernel's: `EBUSY` for a name in use, `EINVAL` for a kind that it has not or parameters
    /// that are wrong; `InvalidInput` for a name or kind of the wrong length.
    pub fn create(&self, name: &str, target: Target<'_>) -> io::Result<u64> {
        let flags = if target.read_only { READ_ONLY } else { 0 };
        let mut message = Message::new(name, flags, 0)?;
        self.call(Call::Create, &mut message)?;
        let number = u64::from_ne_bytes(message.field(40));
        let made = self.load(name, target, flags).and_then(|()| {
            let mut message = Message::new(name, 0, 0)?;
            self.call(Call::Resume, &mut message)
        });
        if let Err(error) = made {
            let _ = self.remove(name);
            return Err(error);
        }
        // The kernel's own encoding of a device number in 32 bits.
        Ok(number & 0xff | number >> 12 & 0xf_ff00)
    }

    fn load(&self, name: &str, target: Target<'_>, flags: u32) -> io::Result<()> {
        let Target { kind, sectors, parameters, .. } = target;
        if kind.len() > 15 || parameters.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let room = (SPEC + parameters.len() + 1).next_multiple_of(8);
        let mut message = Message::new(name, flags | SECURE_DATA, room)?;
        message.put(20, &1u32.to_ne_bytes());
        message.put(HEADER + 8, &sectors.to_ne_bytes());
        message.put(HEADER + 24, kind.as_bytes());
        message.put(HEADER + SPEC, parameters.as_bytes());
        self.call(Call::Load, &mut message)
    }

    /// Removes a device; one in use goes when it no longer is. One that is not there is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let mut message = Message::new(name, DEFERRED_REMOVE, 0)?;
        match self.call(Call::Remove, &mut message) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            result => result,
        }
    }

    /// Whether a device is to go as soon as nobody uses it any more.
    ///
    /// # Errors
    /// The kernel's; `ENXIO` when there is no such device.
    pub fn is_leaving(&self, name: &str) -> io::Result<bool> {
        let mut message = Message::new(name, 0, 4096 - HEADER)?;
        self.call(Call::Status, &mut message)?;
        Ok(u32::from_ne_bytes(message.field(28)) & DEFERRED_REMOVE != 0)
    }

    /// What the device's target says of itself.
    ///
    /// # Errors
    /// The kernel's; `ENXIO` when there is no such device.
    pub fn status(&self, name: &str) -> io::Result<String> {
        let mut message = Message::new(name, 0, 4096 - HEADER)?;
        self.call(Call::Status, &mut message)?;
        Ok(message.text(HEADER + SPEC))
    }

    /// The names of all devices.
    ///
    /// # Errors
    /// The kernel's.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut message = Message::new("", 0, 64 << 10)?;
        self.call(Call::List, &mut message)?;
        // Each entry: device number, offset of the next one or 0, name.
        let (mut names, mut at) = (Vec::new(), HEADER);
        while u64::from_ne_bytes(message.field(at)) != 0 {
            names.push(message.text(at + 12));
            match u32::from_ne_bytes(message.field(at + 8)) {
                0 => break,
                next => at += next as usize,
            }
        }
        Ok(names)
    }

    fn call(&self, call: Call, message: &mut Message) -> io::Result<()> {
        let fd = self.control.as_raw_fd();
        let data = message.0.as_mut_ptr();
        // SAFETY: each takes a `struct dm_ioctl` whose size field says how many bytes may be read
        // and written there; it is the vector's length. Nothing in it is a pointer.
        unsafe {
            match call {
                Call::List => code::call_list(fd, data),
                Call::Create => code::call_create(fd, data),
                Call::Remove => code::call_remove(fd, data),
                Call::Resume => code::call_suspend(fd, data),
                Call::Load => code::call_load(fd, data),
                Call::Status => code::call_status(fd, data),
            }
        }?;
        match u32::from_ne_bytes(message.field(28)) & BUFFER_FULL {
            0 => Ok(()),
            _ => Err(io::Error::other("device-mapper has more to say than there is room for")),
        }
    }
}

/// A message. It may have held a key, so it is wiped.
struct Message(Vec<u8>);

impl Message {
    fn new(name: &str, flags: u32, room: usize) -> io::Result<Self> {
        if name.len() > NAME || name.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a device-mapper name"));
        }
        let mut message = Self(vec![0; HEADER + room]);
        let size = u32::try_from(HEADER + room).map_err(io::Error::other)?;
        message.put(0, &4u32.to_ne_bytes());
        message.put(12, &size.to_ne_bytes());
        message.put(16, &(HEADER as u32).to_ne_bytes());
        message.put(28, &flags.to_ne_bytes());
        message.put(48, name.as_bytes());
        Ok(message)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Zeroes where the message has no such place.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let bytes = self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
        bytes.unwrap_or([0; N])
    }

    fn text(&self, at: usize) -> String {
        let rest = self.0.get(at..).unwrap_or_default();
        let text = rest.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.0.fill(0);
        // Nobody reads it again, and yet it is to be written.
        std::hint::black_box(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_fields_where_the_kernel_looks() {
        let message = Message::new("name", READ_ONLY, 8).unwrap();
        assert_eq!(message.0.len(), 320);
        assert_eq!(message.field::<4>(0), 4u32.to_ne_bytes());
        assert_eq!(message.field::<4>(12), 320u32.to_ne_bytes());
        assert_eq!(message.field::<4>(16), 312u32.to_ne_bytes());
        assert_eq!(message.text(48), "name");
        assert_eq!(message.field::<8>(318), [0; 8]);
        assert_eq!(message.text(400), "");
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert!(Message::new(&"x".repeat(127), 0, 0).is_ok());
        for name in ["x".repeat(128), "a\0b".to_owned()] {
            assert!(Message::new(&name, 0, 0).is_err(), "{name:?}");
        }
    }
}
