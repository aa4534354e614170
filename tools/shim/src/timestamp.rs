//! Points in time, as protobuf has them.

use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

/// A point in time as a message's field.
pub(crate) fn field(time: Option<SystemTime>) -> MessageField<Timestamp> {
    time.map(|time| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
            ..Timestamp::default()
        }
    })
    .into()
}

/// Now, as a message's field.
pub(crate) fn now() -> MessageField<Timestamp> {
    field(Some(SystemTime::now()))
}
