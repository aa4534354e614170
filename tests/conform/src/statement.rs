//! What a peer has to do: one statement, one row.

use std::fmt;
use std::pin::Pin;
use std::str::FromStr;

use serde::Serialize;

use crate::session::Session;
use crate::verdict::Checked;

/// How strict the harness is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// As hcsshim behaves today: what its hosts and guests live with is a tolerated deviation.
    V4Lcow,
    /// No deviation is tolerated, and bad frames and documents must not end the peer.
    Hardened,
}

impl Profile {
    /// As on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4Lcow => "v4-lcow",
            Self::Hardened => "hardened",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::V4Lcow, Self::Hardened]
            .into_iter()
            .find(|profile| profile.name() == text)
            .ok_or_else(|| format!("{text:?} is neither v4-lcow nor hardened"))
    }
}

/// What a statement cannot be checked without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// The peer dials us, so that it can be watched dialling.
    Dialling,
    /// A lost connection comes back to the same agent.
    Redial,
    /// The peer's stdio connections reach us.
    Stdio,
    /// A shell in the root of the utility VM.
    Shell,
    /// A layer that containers can be made of.
    Layer,
    /// A second layer.
    SecondLayer,
    /// A SCSI controller.
    Controller,
    /// A blank disk.
    BlankDisk,
    /// A network adapter.
    Nic,
    /// The agent's log stream.
    Logs,
}

impl Need {
    /// Why a statement is skipped without it.
    pub fn missing(self) -> &'static str {
        match self {
            Self::Dialling => "the agent does not dial here",
            Self::Redial => "this transport cannot be dialled again",
            Self::Stdio => "stdio connections would not reach the harness",
            Self::Shell => "no shell is known in the utility VM's root",
            Self::Layer => "there is no layer to make a container of",
            Self::SecondLayer => "there is no second layer",
            Self::Controller => "no disk is known, so perhaps there is no controller",
            Self::BlankDisk => "there is no blank disk",
            Self::Nic => "no network adapter is known",
            Self::Logs => "nothing has connected to the log port",
        }
    }
}

/// A check, of a guest in a [`Session`] or of a host in a [`HostSession`](crate::host::HostSession).
pub type Check<S = Session> = for<'a> fn(&'a mut S) -> Pin<Box<dyn Future<Output = Checked> + 'a>>;

/// One statement.
pub struct Statement<S = Session> {
    /// Its number in the list of its side.
    pub id: u32,
    /// What has to hold.
    pub text: &'static str,
    /// Set where a failure is tolerated in the profile `v4-lcow`: why peers live with it.
    pub tolerated: Option<&'static str>,
    /// What the check takes.
    pub needs: &'static [Need],
    /// Whether a peer that fails it may be gone afterwards; such checks come last.
    pub destructive: bool,
    /// The check.
    pub check: Check<S>,
}

impl<S> fmt::Debug for Statement<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Statement({}, {:?})", self.id, self.text)
    }
}

/// Rows of statements: `id "text" [needs] check;`, with `tolerated "why"` and `destructive` where
/// they apply.
macro_rules! statements {
    ($($id:literal $text:literal [$($need:ident)*] $(tolerated $why:literal)? $(, $destructive:ident)? => $check:path;)*) => {
        &[$($crate::statement::Statement {
            id: $id,
            text: $text,
            tolerated: statements!(@why $($why)?),
            needs: &[$($crate::statement::Need::$need),*],
            destructive: statements!(@flag $($destructive)?),
            check: |session| Box::pin($check(session)),
        }),*]
    };
    (@why) => { None };
    (@why $why:literal) => { Some($why) };
    (@flag) => { false };
    (@flag destructive) => { true };
}
pub(crate) use statements;
