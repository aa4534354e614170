//! One run: statement by statement, within time limits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::timeout;

use crate::host::HostSession;
use crate::session::Session;
use crate::statement::{Need, Profile, Statement};
use crate::transcript::Transcript;
use crate::verdict::{Stop, Verdict};

/// What to check, and how long it may take.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Only these statements; all if there are none.
    pub only: Vec<u32>,
    /// No check takes longer.
    pub each: Duration,
    /// Nor all of them.
    pub all: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { only: Vec::new(), each: Duration::from_secs(30), all: Duration::from_secs(600) }
    }
}

/// One statement's outcome.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its number.
    pub id: u32,
    /// What has to hold.
    pub statement: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// Why it is not a pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long the check took, in milliseconds.
    pub milliseconds: u64,
    /// What went over the wire, decoded; only where something is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exchange: Vec<String>,
}

/// A whole run's.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `guest` or `host`.
    pub side: &'static str,
    /// How strict.
    pub profile: Profile,
    /// The peer, for people.
    pub peer: String,
    /// In the order of their numbers.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// How many have that verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.verdict == verdict).count()
    }

    /// Whether nothing has failed, and something has been checked.
    pub fn is_good(&self) -> bool {
        self.count(Verdict::Fail) == 0
            && self.count(Verdict::Pass) + self.count(Verdict::Tolerated) > 0
    }

    /// The numbers of those that failed, or were tolerated.
    pub fn deviations(&self) -> Vec<u32> {
        let bad =
            |outcome: &&Outcome| matches!(outcome.verdict, Verdict::Fail | Verdict::Tolerated);
        self.outcomes.iter().filter(bad).map(|outcome| outcome.id).collect()
    }
}

/// One side of the harness: what a run needs of it.
pub trait Harness {
    /// The side that it checks: `guest` or `host`.
    const SIDE: &'static str;

    /// How strict.
    fn profile(&self) -> Profile;

    /// Begins the check of a statement: an empty transcript.
    fn begin(&mut self, statement: u32);

    /// Why a statement with those needs cannot be checked.
    fn lacks(&self, needs: &[Need]) -> Option<String>;

    /// A check has run out of time.
    fn give_up(&mut self);

    /// Violations since the last call: statement and what it says.
    fn violations(&mut self) -> Vec<(u32, String)>;

    /// What went over the wire since the check began.
    fn transcript(&self) -> &Transcript;

    /// The peer, for people.
    fn describe(&self) -> String;
}

/// Checks a guest agent. `tell` is told of each outcome as it comes.
pub async fn guest(
    session: &mut Session,
    statements: &[Statement],
    plan: &Plan,
    tell: impl FnMut(&Outcome),
) -> Report {
    let wanted = |statement: &&Statement| plan.only.is_empty() || plan.only.contains(&statement.id);
    if statements.iter().filter(wanted).any(|statement| !statement.needs.is_empty()) {
        session.unprepared = prepare(session, plan).await;
    }
    let report = check(session, statements, plan, tell).await;
    session.target.end().await;
    report
}

/// Checks a host's bridge. `tell` is told of each outcome as it comes.
pub async fn host(
    session: &mut HostSession,
    statements: &[Statement<HostSession>],
    plan: &Plan,
    tell: impl FnMut(&Outcome),
) -> Report {
    session.each = plan.each;
    check(session, statements, plan, tell).await
}

async fn check<S: Harness>(
    session: &mut S,
    statements: &[Statement<S>],
    plan: &Plan,
    mut tell: impl FnMut(&Outcome),
) -> Report {
    let begun = Instant::now();
    let wanted =
        |statement: &&Statement<S>| plan.only.is_empty() || plan.only.contains(&statement.id);
    let (last, first): (Vec<_>, Vec<_>) =
        statements.iter().filter(wanted).partition(|statement| statement.destructive);
    let mut outcomes = BTreeMap::new();
    let mut noted = BTreeMap::<u32, Vec<String>>::new();
    for statement in first.into_iter().chain(last) {
        session.begin(statement.id);
        let check_begun = Instant::now();
        let left = plan.all.saturating_sub(begun.elapsed()).min(plan.each);
        let checked = match session.lacks(statement.needs) {
            _ if left.is_zero() => {
                Err(Stop::Skip(format!("the limit of {:?} for all checks is over", plan.all)))
            }
            Some(why) => Err(Stop::Skip(why)),
            None => match timeout(left, (statement.check)(session)).await {
                Ok(checked) => checked,
                Err(_) => {
                    session.give_up();
                    Err(Stop::fail(format!("the check does not end within {left:?}")))
                }
            },
        };
        let checked = settle(session, statement.id, plan, checked, &mut noted);
        let outcome = outcome(session, statement, checked, check_begun.elapsed());
        tell(&outcome);
        outcomes.insert(statement.id, outcome);
    }
    for (id, texts) in noted {
        if let Some(outcome) = outcomes.get_mut(&id)
            && outcome.verdict != Verdict::Fail
        {
            let statement = statements.iter().find(|statement| statement.id == id);
            let why = format!("met in another check: {}", texts[0]);
            let (verdict, reason) = statement.map_or((Verdict::Fail, why.clone()), |statement| {
                judge(session.profile(), statement.tolerated, why.clone())
            });
            if outcome.verdict != verdict {
                (outcome.verdict, outcome.reason) = (verdict, Some(reason));
                tell(outcome);
            }
        }
    }
    Report {
        side: S::SIDE,
        profile: session.profile(),
        peer: session.describe(),
        outcomes: outcomes.into_values().collect(),
    }
}

/// Maps what containers are made of. The error is a reason to skip what needs them.
async fn prepare(session: &mut Session, plan: &Plan) -> Option<String> {
    session.environment.layer_disk?;
    session.begin(0);
    let prepared = timeout(plan.each, async {
        session.ready().await?;
        session.prepare().await
    });
    match prepared.await {
        Ok(Ok(())) => None,
        Ok(Err(Stop::Fail(why) | Stop::Tolerated(why) | Stop::Skip(why))) => {
            Some(format!("the layer's disk cannot be mapped: {why}"))
        }
        Err(_) => Some(format!("the layer's disk is not mapped within {:?}", plan.each)),
    }
}

/// Gives each violation to its own statement.
fn settle<S: Harness>(
    session: &mut S,
    statement: u32,
    plan: &Plan,
    checked: Result<(), Stop>,
    noted: &mut BTreeMap<u32, Vec<String>>,
) -> Result<(), Stop> {
    let (own, others): (Vec<_>, Vec<_>) =
        session.violations().into_iter().partition(|(id, _)| *id == statement);
    // Of a statement that is not told of, this one has to tell.
    let told = |id: &u32| plan.only.is_empty() || plan.only.contains(id);
    let spoiled = others
        .iter()
        .find(|(id, _)| told(id))
        .map(|(id, text)| format!("spoiled by what statement {id} is about: {text}"));
    for (id, text) in others {
        noted.entry(id).or_default().push(text);
    }
    if let Some((_, text)) = own.first() {
        return Err(Stop::fail(text));
    }
    match (checked, spoiled) {
        (Err(Stop::Fail(_)), Some(spoiled)) => Err(Stop::Skip(spoiled)),
        (checked, _) => checked,
    }
}

fn judge(profile: Profile, tolerated: Option<&'static str>, why: String) -> (Verdict, String) {
    match (profile, tolerated) {
        (Profile::V4Lcow, Some(because)) => (Verdict::Tolerated, format!("{why} ({because})")),
        _ => (Verdict::Fail, why),
    }
}

fn outcome<S: Harness>(
    session: &S,
    statement: &Statement<S>,
    checked: Result<(), Stop>,
    took: Duration,
) -> Outcome {
    let (verdict, reason) = match checked {
        Ok(()) => (Verdict::Pass, None),
        Err(Stop::Skip(why)) => (Verdict::Skipped, Some(why)),
        Err(Stop::Tolerated(why)) => (Verdict::Tolerated, Some(why)),
        Err(Stop::Fail(why)) => {
            let (verdict, reason) = judge(session.profile(), statement.tolerated, why);
            (verdict, Some(reason))
        }
    };
    let told = matches!(verdict, Verdict::Fail | Verdict::Tolerated);
    Outcome {
        id: statement.id,
        statement: statement.text,
        verdict,
        reason,
        milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        exchange: if told { session.transcript().lines() } else { Vec::new() },
    }
}
