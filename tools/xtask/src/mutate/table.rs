//! The mutations.

use super::{Mutation, Side};

/// Rows: `name side "what" "file" "from" => "to", told by`.
macro_rules! mutations {
    ($($name:ident $side:ident $what:literal $file:literal $from:literal => $to:literal, $told:literal;)*) => {
        /// All of them.
        pub(crate) const MUTATIONS: &[Mutation] = &[$(
            Mutation {
                name: stringify!($name),
                side: Side::$side,
                what: $what,
                file: $file,
                from: $from,
                to: $to,
                told_by: $told,
            }
        ),*];
    };
}

mutations! {
    SizeOffBy16 Guest "leaves the header out of the size" "protocol/src/frame.rs"
        "u32::try_from(out.len() - start)" => "u32::try_from(out.len() - start - HEADER_LEN)", 5;
    AnswersBeforeNegotiation Guest "works on requests before it has negotiated" "protocol/src/server.rs"
        "negotiates == self.negotiated" => "(negotiates && self.negotiated)", 19;
    LosesActivity Guest "does not repeat ActivityId in failures" "protocol/src/server.rs"
        "                result,\n                activity_id," => "                result,\n                activity_id: String::new(),", 16;
    NoRecords Guest "leaves the error records out" "protocol/src/server.rs"
        "if records.is_empty() {" => "if !records.is_empty() {", 33;
    DropsHeld Guest "forgets what came due while the host was away" "protocol/src/server.rs"
        "self.outgoing.append(&mut self.held);" => "self.held.clear();", 88;
    DroppedWakeUp Guest "does not wake the writer for a notification" "guest/src/agent.rs"
        "        bridge.server.borrow_mut().notify(&notification);\n        bridge.outgoing.notify_one();" => "        bridge.server.borrow_mut().notify(&notification);", 84;
    ExitBeforeOutput Guest "tells an exit while output is still on its way" "guest/src/process.rs"
        "tasks::wait(\"its output to reach the host\", relay.finish()).await;" => "tasks::spawn(\"its output\", relay.finish());", 62;
    SignalOffByOne Guest "tells a death by signal s as 127+s" "guest/src/process.rs"
        "128 + signal as u32" => "127 + signal as u32", 71;
    SettlesUnreported Guest "forgets processes that were not reported" "guest/src/process.rs"
        "self.reported.get() && self.waiters.get() == 0" => "self.waiters.get() == 0", 87;
    SecondsForMilliseconds Guest "takes a wait's milliseconds for seconds" "guest/src/process.rs"
        "Duration::from_millis(milliseconds.into())" => "Duration::from_secs(milliseconds.into())", 70;
    DialsStderrFirst Guest "dials stderr before stdout" "guest/src/stdio.rs"
        "            (\"stdout\", self.stdout, &mut streams.stdout),\n            (\"stderr\", self.stderr, &mut streams.stderr)," => "            (\"stderr\", self.stderr, &mut streams.stderr),\n            (\"stdout\", self.stdout, &mut streams.stdout),", 56;
    DialsUnwanted Guest "dials a port whose stream is not wanted" "guest/src/stdio.rs"
        "parameters.create_std_err_pipe.then_some(stdio.stderr)" => "Some(stdio.stderr).filter(|&port| port != 0)", 57;
    KeepsInput Guest "does not pass the end of an input on" "guest/src/relay.rs"
        "        let len = from.read(&mut buffer).await?;\n        if len == 0 {\n            return Ok(());" => "        let len = from.read(&mut buffer).await?;\n        if len == 0 {\n            std::future::pending::<()>().await;", 59;
    LosesByte Guest "loses a byte of large pieces of output" "guest/src/relay.rs"
        "Ok(bytes) => to.write_all(bytes).await?," => "Ok(bytes) => to.write_all(&bytes[usize::from(bytes.len() > 60_000)..]).await?,", 60;
    ClosesInFull Guest "closes an ended output in both directions" "guest/src/relay/outlet.rs"
        "Stream::shutdown(stream, std::net::Shutdown::Write)?;" => "Stream::shutdown(stream, std::net::Shutdown::Both)?;", 61;
    SwapsSize Guest "takes a terminal's rows for its columns" "guest/src/dispatch.rs"
        "terminal.resize(request.height, request.width)" => "terminal.resize(request.width, request.height)", 80;
    ForgetsSignal Guest "does not remember that the init was told to end" "guest/src/container.rs"
        "        if pid == self.init.pid() {\n            self.will_end_by(number);" => "        if pid != self.init.pid() {\n            self.will_end_by(number);", 86;
    GracefulIsForced Guest "kills in place of shutting down" "guest/src/dispatch.rs"
        "container()?.shut_down(15)?;" => "container()?.shut_down(9)?;", 82;
    NotifiesTwice Guest "tells of an exit with every answer to a wait" "guest/src/container.rs"
        "!self.notified.replace(true)" => "!self.notified.get()", 84;
    LosesCreatesActivity Guest "notifies without the ActivityId of Create" "guest/src/container.rs"
        "activity_id: self.activity_id.clone()," => "activity_id: String::new(),", 85;
    KeepsDeleted Guest "keeps the id of a deleted container" "guest/src/container.rs"
        "        uvm.forget(&self.id);\n        self.abandoned" => "        self.abandoned", 48;
    RemovesByDefault Guest "takes a change without RequestType for a Remove" "guest/src/resource.rs"
        "request.modify.unwrap_or(ModifyType::Add)" => "request.modify.unwrap_or(ModifyType::Remove)", 98;
    WrongCode Guest "answers for unknown processes with the code of unknown containers" "guest/src/fault.rs"
        "Error::NoProcess(_) | Error::NotFound(_) => HResult::ELEMENT_NOT_FOUND" => "Error::NoProcess(_) | Error::NotFound(_) => HResult::SYSTEM_NOT_FOUND", 75;
    PolicyTwice Guest "takes a second security policy" "guest/src/resource/security_policy.rs"
        "uvm.has_policy.set(true);" => "uvm.has_policy.set(false);", 108;

    CountsByTwo Host "counts ids by two" "protocol/src/client.rs"
        "self.next_id += 1;" => "self.next_id += 2;", 11;
    PassesOverUnknown Host "passes over answers to nothing" "protocol/src/client.rs"
        "false => Err(Violation::UnknownId { id })," => "false => Ok(()),", 17;
    ForgetsPending Host "forgets what is pending with a lost connection" "protocol/src/client.rs"
        "        self.decoder = Decoder::new(HOST_LIMIT);\n        self.closed.is_none()" => "        self.decoder = Decoder::new(HOST_LIMIT);\n        self.pending.clear();\n        self.closed.is_none()", 44;
    LimitOffByOne Host "refuses the largest frame that is allowed" "protocol/src/frame.rs"
        "(HEADER_LEN..=self.limit)" => "(HEADER_LEN..self.limit)", 20;
    AnyVersion Host "takes whatever version the guest chose" "host/src/bridge.rs"
        "if response.version != VERSION {" => "if response.version == 0 {", 5;
    ExactSystem Host "takes windows for another system when it is written otherwise" "host/src/bridge.rs"
        "system.eq_ignore_ascii_case(\"windows\")" => "system == \"windows\"", 8;
    HangsOnLoss Host "waits for a guest for ever" "host/src/bridge.rs"
        "const RECONNECT: Duration = Duration::from_secs(15);" => "const RECONNECT: Duration = Duration::from_secs(15_000);", 43;
    ShortWait Host "waits for a process with a limit" "host/src/process.rs"
        "timeout_in_ms: INFINITE };" => "timeout_in_ms: INFINITE - 1 };", 34;
    GoneIsFailure Host "fails when a process that it waits for is gone" "host/src/process.rs"
        "                Ok(ExitStatus { code: 0, oom_kills: 0 })" => "                Err(error)", 35;
    UndeliveredIsFailure Host "fails when a signal was not delivered" "host/src/process.rs"
        "Err(error) if error.code() == Some(HResult::ELEMENT_NOT_FOUND) => Ok(false)," => "", 36;
    KillsWithOptions Host "kills with a signal in Options" "host/src/process.rs"
        "self.send_signal(None, 9).await" => "self.send_signal(Some(SignalOptions::Linux { signal: 9 }), 9).await", 37;
    ClosesInput Host "closes stdin in both directions" "host/src/process.rs"
        "stdin.shutdown(Shutdown::Write)" => "stdin.shutdown(Shutdown::Both)", 33;
    ListensForMany Host "takes any number of connections on a stdio port" "host/src/process.rs"
        "        _ => Accept::Once,\n    };\n    let mut stdin = uvm.listen_for_stdio(stdio.stdin, Accept::Once)" => "        _ => Accept::Many,\n    };\n    let mut stdin = uvm.listen_for_stdio(stdio.stdin, Accept::Many)", 30;
    PortsBackwards Host "gives stderr a port below stdout's" "host/src/process.rs"
        "    let mut stdout = uvm.listen_for_stdio(stdio.stdout, outputs).await?;\n    let mut stderr = uvm.listen_for_stdio(stdio.stderr, outputs).await?;" => "    let mut stderr = uvm.listen_for_stdio(stdio.stderr, outputs).await?;\n    let mut stdout = uvm.listen_for_stdio(stdio.stdout, outputs).await?;", 28;
    NoStart Host "does not send Start" "host/src/container.rs"
        "        self.uvm.bridge.call(&self.id, &StartContainer {}, what).await?;" => "        let _ = (what, StartContainer {});", 39;
    UnknownIsFailure Host "fails when a container to shut down is unknown" "host/src/container.rs"
        "Some(HResult::SYSTEM_ALREADY_STOPPED | HResult::SYSTEM_NOT_FOUND)" => "Some(HResult::SYSTEM_ALREADY_STOPPED)", 42;
    Ungated Host "deletes the state in guests that have no such request" "host/src/container.rs"
        "match can.delete_container_state_supported {" => "match can.delete_container_state_supported || true {", 46;
    LongShutdown Host "waits a minute for a shutdown" "host/src/container.rs"
        "const SHUTDOWN: Duration = Duration::from_secs(30);" => "const SHUTDOWN: Duration = Duration::from_secs(60);", 41;
    ShortEntropy Host "gives too little entropy" "host/src/boot_ports.rs"
        "stream.write_all(&bytes).await" => "stream.write_all(&bytes[1..]).await", 48;
}
