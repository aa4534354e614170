//! The type field of a frame.

use std::fmt;

/// What a frame is: `kind (4 bits) | category (8) | procedure (12) | version (8)`.
///
/// The peer chooses the number, so this is an open set with names for the known ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageType(pub u32);

/// The upper four bits of a [`MessageType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Host to guest.
    Request,
    /// Guest to host, with the id of a request.
    Response,
    /// Guest to host, unasked.
    Notification,
    /// None of the three.
    Other(u8),
}

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl MessageType {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The procedure's name as the field knows it, for a known request or notification.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

message_types! {
    /// Make a container.
    CREATE = 0x1010_0101, "Create";
    /// Acknowledge a container; it runs with its first [`Self::EXECUTE_PROCESS`].
    START = 0x1010_0201, "Start";
    /// Ask a container (or the utility VM) to stop.
    SHUTDOWN_GRACEFUL = 0x1010_0301, "ShutdownGraceful";
    /// Make a container (or the utility VM) stop.
    SHUTDOWN_FORCED = 0x1010_0401, "ShutdownForced";
    /// Start a process.
    EXECUTE_PROCESS = 0x1010_0501, "ExecuteProcess";
    /// Answered when a process has exited.
    WAIT_FOR_PROCESS = 0x1010_0601, "WaitForProcess";
    /// Send a signal.
    SIGNAL_PROCESS = 0x1010_0701, "SignalProcess";
    /// Change a terminal's size.
    RESIZE_CONSOLE = 0x1010_0801, "ResizeConsole";
    /// Ask for a container's processes or statistics.
    GET_PROPERTIES = 0x1010_0901, "GetProperties";
    /// Add, remove or update a resource.
    MODIFY_SETTINGS = 0x1010_0a01, "ModifySettings";
    /// The first exchange.
    NEGOTIATE_PROTOCOL = 0x1010_0b01, "NegotiateProtocol";
    /// What the agent is doing, as text.
    DUMP_STACKS = 0x1010_0c01, "DumpStacks";
    /// Forget an exited container and remove its files.
    DELETE_CONTAINER_STATE = 0x1010_0d01, "DeleteContainerState";
    /// Declared; no host sends it.
    UPDATE_CONTAINER = 0x1010_0e01, "UpdateContainer";
    /// Declared; no host sends it.
    LIFECYCLE_NOTIFICATION = 0x1010_0f01, "LifecycleNotification";
    /// Log forwarding of a Windows guest.
    MODIFY_SERVICE_SETTINGS = 0x1020_0101, "ModifyServiceSettings";
    /// A container has exited.
    NOTIFICATION = 0x3010_0101, "Notification";
}

impl MessageType {
    /// Request, response or notification.
    pub const fn kind(self) -> Kind {
        match self.0 >> 28 {
            1 => Kind::Request,
            2 => Kind::Response,
            3 => Kind::Notification,
            other => Kind::Other(other as u8),
        }
    }

    /// The type of the response to this, whatever this is.
    pub const fn response(self) -> Self {
        Self(0x2000_0000 | (self.0 & 0x0fff_ffff))
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let request = Self(0x1000_0000 | (self.0 & 0x0fff_ffff));
        match (self.kind(), self.name(), request.name()) {
            (Kind::Response, _, Some(name)) => write!(f, "{name} response"),
            (_, Some(name), _) => f.write_str(name),
            _ => write!(f, "{:#010x}", self.0),
        }
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageType({:#010x}, {self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_keeps_all_but_the_kind() {
        assert_eq!(MessageType::CREATE.response(), MessageType(0x2010_0101));
        assert_eq!(MessageType::NOTIFICATION.response(), MessageType(0x2010_0101));
        assert_eq!(MessageType(0xf123_4567).response(), MessageType(0x2123_4567));
    }

    #[test]
    fn known_and_unknown_types_have_a_text() {
        assert_eq!(MessageType::CREATE.to_string(), "Create");
        assert_eq!(MessageType::CREATE.response().to_string(), "Create response");
        assert_eq!(MessageType(0x1010_7701).to_string(), "0x10107701");
        assert_eq!(MessageType::NOTIFICATION.kind(), Kind::Notification);
        assert_eq!(MessageType(0).kind(), Kind::Other(0));
    }
}
