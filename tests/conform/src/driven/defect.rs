//! What can be wrong with a host, and which statements tell.

/// A broken host.
#[derive(Clone, Copy, Debug)]
pub struct Broken {
    /// What is wrong.
    pub defect: Defect,
    /// In words.
    pub what: &'static str,
    /// The statements that do not hold then, and no others.
    pub told_by: &'static [u32],
}

macro_rules! defects {
    ($($name:ident $what:literal => [$($id:literal)*];)*) => {
        /// What is wrong with a host.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "`BROKEN` has a sentence for each")]
        pub enum Defect { $($name),* }

        /// All defects.
        pub const BROKEN: &[Broken] = &[$(
            Broken { defect: Defect::$name, what: $what, told_by: &[$($id),*] }
        ),*];
    };
}

defects! {
    ServesTwo "negotiates with every connection at once" => [1];
    AsksFirst "asks for stacks before it negotiates" => [2];
    WideVersions "asks for versions 1 to 10" => [3];
    Pipelines "sends a request right behind the negotiation" => [4];
    AnyVersion "takes whatever version the guest chose" => [5];
    IgnoresRefusal "goes on after a refused negotiation" => [6];
    NeedsCapabilities "closes on a guest without defined capabilities" => [7];
    ExactSystem "knows Linux only when it is written so" => [8];
    AbsentIsLinux "takes a guest that does not name its system for Linux" => [8 50];
    NoMachineCreate "does not create the machine that wants it" => [9];
    CreatesAgain "creates the machine on every connection" => [10];
    EvenIds "counts ids by two" => [11];
    ReusesIds "gives each connection ids from 0 on" => [11];
    BigEndian "writes headers in the other byte order" => [12];
    SizeWithoutHeader "the size leaves the header out" => [12];
    WrongType "asks for properties with a type that there is not" => [12];
    NoActivity "has no ActivityId" => [13];
    BracedActivity "writes ActivityId in braces" => [13];
    PlainTrace "has an otsc that is text" => [14];
    InOrderOnly "closes on answers in another order" => [15 44];
    ExactTypes "closes on answers whose type is not the request's" => [16];
    PassesOverUnknownIds "passes over answers to nothing" => [17];
    NeedsActivity "closes on answers without ActivityId" => [18];
    PassesOverBadJson "takes an answer that is no JSON for a success" => [19];
    CrashesOnBadJson "crashes on an answer that is no JSON" => [19];
    SmallFrames "closes on answers of 65536 bytes" => [20];
    LargeFrames "takes answers of 65537 bytes" => [20];
    PassesOverKinds "passes over frames that are no answers" => [21];
    PassesOverNotifications "passes over notifications of other types" => [22];
    UnexpectedOnly "closes on notifications of other Types" => [23];
    NotificationIsExit "takes a notification for the answer to the init's wait" => [24];
    NoNewlines "closes on answers that end in a newline" => [25];
    InlineDocuments "puts ContainerConfig into Create as an object" => [26];
    ListensLate "listens on stdio ports after it has asked for the process" => [27];
    OtherPorts "begins stdio ports at 0x40000101" => [28];
    BothSettings "sends StdioRelaySettings too" => [29];
    KeepsListening "listens on stdio ports for ever" => [30];
    KeepsOutputs "closes ended outputs seconds later" => [31];
    ClosesOutputs "closes outputs at once" => [32];
    ClosesInput "closes stdin in full when the input ends" => [33];
    ShortWaits "waits for a minute, and not again" => [34];
    GoneIsFailure "fails when a process that is waited for is gone" => [35];
    UndeliveredIsFailure "fails when a signal was not delivered" => [36];
    KillWithOptions "kills with signal 9 in Options" => [37];
    ProcessForInit "gives the init an OciProcess" => [38];
    NoStart "does not send Start" => [39];
    LayersLate "combines layers after Create" => [39];
    UnknownIsFailure "fails when a container to shut down is unknown" => [42];
    HangsOnEnd "waits on when the connection ends" => [43 44];
    SucceedsOnEnd "takes the end of the connection for success" => [43];
    NoSecondNegotiation "does not negotiate on a new connection" => [44];
    Ungated "asks for what the guest does not have" => [46];
    KeepsDevices "does not remove SCSI devices" => [47];
}
