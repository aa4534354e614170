//! The statements about a host's bridge, numbered as in the protocol's description, and the guest
//! that the harness plays for them.
//!
//! Each check is a run of the host, or several: the scripted guest does otherwise than a right one
//! at one point, and what the host does then is judged. What holds for every request is watched in
//! all of them. Of a host in a box one sees the bridge, the stdio ports, whether it closes them, and,
//! where it is a program that was started here, how it ends and what it says.
//!
//! | module               | what it holds                                        |
//! |----------------------|------------------------------------------------------|
//! | `reach`              | how a host is reached: started, or listening already |
//! | `script`             | what the guest does otherwise than a right one       |
//! | `play`, `process`    | the guest of one run, and its processes              |
//! | `record`, `observer` | what the host has done, and what holds for all of it |
//! | `session`            | runs, and what is told of them                       |
//! | the others           | the checks                                           |

mod containers;
mod documents;
mod frames;
mod losses;
mod negotiation;
mod observer;
mod play;
mod process;
mod reach;
mod record;
mod script;
mod session;
mod stdio;

pub use reach::{BRIDGE, EXIT_LINE, HostAddress, HostReach, RUN, SOCKETS};
pub use session::HostSession;

use crate::statement::{Statement, statements};

/// The defined capabilities of a right guest.
pub(crate) fn all_defined() -> serde_json::Value {
    script::capabilities()["GuestDefinedCapabilities"].take()
}

/// All of them, in order.
pub const STATEMENTS: &[Statement<HostSession>] = statements! {
    1 "The host listens for the bridge at port 0x40000000, and serves one connection" [] => negotiation::listens;
    2 "The first frame is NegotiateProtocol, type 0x10100b01, with id 0" [] => negotiation::first;
    3 "It asks for versions 4 to 4, with a ContainerId and a GUID as ActivityId" [] => negotiation::versions;
    4 "Nothing else is sent before the negotiation is answered" [] => negotiation::waits;
    5 "A Version other than 4 makes the host give up" [] => negotiation::version;
    6 "A refused negotiation makes it give up, with the guest's message" [] => negotiation::refused;
    7 "GuestDefinedCapabilities may be null or {}" [] => negotiation::empty_capabilities;
    8 "RuntimeOsType is read in either case, and its absence means Windows" [] => negotiation::system;
    9 "SendHostCreateMessage is followed by a Create of the machine, SendHostStartMessage by a Start too" [] => negotiation::machine;
    10 "On a connection that is not the first neither is sent" [] => losses::no_second_create;
    11 "Ids are 0, 1, 2 and so on, over all connections of a bridge" [] tolerated "guests repeat whatever id they are given" => frames::ids;
    12 "Headers are little-endian, and the size counts the header" [] => frames::header;
    13 "Every request has a ContainerId and a GUID as ActivityId" [] => frames::envelope;
    14 "otsc is left out, or is an object with a valid traceparent" [] tolerated "guests begin a trace of their own" => frames::trace;
    15 "Responses are matched by their ids, in whatever order they come" [] => frames::order;
    16 "A response of type 0x20000000 with a valid id is taken" [] => frames::bare_type;
    17 "A response with an unknown id ends the bridge" [] => frames::unknown_id;
    18 "A response without ActivityId is taken" [] => frames::no_activity;
    19 "A response that is no JSON fails its request, and ends the bridge" [] => frames::no_json;
    20 "A size below 16 or above 65536 ends the bridge; 65536 is taken" [] => frames::sizes;
    21 "A frame that is neither response nor notification ends the bridge" [] => frames::kinds;
    22 "A notification of a type other than 0x30100101 ends the bridge" [] => frames::other_notification;
    23 "A notification for a known container tells its exit, whatever its Type" [] => containers::notification_types;
    24 "One that comes before the answer to the init's wait does not cost the exit code" [] => containers::notified_first;
    25 "A payload may end in a newline, or not" [] => frames::newline;
    26 "ContainerConfig, ProcessParameters and Query are strings that hold JSON; Request is an object" [] => documents::strings;
    27 "A process is asked for when its stdio ports are listened on" [] => stdio::listens_first;
    28 "Stdio ports begin at 0x40000001, are used once, and come as stdin, stdout, stderr" [] tolerated "guests dial whatever port they are given" => stdio::ports;
    29 "A Linux guest is given VsockStdioRelaySettings alone, with exactly the streams that are wanted" [] => stdio::relay_settings;
    30 "A stdio port takes one connection and is closed then" [] => stdio::one_connection;
    31 "An output that has ended is closed at once, without waiting for the exit code" [] => stdio::closes_outputs;
    32 "Outputs are not closed while the process runs" [] => stdio::keeps_outputs;
    33 "The end of the input half-closes stdin, which is not closed before the exit" [] tolerated "guests see the end of the input either way" => stdio::half_closes;
    34 "Every process that was started is waited for, without limit" [] => documents::waits;
    35 "A wait that is answered 0x80070490 means that the process has exited" [] => containers::gone_when_waited;
    36 "A signal that is answered 0x80070490 was not delivered, which is no failure" [] => containers::gone_when_signalled;
    37 "A kill has no Options" [] tolerated "signal 9 kills as well" => documents::kill;
    38 "OciProcess is left out for an init, and is there for every further process" [] => documents::oci_process;
    39 "Layers and networks come before Create, Create before Start, Start before the init" [] => documents::order;
    40 "A request that is not answered for 300 s ends the bridge, a wait does not" [] tolerated "a guest does not notice" => losses::long_silence;
    41 "A shutdown is given up after 30 s, the bridge is not; the late answer is passed over" [] => containers::slow_shutdown;
    42 "A shutdown may be answered 0xC037010E" [] => containers::shutdown_of_nothing;
    43 "The end of the connection fails what is pending, and ends all containers" [] => losses::lost;
    44 "A migrating host keeps what is pending over a lost connection, and negotiates again" [] => losses::resumes;
    45 "On a migration's destination ids and ports go on from the source's" [] => losses::destination;
    46 "Stacks, deletion, networks and log forwarding are asked of guests that have the capability" [] => negotiation::gated;
    47 "The removal of a disk's mount is followed by that of the SCSI device" [] => documents::unplugs;
    48 "The entropy port gives 512 bytes and closes" [] => losses::entropy;
    49 "The log port takes any fields, and text that is no JSON" [] => losses::log;
    50 "A Windows guest is told of HvSocket first" [] => negotiation::windows;
};
