//! What can be wrong with a simulated guest, and which statements tell.

/// A broken guest.
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
        /// What is wrong with a guest.
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
    SlowRedial "dials again only every 6 s" => [2];
    TalksFirst "talks before it is asked" => [3];
    BigEndian "writes headers in the other byte order" => [4];
    SizeWithoutHeader "the size leaves the header out" => [5];
    WrappedPayload "wraps its documents in an array" => [6];
    NoNewline "takes no newline at the end of a request" => [7];
    LosesPartialHeaders "loses what comes less than a header at a time" => [8];
    BareResponseType "answers everything with type 0x20000000" => [9];
    ShortIds "keeps 32 bits of an id" => [10];
    Interleaves "mixes frames when many are due" => [11];
    HugeStacks "has stacks of 70,000 bytes" => [12];
    SmallRequests "closes on requests above 64 KiB" => [12 13];
    DropsActivity "does not repeat ActivityId" => [16];
    EmptyActivity "writes an empty ActivityId" => [16];
    EmptyError "has an empty ErrorMessage in successes" => [18];
    OldVersion "agrees on versions that end before 4" => [22 24];
    AnyVersion "agrees on versions that begin after 4" => [23];
    NarrowVersion "takes only a range that ends at its version" => [21];
    ForeignSystem "says that it is Windows" => [25];
    NoDefinedCapabilities "leaves GuestDefinedCapabilities out" => [26];
    NoSchemas "knows no schema versions" => [27];
    OldSchemas "knows only an old schema version" => [27];
    WantsCreate "asks for a Create of the machine" => [28];
    ClosesOnBadJson "closes on payloads that are no JSON" => [32];
    NoRecords "leaves the error records out" => [33];
    NegativeLine "has line -1 in error records" => [34];
    FailureWithBody "adds ProcessId to failures" => [35];
    UnsignedResult "writes Result without a sign" => [36];
    AcceptsDuplicates "makes a container again that is there" => [40];
    BurnsIds "keeps the id of a container that it refused" => [41];
    StrictStart "knows no Start for unknown containers" => [46];
    DeletesAnything "deletes what is not there" => [47];
    WrongNotFound "answers processes of unknown containers with 0x80004005" => [50];
    DialsBackwards "dials stderr first" => [56 58];
    DialsUnwanted "dials ports of streams that are not wanted" => [57];
    KeepsStdinOpen "does not pass on the end of stdin" => [59];
    CutsOutput "loses the last part of long outputs" => [60];
    ClosesInFull "closes outputs in both directions" => [61 62];
    ExitsBeforeDrain "tells the exit while output is still unread" => [62];
    LosesStderr "does not show stderr on a terminal" => [65];
    FixedConsole "gives every terminal 24 by 80" => [66 80];
    HidesInit "leaves the init out of the list of processes" => [67 91];
    IgnoresLimits "waits without end whatever the limit" => [70 77];
    PlainSignals "tells a death by signal s as s" => [71 72 73 76 77 82 89];
    OneWaiter "answers only the first of several waits" => [72];
    RemembersAll "does not forget processes" => [74];
    SignalZero "does nothing when no signal is given" => [76];
    SlowShutdown "answers a shutdown when the container has ended" => [82];
    ShutdownAnytime "shuts ended containers down" => [83];
    NoNotification "tells of no exit" => [84 85 86 88];
    TwoNotifications "tells of each exit twice" => [84];
    HasResultInfo "puts a ResultInfo into notifications" => [85];
    AlwaysForced "tells every exit as forced" => [86 88];
    EagerNotification "tells of exits that nobody waited for" => [87];
    LosesUnsent "forgets exits that it could not tell of at once" => [88];
    ForgetsWaits "forgets waits when a connection ends" => [89];
    TakesAnyResource "takes resources that nobody knows" => [96];
    NoStacks "has empty stacks" => [110];
    PolicyAgain "takes a second policy" => [108];
}
