//! The vsock ports that have a meaning. The guest dials all of them; the host listens.

/// The host writes [`ENTROPY_LEN`] random bytes to whoever connects here, and closes.
pub const ENTROPY: u32 = 1;

/// How many bytes a host gives on [`ENTROPY`].
pub const ENTROPY_LEN: usize = 512;

/// The guest's log: JSON objects with `time`, `level` and `msg`, one a line.
pub const LOG: u32 = 109;

/// A 9p server with the directories that the host shares.
pub const PLAN9: u32 = 564;

/// The bridge.
pub const BRIDGE: u32 = 0x4000_0000;

/// The first port that a host may give to a process's stdio; each further stream has the next.
pub const FIRST_STDIO: u32 = 0x4000_0001;
