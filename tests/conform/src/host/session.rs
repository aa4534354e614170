//! The harness as a guest: runs against a host, and what can be told of them.

use std::rc::Rc;
use std::time::Duration;

use linkspan_protocol::MessageType;
use tokio::task::JoinSet;

use super::play::{Limits, play};
use super::reach::HostReach;
use super::record::{Closed, Record};
use super::script::Script;
use crate::run::Harness;
use crate::statement::{Need, Profile};
use crate::transcript::{Entry, Transcript, Way};
use crate::verdict::{Checked, Stop, ensure};

/// How long a host has to close an output that has ended.
const CLOSE: Duration = Duration::from_secs(2);

/// The same, where it is known not to.
const SOON: Duration = Duration::from_millis(100);

/// One host under the harness.
#[derive(Debug)]
pub struct HostSession {
    reach: HostReach,
    profile: Profile,
    /// How long the host may do nothing.
    pub answer: Duration,
    /// How long a check may take.
    pub(crate) each: Duration,
    statement: u32,
    transcript: Transcript,
    violations: Vec<(u32, String)>,
    /// The run with a right guest.
    plain: Option<Rc<Plain>>,
}

#[derive(Debug)]
struct Plain {
    record: Record,
    entries: Vec<Entry>,
    violations: Vec<(u32, String)>,
}

impl HostSession {
    /// A session that has played nothing yet.
    pub fn new(reach: HostReach, profile: Profile) -> Self {
        Self {
            reach,
            profile,
            answer: Duration::from_secs(10),
            each: Duration::from_secs(60),
            statement: 0,
            transcript: Transcript::default(),
            violations: Vec::new(),
            plain: None,
        }
    }

    pub(super) fn is_hardened(&self) -> bool {
        self.profile == Profile::Hardened
    }

    pub(super) fn is_spawned(&self) -> bool {
        matches!(self.reach, HostReach::Spawn(_))
    }

    /// Whether a half-closed socket can be told from one that has closed.
    pub(super) fn tells_half_closed(&self) -> bool {
        match &self.reach {
            HostReach::Spawn(_) => true,
            HostReach::Connect(address) => address.tells_half_closed(),
        }
    }

    /// Fails to go on unless a check may take so long.
    pub(super) fn takes(&self, long: Duration) -> Checked {
        if self.each < long {
            let seconds = long.as_secs();
            let text = format!("it takes {seconds} s: give it an --each-timeout of so much");
            return Err(Stop::Skip(text));
        }
        Ok(())
    }

    /// A host that has left outputs open once is not waited for each time.
    fn limits(&self) -> Limits {
        let slow = self
            .plain
            .as_ref()
            .is_some_and(|plain| plain.violations.iter().any(|(statement, _)| *statement == 31));
        let close = if slow { SOON } else { CLOSE };
        Limits { answer: self.answer, close }
    }

    /// Plays a run, unless it is known that nothing comes of it.
    pub(super) async fn run(&mut self, script: Script) -> Checked<Record> {
        // What the first run has shown is no better in another.
        self.plain().await?;
        let (record, violations) =
            play(&self.reach, script, self.limits(), &mut self.transcript).await;
        self.violations.extend(violations);
        match &record.unreachable {
            Some(why) => Err(Stop::fail(format!("the host could not be reached: {why}"))),
            None => Ok(record),
        }
    }

    /// Plays runs at the same time: of those that take long. Each is judged as it ends, and those
    /// that still run are given up with the first that fails.
    pub(super) async fn run_each(
        &mut self,
        scripts: Vec<Script>,
        judge: impl Fn(&Record) -> Checked,
    ) -> Checked {
        let (reach, limits) = (self.reach.clone(), self.limits());
        let mut tasks = JoinSet::new();
        for script in scripts {
            let reach = reach.clone();
            tasks.spawn(async move {
                let mut transcript = Transcript::default();
                let played = play(&reach, script, limits, &mut transcript).await;
                (played, transcript)
            });
        }
        while let Some(played) = tasks.join_next().await {
            let ((record, violations), transcript) =
                played.map_err(|error| Stop::fail(error.to_string()))?;
            self.transcript.replay(transcript.entries());
            self.violations.extend(violations);
            if let Some(why) = &record.unreachable {
                return Err(Stop::fail(format!("the host could not be reached: {why}")));
            }
            judge(&record)?;
        }
        Ok(())
    }

    /// The run with a right guest; it is played once.
    pub(super) async fn plain(&mut self) -> Checked<Record> {
        let plain = match &self.plain {
            Some(plain) => Rc::clone(plain),
            None => {
                let mut transcript = Transcript::default();
                let script = Script::new("a right guest");
                let (mut record, mut violations) =
                    play(&self.reach, script, self.limits(), &mut transcript).await;
                violations.append(&mut record.violations);
                let entries = transcript.entries().to_vec();
                self.violations.extend(violations.clone());
                Rc::clone(self.plain.insert(Rc::new(Plain { record, entries, violations })))
            }
        };
        // Each of them is known by now, and is told again only where it belongs.
        let own = plain.violations.iter().filter(|(id, _)| *id == self.statement);
        let own: Vec<_> = own.cloned().collect();
        // What came after it is of no interest.
        let last = plain.entries.iter().rposition(|entry| {
            own.iter().any(|(_, text)| entry.way == Way::Event && entry.bytes == text.as_bytes())
        });
        let end = last.map_or(plain.entries.len(), |last| last + 1);
        self.transcript.replay(&plain.entries[..end]);
        self.violations.extend(own);
        if plain.record.lost && self.statement != 12 {
            return Err(Stop::Skip("spoiled by what statement 12 is about".into()));
        }
        match &plain.record.unreachable {
            Some(why) if self.statement == 1 => Err(Stop::fail(why)),
            Some(why) => Err(Stop::Skip(why.clone())),
            None => Ok(plain.record.clone()),
        }
    }

    /// The run with a right guest, in which the host has asked for something of a kind.
    pub(super) async fn plain_with(&mut self, kind: MessageType) -> Checked<Record> {
        let plain = self.plain().await?;
        match plain.has(kind) {
            true => Ok(plain),
            false => Err(Stop::Skip(format!("the host did not send {kind}"))),
        }
    }

    /// Plays a run that is to make no difference to the host: it does all that it does with a right
    /// guest.
    pub(super) async fn goes_on(&mut self, script: Script) -> Checked<Record> {
        let plain = self.plain().await?;
        let name = script.name;
        let run = self.run(script).await?;
        if run.deviated.is_none() {
            return Err(Stop::Skip(format!("the host did not come to where {name} would matter")));
        }
        does_all(&run, &plain)?;
        Ok(run)
    }

    /// Plays a run that is to end the bridge.
    pub(super) async fn terminates(&mut self, script: Script) -> Checked<Record> {
        let name = script.name;
        let run = self.run(script).await?;
        let Some((_, at)) = run.deviated else {
            return Err(Stop::Skip(format!("the host did not come to where {name} would matter")));
        };
        if let Some(request) = run.afterwards().first() {
            return Err(Stop::fail(format!(
                "after {name} the host sends {}",
                request.message_type
            )));
        }
        ensure!(run.closed == Closed::ByHost, "the host keeps the bridge after {name}");
        ensure!(run.closed_at >= Some(at), "the host has closed the bridge before {name}");
        if let Some(program) = &run.program {
            ensure!(!program.success, "the program ends in success after {name}");
            ensure!(program.status.is_some(), "the program does not end after {name}");
            let words = run.words();
            ensure!(!self.is_hardened() || !program.crashed, "{name} crashes the program: {words}");
        }
        Ok(run)
    }
}

/// Fails unless a run has all that another has.
pub(super) fn does_all(run: &Record, plain: &Record) -> Checked {
    let counts = run.counts();
    for (kind, wanted) in plain.counts() {
        let count = counts.get(&kind).copied().unwrap_or_default();
        let words = run.words();
        ensure!(
            count >= wanted,
            "the host does not go on: {count} of {wanted} {kind} have come. {words}"
        );
    }
    if let (Some(program), Some(before)) = (&run.program, &plain.program)
        && before.success
    {
        ensure!(program.success, "the program does not end in success: {}", run.words());
    }
    Ok(())
}

impl Harness for HostSession {
    const SIDE: &'static str = "host";

    fn profile(&self) -> Profile {
        self.profile
    }

    fn begin(&mut self, statement: u32) {
        self.statement = statement;
        self.transcript = Transcript::default();
    }

    fn lacks(&self, _needs: &[Need]) -> Option<String> {
        None
    }

    fn give_up(&mut self) {
        self.transcript.note("the run is given up");
    }

    fn violations(&mut self) -> Vec<(u32, String)> {
        std::mem::take(&mut self.violations)
    }

    fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    fn describe(&self) -> String {
        self.reach.describe()
    }
}
